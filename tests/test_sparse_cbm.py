"""`SparseCBM` on embeddings that are made of their concepts' texts."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from conceptlens import Backbone
from conceptlens.bottleneck.sparse import SparseCBM, geometric
from conceptlens.datasets.zoo import SmallViT

K, E = 8, 24


@pytest.fixture(scope="module")
def planted():
    """Embeddings (n, e), classes that three of their concepts decide, and the concepts' texts."""
    generator = torch.Generator().manual_seed(0)
    texts = torch.nn.functional.normalize(torch.randn(K, E, generator=generator), dim=1)
    concepts = torch.rand(900, K, generator=generator) < 0.5
    noise = 0.15 * torch.randn(900, E, generator=generator)
    x = concepts.float() @ texts + texts.mean(0) + noise
    votes = concepts.float()[:, :3] * torch.tensor([3.0, 2.0, 2.0]) + torch.tensor([0, 0.5, 0])
    return x, votes.argmax(1), texts


def fitted(planted, **options):
    x, y, texts = planted
    options = {"max_epochs": 30, "lr": 3e-3, "scale": 10.0} | options
    return SparseCBM(concept_embeddings=texts, **options).fit(x[:600], y[:600])


@pytest.mark.parametrize("sparsity", ["gumbel", "l1", "contrastive"])
def test_each_way_learns_the_classes_about_as_well_as_logistic_regression(planted, sparsity):
    x, y, texts = planted
    model = fitted(planted, sparsity=sparsity)
    scores = model.network_.scores(x).numpy()
    truth = torch.nn.functional.cosine_similarity(x[:, None], texts[None], dim=2).numpy()
    np.testing.assert_allclose(scores, 10 * truth, atol=1e-5)
    probe = LogisticRegression(C=100, fit_intercept=False, max_iter=500).fit(scores[:600], y[:600])
    reference = probe.score(scores[600:], y[600:])
    assert reference > 0.9
    assert model.score(x[600:], y[600:]) > reference - 0.05
    codes = model.encode(x)[:, 0]
    logits = codes @ model.network_.head.weight.T  # no bias anywhere
    torch.testing.assert_close(logits, model.decision_function(x))
    torch.testing.assert_close(codes, model.network_.scores(x) @ model.network_.bottleneck.weight.T)


def test_l1_shrinks_the_first_layer_by_its_strength(planted):
    sums = [
        float(fitted(planted, sparsity="l1", strength=s).network_.bottleneck.weight.abs().sum())
        for s in (0.0, 0.3, 3.0)
    ]
    assert sums[0] > 1.5 * sums[1] > 2 * sums[2]


def test_similarity_keeps_activations_like_the_scores(planted):
    def likeness(weight):
        model = fitted(planted, sparsity="contrastive", similarity_weight=weight)
        z, s = model.encode(planted[0])[:, 0], model.network_.scores(planted[0])
        return np.mean([np.corrcoef(z[:, j], s[:, j])[0, 1] for j in range(K)])

    assert likeness(10.0) > 0.99 > likeness(0.0)


def test_gumbel_makes_few_activations_stand_out_and_its_mean_over_all_makes_them_alike(planted):
    """The share of a picture's softmax that its strongest concept takes."""

    def peak(**options):
        return float(fitted(planted, **options).encode(planted[0])[:, 0].softmax(1).amax(1).mean())

    none = peak(strength=0.0)
    assert peak() > none + 0.1
    assert peak(hard=False) < none - 0.1


def test_temperature_falls_geometrically():
    assert geometric(1.0, 0.125, 4) == pytest.approx([1, 0.5, 0.25, 0.125])
    assert geometric(2.0, 0.5, 1) == [2.0]


def test_saved_and_loaded(planted, tmp_path):
    x = planted[0]
    model = fitted(planted, max_epochs=2, concept_names=[f"text {i}" for i in range(K)])
    model.save(tmp_path / "model")
    again = SparseCBM.load(tmp_path / "model")
    assert torch.equal(again.decision_function(x), model.decision_function(x))
    assert again.concept_names == [f"text {i}" for i in range(K)]


@pytest.fixture(scope="module")
def pictures():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(60, 3, 32, 32, generator=generator)
    y = torch.arange(60) % 2
    x[y == 1, 0, :16] += 0.5
    torch.manual_seed(0)
    return x, y, Backbone(SmallViT(3, 32).eval(), "norm"), torch.randn(4, 64, generator=generator)


def test_lora_adapts_a_frozen_backbone(pictures, tmp_path):
    x, y, backbone, texts = pictures
    mark, options = backbone.fingerprint(), {"max_epochs": 8, "batch_size": 20, "scale": 10.0}
    plain = SparseCBM(backbone, concept_embeddings=texts, **options).fit(x, y)
    model = SparseCBM(backbone, concept_embeddings=texts, lora_rank=2, **options).fit(x, y)
    assert model.history_[-1]["loss"] < plain.history_[-1]["loss"]
    ups = list(model.network_.adapters.up)
    assert any(up.abs().sum() > 0 for up in ups)
    assert backbone.fingerprint() == mark
    # Predictions on pictures are the adapted backbone's, also when read from files.
    embeddings = model.backbone_.activations(x).mean(1)
    torch.testing.assert_close(model.decision_function(embeddings), model.decision_function(x))
    model.save(tmp_path / "model")
    again = SparseCBM.load(tmp_path / "model", backbone)
    torch.testing.assert_close(again.decision_function(x), model.decision_function(x))
    with pytest.raises(ValueError, match="lora_rank adapts a backbone, but there is none"):
        SparseCBM.load(tmp_path / "model")


def test_refusals(planted, pictures):
    x, y, texts = planted
    with pytest.raises(ValueError, match="give concept_embeddings="):
        SparseCBM().fit(x, y)
    with pytest.raises(ValueError, match=r"concept_embeddings must have shape \(k, e = 24\)"):
        SparseCBM(concept_embeddings=texts[:, :5]).fit(x, y)
    with pytest.raises(ValueError, match=r"sparsity must be one of .* got 'lasso'"):
        fitted(planted, sparsity="lasso")
    with pytest.raises(ValueError, match="tau_end must be a finite number above 0, got 0"):
        fitted(planted, tau_end=0)
    features = pictures[2].activations(pictures[0]).mean(1)
    with pytest.raises(ValueError, match="give pictures, not embeddings"):
        SparseCBM(pictures[2], concept_embeddings=pictures[3], lora_rank=2).fit(
            features, pictures[1]
        )
