"""Recovery of planted concepts, against scikit-learn, SciPy and brute force."""

from itertools import permutations

import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from conceptlens import Importance
from conceptlens.metrics import aucs, importance_recovery, map_recovery, match, recovery
from conceptlens.metrics.matching import cosines


@pytest.fixture
def labels():
    return torch.rand(300, 4, generator=torch.Generator().manual_seed(0)) < 0.4


def noise(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_aucs_are_scikit_learns_with_ties(labels):
    codes = (3 * noise(300, 5)).round()  # many ties
    expected = [[roc_auc_score(labels[:, j], codes[:, i]) for j in range(4)] for i in range(5)]
    torch.testing.assert_close(aucs(codes, labels), torch.tensor(expected, dtype=torch.float64))


def test_cosines_of_zeros_are_zero():
    a = torch.tensor([[1.0, 0], [1, 1], [0, 0]])
    expected = torch.tensor([[1, 0], [0.5**0.5, 0.5**0.5], [0, 0]], dtype=torch.float64)
    torch.testing.assert_close(cosines(a, torch.eye(2)), expected)


def test_match_is_the_best_permutation():
    scores = torch.rand(5, 5, generator=torch.Generator().manual_seed(2))
    best = max(permutations(range(5)), key=lambda p: sum(float(scores[p[j], j]) for j in range(5)))
    assert match(scores).tolist() == list(best)


def test_match_with_too_few_rows():
    assert match(torch.tensor([[0.1, 0.9, 0.2]])).tolist() == [-1, 0, -1]


@pytest.mark.parametrize("score", ["auc", "cosine"])
def test_the_truth_is_recovered_in_any_order(labels, score, device):
    codes = labels.float()[:, [2, 0, 3, 1]]
    found = recovery(codes.to(device), labels.to(device), score=score)
    assert found.matches.tolist() == [1, 3, 0, 2]
    torch.testing.assert_close(found.scores, torch.ones(4, dtype=torch.float64))
    assert found.share(0.9) == 1
    assert found.mean == pytest.approx(1)


@pytest.mark.parametrize("score", ["auc", "cosine"])
def test_random_codes_are_at_chance(labels, score):
    means = [recovery(noise(300, 10, seed=s).relu(), labels, score=score) for s in range(40)]
    excess = torch.tensor([r.mean - r.chance for r in means])
    assert excess.mean().abs() < 3 * excess.std() / 40**0.5
    assert all(r.mean < 0.7 for r in means)


def test_the_highest_position_counts(labels):
    codes = torch.zeros(300, 6, 4)
    codes[range(300), torch.arange(300) % 6] = labels.float()
    assert recovery(codes, labels).mean == 1


def test_too_few_concepts_score_chance(labels):
    found = recovery(labels[:, :1].float(), labels)
    assert found.matches.tolist() == [0, -1, -1, -1]
    assert found.scores.tolist() == [1, 0.5, 0.5, 0.5]


def test_result_shows_itself(labels):
    found = recovery(labels.float(), labels, names=["<b>", "c", "d", "e"])
    assert "mean auc 1.000" in repr(found)
    assert "&lt;b&gt;" in found._repr_html_()


@pytest.mark.parametrize(
    ("codes", "change", "options", "words"),
    [
        (torch.ones(300), {}, {}, r"codes must have shape \(n, k\)"),
        (torch.ones(299, 4), {}, {}, r"labels must have shape \(n = 299, m\)"),
        (torch.full((300, 4), torch.inf), {}, {}, "infinite"),
        (torch.ones(300, 4), {}, {"names": ["a"]}, "1 names for 4"),
        (torch.ones(300, 4), {}, {"score": "f1"}, "score must be one of"),
        (torch.ones(300, 4), {2: True}, {"names": list("abcd")}, "c is the same in all 300"),
    ],
)
def test_bad_input(labels, codes, change, options, words):
    for j, value in change.items():
        labels[:, j] = value
    with pytest.raises(ValueError, match=words):
        recovery(codes, labels, **options)


def test_map_recovery_by_hand():
    masks = torch.zeros(2, 2, 4, 4)
    masks[0, 0, :2, :2], masks[1, 0, 2:, 2:] = 1, 1  # concept 0: in both pictures, a quarter
    masks[0, 1, 3] = 1  # concept 1: the last row of the first picture
    maps = torch.zeros(2, 3, 4, 4)
    maps[:, 2] = masks[:, 0]  # map 2 is concept 0's place
    maps[:, 0, 0, 0] = 1.0  # map 0 misses concept 1
    found = map_recovery(maps, masks, torch.tensor([2, 0]))
    assert found.pointing.tolist() == [1, 0]
    assert found.iou[0] == 1
    assert found.chance.tolist() == [0.25, 0.25]
    nothing = map_recovery(maps, masks, torch.tensor([-1, 2]))
    assert nothing.pointing[0] == nothing.iou[0] == 0


def test_importance_recovery_is_spearmans():
    truth, values = torch.tensor([0.5, 0.3, 0.2, 0.0]), torch.tensor([0.1, 0.0, 0.9, 0.4, 0.7])
    matches = torch.tensor([2, 4, 3, 0])  # importances 0.9, 0.7, 0.4, 0.1: the true order
    assert importance_recovery(values, truth, matches) == pytest.approx(1)
    assert importance_recovery(-values, truth, matches) == pytest.approx(-1)
    lacking = torch.tensor([2, -1, 3, 0])  # 0.9, nothing, 0.4, 0.1
    expected = spearmanr([0.9, 0, 0.4, 0.1], truth).statistic
    assert importance_recovery(values, truth, lacking) == pytest.approx(expected)
    full = Importance(values, values, values[None], "test", "class", list("abcde"))
    assert importance_recovery(full, truth, matches) == pytest.approx(1)
    assert importance_recovery(torch.ones(5), truth, matches) == 0


def test_random_importances_are_at_chance():
    truth, matches = torch.tensor([0.5, 0.3, 0.2, 0.0, 0.1]), torch.arange(5)
    found = torch.tensor(
        [importance_recovery(noise(8, seed=s), truth, matches) for s in range(300)]
    )
    assert found.mean().abs() < 3 * found.std() / 300**0.5


@pytest.mark.parametrize(
    ("values", "truth", "matches", "words"),
    [
        (torch.ones(3, 2), torch.rand(2), torch.zeros(2), r"importance must have shape \(k\)"),
        (torch.rand(3), torch.ones(2), torch.zeros(2), "two different values"),
        (torch.rand(3), torch.tensor([1.0, 2]), torch.tensor([0, 3]), "indices of the 3 concepts"),
        (torch.rand(3), torch.tensor([1.0, 2]), torch.zeros(3), r"matches must have shape \(m = 2"),
    ],
)
def test_bad_importance(values, truth, matches, words):
    with pytest.raises(ValueError, match=words):
        importance_recovery(values, truth, matches)
