"""C-Deletion, C-Insertion, C-µFidelity and complexity on heads whose curves are known."""

from itertools import permutations

import pytest
import torch
from scipy.stats import pearsonr, spearmanr

from conceptlens import Importance
from conceptlens.metrics import Estimate, c_deletion, c_insertion, c_mu_fidelity, complexity
from conceptlens.metrics.faithfulness import Curve

SLOPES = torch.tensor([4.0, 2.0, 1.0, 0.0])


class Linear:
    """Two classes: a linear score of the codes summed over positions, and nothing."""

    class_names = ("yes", "no")
    slopes = SLOPES

    def classify(self, codes):
        score = codes.sum(1) @ self.slopes.to(codes)
        return torch.stack([score, torch.zeros_like(score)], 1)


class Product(Linear):
    """The first two concepts only count together."""

    def classify(self, codes):
        total = codes.sum(1)
        score = total[:, 0] * total[:, 1] + total[:, 2]
        return torch.stack([score, torch.zeros_like(score)], 1)


ONES = torch.full((3, 2, 4), 0.5)  # over two positions each concept sums to 1


def random_codes(n=6, k=4):
    return torch.rand(n, 2, k, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_curves_by_hand(device):
    codes = ONES.to(device)
    deletion = c_deletion(Linear(), codes, "yes", SLOPES)
    assert deletion.mean.tolist() == [7, 3, 1, 0, 0]
    assert deletion.auc == pytest.approx((7 / 2 + 3 + 1) / 4)
    insertion = c_insertion(Linear(), codes, "yes", SLOPES)
    assert insertion.mean.tolist() == [0, 4, 6, 7, 7]
    assert insertion.auc == pytest.approx((4 + 6 + 7 + 7 / 2) / 4)
    sigmoid = torch.tensor([0.0, 4, 6, 7, 7], dtype=torch.float64).sigmoid()
    probability = c_insertion(Linear(), codes, "yes", SLOPES, score="probability")
    torch.testing.assert_close(probability.mean, sigmoid)


def test_true_contributions_are_the_best_of_all_orders():
    codes = random_codes()
    local = codes.sum(1) * SLOPES
    best_deletion = c_deletion(Linear(), codes, 0, local).auc
    best_insertion = c_insertion(Linear(), codes, 0, local).auc
    for order in permutations(range(4)):
        ranking = torch.tensor(order, dtype=torch.float64)
        assert c_deletion(Linear(), codes, 0, ranking).auc >= best_deletion - 1e-9
        assert c_insertion(Linear(), codes, 0, ranking).auc <= best_insertion + 1e-9
    assert c_mu_fidelity(Linear(), codes, 0, local).mean == pytest.approx(1)


def test_random_importance_is_at_chance():
    """A linear score falls evenly, on average, under random orders: the area is its mean."""
    codes = random_codes()
    generator = torch.Generator().manual_seed(1)
    values = torch.rand(400, 4, generator=generator)
    areas = Estimate(torch.tensor([c_deletion(Linear(), codes, 0, v).auc for v in values]))
    full = (codes.sum(1) @ SLOPES.double()).mean()
    assert abs(areas.mean - full / 2) < 3 * areas.stderr
    fidelity = Estimate(
        torch.tensor([c_mu_fidelity(Linear(), codes, 0, v).mean for v in values[:100]])
    )
    assert abs(fidelity.mean) < 3 * fidelity.stderr


def test_importance_objects_stand_for_their_values():
    codes = random_codes()
    local = codes.sum(1) * SLOPES
    values = local.mean(0)
    importance = Importance(values, values, local, "test", "yes", list("abcd"))
    for metric in (c_deletion, c_insertion):
        given = metric(Linear(), codes, 0, importance)
        assert torch.equal(given.per_image, metric(Linear(), codes, 0, values).per_image)


@pytest.mark.parametrize(("name", "oracle"), [("pearson", pearsonr), ("spearman", spearmanr)])
def test_mu_fidelity_is_scipys(name, oracle):
    codes, importance = random_codes(), torch.tensor([0.1, 0.5, 0.4, 0.2], dtype=torch.float64)
    found = c_mu_fidelity(
        Product(), codes, 0, importance, subset_size=2, n_subsets=40, correlation=name, seed=3
    )
    noise = torch.rand(40, 4, generator=torch.Generator().manual_seed(3))
    subsets = [set(row.argsort()[:2].tolist()) for row in noise]
    for i, own in enumerate(codes):
        said, drops = [], []
        for subset in subsets:
            kept = torch.tensor([j not in subset for j in range(4)])
            said.append(sum(float(importance[j]) for j in subset))
            whole, less = (Product().classify(u[None])[0, 0] for u in (own, own * kept))
            drops.append(float(whole - less))
        assert found.values[i] == pytest.approx(oracle(said, drops).statistic, abs=1e-9)


def test_mu_fidelity_bounds():
    codes = random_codes()
    local = codes.sum(1) * SLOPES
    assert c_mu_fidelity(Linear(), codes, 0, -local).mean == pytest.approx(-1)
    assert c_mu_fidelity(Linear(), codes, 0, torch.ones(4)).mean == 0
    assert c_mu_fidelity(Linear(), codes, 1, local).values.isnan().all()  # "no" never changes


def test_complexity_by_hand():
    curve = c_insertion(Linear(), ONES, 0, SLOPES)  # 0, 4, 6, 7, 7
    assert [complexity(curve, s).mean for s in (0.5, 0.8, 0.9, 1.0)] == [1, 2, 3, 3]
    # A random order needs more: the concept that brings 4 of 7 comes late.
    assert complexity(c_insertion(Linear(), ONES, 0, -SLOPES), 0.8).mean == 4
    assert complexity(c_insertion(Linear(), ONES, 1, SLOPES)).values.isnan().all()


def test_band_is_students():
    per_image = torch.tensor([[0.0, 1.0], [0.0, 3.0]], dtype=torch.float64)
    low, high = Curve(per_image, "C-Insertion", "logit").band()
    half = 12.7062047  # t of one degree of freedom at 97.5 %, times the standard error 1
    torch.testing.assert_close(high[1], torch.tensor(2 + half, dtype=torch.float64))
    torch.testing.assert_close(low[1], torch.tensor(2 - half, dtype=torch.float64))
    assert low[0] == high[0] == 0


def test_batches_do_not_matter():
    codes = random_codes(n=5)
    sizes = []

    class Watched(Product):
        def classify(self, u):
            sizes.append(len(u))
            return super().classify(u)

    small = c_deletion(Watched(), codes, 0, SLOPES, batch_size=7)
    assert max(sizes) == 7
    torch.testing.assert_close(small.per_image, c_deletion(Product(), codes, 0, SLOPES).per_image)


def test_curves_show_themselves():
    curve = c_deletion(Linear(), random_codes(), 0, SLOPES)
    ax = curve.plot()
    assert ax.get_xlabel() == "concepts removed"
    assert len(ax.collections) == 1
    assert "C-Deletion of 4 concepts" in repr(curve)
    assert not c_insertion(Linear(), random_codes(n=1), 0, SLOPES).plot().collections


@pytest.mark.parametrize("metric", [c_deletion, c_insertion, c_mu_fidelity])
@pytest.mark.parametrize(
    ("codes", "target", "importance", "options", "words"),
    [
        (ONES[0], 0, SLOPES, {}, r"codes must have shape \(n, P, k\)"),
        (ONES, 0, SLOPES[:3], {}, r"importance must have shape \(k = 4\)"),
        (ONES, 0, torch.ones(2, 4), {}, r"importance must have shape \(n = 3, k = 4\)"),
        (ONES, 0, SLOPES * torch.nan, {}, "NaN"),
        (ONES, 2, SLOPES, {}, "class 2 does not exist"),
        (ONES, "ye", SLOPES, {}, "near names: 'yes'"),
        (ONES, 0, SLOPES, {"score": "loss"}, "score must be one of"),
        (ONES, 0, SLOPES, {"batch_size": 0}, "at least 1"),
    ],
)
def test_bad_input(metric, codes, target, importance, options, words):
    with pytest.raises(ValueError, match=words):
        metric(Linear(), codes, target, importance, **options)


def test_bad_options():
    with pytest.raises(ValueError, match="k - 1 = 3, got 4"):
        c_mu_fidelity(Linear(), ONES, 0, SLOPES, subset_size=4)
    with pytest.raises(ValueError, match="at least 2"):
        c_mu_fidelity(Linear(), ONES, 0, SLOPES, n_subsets=1)
    with pytest.raises(ValueError, match="must be a C-Insertion"):
        complexity(c_deletion(Linear(), ONES, 0, SLOPES))
    with pytest.raises(ValueError, match=r"in \(0, 1\]"):
        complexity(c_insertion(Linear(), ONES, 0, SLOPES), 1.2)
    with pytest.raises(ValueError, match="between 0 and 1"):
        Estimate(torch.ones(3)).interval(95)
