"""What every bottleneck model must do: one table of models, one list of checks."""

import json
import re

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

from conceptlens import ActivationStore, Backbone, ConceptModel, attribute, sobol, waterfall
from conceptlens.bottleneck import (
    BOTTLENECKS,
    Bottleneck,
    ConceptBottleneck,
    LabelFreeCBM,
    PosthocCBM,
)
from conceptlens.bottleneck.base import Network
from conceptlens.bottleneck.concept_bottleneck import labelled_loss
from conceptlens.bottleneck.data import TrainingData
from conceptlens.bottleneck.label_free import cubed_cosine
from conceptlens.bottleneck.training import train
from conceptlens.datasets import PlantedConcepts
from conceptlens.datasets.zoo import small_cnn
from conceptlens.maps import concept_maps
from conceptlens.metrics import pointing_game

K, C, N_CLASSES = 4, 12, 3
VOTES = torch.tensor([[4.0, 0, 0], [0, 4, 0], [0, 0, 4], [1, 2, 0]])
NAMES = np.array(["circus", "garden", "harbour"])


def planted(n=400, seed=0, noise=0.3, dtype=torch.float32):
    """Features that show four concepts, the concepts, and the class that they vote for."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(K, C, generator=torch.Generator().manual_seed(9))
    concepts = (torch.rand(n, K, generator=generator) < 0.5).float()
    features = concepts @ mixing + noise * torch.randn(n, C, generator=generator)
    labels = NAMES[(concepts @ VOTES).argmax(1).numpy()]
    return features.to(dtype), labels, concepts.to(dtype)


def hide(concepts, share=0.4):
    """The concepts with labels missing at random, and some rows without any."""
    generator = torch.Generator().manual_seed(5)
    hidden = torch.rand(concepts.shape, generator=generator) < share
    hidden[::7] = True
    return concepts.masked_fill(hidden, torch.nan)


def sees_features(model):
    """Whether the logits come from more than the codes."""
    return type(model.network_).logits is not Network.logits


def has_labelled_concepts(model):
    """Whether the codes are of the K concepts with labels, not of texts or discovered ones."""
    return len(model.concept_names) == K


@pytest.fixture(params=BOTTLENECKS)
def make(request):
    return BOTTLENECKS[request.param]


@pytest.fixture(scope="module", params=BOTTLENECKS)
def model(request):
    x, y, c = planted()
    return BOTTLENECKS[request.param](0).fit(x, y, concepts=c)


# -- every model -----------------------------------------------------------------------------------


def test_keeps_the_contract(model):
    x, y, c = planted(100, seed=1)
    k = len(model.concept_names)
    assert isinstance(model, Bottleneck)
    assert model.classes_.tolist() == NAMES.tolist()
    assert model.n_features_in_ == C
    assert model.decision_function(x).shape == model.predict_proba(x).shape == (100, N_CLASSES)
    torch.testing.assert_close(model.predict_proba(x).sum(1), torch.ones(100))
    assert model.predict_concepts(x).shape == (100, k)
    assert (model.predict(x) == NAMES[model.predict_proba(x).argmax(1).numpy()]).all()
    assert model.score(x, y) == (model.predict(x) == y).mean() >= 0.9
    assert not any(module.training for module in model.network_.modules())
    assert not model.predict_proba(x).requires_grad
    if has_labelled_concepts(model):
        assert ((model.predict_concepts(x) > 0.5) == c.bool()).float().mean() >= 0.95
    if model.held_out_ is not None:
        assert 60 <= len(model.held_out_) <= 80


def test_is_an_estimator_of_scikit_learn(model):
    names = [f"word {i}" for i in range(K)]
    copy = clone(model).set_params(random_state=3)
    assert repr(clone(copy)) == repr(copy)
    before = copy.get_params()
    x, y, c = planted(60)
    assert copy.fit(x, y, concepts=c) is copy
    assert {**copy.get_params()} == before
    if "concept_names" in before and has_labelled_concepts(model):
        assert clone(model).set_params(concept_names=names).fit(x, y, concepts=c).concept_names == (
            names
        )
        with pytest.raises(ValueError, match="concept_names must have 4 names, got 2"):
            clone(model).set_params(concept_names=names[:2]).fit(x, y, concepts=c)


def test_notebooks_show_scikit_learns_diagram(model):
    for estimator, state in ((clone(model), "not fitted"), (model, "fitted")):
        html = estimator._repr_html_()
        assert type(model).__name__ in re.sub("<style>.*?</style>", "", html, flags=re.DOTALL)
        assert f"<span>{state}</span>" in html.lower()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_arrays_and_tensors_agree(make, dtype):
    x, y, c = planted(150, dtype=dtype)
    of_tensors = make(0).fit(x, y, concepts=c)
    of_arrays = make(0).fit(x.numpy(), y.tolist(), concepts=c.numpy())
    logits = of_arrays.decision_function(x.numpy())
    assert isinstance(logits, np.ndarray)
    assert of_tensors.decision_function(x).dtype == dtype
    np.testing.assert_array_equal(logits, of_tensors.decision_function(x).numpy())
    indices = np.unique(y, return_inverse=True)[1]
    by_index = make(0).fit(x, torch.from_numpy(indices), concepts=c)
    np.testing.assert_array_equal(NAMES[by_index.predict(x)], of_tensors.predict(x))
    assert by_index.predict(x[:5]).dtype == np.int64


def test_stays_on_the_device(make, device):
    x, y, c = planted(150)
    model = make(0).fit(x.to(device), y, concepts=c.to(device))
    assert {t.device.type for t in model.network_.state_dict().values()} == {device.type}
    for result in (model.predict_proba(x.to(device)), model.encode(x.to(device))):
        assert result.device.type == device.type
    assert model.predict(x.to(device)).shape == (150,)


def test_is_deterministic_and_leaves_the_random_state(make):
    x, y, c = planted(150)
    state = torch.random.get_rng_state()
    first, second = (make(0).fit(x, y, concepts=c) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, tensor in first.network_.state_dict().items():
        assert torch.equal(tensor, second.network_.state_dict()[name]), name


def test_learns_from_labels_that_are_partly_missing(make):
    x, y, c = planted()
    fresh, labels, _ = planted(200, seed=1)
    model = make(0).fit(x, y, concepts=hide(c))
    assert model.score(fresh, labels) >= 0.9
    assert model.predict_concepts(fresh).isfinite().all()


def test_is_a_concept_model(model):
    x, _, _ = planted(20, seed=1)
    codes = model.encode(x)
    assert isinstance(model, ConceptModel)
    assert codes.shape == (20, 1, len(model.concept_names))
    logits = model.classify(codes)
    if not sees_features(model):
        torch.testing.assert_close(logits, model.decision_function(x))
    importance = attribute(model, codes, "garden")
    torch.testing.assert_close(
        importance.per_image.sum(1).float(),
        (logits - model.classify(torch.zeros_like(codes)))[:, 1],
        atol=1e-2,
        rtol=1e-2,
    )
    assert sobol(model, codes, "garden", n_designs=4).values.sum() > 0


def test_corrections_move_the_logits_to_the_truth(model):
    x, y, c = planted(200, seed=1, noise=1.5)
    if has_labelled_concepts(model):
        logits = model.intervene(x, dict(zip(model.concept_names, c.T, strict=True)))
        after = (NAMES[logits.argmax(1).numpy()] == y).mean()
        assert after > model.score(x, y)
        assert after >= 0.85 or sees_features(model)
    first = model.concept_names[0]
    ones = model.intervene(x, {first: 1})
    assert not torch.allclose(ones, model.intervene(x, {0: 0}))
    torch.testing.assert_close(ones, model.intervene(x, {0: np.ones(200)}))
    none = model.intervene(x, {first: torch.full((200,), torch.nan)})
    torch.testing.assert_close(none, model.decision_function(x))
    assert isinstance(model.intervene(x.numpy(), {0: 1}), np.ndarray)


@pytest.mark.parametrize(
    ("corrections", "message"),
    [
        ({"concept 99": 1}, "no concept called 'concept 99'; near names: .'concept"),
        ({99: 1}, "concept 99 does not exist"),
        ({0: [1.0, 0.0]}, r"correction of 0 must be one finite number or one a row \(20,\)"),
        ({0: float("inf")}, "finite"),
    ],
)
def test_wrong_corrections(model, corrections, message):
    with pytest.raises(ValueError, match=message):
        model.intervene(planted(20)[0], corrections)


def test_is_equal_after_loading(model, tmp_path):
    x, _, c = planted(50, seed=1)
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model")
    assert {p.name for p in (tmp_path / "model").iterdir()} == {"config.json", "model.safetensors"}
    for method in ("decision_function", "predict_concepts", "encode"):
        assert torch.equal(getattr(loaded, method)(x), getattr(model, method)(x))
    assert (loaded.predict(x) == model.predict(x)).all()
    assert loaded.concept_names == model.concept_names
    assert loaded.history_ == model.history_
    values = {0: c[:, 0]}
    assert torch.equal(loaded.intervene(x, values), model.intervene(x, values))


def damage(folder, kind):
    config, weights = folder / "config.json", folder / "model.safetensors"
    if kind == "config missing":
        config.unlink()
    elif kind == "config cut":
        config.write_bytes(config.read_bytes()[:-20])
    elif kind == "other class":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"class": "Other"}))
    elif kind == "other options":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"options": {"a": 1}}))
    elif kind == "other size":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"n_features": 5}))
    elif kind == "weights missing":
        weights.unlink()
    elif kind == "weights cut":
        weights.write_bytes(weights.read_bytes()[:-7])
    elif kind == "bits flipped":
        content = bytearray(weights.read_bytes())
        content[-3] ^= 64
        weights.write_bytes(content)
    return weights if kind in ("other size", "bits flipped") or "weights" in kind else config


@pytest.mark.parametrize(
    "kind",
    [
        "config missing",
        "config cut",
        "other class",
        "other options",
        "other size",
        "weights missing",
        "weights cut",
        "bits flipped",
    ],
)
def test_damaged_files_are_named(model, tmp_path, kind):
    model.save(tmp_path)
    path = damage(tmp_path, kind)
    with pytest.raises(ValueError, match=path.name):
        type(model).load(tmp_path)


X, Y, LABELS = planted(40)


def replaced(tensor, where, value):
    tensor = tensor.clone()
    tensor[where] = value
    return tensor


@pytest.mark.parametrize(
    ("x", "y", "c", "message"),
    [
        (X[0], Y, LABELS, "x must have shape"),
        (X[:0], Y[:0], LABELS[:0], "x must have shape"),
        (X, Y[:30], LABELS, r"y must have shape \(40,\)"),
        (X, Y[:, None], LABELS, r"y must have shape \(40,\)"),
        (X, Y, LABELS[:30], r"concepts must have shape \(40, k\)"),
        (X, Y, LABELS[:, 0], r"concepts must have shape \(40, k\)"),
        (X, np.full(40, "circus"), LABELS, "at least two classes, got only"),
        (X, np.linspace(0, 1, 40), LABELS, "Unknown label type: continuous"),
        (replaced(X, (3, 2), torch.nan), Y, LABELS, "x must be finite: 1 of"),
        (replaced(X, (3, 2), torch.inf), Y, LABELS, "x must be finite: 1 of"),
        (X, Y, replaced(LABELS, (3, 2), torch.inf), "concepts hold 1 infinite"),
        (X, Y, replaced(LABELS, (slice(None), 2), 1), "'concept 2' is constant, 1 in all"),
        (X, Y, replaced(LABELS, (slice(None), 2), torch.nan), "'concept 2' has no label"),
        (torch.rand(40, 3, 8, 8), Y, LABELS, "the model has no backbone"),
    ],
)
def test_bad_input(make, x, y, c, message):
    with pytest.raises(ValueError, match=message):
        make(0).fit(x, y, concepts=c)


def test_before_fit(make):
    for call in (
        lambda m: m.predict(X),
        lambda m: m.encode(X),
        lambda m: m.intervene(X, {0: 1}),
        lambda m: m.save("nowhere"),
    ):
        with pytest.raises(NotFittedError, match="call fit first"):
            call(make(0))


def test_other_features_than_in_fit(model):
    with pytest.raises(ValueError, match="x has 5 features a row, the model was fitted with 12"):
        model.predict(X[:, :5])
    with pytest.raises(TypeError, match="x must be numbers, pictures or an ActivationStore"):
        model.predict(np.array([["a", "b"]]))


# -- pictures --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data():
    return PlantedConcepts(3000)


@pytest.fixture(scope="module")
def backbone(data):
    return Backbone(small_cnn(data), "features.5", class_names=data.class_names)


@pytest.fixture(scope="module")
def pictures(data):
    return data.like(250, seed=1)


def fit_on(pictures, model):
    return model.fit(pictures.images, pictures.labels, concepts=pictures.concept_labels)


@pytest.fixture(scope="module")
def features(pictures, backbone):
    return backbone.activations(pictures.images).mean(1)


def test_pictures_store_and_features_agree(make, pictures, backbone, features, tmp_path):
    model = make(0).set_params(backbone=backbone)
    if "concept_embeddings" in model.get_params():
        model.set_params(concept_embeddings=torch.eye(32))
    model.fit(features, pictures.labels, concepts=pictures.concept_labels)
    few, wanted = pictures.images[:40], model.decision_function(features[:40])
    store = ActivationStore.build(backbone, few, tmp_path)
    for x in (few, few.numpy(), list(few), store, backbone.activations(few)):
        given = torch.as_tensor(model.decision_function(x))
        torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-4)
    codes = model.encode(few)
    assert codes.shape == (40, 1, len(model.concept_names))
    found = waterfall(model, few[0], 2)
    assert found.logit == pytest.approx(float(model.classify(codes)[0, 2]), abs=1e-3)


def test_fits_from_a_dataset_as_from_features(pictures, backbone, features):
    first = ConceptBottleneck(backbone, max_epochs=5).fit(
        pictures, pictures.labels, concepts=pictures.concept_labels
    )
    second = ConceptBottleneck(backbone, max_epochs=5).fit(
        features, pictures.labels, concepts=pictures.concept_labels
    )
    torch.testing.assert_close(
        first.predict_proba(features), second.predict_proba(features), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("name", ["joint", "posthoc"])
@pytest.mark.parametrize("method", ["interpolate", "coam"])
def test_maps_find_the_places_of_concepts(pictures, backbone, name, method):
    model = BOTTLENECKS[name](0).set_params(backbone=backbone)
    fit_on(pictures, model)
    x, masks = pictures.images[:60], pictures.masks[:60]
    maps = concept_maps(model, x, method)
    assert maps.shape == masks.shape
    hits = [pointing_game(maps[:, j], masks[:, j], tolerance=4).mean for j in range(6)]
    by_chance = pointing_game(maps[:, 0].roll(1, 0), masks[:, 0], tolerance=4).mean
    assert sum(hits) / 6 >= 0.65 > 2 * by_chance, (hits, by_chance)
    without = BOTTLENECKS[name](0).fit(backbone.activations(x), pictures.labels[:60],
                                       concepts=pictures.concept_labels[:60])  # fmt: skip
    with pytest.raises(ValueError, match="made without a backbone"):
        concept_maps(without, x, method)


def test_gradients_reach_the_pictures(pictures, backbone):
    model = fit_on(pictures, ConceptBottleneck(backbone, max_epochs=2))
    maps = concept_maps(model, pictures.images[:2], "saliency")
    assert maps.shape == (2, 8, 64, 64)
    assert (maps.amax((2, 3)) > 0).all()


def test_finetuning_trains_a_copy_of_the_backbone(pictures, data, tmp_path):
    model = small_cnn(data).train()
    user = Backbone(model, "features.5", class_names=data.class_names)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    options = {"max_epochs": 20, "batch_size": 32, "lr": 1e-2}
    fixed = fit_on(pictures, ConceptBottleneck(user, **options))
    tuned = fit_on(pictures, ConceptBottleneck(user, finetune_epochs=3, **options))
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert tuned.backbone is user
    assert tuned.backbone_ is not user
    losses = [entry["held_out_loss"] for entry in tuned.history_]
    assert min(losses[len(fixed.history_) :]) < min(
        entry["held_out_loss"] for entry in fixed.history_
    )
    x = pictures.images[:20]
    tuned.save(tmp_path)
    loaded = ConceptBottleneck.load(tmp_path, backbone=user)
    assert torch.equal(loaded.decision_function(x), tuned.decision_function(x))
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    with pytest.raises(ValueError, match="finetune_epochs needs training='joint' and pictures"):
        ConceptBottleneck(user, finetune_epochs=1, max_epochs=1).fit(X, Y, concepts=LABELS)
    with pytest.raises(ValueError, match="there is none: give it"):
        ConceptBottleneck.load(tmp_path)


# -- ConceptBottleneck -----------------------------------------------------------------------------


def test_layers_are_those_of_logistic_and_linear_regression():
    x, y, c = planted(300, noise=2.0, dtype=torch.float64)
    continuous = x[:, :2] @ torch.tensor([[1.0], [2]], dtype=torch.float64) + torch.randn(
        300, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    model = ConceptBottleneck(
        training="sequential", max_epochs=800, batch_size=300, lr=0.05, weight_decay=0.0,
        validation_fraction=0.0,
    ).fit(x, y, concepts=torch.cat([c, continuous], 1))  # fmt: skip
    found = model.predict_concepts(x).numpy()
    for j in range(K):
        truth = LogisticRegression(C=np.inf, tol=1e-8).fit(x, c[:, j])
        np.testing.assert_allclose(found[:, j], truth.predict_proba(x)[:, 1], atol=2e-3)
    truth = LinearRegression().fit(x, continuous[:, 0])
    np.testing.assert_allclose(found[:, K], truth.predict(x), atol=2e-3)
    head = LogisticRegression(C=np.inf, tol=1e-8).fit(found, y)
    np.testing.assert_allclose(model.predict_proba(x), head.predict_proba(found), atol=0.01)


def test_missing_labels_do_not_count_in_the_loss():
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(20, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = (torch.rand(20, 3, generator=generator) < 0.5).double()
    labels[:, 2] = torch.randn(20, generator=generator)
    known = torch.rand(20, 3, generator=generator) < 0.5
    binary = torch.tensor([True, True, False])
    loss = labelled_loss(outputs, labels.masked_fill(~known, torch.nan), binary)
    entropy = nn.functional.binary_cross_entropy(
        outputs[:, :2].sigmoid(), labels[:, :2], reduction="none"
    )
    parts = torch.cat([entropy, (outputs - labels)[:, 2:].square()], 1)
    torch.testing.assert_close(loss, parts[known].mean())
    (gradient,) = torch.autograd.grad(loss, outputs)
    assert gradient.isfinite().all()
    assert (gradient[~known] == 0).all()


def test_training_stops_early_at_its_best():
    x, y, c = planted(120, noise=2.0)
    model = ConceptBottleneck(max_epochs=500, patience=5, lr=0.1).fit(x, y, concepts=c)
    losses = [entry["held_out_loss"] for entry in model.history_]
    assert len(losses) < 500
    assert len(losses) - 1 - int(np.argmin(losses)) == 5
    held = model.held_out_
    codes = model.network_.outputs(held.features)
    loss = nn.functional.cross_entropy(model.decision_function(held.features), held.y)
    loss += labelled_loss(codes, held.concepts, torch.ones(K, dtype=torch.bool))
    assert float(loss) == pytest.approx(min(losses), rel=1e-5)


def test_balanced_classes_and_the_split():
    y = torch.tensor([0] * 50 + [1] * 20 + [2])
    data = TrainingData(torch.rand(71, 2), y, None, torch.arange(71), 3)
    wanted = compute_class_weight("balanced", classes=np.arange(3), y=y.numpy())
    np.testing.assert_allclose(data.class_weights("balanced"), wanted, rtol=1e-6)
    split = data.split(0.2, 0)
    assert torch.bincount(split.held_out.y, minlength=3).tolist() == [10, 4, 0]
    assert torch.equal(torch.cat([split.rows, split.held_out.rows]).sort().values, data.rows)
    with pytest.raises(ValueError, match="class_weight must be None or 'balanced', got 'even'"):
        ConceptBottleneck(class_weight="even").fit(X, Y, concepts=LABELS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"training": "both"}, "training must be one of .*, got 'both'"),
        ({"validation_fraction": 1.0}, "validation_fraction must be .* got 1.0"),
        ({"max_epochs": 0}, "max_epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        ConceptBottleneck(**options).fit(X, Y, concepts=LABELS)


def test_needs_concepts_and_a_finite_loss():
    for model in (ConceptBottleneck(), PosthocCBM(), LabelFreeCBM()):
        with pytest.raises(
            ValueError, match=r"learns from concept labels: give fit\(..., concepts=\)"
        ):
            model.fit(X, Y)
    linear = nn.Linear(C, 1)
    data = TrainingData(X, torch.zeros(40, dtype=torch.long), None, torch.arange(40), 2)
    with pytest.raises(FloatingPointError, match=r"not finite in epoch 0: lower lr=0\.1"):
        train(linear, lambda b: linear(b.features).mean() * torch.inf, data, max_epochs=1, lr=0.1,
              batch_size=40, random_state=0)  # fmt: skip


# -- PosthocCBM ------------------------------------------------------------------------------------


def test_the_bank_is_that_of_logistic_regression():
    x, y, c = planted(300, noise=1.5, dtype=torch.float64)
    x = x * torch.logspace(-2, 2, C, dtype=torch.float64) + 3
    model = PosthocCBM(penalty=1e-3, validation_fraction=0.0).fit(x, y, concepts=hide(c))
    for j in range(K):
        known = ~hide(c)[:, j].isnan()
        truth = make_pipeline(
            StandardScaler().fit(x), LogisticRegression(class_weight="balanced", max_iter=5000)
        )
        truth.set_params(standardscaler=StandardScaler())
        scaled = StandardScaler().fit(x).transform(x)
        direct = LogisticRegression(class_weight="balanced", max_iter=5000).fit(
            scaled[known], c[known, j]
        )
        np.testing.assert_allclose(
            model.predict_concepts(x)[:, j], direct.predict_proba(scaled)[:, 1], atol=1e-3
        )
    vectors = model.network_.vectors
    codes = (x @ vectors.T) / vectors.norm(dim=1) ** 2
    torch.testing.assert_close(model.encode(x)[:, 0], codes)
    torch.testing.assert_close(x @ model.directions.T, codes)
    assert PosthocCBM(classifier="svm", penalty=1e-3).fit(x, y, concepts=c).score(x, y) > 0.6
    with pytest.raises(ValueError, match=r"classifier must be one of .*, got 'tree'"):
        PosthocCBM(classifier="tree").fit(x, y, concepts=c)


def test_continuous_concepts_are_corrected_in_their_units():
    x, _, c = planted(300, noise=0.1, dtype=torch.float64)
    amount = 10 + 5 * x[:, :1]
    y = np.where(amount[:, 0] > 12, "much", "little")
    model = PosthocCBM(penalty=1e-3, random_state=1).fit(x, y, concepts=torch.cat([c, amount], 1))
    torch.testing.assert_close(model.predict_concepts(x)[:, K:], amount, atol=0.5, rtol=0)
    for value, name in ((4.0, "little"), (20.0, "much")):
        corrected = model.intervene(x, {K: value}).argmax(1)
        assert (model.classes_[corrected] == name).mean() > 0.95


def test_given_vectors_need_no_labels(tmp_path):
    x, y, c = planted(300)
    vectors = torch.linalg.pinv(torch.linalg.lstsq(c, x).solution).T
    model = PosthocCBM(
        concept_vectors=vectors.numpy(), penalty=1e-3, concept_names=list("abcd")
    ).fit(x, y)
    assert model.score(x, y) > 0.95
    assert model.concept_names == list("abcd")
    assert ((model.predict_concepts(x) > 0.5) == c.bool()).float().mean() > 0.95
    wanted = NAMES[model.intervene(x, dict(zip("abcd", c.T, strict=True))).argmax(1).numpy()]
    assert (wanted == y).mean() > 0.95
    model.save(tmp_path)
    assert torch.equal(PosthocCBM.load(tmp_path).predict_proba(x), model.predict_proba(x))
    with pytest.raises(ValueError, match=r"concept_vectors must have shape \(k, 12\)"):
        PosthocCBM(concept_vectors=torch.ones(2, 3)).fit(x, y)


def test_the_hybrid_adds_what_concepts_leave_open():
    x, y, c = planted(400)
    fresh, labels, _ = planted(200, seed=1)
    plain, hybrid = (
        PosthocCBM(hybrid=h, lr=1e-2).fit(x, y, concepts=c[:, :1]) for h in (False, True)
    )
    assert hybrid.score(fresh, labels) > plain.score(fresh, labels) + 0.2
    part = hybrid.classify(hybrid.encode(fresh))
    torch.testing.assert_close(part, plain.decision_function(fresh))
    shift = hybrid.decision_function(fresh) - part
    corrected = hybrid.intervene(fresh, {0: 1}) - plain.intervene(fresh, {0: 1})
    torch.testing.assert_close(corrected, shift)


def test_a_larger_penalty_reads_fewer_concepts():
    x, y, c = planted(300)
    counts = [
        int(PosthocCBM(penalty=p).fit(x, y, concepts=c).network_.to_classes.weight.count_nonzero())
        for p in (1e-3, 0.05, 10.0)
    ]
    assert counts[0] > counts[1] > counts[2] == 0


# -- LabelFreeCBM ----------------------------------------------------------------------------------


def test_the_cubed_cosine_is_the_formula():
    rng = np.random.default_rng(0)
    found, wanted = rng.normal(size=(2, 50, 3))
    cubes = [((v - v.mean(0)) / v.std(0)) ** 3 for v in (found, wanted)]
    truth = (cubes[0] * cubes[1]).sum(0) / np.linalg.norm(cubes, axis=1).prod(0)
    given = torch.from_numpy(wanted).index_put(
        (torch.tensor([0]), torch.tensor([0])), torch.tensor(torch.nan).double()
    )
    whole = cubed_cosine(torch.from_numpy(found), torch.from_numpy(wanted))
    np.testing.assert_allclose(whole, truth, rtol=1e-10)
    partly = cubed_cosine(torch.from_numpy(found), given)
    np.testing.assert_allclose(partly[1:], truth[1:], rtol=1e-10)
    without = cubed_cosine(torch.from_numpy(found[1:]), torch.from_numpy(wanted[1:]))
    np.testing.assert_allclose(partly[0], without[0], rtol=1e-10)


def test_words_that_features_do_not_show_are_dropped():
    x, y, c = planted(500)
    generator = torch.Generator().manual_seed(0)
    similarities = 0.2 + 0.02 * c + 0.002 * torch.randn(500, K, generator=generator)
    noise = 0.2 + 0.02 * torch.randn(500, 2, generator=generator)
    words = ["noise", "disc", "square", "star", "ring", "nothing"]
    columns = torch.cat([noise[:, :1], similarities, noise[:, 1:]], 1)
    model = LabelFreeCBM(concept_names=words).fit(x, y, concepts=columns)
    assert model.concept_names == words[1:5]
    assert model.score(x, y) > 0.95
    torch.testing.assert_close(model.predict_concepts(x), similarities, atol=0.012, rtol=0)
    codes = model.encode(x)[:, 0]
    torch.testing.assert_close(codes[:, 0].std(), torch.tensor(1.0), atol=0.1, rtol=0)
    with pytest.raises(ValueError, match=r"no concept.s cubed cosine .* the best has"):
        LabelFreeCBM(max_epochs=20).fit(x, y, concepts=noise)
    with pytest.raises(ValueError, match="give a larger validation_fraction"):
        LabelFreeCBM(validation_fraction=0.0).fit(x, y, concepts=columns)


def test_a_class_reads_about_as_many_concepts_as_asked():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 30, generator=generator)
    y = (x @ torch.randn(30, 3, generator=generator)).argmax(1)
    model = LabelFreeCBM(nonzeros=5).fit(x, y, concepts=x)
    assert 3 <= float(model.network_.to_classes.weight.count_nonzero()) / 3 <= 5
