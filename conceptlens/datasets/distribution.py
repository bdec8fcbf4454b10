"""Exact tables over all 2^m concept vectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def all_vectors(m: int) -> Tensor:
    """All concept vectors ``(2^m, m)`` bool in counting order, the first concept slowest.

    A table of this order reshaped to ``(2,) * m`` has one axis a concept.
    """
    digits = torch.arange(2**m)[:, None] >> torch.arange(m - 1, -1, -1)
    return (digits & 1).bool()


def concept_table(
    prevalence: Sequence[float], groups: Sequence[tuple[Sequence[int], float]]
) -> Tensor:
    """Probabilities ``(2^m,)`` float64 of the concept vectors.

    Parameters
    ----------
    prevalence : sequence of float
        One a concept.
    groups : sequence of (indices, r)
        Disjoint groups of concepts of one prevalence, any two of which correlate by r: with
        probability √r each takes the value of a bit that the group shares, else one of its own.
        Concepts in no group are independent.
    """
    vectors = all_vectors(len(prevalence))
    grouped = {i for members, _ in groups for i in members}
    alone: list[tuple[Sequence[int], float]] = [
        ([i], 0.0) for i in range(len(prevalence)) if i not in grouped
    ]
    table = torch.ones(len(vectors), dtype=torch.float64)
    for members, r in [*groups, *alone]:
        values = vectors[:, list(members)].double()
        p = prevalence[members[0]]
        own = values * p + (1 - values) * (1 - p)
        copied = [
            share * (r**0.5 * (values == bit).double() + (1 - r**0.5) * own).prod(1)
            for bit, share in ((True, p), (False, 1 - p))
        ]
        table *= copied[0] + copied[1]
    return table


def total_indices(scores: Tensor, prevalence: Sequence[float]) -> Tensor:
    """Total Sobol indices of functions of independent concepts, by enumeration.

    S_i = E[Var(f | all concepts but i)] / Var(f), 0 where f is constant.

    Parameters
    ----------
    scores : Tensor
        ``(2^m, K)``: K functions at `all_vectors`.
    prevalence : sequence of float
        The probability of each concept.

    Returns
    -------
    Tensor
        ``(K, m)`` float64.
    """
    m = len(prevalence)
    vectors = all_vectors(m)
    p = torch.tensor(prevalence, dtype=torch.float64)
    weight = torch.where(vectors, p, 1 - p).prod(1)
    variance = weight @ scores.double() ** 2 - (weight @ scores.double()) ** 2
    indices = torch.zeros(scores.shape[1], m, dtype=torch.float64)
    for i in range(m):
        with_it, without = scores[vectors[:, i]].double(), scores[~vectors[:, i]].double()
        others = weight[vectors[:, i]] + weight[~vectors[:, i]]
        indices[:, i] = p[i] * (1 - p[i]) * (others @ (with_it - without) ** 2)
    constant = variance <= 1e-12 * (weight @ scores.double() ** 2)
    return torch.where(constant[:, None], 0.0, indices / variance.clamp(min=1e-300)[:, None])
