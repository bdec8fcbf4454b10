"""NMF, SemiNMF and NNLS against SciPy, scikit-learn and factors that were planted."""

import numpy as np
import pytest
import scipy.optimize
import torch
from sklearn.base import clone
from sklearn.decomposition import NMF as ScikitNMF

import conceptlens.extraction.nnls as nnls_module
from conceptlens import NMF, SemiNMF
from conceptlens.extraction.nmf import nndsvd
from conceptlens.extraction.nnls import kkt_residual, nnls


def planted(n=400, c=60, k=6, dtype=torch.float32, noise=0.0):
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(n, k, generator=generator) * (torch.rand(n, k, generator=generator) < 0.4)
    v = torch.rand(k, c, generator=generator) * (torch.rand(k, c, generator=generator) < 0.3)
    return (u @ v + noise * torch.rand(n, c, generator=generator)).to(dtype), v.to(dtype)


@pytest.fixture(scope="module")
def real_activations():
    """Positions of the last block of EfficientNet-Lite0 on photographs, about 90 % zeros."""
    pytest.importorskip("efficientnet_lite_pytorch")
    from conceptlens.demo import demo_backbone, demo_pictures
    from conceptlens.images import Pictures

    bb = demo_backbone()
    views = demo_pictures("chelsea", 24) + demo_pictures("coffee", 24)
    ((_, x),) = Pictures(views, bb.transform).batches(48)
    return bb.activations(x).flatten(0, 1)


@pytest.mark.parametrize("k", [10, 25, 50])
def test_objective_is_scikit_learns_within_a_thousandth_on_real_activations(real_activations, k):
    a = real_activations
    u, v = nndsvd(a, k, torch.Generator().manual_seed(0))
    peer = ScikitNMF(k, init="custom", solver="cd", tol=1e-4, max_iter=1000)
    peer.fit_transform(a.numpy(), W=u.numpy().copy(), H=v.numpy().copy())
    ours = NMF(k)
    codes = ours.fit_transform(a, u, v)
    assert ours.reconstruction_err_**2 <= 1.001 * peer.reconstruction_err_**2
    true = (a - ours.inverse_transform(codes)).norm(dtype=torch.float64)
    assert ours.reconstruction_err_ == pytest.approx(float(true), rel=1e-6)
    assert kkt_residual(a, ours.components_, ours.transform(a)) <= 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_planted_factors_are_found(dtype, device):
    a, v = planted(dtype=dtype)
    nmf = NMF(6, max_iter=5000, tol=1e-9).fit(a.to(device))
    assert nmf.components_.dtype == dtype
    assert nmf.components_.device.type == device.type
    found = torch.nn.functional.normalize(nmf.components_.cpu(), dim=1)
    cosines = torch.nn.functional.normalize(v, dim=1) @ found.T
    rows, columns = scipy.optimize.linear_sum_assignment(-cosines)
    assert cosines[rows, columns].min() > 0.98
    assert nmf.reconstruction_err_ < 0.02 * a.norm()


@pytest.mark.parametrize("estimator", [NMF, SemiNMF])
def test_estimator_conventions(estimator):
    a, _ = planted(noise=0.05)
    before = a.clone()
    model = estimator(5, random_state=1)
    codes = model.fit_transform(a)
    assert torch.equal(a, before)
    assert codes.shape == (400, 5)
    assert (codes >= 0).all()
    assert model.components_.shape == (5, 60)
    assert model.n_features_in_ == 60
    assert clone(model).get_params() == model.get_params()
    again = clone(model).fit(a)
    assert torch.equal(again.components_, model.components_)
    torch.testing.assert_close(model.transform(a), codes)
    torch.testing.assert_close(model.transform(a[:7]), codes[:7])
    array = clone(model).fit_transform(a.numpy())
    assert isinstance(array, np.ndarray)
    np.testing.assert_allclose(array, codes.numpy(), rtol=1e-4, atol=1e-4)


def test_semi_nmf_beats_nmf_of_the_positive_part_on_signed_rows():
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(300, 4, generator=generator) @ torch.randn(4, 30, generator=generator)
    model = SemiNMF(4, max_iter=3000, tol=1e-8).fit(a)
    assert model.reconstruction_err_ < 0.1 * a.norm()
    assert (model.components_ < 0).any()


@pytest.mark.parametrize("k", [1, 3, 10, 40])
def test_nnls_is_scipys(k, device):
    generator = torch.Generator().manual_seed(k)
    v = torch.rand(k, 50, generator=generator, dtype=torch.float64)
    a = torch.rand(60, 50, generator=generator, dtype=torch.float64) - 0.3
    u = nnls(a.to(device), v.to(device)).cpu()
    expected = np.stack([scipy.optimize.nnls(v.numpy().T, row)[0] for row in a.numpy()])
    np.testing.assert_allclose(u.numpy(), expected, rtol=0, atol=1e-8)
    assert kkt_residual(a, v, u) < 1e-8


def test_nnls_of_rows_on_the_border_of_a_support_ends(device):
    """Rows that lie exactly on faces of the cone leave only rounding to decide their support."""
    v = torch.rand(6, 60, generator=torch.Generator().manual_seed(0))
    u = torch.rand(500, 6, generator=torch.Generator().manual_seed(1)).sub(0.6).clamp(min=0)
    codes = nnls((u @ v).to(device), v.to(device)).cpu()
    torch.testing.assert_close(codes, u, rtol=0, atol=1e-4)


def test_rows_that_exchanges_do_not_settle_go_to_scipy(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    v, a = torch.rand(8, 20, generator=generator), torch.rand(30, 20, generator=generator)
    expected = nnls(a, v)
    monkeypatch.setattr(nnls_module, "MAX_EXCHANGES", 0)
    torch.testing.assert_close(nnls(a, v), expected, rtol=0, atol=1e-5)


def test_nnls_with_repeated_and_empty_atoms():
    generator = torch.Generator().manual_seed(0)
    v = torch.rand(5, 20, generator=generator)
    v[1], v[2] = v[0], 0
    a = torch.rand(100, 20, generator=generator)
    u = nnls(a, v)
    assert torch.isfinite(u).all()
    assert kkt_residual(a, v, u) < 1e-4


@pytest.mark.parametrize(
    ("a", "k", "error", "words"),
    [
        (torch.ones(5, 4) - 2, 2, ValueError, "negative values.*SemiNMF"),
        (torch.full((5, 4), float("nan")), 2, ValueError, "NaN"),
        (torch.ones(5), 1, ValueError, r"\(n, C\)"),
        (torch.ones(0, 4), 1, ValueError, r"\(n, C\)"),
        (torch.ones(5, 4, dtype=torch.int64), 1, TypeError, "int64"),
        (torch.rand(5, 4), 5, ValueError, "n_components=5.*between 1 and 4"),
        (torch.rand(5, 4), 0, ValueError, "n_components=0"),
        (torch.zeros(5, 4), 2, ValueError, "zero"),
    ],
)
def test_bad_rows(a, k, error, words):
    with pytest.raises(error, match=words):
        NMF(k).fit(a)


def test_bad_use():
    with pytest.raises(ValueError, match="init"):
        NMF(2, init="svd").fit(torch.rand(5, 4))
    with pytest.raises(ValueError, match="not fitted"):
        NMF(2).transform(torch.rand(5, 4))
    with pytest.raises(ValueError, match=r"3 channels.*has 4"):
        NMF(2).fit(torch.rand(9, 4)).transform(torch.rand(5, 3))
