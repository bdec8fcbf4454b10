"""Probe-data sensitivity, learnability and the simplicity curve."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, precision_recall_curve

from conceptlens import Importance
from conceptlens.metrics import (
    HUMAN_LIMIT,
    learnability,
    normalised_ap,
    probe_sensitivity,
    simplicity_curve,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_probe_sensitivity_by_hand():
    first = torch.tensor([5.0, 4, 3, 2, 1, 0])
    second = torch.tensor([5.0, 0, 4, 3, 1, 2])
    found = probe_sensitivity(first, second, top=3)  # {0, 1, 2} and {0, 2, 3}
    assert found.overlap == pytest.approx(2 / 3)
    assert found.chance == 0.5
    assert found.rank_correlation == pytest.approx(spearmanr(first, second).statistic)
    importance = Importance(first, first, first[None], "test", "class", list("abcdef"))
    same = probe_sensitivity(importance, first)
    assert same.rank_correlation == pytest.approx(1)
    assert same.overlap == 1
    assert probe_sensitivity(first, -first).rank_correlation == pytest.approx(-1)


def test_unrelated_explanations_are_at_chance():
    found = [probe_sensitivity(normal(10, seed=s), normal(10, seed=s + 999), 3) for s in range(400)]
    for values, chance in (
        ([f.rank_correlation for f in found], 0),
        ([f.overlap for f in found], found[0].chance),
    ):
        assert abs(np.mean(values) - chance) < 3 * np.std(values) / 20


def test_normalised_ap_by_the_formula():
    scores, labels = normal(200, 1), normal(200, 1, seed=1) + normal(200, 1) > 1.2
    found = float(normalised_ap(scores, labels, prevalence=0.3))
    y, s = labels[:, 0].numpy(), scores[:, 0].numpy()
    _, recall, thresholds = precision_recall_curve(y, s)
    total = 0.0
    for i, threshold in enumerate(thresholds):
        tpr, fpr = np.mean(s[y] >= threshold), np.mean(s[~y] >= threshold)
        total += (recall[i] - recall[i + 1]) * 0.3 * tpr / (0.3 * tpr + 0.7 * fpr)
    assert found == pytest.approx(total)
    own = float(normalised_ap(scores, labels, prevalence=float(labels.double().mean())))
    assert own == pytest.approx(average_precision_score(y, s))  # its own prevalence: plain AP


def test_normalised_ap_of_the_truth_and_of_chance():
    labels = normal(4000, 3) > torch.tensor([-1.0, 0, 1.5])  # frequent, balanced, rare
    assert normalised_ap(labels.double(), labels).tolist() == pytest.approx([1, 1, 1])
    random = normalised_ap(normal(4000, 3, seed=1), labels)
    assert ((random - 0.5).abs() < 0.05).all()


def test_learnability_tells_easy_from_hopeless_concepts():
    features = normal(600, 5)
    classes = (features[:, 0] > 0).long() + (features[:, 1] > 0).long()
    concepts = torch.stack([features[:, 0] > 0, normal(600, seed=1) > 0], 1)
    found = learnability(features, concepts, classes)
    assert found.concepts[0] > 0.98
    assert abs(found.concepts[1] - 0.5) < 0.1
    assert found.classes[0] > 0.9
    assert found.harder(torch.ones(3, 2)).tolist()[1]
    assert found.harder(torch.tensor([[1, 1], [0, 0], [0, 0]])).tolist() == [False, True]
    assert found.harder(torch.zeros(3, 2)).tolist() == [False, False]


class Linear:
    """Class 0 wins where the codes' weighted sum is above 1."""

    class_names = None
    slopes = torch.tensor([8.0, 2.0, 0.1, 0.0])

    def classify(self, codes):
        score = codes.sum(1) @ self.slopes.to(codes)
        return torch.stack([score - 1, torch.zeros_like(score)], 1)


def test_simplicity_curve_by_hand():
    codes = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0.1, 0.05, 0, 0]])[:, None]
    curve = simplicity_curve(Linear(), codes, 0, Linear.slopes)
    # Full decisions: yes, yes, no, no. With none: all no. One concept mends the first picture.
    assert curve.mean.tolist() == [0.5, 0.75, 1, 1, 1]
    assert simplicity_curve(Linear(), codes, 0, Linear.slopes, max_concepts=2).mean.tolist() == [
        0.5,
        0.75,
        1,
    ]
    assert curve.plot().get_ylabel() == "mean agreement"


def test_true_importance_keeps_more_with_fewer_concepts_than_a_random_one():
    slopes = torch.linspace(3, 0, 40, dtype=torch.float64) ** 2

    class Long(Linear):
        def classify(self, codes):
            score = codes.sum(1) @ slopes
            return torch.stack([score, torch.zeros_like(score)], 1)

    codes = normal(300, 1, 40)
    true = simplicity_curve(Long(), codes, 0, slopes)
    random = [simplicity_curve(Long(), codes, 0, normal(40, seed=s)).auc for s in range(20)]
    assert true.per_image.shape == (300, HUMAN_LIMIT + 1)
    assert true.auc > max(random)
    assert true.mean[-1] == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: probe_sensitivity(torch.rand(3), torch.rand(4)), "got 3 and 4"),
        (lambda: probe_sensitivity(torch.rand(3), torch.rand(3)), "between 1 and k = 3, got 5"),
        (lambda: probe_sensitivity(torch.ones(3), torch.rand(3), 2), "no ranks"),
        (lambda: normalised_ap(torch.rand(4, 1), torch.ones(4, 1)), "same in all 4 rows"),
        (lambda: normalised_ap(torch.rand(4, 1), torch.ones(4, 2)), "m = 1"),
        (lambda: normalised_ap(torch.rand(2, 1), torch.tensor([[0], [1]]), 1), "between 0 and 1"),
        (lambda: learnability(torch.rand(9, 2), torch.ones(9, 1), torch.arange(9) % 2), "same in"),
        (
            lambda: simplicity_curve(
                Linear(), torch.ones(2, 1, 4), 0, torch.ones(4), max_concepts=0
            ),
            "at least 1",
        ),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()
