"""Contributions to a logit and their coverage, against enumeration of all subsets."""

from itertools import combinations

import pytest
import torch

from conceptlens.bottleneck.contributions import contributions, coverage


def test_contributions_sum_to_the_logit(device):
    generator = torch.Generator().manual_seed(0)
    codes = torch.rand(5, 7, generator=generator).to(device)
    weight = torch.randn(3, 7, generator=generator).to(device)
    classes = torch.tensor([0, 2, 1, 1, 0], device=device)
    parts = contributions(codes, weight, classes)
    logits = (codes @ weight.T).gather(1, classes[:, None])[:, 0]
    torch.testing.assert_close(parts.sum(1), logits)


@pytest.mark.parametrize("signs", ["positive", "absolute"])
def test_coverage_is_the_size_of_the_smallest_subset(signs):
    parts = torch.randn(12, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parts[3, 4:] = 0
    found = coverage(parts, signs)
    for i, row in enumerate(parts.tolist()):
        sizes = [abs(p) if signs == "absolute" else max(p, 0) for p in row]
        for share, estimate in found.concepts.items():
            truth = min(
                m
                for m in range(7)
                if any(sum(s) >= share * sum(sizes) - 1e-9 for s in combinations(sizes, m))
            )
            assert int(estimate.values[i]) == truth


def test_coverage_of_equal_and_of_no_contributions():
    found = coverage(torch.ones(1, 10), shares=(0.9, 1.0))
    assert [float(e) for e in found.concepts.values()] == [9, 10]
    assert float(coverage(-torch.ones(1, 10), "positive", [0.9]).concepts[0.9]) == 0
    assert "90 %: 9.0, 100 %: 10.0" in repr(found)


def test_refusals():
    with pytest.raises(ValueError, match="signs must be one of"):
        coverage(torch.ones(1, 2), "negative")
    with pytest.raises(ValueError, match="above 0 and at most 1, got \\[90\\]"):
        coverage(torch.ones(1, 2), shares=[90])
    with pytest.raises(ValueError, match="weight must have shape"):
        contributions(torch.ones(1, 2), torch.ones(3, 4), torch.zeros(1, dtype=torch.int64))
