"""Metrics of extractions against hand-computed values, SciPy and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.stats import wasserstein_distance
from sklearn.metrics import r2_score
from sklearn.metrics.pairwise import cosine_similarity

from conceptlens.metrics import (
    coherence,
    frechet_distance,
    gini,
    hoyer,
    l0,
    ood_score,
    r2,
    relative_error,
    surrogate_faithfulness,
    wasserstein,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_reconstruction_by_hand(device):
    a = torch.tensor([[3.0, 0.0], [0.0, 4.0]], device=device)
    assert relative_error(a, a) == 0
    assert relative_error(a, torch.zeros_like(a)) == 1
    assert relative_error(a, a - torch.tensor([[0.0, 3.0], [0, 0]], device=device)) == 3 / 5
    assert r2(a, a) == 1
    assert r2(a, a.mean(0).expand(2, 2)) == 0
    assert r2(a, -a) < 0


def test_r2_is_scikit_learns():
    a = normal(40, 5) * torch.tensor([1.0, 2, 3, 4, 5])
    rebuilt = a + 0.3 * normal(40, 5, seed=1)
    expected = r2_score(a.numpy(), rebuilt.numpy(), multioutput="variance_weighted")
    assert r2(a, rebuilt) == pytest.approx(expected)


def test_sparsity_by_hand():
    codes = torch.tensor([[0.0, 0, 0, 2], [1, 1, 1, 1], [0, -3, 4, 0], [0, 0, 0, 0]])
    assert l0(codes).values.tolist() == [1, 4, 2, 0]
    torch.testing.assert_close(
        hoyer(codes).defined, torch.tensor([1, 0, 2 - 7 / 5], dtype=torch.float64)
    )
    # sorted 0, 0, 3, 4 with weights -3, -1, 1, 3 over 4 times 7
    torch.testing.assert_close(
        gini(codes).defined, torch.tensor([3 / 4, 0, 15 / 28], dtype=torch.float64)
    )


@pytest.mark.parametrize("metric", [hoyer, gini])
def test_sparsity_does_not_depend_on_scale_or_order(metric):
    codes = normal(30, 7)
    changed = 9 * codes[:, torch.tensor([3, 0, 6, 2, 5, 1, 4])]
    torch.testing.assert_close(metric(codes).values, metric(changed).values)
    assert 0 <= metric(codes).values.min() <= metric(codes).values.max() <= 1


def test_frechet_is_scipys(device):
    a, b = normal(60, 6), normal(80, 6, seed=1) @ normal(6, 6, seed=2) + 0.5
    c_a, c_b = np.cov(a.numpy().T), np.cov(b.numpy().T)
    cross = np.trace(sqrtm(c_a @ c_b)).real
    expected = np.sum((a.mean(0) - b.mean(0)).numpy() ** 2) + np.trace(c_a + c_b) - 2 * cross
    assert frechet_distance(a.to(device), b.to(device)) == pytest.approx(expected)
    assert frechet_distance(b, a) == pytest.approx(expected)


def test_frechet_of_fewer_rows_than_channels_and_of_one_channel():
    a, b = normal(5, 20), normal(7, 20, seed=1)
    c_a, c_b = np.cov(a.numpy().T), np.cov(b.numpy().T)
    cross = np.sqrt(np.linalg.eigvals(c_a @ c_b).real.clip(0)).sum()
    expected = np.sum((a.mean(0) - b.mean(0)).numpy() ** 2) + np.trace(c_a + c_b) - 2 * cross
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    x = torch.tensor([[0.0], [2.0]])  # standard deviation √2
    assert frechet_distance(x, 3 * x + 1) == pytest.approx(3**2 + (2 * math.sqrt(2)) ** 2)


@pytest.mark.parametrize("distance", [frechet_distance, wasserstein])
def test_distance_of_a_set_to_itself_is_zero(distance):
    a = normal(50, 8)
    shuffled = a[torch.randperm(50, generator=torch.Generator().manual_seed(1))]
    assert distance(a, shuffled) == pytest.approx(0, abs=1e-6)
    assert distance(a, a + 1) > distance(a, a + 0.1) > 0


@pytest.mark.parametrize("m", [50, 33])
def test_wasserstein_is_scipys_on_every_line(m):
    a, b = normal(50, 4), 2 * normal(m, 4, seed=1) + 1
    noise = torch.randn(4, 9, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    lines = (noise / noise.norm(dim=0)).numpy()
    expected = np.mean([wasserstein_distance(a.numpy() @ w, b.numpy() @ w) for w in lines.T])
    assert wasserstein(a, b, n_directions=9, seed=5) == pytest.approx(expected)


def test_wasserstein_of_a_shift_in_one_channel():
    a = normal(20, 1)
    assert wasserstein(a, a + 3) == pytest.approx(3)


def test_ood_score():
    line = torch.arange(10.0)[:, None]
    assert ood_score(line, line) == 0
    assert ood_score(line[:3] + 0.25, line) == pytest.approx(0.25)
    assert ood_score(line + 109, line) == pytest.approx(104.5)  # from 9: 100, 101, …, 109
    a, b = normal(500, 5), normal(500, 5, seed=1)
    assert ood_score(b, a, batch_size=7) == pytest.approx(ood_score(b, a))
    assert 0.9 < ood_score(b, a) < 1.1  # as good as real
    assert ood_score(4 * b, a) > 3


def test_coherence_is_scikit_learns():
    features, owners = normal(12, 5), torch.arange(12) % 3
    found = coherence(features, owners)
    rows = (features - features.mean(0)).numpy()
    for k in range(3):
        own = cosine_similarity(rows[owners == k])
        assert found[k] == pytest.approx((own.sum() - 4) / 12)


def test_coherence_of_true_concepts_is_high_and_of_random_ones_is_zero():
    owners = torch.arange(200) % 4
    features = 5 * torch.eye(4, 6, dtype=torch.float64)[owners] + 0.1 * normal(200, 6)
    assert coherence(features, owners).min() > 0.95
    shuffled = owners[torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    assert coherence(features, shuffled).abs().max() < 0.1
    single = coherence(features[:3], torch.tensor([0, 0, 1]))
    assert single.isnan().tolist() == [False, True]


def test_places_matter_to_the_surrogate_where_they_matter_to_the_network():
    codes = torch.rand(400, 6, 3, generator=torch.Generator().manual_seed(0))
    with_places = codes[:, :1, 0] - codes[:, 1:2, 0]
    assert surrogate_faithfulness(codes, with_places) > 0.99
    assert surrogate_faithfulness(codes, with_places, spatial=False) < 0.1
    assert surrogate_faithfulness(codes, codes.mean(1), spatial=False) > 0.99
    assert abs(surrogate_faithfulness(codes, normal(400, 1), spatial=False)) < 0.1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: relative_error(torch.ones(3), torch.ones(3)), r"a must have shape \(n, C\)"),
        (lambda: relative_error(torch.ones(3, 2), torch.ones(2, 2)), r"\(n = 3, C = 2\)"),
        (lambda: relative_error(torch.zeros(3, 2), torch.ones(3, 2)), "only zeros"),
        (lambda: r2(torch.ones(3, 2), torch.ones(3, 2)), "rows of a are equal"),
        (lambda: hoyer(torch.ones(3, 1)), "two concepts or more"),
        (lambda: l0(torch.full((3, 2), torch.nan)), "NaN"),
        (lambda: frechet_distance(torch.ones(1, 2), torch.ones(3, 2)), "got 1 and 3"),
        (lambda: frechet_distance(torch.ones(3, 2), torch.ones(3, 3)), "C = 2"),
        (lambda: wasserstein(torch.ones(3, 2), torch.ones(3, 2), n_directions=0), "at least 1"),
        (lambda: ood_score(torch.ones(3, 2), torch.ones(4, 2)), "occurs twice"),
        (lambda: ood_score(torch.ones(3, 2), torch.ones(1, 2)), "two rows"),
        (lambda: coherence(torch.ones(3, 2), torch.tensor([0.5, 0, 1])), "integers from 0"),
        (lambda: surrogate_faithfulness(torch.ones(3, 2, 2), torch.ones(3, 1)), "four pictures"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()
