"""Gradients through nonnegative least squares, against finite differences in float64."""

import numpy as np
import torch

from conceptlens.extraction.implicit import implicit_nnls
from conceptlens.extraction.nmf import NMF
from conceptlens.extraction.nnls import nnls


def problem(seed, n=6, dtype=torch.float64):
    """Rows and a dictionary, without the rows that are about to change their support."""
    generator = torch.Generator().manual_seed(seed)
    k, channels = 2 + seed % 9, 12 + seed % 7
    v = torch.rand(k, channels, generator=generator, dtype=torch.float64)
    v *= torch.rand(k, channels, generator=generator) > 0.4
    a = torch.rand(n, k, generator=generator, dtype=torch.float64) @ v
    a += 0.7 * torch.rand(n, channels, generator=generator, dtype=torch.float64)
    u = nnls(a, v)
    slack = u @ v @ v.T - a @ v.T
    settled = torch.where(u > 0, u, slack).amin(1) > 1e-3
    return a[settled].to(dtype), v.to(dtype)


def by_finite_differences(a, v, step=1e-5):
    """Central differences of every code by every channel: ``(n, k, C)``."""
    columns = []
    for c in range(a.shape[1]):
        shift = torch.zeros_like(a)
        shift[:, c] = step
        columns.append((nnls(a + shift, v) - nnls(a - shift, v)) / (2 * step))
    return torch.stack(columns, 2)


def by_autograd(a, v):
    a = a.clone().requires_grad_()
    codes = implicit_nnls(a, v)
    rows = [torch.autograd.grad(code.sum(), a, retain_graph=True)[0] for code in codes.T]
    return torch.stack(rows, 1)


def test_gradient_of_100_random_problems():
    worst, rows, zeros = 0.0, 0, 0
    for seed in range(100):
        a, v = problem(seed)
        expected = by_finite_differences(a, v)
        error = (by_autograd(a, v) - expected).abs().amax((1, 2)) / expected.abs().amax((1, 2))
        worst, rows = max(worst, float(error.max())), rows + len(a)
        zeros += int((nnls(a, v) == 0).any(1).sum())
    assert worst <= 1e-5
    assert rows > 300
    assert zeros > 100, "too few rows whose support is not everything"


def test_gradcheck_of_first_and_second_order():
    a, v = problem(3)
    a.requires_grad_()
    assert torch.autograd.gradcheck(lambda a: implicit_nnls(a, v), (a,))
    assert torch.autograd.gradgradcheck(lambda a: implicit_nnls(a, v), (a,))


def test_float32_and_many_rows_on_the_device(device):
    generator = torch.Generator().manual_seed(0)
    v = torch.rand(5, 20, generator=generator)
    a = torch.rand(5000, 20, generator=generator)
    exact = by_autograd(a.double(), v.double())
    found = by_autograd(a.to(device), v.to(device)).cpu()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-5)


def test_codes_are_those_of_nnls_and_codes_at_zero_do_not_move():
    a, v = problem(7)
    codes = implicit_nnls(a, v)
    assert torch.equal(codes, nnls(a, v))
    assert not by_autograd(a, v)[codes == 0].any()
    dark = by_autograd(torch.zeros(1, v.shape[1], dtype=v.dtype), v)
    assert torch.isfinite(dark).all()


def test_a_repeated_concept_shares_its_gradient():
    v = torch.tensor([[1.0, 0.0, 2.0], [1.0, 0.0, 2.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    a = torch.tensor([[2.0, 1.0, 3.0]], dtype=torch.float64)
    jacobian = by_autograd(a, v)[0]
    torch.testing.assert_close(jacobian[0] + jacobian[1], v[0] / 5, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(jacobian[2], v[2], rtol=1e-3, atol=1e-3)


def test_transform_is_differentiable_and_still_takes_arrays():
    a, _ = problem(5, n=40)
    nmf = NMF(2, random_state=0).fit(a)
    found = torch.autograd.functional.jacobian(lambda a: nmf.transform(a).sum(0), a[:3])
    expected = by_finite_differences(a[:3], nmf.components_)
    torch.testing.assert_close(found, expected.transpose(0, 1), rtol=1e-5, atol=1e-7)
    assert isinstance(nmf.transform(a.numpy()), np.ndarray)
