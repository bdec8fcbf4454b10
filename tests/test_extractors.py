"""What every extractor must do: one table of extractors, one list of checks."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA, FastICA, MiniBatchDictionaryLearning
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
from conceptlens.extraction import EXTRACTORS, as_extractor

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


def test_what_is_no_extractor_is_refused():
    with pytest.raises(TypeError, match=r"transform.*got str"):
        as_extractor("pca")


OURS = [NMF(2), SemiNMF(2), ConvexNMF(2), SparseAutoencoder(4, sparsity=1, n_epochs=2)]
# What ours do otherwise than scikit-learn checks for, and why.
OTHERWISE = {
    "check_n_features_in_after_fitting": "the error speaks of channels, not of features",
    "check_positive_only_tag_during_fit": "the error names the remedy in our words",
    "check_fit2d_1sample": "of one row an autoencoder says that all rows are the same",
}


@parametrize_with_checks(OURS, expected_failed_checks=lambda _: OTHERWISE)
def test_scikit_learns_checks(estimator, check):
    check(estimator)
