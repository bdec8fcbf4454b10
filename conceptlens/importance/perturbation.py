"""Importance from scores under masks that keep or remove whole concepts.

Each function takes a `ClassScore` and a seed and returns the importance ``(n, k)``. On a score that
is affine in the mask all but HSIC return exactly what each concept adds to it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .score import ClassScore

N_MASKS = 256
MAX_EXACT_SHAPLEY = 12
N_PERMUTATIONS = 32


def occlusion(score: ClassScore, seed: int) -> Tensor:
    """What the score loses when one concept is removed (Zeiler & Fergus, ECCV 2014)."""
    k = score.codes.shape[2]
    f = score.masked(torch.cat([torch.ones(1, k), 1 - torch.eye(k)]))
    return f[:, :1] - f[:, 1:]


def rise(score: ClassScore, seed: int) -> Tensor:
    """Mean score where the concept is kept less that where it is removed, over random masks.

    Petsiuk et al., BMVC 2018, take the first mean alone, which adds the same to all concepts.
    """
    masks = balanced_masks(score.codes.shape[2], seed)
    return score.masked(masks) @ (2 * masks - 1) * (2 / len(masks))


def hsic(score: ClassScore, seed: int) -> Tensor:
    """Dependence of the score on whether the concept is kept (Novello et al., NeurIPS 2022).

    The Hilbert-Schmidt independence criterion with a Gaussian kernel on scores, as wide as their
    median distance, and the kernel ½ − [mᵢ ≠ mᵢ'] on masks; never negative.
    """
    masks = balanced_masks(score.codes.shape[2], seed)
    signs = 2 * masks - 1  # the kernel on masks is the product of signs, halved, and centred
    return torch.stack([_hsic(f, signs) for f in score.masked(masks)])


def _hsic(f: Tensor, signs: Tensor) -> Tensor:
    distance = (f[:, None] - f).abs()
    width = distance.median()
    width = width if width > 0 else distance.max().clamp(min=1e-300)
    kernel = torch.exp(-0.5 * (distance / width) ** 2)
    return (signs * (kernel @ signs)).sum(0) / (2 * (len(f) - 1) ** 2)


def shapley(score: ClassScore, seed: int) -> Tensor:
    """Shapley values: what each concept adds, averaged over the orders of adding them.

    Exact for up to 12 concepts and for affine scores; else from random orders, each with its
    reverse, which is exact where concepts interact in pairs (Mitchell et al., JMLR 2022).
    """
    k = score.codes.shape[2]
    slopes = score.affine_slopes(seed)
    if slopes is not None:
        return slopes
    if k <= MAX_EXACT_SHAPLEY:
        masks = subsets(k)
        return score.masked(masks) @ shapley_weights(masks)
    generator = torch.Generator().manual_seed(seed)
    orders = torch.stack([torch.randperm(k, generator=generator) for _ in range(N_PERMUTATIONS)])
    orders = torch.cat([orders, orders.flip(1)])
    ranks = orders.argsort(1)
    # The mask at step s of an order keeps the concepts that are among its first s.
    masks = (ranks[:, None] < torch.arange(k + 1)[:, None]).double()
    f = score.masked(masks.flatten(0, 1)).unflatten(1, (len(orders), k + 1))
    return f.diff(dim=2).gather(2, ranks.expand(len(f), -1, -1)).mean(1)


def subsets(k: int) -> Tensor:
    """All 2ᵏ masks over k concepts."""
    return (torch.arange(2**k)[:, None] >> torch.arange(k) & 1).double()


def shapley_weights(masks: Tensor) -> Tensor:
    """The matrix that turns the scores of all `subsets` into Shapley values."""
    k = masks.shape[1]
    of_size = [1 / (k * math.comb(k - 1, size)) for size in range(k)]
    weights = torch.tensor([0.0, *of_size, 0.0], dtype=torch.float64)
    size = masks.sum(1).long()
    # A subset of s concepts is what one of them joined to s − 1 others, or what one may join.
    return torch.where(masks > 0, weights[size][:, None], -weights[size + 1][:, None])


def balanced_masks(k: int, seed: int) -> Tensor:
    """Random masks ``(m, k)`` of zeros and ones in which no two concepts are correlated.

    Columns of a Hadamard matrix and of its mirror image: what a concept does alone is free of
    what others do alone and of what they do in pairs.
    """
    from scipy.linalg import hadamard

    order = max(N_MASKS // 2, 2 ** (k + 1).bit_length())
    generator = torch.Generator().manual_seed(seed)
    columns = 1 + torch.randperm(order - 1, generator=generator)[:k]
    signs = 2 * torch.randint(2, (k,), generator=generator) - 1
    half = torch.from_numpy(hadamard(order))[:, columns] * signs
    return (torch.cat([half, -half]).double() + 1) / 2
