"""Sobol indices against SciPy and closed forms."""

import math

import pytest
import scipy.stats
import torch

from conceptlens import sobol
from conceptlens.importance.sobol import _estimate, _evaluate

ISHIGAMI = {"first": [0.3139, 0.4424, 0.0], "total": [0.5576, 0.4424, 0.2437]}


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


@pytest.mark.parametrize("order", ["first", "total"])
def test_estimators_are_scipys_on_the_same_points(order):
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 64, 3, generator=generator, dtype=torch.float64)
    values = _evaluate(lambda masks: ishigami(masks)[None], a, b)
    ours = _estimate(*values, order)[0]
    f_a, f_b, f_ab = (v[0].numpy() for v in values)
    theirs = scipy.stats.sobol_indices(func={"f_A": f_a, "f_B": f_b, "f_AB": f_ab[:, None]}, n=64)
    expected = theirs.first_order if order == "first" else theirs.total_order
    torch.testing.assert_close(ours, torch.from_numpy(expected).reshape(3), rtol=0, atol=1e-6)


@pytest.mark.parametrize("order", ["first", "total"])
def test_ishigami_closed_form(order):
    found = sobol(Score(ishigami), ONES, 0, n_designs=2048, order=order, batch_size=10000)
    expected = torch.tensor(ISHIGAMI[order], dtype=torch.float64)
    torch.testing.assert_close(found.values, expected, rtol=0, atol=0.02)


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
