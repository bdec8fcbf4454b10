"""What every extractor must do: one table of extractors, one list of checks."""

import json

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA, FastICA, MiniBatchDictionaryLearning, TruncatedSVD
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from conceptlens import (
    CRAFT,
    NMF,
    ActivationStore,
    Backbone,
    ConvexNMF,
    DictionaryModel,
    SemiNMF,
    SparseAutoencoder,
)
from conceptlens.extraction import EXTRACTORS, as_extractor, load
from conceptlens.sealing import pack, unpack

K = 4


@pytest.fixture(params=EXTRACTORS)
def extractor(request):
    return EXTRACTORS[request.param](K, 0)


def rows(n=300, c=12, dtype=torch.float32):
    """Nonnegative rows of four planted directions and a little noise."""
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(n, K, generator=generator) * (torch.rand(n, K, generator=generator) < 0.5)
    v = torch.rand(K, c, generator=generator)
    return (u @ v + 0.01 * torch.rand(n, c, generator=generator)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_codes_and_reconstruction(extractor, device, dtype):
    a = rows(dtype=dtype).to(device)
    before = a.clone()
    codes = extractor.fit_transform(a)
    k = len(extractor.components_)
    rebuilt = extractor.inverse_transform(codes)
    assert torch.equal(a, before)
    assert extractor.components_.shape == (k, 12)
    assert codes.shape == (300, k)
    assert (codes.dtype, rebuilt.dtype) == (dtype, dtype)
    assert (codes.device, rebuilt.device) == (a.device, a.device)
    # Better than saying the mean of all rows every time.
    assert (a - rebuilt).norm() < (a - a.mean(0)).norm()


def test_fit_returns_self_and_is_deterministic(extractor):
    assert extractor.fit(rows()) is extractor
    again = clone(extractor).fit(rows())
    assert repr(again) == repr(extractor)
    torch.testing.assert_close(again.components_, extractor.components_, rtol=0, atol=0)
    torch.testing.assert_close(extractor.fit(rows()).components_, again.components_)


def test_codes_do_not_depend_on_the_other_rows(extractor):
    a = rows()
    extractor.fit(a)
    torch.testing.assert_close(
        torch.cat([extractor.transform(part) for part in a.split(7)]), extractor.transform(a)
    )


def test_arrays_give_arrays(extractor):
    a = rows()
    codes = clone(extractor).fit(a).transform(a)
    extractor.fit(a.numpy())
    array = extractor.transform(a.numpy())
    assert isinstance(array, np.ndarray)
    assert isinstance(extractor.inverse_transform(array), np.ndarray)
    np.testing.assert_allclose(array, codes.numpy(), rtol=1e-3, atol=1e-3)


def test_gradients_flow_through_the_decoder(extractor):
    a = rows(dtype=torch.float64)
    codes = extractor.fit(a).transform(a[:3]).requires_grad_()
    assert torch.autograd.gradcheck(extractor.inverse_transform, codes)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 12, 4, 4), nn.ReLU())
        self.fc = nn.Linear(12, 2)

    def forward(self, x):
        return self.fc(self.features(x).mean((2, 3)))


def pictures(n=20):
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_serves_a_concept_model_and_craft(extractor):
    bb = Backbone(Network(), "features")
    cm = DictionaryModel(bb, clone(extractor).fit(bb.activations(pictures()).flatten(0, 1)))
    codes = cm.encode(pictures(3))
    assert codes.shape == (3, 16, len(cm.concept_names))
    assert cm.classify(codes).shape == (3, 2)
    explanation = CRAFT(bb, K, 8, extractor=extractor, n_designs=8).explain(pictures())
    assert len(explanation.concepts) == len(extractor.components_)


def test_fits_from_a_store(extractor, tmp_path):
    bb = Backbone(Network(), "features")
    store = ActivationStore.build(bb, pictures(), tmp_path)
    extractor.fit(store)
    a = store[:].flatten(0, 1)
    rebuilt = extractor.inverse_transform(extractor.transform(a))
    assert (a - rebuilt).norm() < (a - a.mean(0)).norm()


@pytest.mark.parametrize(
    ("a", "error", "words"),
    [
        (torch.full((9, 12), float("nan")), ValueError, "NaN"),
        (torch.full((9, 12), float("inf")), ValueError, "infinite"),
        (torch.ones(9), ValueError, r"\(n, C\)"),
        (torch.ones(0, 12), ValueError, r"\(n, C\)"),
        (torch.ones(9, 12, dtype=torch.int64), TypeError, "int64"),
    ],
)
def test_bad_rows(extractor, a, error, words):
    with pytest.raises(error, match=words):
        extractor.fit(a)
    extractor.fit(rows())
    with pytest.raises(error, match=words):
        extractor.transform(a)


def test_bad_use(extractor):
    with pytest.raises(ValueError, match="not fitted"):
        extractor.transform(rows())
    with pytest.raises(ValueError, match=r"3 channels.*has 12"):
        extractor.fit(rows()).transform(rows(c=3))


@pytest.mark.parametrize(
    "estimator",
    [PCA(K, random_state=0), PCA(K, whiten=True, random_state=0), FastICA(K, random_state=0),
     MiniBatchDictionaryLearning(K, random_state=0)],
)  # fmt: skip
def test_scikit_learns_own_codes_and_decoding(estimator):
    a = rows()
    ours = as_extractor(clone(estimator)).fit(a)
    theirs = clone(estimator).fit(a.numpy())
    codes = theirs.transform(a.numpy())
    np.testing.assert_allclose(ours.transform(a).numpy(), codes, rtol=1e-4, atol=1e-4)
    if hasattr(theirs, "inverse_transform"):
        expected = theirs.inverse_transform(codes)
    else:
        expected = codes @ theirs.components_
    decoded = ours.inverse_transform(torch.from_numpy(codes)).numpy()
    np.testing.assert_allclose(decoded, expected, rtol=1e-4, atol=1e-4)


def test_a_clusterings_codes_are_one_hot():
    a = rows()
    fitted = KMeans(K, random_state=0).fit(a.numpy())
    ours = as_extractor(fitted)  # fitted already
    codes = ours.transform(a)
    assert (codes.sum(1) == 1).all()
    assert codes.argmax(1).tolist() == fitted.predict(a.numpy()).tolist()
    expected = fitted.cluster_centers_[fitted.predict(a.numpy())]
    np.testing.assert_allclose(ours.inverse_transform(codes).numpy(), expected, rtol=1e-6)


def test_a_clustering_of_doubles_is_loaded_and_takes_floats(tmp_path):
    extractor = EXTRACTORS["kmeans"](K, 0).fit(rows().double())
    extractor.save(tmp_path)
    codes = extractor.transform(rows().double())
    for loaded in (extractor, load(tmp_path)):
        assert torch.equal(loaded.transform(rows()), codes.float())
        assert torch.equal(loaded.transform(rows().double()), codes)


def test_what_is_no_extractor_is_refused():
    with pytest.raises(TypeError, match=r"transform.*got str"):
        as_extractor("pca")


OURS = [NMF(2), SemiNMF(2), ConvexNMF(2), SparseAutoencoder(4, sparsity=1, n_epochs=2)]
# What ours do otherwise than scikit-learn checks for, and why.
OTHERWISE = {"check_n_features_in_after_fitting": "the error speaks of channels, not of features"}
OTHERWISE_TOO = {
    NMF: {"check_positive_only_tag_during_fit": "the error names the remedy in our words"},
    SparseAutoencoder: {"check_fit2d_1sample": "of one row it says that all rows are the same"},
}


@parametrize_with_checks(
    OURS, expected_failed_checks=lambda ours: OTHERWISE | OTHERWISE_TOO.get(type(ours), {})
)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


# -- saving ----------------------------------------------------------------------------------


def test_saved_and_loaded_is_the_same(extractor, tmp_path):
    a = rows()
    extractor.fit(a).save(tmp_path)
    for loaded in (load(tmp_path), type(extractor).load(tmp_path)):
        assert repr(loaded) == repr(extractor)
        assert torch.equal(loaded.components_, extractor.components_)
        codes = extractor.transform(a)
        torch.testing.assert_close(loaded.transform(a), codes, rtol=0, atol=1e-6)
        rebuilt = extractor.inverse_transform(codes)
        assert torch.equal(loaded.inverse_transform(codes), rebuilt)
    assert {f.name for f in tmp_path.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    card = (tmp_path / "README.md").read_text()
    assert f"{len(extractor.components_)} concepts of activations with 12 channels" in card


def test_no_extractor_is_saved_before_it_is_fitted(extractor, tmp_path):
    with pytest.raises(ValueError, match="not fitted"):
        extractor.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_no_file_can_say_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="TruncatedSVD cannot be saved"):
        as_extractor(TruncatedSVD(2)).fit(rows()).save(tmp_path / "out")
    with pytest.raises(TypeError, match="ScikitExtractor cannot be saved, its options"):
        as_extractor(PCA(2, random_state=np.random.RandomState(0))).fit(rows()).save(tmp_path)


def test_another_kind_is_refused(tmp_path):
    NMF(K).fit(rows()).save(tmp_path)
    with pytest.raises(ValueError, match=r"holds NMF, not SemiNMF.*extraction\.load"):
        SemiNMF.load(tmp_path)
    with pytest.raises(ValueError, match=r"config\.json"):
        load(tmp_path / "nowhere")


def test_an_autoencoder_saved_before_kinds_were_written_is_read(tmp_path):
    sae = EXTRACTORS["sae"](K, 0).fit(rows())
    sae.save(tmp_path)
    rewrite(tmp_path, lambda config: config.pop("class"))
    assert torch.equal(load(tmp_path).components_, sae.components_)


def rewrite(folder, change, rename=lambda name: name):
    """Write the folder's config and weights anew after `change`, with sums that fit."""
    tensors, record = unpack(folder / "model.safetensors")
    config = record["config"]
    change(config)
    tensors = {rename(name): tensor for name, tensor in tensors.items()}
    (folder / "model.safetensors").write_bytes(pack(tensors, {"config": config}))
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("nmf", lambda config: config.update({"class": "os.system"})),
        ("nmf", lambda config: config.update({"class": ["NMF"]})),
        ("nmf", lambda config: config.update(options=None)),
        ("nmf", lambda config: config["options"].update(n_components=7)),
        ("nmf", lambda config: config["options"].update(alpha_W="0")),
        ("nmf", lambda config: config["options"].update(more=1)),
        ("nmf", lambda config: config.pop("n_iter")),
        ("nmf", lambda config: config.update(reconstruction_err="x")),
        ("sae", lambda config: config["options"].update(n_components=10**12)),
        ("sae", lambda config: config.update(history=[1])),
        ("pca", lambda config: config["options"].update(estimator="os")),
        ("pca", lambda config: config["options"].update(more=1)),
        ("pca", lambda config: config["attributes"].update(transform=1)),
        ("pca", lambda config: config.update(attributes=3)),
        ("nmf", lambda config: config.update(reconstruction_err=10**400)),
        ("nmf", lambda config: config["options"].update(alpha_W=10**400)),
        ("kmeans", lambda config: config.update(attributes={})),
        ("kmeans", lambda config: config["attributes"].update(n_features_in_=7)),
    ],
)
def test_a_hostile_config_is_refused(name, change, tmp_path):
    EXTRACTORS[name](K, 0).fit(rows()).save(tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(ValueError, match=r"config\.json"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "tensor", "change"),
    [
        ("pca", "components_", lambda x: x * torch.nan),
        ("pca", "mean_", lambda x: x * torch.nan),
        ("ica", "mixing_", lambda x: x / 0),
        ("ica", "components_", lambda x: x * torch.nan),
        ("kmeans", "cluster_centers_", lambda x: x * torch.nan),
        ("kmeans", "cluster_centers_", torch.Tensor.half),
        ("kmeans", "cluster_centers_", torch.Tensor.int),
        ("kmeans", "cluster_centers_", lambda x: x.flatten()),
        ("kmeans", "cluster_centers_", lambda x: x.flatten()[0]),
        ("kmeans", "cluster_centers_", lambda x: x[:0]),
    ],
)
def test_numbers_that_no_fit_learns_are_refused(name, tensor, change, tmp_path):
    EXTRACTORS[name](K, 0).fit(rows()).save(tmp_path)
    tensors, record = unpack(tmp_path / "model.safetensors")
    tensors[tensor] = change(tensors[tensor])
    (tmp_path / "model.safetensors").write_bytes(pack(tensors, record))
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        load(tmp_path)


@pytest.mark.parametrize("name", EXTRACTORS)
def test_weights_of_other_names_are_refused(name, tmp_path):
    EXTRACTORS[name](K, 0).fit(rows()).save(tmp_path)
    rewrite(tmp_path, lambda config: None, lambda name: f"{name}x")
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        load(tmp_path)
