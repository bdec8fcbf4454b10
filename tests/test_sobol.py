"""Sobol indices against SciPy and closed forms."""

import math

import numpy
import pytest
import scipy.stats
import torch

from conceptlens import sobol
from conceptlens.importance.indices import ESTIMATORS, Affine, Scores, estimate, exact, pairs
from conceptlens.importance.score import ClassScore
from conceptlens.importance.sobol import DESIGNS, _evaluate

ISHIGAMI = {
    "first": [0.3139, 0.4424, 0.0],
    "total": [0.5576, 0.4424, 0.2437],
    "second": [0.0, 0.2437, 0.0],
}


class Score:
    """A model whose logits are a function of the codes, summed over positions."""

    def __init__(self, function, class_names=None):
        self.function, self.class_names = function, class_names

    def classify(self, codes):
        return self.function(codes.mean(1))[:, None]


def ishigami(u):
    x = (2 * u - 1) * math.pi
    return torch.sin(x[:, 0]) * (1 + 0.1 * x[:, 2] ** 4) + 7 * torch.sin(x[:, 1]) ** 2


ONES = torch.ones(1, 4, 3, dtype=torch.float64)


def g_function(u, a=(0.0, 1.0, 4.5)):
    a = torch.tensor(a, dtype=u.dtype)
    return ((4 * u - 2).abs() + a).div(1 + a).prod(1)


def g_function_indices(a=(0.0, 1.0, 4.5)):
    """First order, total and second order: the factors have variances 1 / 3 (1 + a)²."""
    v = 1 / (3 * (1 + torch.tensor(a, dtype=torch.float64)) ** 2)
    whole = (1 + v).prod() - 1
    i, j = pairs(len(v))
    return {
        "first": v / whole,
        "total": v * (1 + v).prod() / (1 + v) / whole,
        "second": v[i] * v[j] / whole,
    }


def scores_on(function, n_designs, columns, seed=0):
    """The scores of one picture whose codes are 1, and the points."""
    points = torch.from_numpy(scipy.stats.qmc.Sobol(6, rng=seed).random(n_designs))[None]
    score = ClassScore.of(Score(function), ONES, 0, 10000)
    return Scores.split(_evaluate(score, points, columns), 3), points


@pytest.mark.parametrize(("order", "estimator"), [("first", "saltelli"), ("total", "jansen")])
def test_estimators_are_scipys_on_the_same_points(order, estimator):
    f, _ = scores_on(ishigami, 64, 5)
    ours = estimate(f, order, estimator)[0]
    arrays = {"f_A": f.a[0].numpy(), "f_B": f.b[0].numpy(), "f_AB": f.ab[0].numpy()[:, None]}
    theirs = scipy.stats.sobol_indices(func=arrays, n=64)
    expected = theirs.first_order if order == "first" else theirs.total_order
    torch.testing.assert_close(ours, torch.from_numpy(expected).reshape(3), rtol=0, atol=1e-6)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("with_control", [True, False])
@pytest.mark.parametrize(
    ("function", "truth"), [(ishigami, ISHIGAMI), (g_function, g_function_indices())]
)
def test_estimators_reach_closed_forms(function, truth, estimator, with_control):
    f, points = scores_on(function, 2**14, 8)
    affine = Affine.fit(f, *points.chunk(2, 2)) if with_control else None
    for order in ("first", "total", "second"):
        found = estimate(f, order, estimator, affine)[0]
        expected = torch.as_tensor(truth[order], dtype=torch.float64)
        torch.testing.assert_close(found, expected, rtol=0, atol=0.01)


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("order", ["first", "total", "second"])
def test_closed_form(order, design):
    found = sobol(Score(g_function), ONES, 0, n_designs=4096, order=order, design=design)
    # Four of the bootstrap's standard errors; it knows nothing of what a sequence balances.
    assert (found.values - g_function_indices()[order]).abs().le(4 * found.stderr + 1e-3).all()
    assert found.stderr.max() < 0.05


def test_brute_force_on_a_small_grid():
    """Conditional variances by full enumeration of a polynomial's Gauss-Legendre product grid."""
    codes = torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def score(u):
        return u[:, 0] * u[:, 1] + u[:, 2] ** 2 - 0.3 * u[:, 0]

    nodes, weights = (torch.from_numpy(v) for v in numpy.polynomial.legendre.leggauss(5))
    grid = torch.cartesian_prod(*[(nodes + 1) / 2] * 3)
    w = torch.einsum("i,j,k->ijk", *[weights / 2] * 3)
    for u, found in zip(
        codes,
        sobol(Score(score), codes, 0, n_designs=4096, batch_size=10**6).per_image,
        strict=True,
    ):
        f = score(grid * u.mean(0)).reshape(5, 5, 5)
        mean = (w * f).sum()
        whole = (w * (f - mean) ** 2).sum()
        for i in range(3):
            inner = torch.tensordot(f, weights / 2, dims=([i], [0]))  # mean over concept i
            rest = torch.einsum("i,j->ij", *[weights / 2] * 2)
            without = (rest * (inner - mean) ** 2).sum()
            assert abs(float(1 - without / whole) - float(found[i])) < 0.01


def test_affine_fit_is_least_squares():
    f, points = scores_on(ishigami, 16, 5)
    a, b = points[0].chunk(2, 1)
    masks = torch.cat([a, b, *[torch.where(torch.eye(3)[i] > 0, b, a) for i in range(3)]])
    values = torch.cat([f.a, f.b, f.ab], 1)[0].flatten()
    design = torch.cat([torch.ones(len(masks), 1), masks], 1)
    expected = torch.linalg.lstsq(design, values[:, None]).solution[1:, 0]
    fitted = Affine.fit(f, a[None], b[None])
    torch.testing.assert_close(fitted.slopes[0], expected)
    on_masks = torch.cat([fitted.scores.a, fitted.scores.b, fitted.scores.ab], 1)[0].flatten()
    torch.testing.assert_close(on_masks, masks @ expected)


def test_control_makes_affine_scores_exact():
    slopes = torch.tensor([3.0, -1.0, 0.5], dtype=torch.float64)
    f, points = scores_on(lambda u: 2 + u @ slopes, 8, 8)
    affine = Affine.fit(f, *points.chunk(2, 2))
    for order in ("first", "total", "second"):
        for estimator in ESTIMATORS:
            found = estimate(f, order, estimator, affine)
            torch.testing.assert_close(found, exact(slopes[None], order), rtol=0, atol=1e-9)


def test_pictures_have_designs_of_their_own():
    """The mean over alike pictures errs less than each of them."""
    truth = torch.tensor(ISHIGAMI["total"], dtype=torch.float64)
    found = [sobol(Score(ishigami), ONES.expand(16, -1, -1), 0, seed=s) for s in range(20)]
    single = torch.stack([(f.per_image - truth).square().mean() for f in found]).mean().sqrt()
    mean = torch.stack([(f.values - truth).square().mean() for f in found]).mean().sqrt()
    assert mean < single / 3


def test_tolerance_doubles_until_the_top_is_settled():
    weights = torch.tensor([3.0, 2.5, 2.2, 1.7, 1.5, 0.2], dtype=torch.float64)
    codes = torch.ones(1, 2, 6, dtype=torch.float64)
    rows = []

    def score(u):
        rows.append(len(u))
        return ((u - 0.3).relu() @ weights) ** 2

    sets, sizes = [], []
    for seed in range(20):
        rows.clear()
        found = sobol(Score(score), codes, 0, n_designs=8, tolerance=0.05, seed=seed)
        n_designs = int(found.method.split("N = ")[1])
        assert sum(rows) <= n_designs * 8 + 20  # what was computed is computed once
        sets.append(set(found.order[:3]))
        sizes.append(n_designs)
    assert max(sizes) > 8
    assert sum(s == {0, 1, 2} for s in sets) >= 19


def test_tolerance_that_is_not_reached_warns():
    def score(u):  # all concepts alike
        return u.prod(1)

    codes = torch.ones(1, 1, 5, dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match="not settled with N = 64"):
        sobol(Score(score), codes, 0, tolerance=0.01, max_designs=64)


def test_dead_concepts_do_not_unsettle():
    found = sobol(Score(lambda u: u[:, 0] ** 2), torch.ones(1, 1, 6), 0, tolerance=0.0)
    assert "N = 32" in found.method
    assert found.values[1:].tolist() == [0] * 5


def test_second_order_names_pairs():
    found = sobol(Score(lambda u: u[:, 0] * u[:, 2]), ONES, 0, order="second", n_designs=256)
    assert found.concept_names[found.order[0]] == "concept 0 × concept 2"
    torch.testing.assert_close(found.values[1], torch.tensor(1 / 7).double(), rtol=0, atol=0.02)


def test_affine_head_is_exact():
    slopes = torch.tensor([3.0, -1.0, 0.0, 0.5], dtype=torch.float64)
    codes = torch.rand(5, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = sobol(Score(lambda u: 7 + u @ slopes), codes, 0)
    parts = (codes.mean(1) * slopes) ** 2
    torch.testing.assert_close(
        found.per_image, parts / parts.sum(1, keepdim=True), rtol=0, atol=1e-6
    )
    assert "exact" in found.method
    assert found.order[0] == 0


def test_standard_error_covers_the_truth():
    truth = torch.tensor(ISHIGAMI["total"], dtype=torch.float64)
    covered = []
    for seed in range(200):
        found = sobol(Score(ishigami), ONES, 0, n_designs=64, seed=seed, batch_size=10000)
        covered.append((found.values - truth).abs() <= 1.96 * found.stderr)
    share = torch.stack(covered).double().mean()
    assert 0.92 <= share <= 0.99


def test_constant_score_is_zero_with_a_warning():
    with pytest.warns(RuntimeWarning, match="does not vary"):
        found = sobol(Score(lambda u: torch.ones(len(u))), ONES, 0)
    assert not found.values.any()
    assert not found.stderr.any()


def test_one_concept_decides_all():
    found = sobol(Score(lambda u: u[:, 0] ** 2), torch.ones(2, 3, 1), 0, n_designs=512)
    torch.testing.assert_close(found.values, torch.ones(1).double(), rtol=0, atol=0.05)


def test_batches_and_seeds():
    codes = torch.rand(3, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sizes = []

    def watched(u):
        sizes.append(len(u))
        return ishigami(u)

    large = sobol(Score(ishigami), codes, 0, seed=1, batch_size=10000)
    small = sobol(Score(watched), codes, 0, seed=1, batch_size=7)
    assert max(sizes) == 7
    torch.testing.assert_close(small.per_image, large.per_image)
    assert torch.equal(small.stderr, large.stderr) or torch.allclose(small.stderr, large.stderr)
    other = sobol(Score(ishigami), codes, 0, seed=2)
    assert not torch.equal(other.values, large.values)


def test_designs_that_are_no_power_of_two_warn():
    with pytest.warns(UserWarning, match="power of 2"):
        sobol(Score(ishigami), ONES, 0, n_designs=30)


@pytest.mark.parametrize(
    ("codes", "target", "options", "words"),
    [
        (ONES[0], 0, {}, r"\(n, P, k\)"),
        (ONES[:0], 0, {}, r"\(n, P, k\)"),
        (ONES, 1, {}, "class 1 does not exist"),
        (ONES, "taby", {}, "near names: 'tabby'"),
        (ONES, 0, {"order": "third"}, "order must be one of"),
        (ONES, 0, {"n_designs": 1}, "at least 2"),
        (ONES, 0, {"estimator": "sobol"}, "estimator must be one of"),
        (ONES, 0, {"design": "grid"}, "design must be one of"),
        (ONES, 0, {"batch_size": 0}, "batch_size must be at least 1"),
        (ONES / 0, 0, {}, "NaN or infinite"),
    ],
)
def test_bad_input(codes, target, options, words):
    with pytest.raises(ValueError, match=words):
        sobol(Score(ishigami, ["tabby"]), codes, target, **options)


def test_result_shows_itself():
    found = sobol(Score(ishigami, ["<b>"]), ONES, 0)
    assert repr(found).count("±") == 3
    assert "&lt;b&gt;" in found._repr_html_()
    assert len(found.plot().patches) == 3
