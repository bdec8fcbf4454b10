"""Erasure against the concept-erasure package, its definition, and planted rows."""

import pytest
import torch

from conceptlens.editing import Moments, erase, erasure_report, project_out


def planted(n=6000, m=4, channels=20, seed=0):
    """Rows where each of m independent concepts adds a direction of its own to noise."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.rand(n, m, generator=generator) < 0.5
    directions = torch.randn(m, channels, generator=torch.Generator().manual_seed(99))
    noise = torch.randn(n, channels, generator=generator)
    return (noise + 2 * z.float() @ directions).double(), z


def test_leace_is_that_of_the_package():
    leace = pytest.importorskip("concept_erasure").LeaceFitter
    x, z = planted(500)
    theirs = leace.fit(
        x, z[:, :2].double(), shrinkage=False, constrain_cov_trace=False, svd_tol=1e-9
    ).eraser
    torch.testing.assert_close(erase(x, z[:, :2])(x), theirs(x), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("method", ["leace", "projection"])
def test_no_covariance_is_left_and_the_mean_stays(method, device):
    x, z = (t.to(device) for t in planted(500))
    y = erase(x, z[:, :2], method=method)(x)
    centred = z[:, :2].double() - z[:, :2].double().mean(0)
    assert (y.T @ centred / len(y)).abs().max() < 1e-9
    torch.testing.assert_close(y.mean(0), x.mean(0))


def test_moments_by_parts_are_those_of_all():
    x, z = planted(700)
    x = x + 1e6
    whole, parts = Moments().update(x, z), Moments()
    for rows in (slice(0, 1), slice(1, 300), slice(300, 700)):
        parts.update(x[rows], z[rows])
    torch.testing.assert_close(parts.scatter, whole.scatter, rtol=1e-9, atol=1e-6)
    torch.testing.assert_close(whole.xx, torch.cov(x.T, correction=0), rtol=1e-6, atol=1e-6)


def test_erased_is_at_chance_and_others_are_kept():
    x, z = planted(20000)
    fresh, w = planted(20000, seed=1)
    report = erasure_report(erase(x, z[:, 0]), fresh, w, 0)
    assert report.before[0] > 0.9
    assert abs(float(report.after[0]) - 0.5) < 0.02  # rows that LEACE never saw
    assert report.cost < 0.01
    assert "erased" not in repr(report).splitlines()[1]


def test_adapter_takes_the_concept_and_spares_what_is_without():
    x, z = planted()
    y = erase(x, z[:, 0], method="adapter")(x)
    gap = (x[z[:, 0]].mean(0) - x[~z[:, 0]].mean(0)).norm()
    left = (y[z[:, 0]].mean(0) - y[~z[:, 0]].mean(0)).norm()
    assert left < 0.35 * gap
    assert (y - x)[~z[:, 0]].pow(2).mean() < (x - x.mean(0)).pow(2).mean() / 4


def test_project_out():
    v = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    a = torch.randn(5, 3, 6)
    assert (project_out(v)(a) @ v.T).abs().max() < 1e-5


def test_bad_labels():
    x, z = planted(50)
    with pytest.raises(ValueError, match="do not fit"):
        erase(x, z[:20])
    with pytest.raises(ValueError, match="never vary"):
        erase(x, torch.ones(50))
    with pytest.raises(ValueError, match="method must be one of"):
        erase(x, z, method="magic")
