"""Stability: the same dictionary in any order is perfectly stable, unrelated ones are not."""

from itertools import permutations

import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity

from conceptlens import NMF
from conceptlens.metrics import match_dictionaries, stability


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Fixed:
    """An extractor that finds what its seed says, whatever it is shown."""

    def __init__(self, seed):
        self.seed, self.rows = seed, None

    def fit(self, a):
        self.rows = a
        self.components_ = normal(5, 200, seed=self.seed)
        return self


def test_order_and_scale_do_not_matter(device):
    first = normal(5, 20).to(device)
    order = torch.tensor([3, 1, 4, 0, 2], device=device)
    found = match_dictionaries(first, 7 * first[order])
    assert found.mean == pytest.approx(1)
    assert found.matches.tolist() == order.tolist()


def test_matching_is_the_best_permutation():
    first, second = normal(4, 6), normal(4, 6, seed=1)
    table = cosine_similarity(first, second)
    best = max(sum(table[p[j], j] for j in range(4)) for p in permutations(range(4))) / 4
    assert match_dictionaries(first, second).mean == pytest.approx(best)


def test_unmatched_concepts_score_zero():
    found = match_dictionaries(torch.eye(4)[:2], torch.eye(4))
    assert found.cosines.tolist() == [1, 1, 0, 0]
    assert found.matches.tolist() == [0, 1, -1, -1]
    assert "0.500" in repr(found)


def test_planted_parts_are_stable_and_random_ones_are_not():
    parts = torch.kron(torch.eye(4), torch.ones(1, 5))  # four blocks of five channels
    codes = torch.rand(200, 4, generator=torch.Generator().manual_seed(0))
    for halves in (False, True):
        found = stability(
            lambda s: NMF(4, init="random", random_state=s), codes @ parts, halves=halves
        )
        assert found.mean > 0.99
    assert abs(stability(Fixed, codes @ parts).mean) < 0.2


def test_halves_are_disjoint():
    made = []

    def make(seed):
        made.append(Fixed(seed))
        return made[-1]

    stability(make, torch.arange(21.0)[:, None], halves=True, seed=4)
    assert [e.seed for e in made] == [4, 5]
    assert sorted(torch.cat([e.rows for e in made])[:, 0].tolist()) == list(range(21))
    assert abs(len(made[0].rows) - len(made[1].rows)) == 1


def test_bad_input():
    with pytest.raises(ValueError, match="C = 3"):
        match_dictionaries(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"a must have shape \(n, C\)"):
        stability(Fixed, torch.ones(3))
