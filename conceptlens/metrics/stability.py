"""Stability: whether two fits of an extractor find the same concepts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .checks import check_shape
from .matching import cosines, match, matched

if TYPE_CHECKING:
    from ..extraction.base import Extractor


@dataclass(frozen=True, eq=False)
class Stability:
    """Concepts of one dictionary matched to those of another.

    Attributes
    ----------
    cosines : Tensor
        ``(m,)``, each concept of the second dictionary with its match; 0 without one.
    matches : Tensor
        ``(m,)``, the match's index in the first dictionary; −1 without one.
    """

    cosines: Tensor
    matches: Tensor

    @property
    def mean(self) -> float:
        """The mean matched cosine.

        1 for the same concepts in any order. Unrelated concepts score 0 only if they have entries
        of both signs; two nonnegative dictionaries always have much in common.
        """
        return float(self.cosines.mean())

    def __repr__(self) -> str:
        return f"Stability of {len(self.cosines)} concepts: mean matched cosine {self.mean:.3f}"


def match_dictionaries(first: Tensor, second: Tensor) -> Stability:
    """Match the concepts of two dictionaries ``(k, C)`` and ``(m, C)`` by their cosines."""
    table = cosines(first, second)
    matches = match(table)
    return Stability(matched(table, matches, 0.0), matches)


def stability(
    make: Callable[[int], Extractor], a: Tensor, *, halves: bool = False, seed: int = 0
) -> Stability:
    """Fit an extractor twice, with another seed, and match the two dictionaries.

    Parameters
    ----------
    make : callable
        Makes an unfitted extractor from a seed, such as
        ``lambda seed: NMF(10, random_state=seed)``.
    a : Tensor
        Rows of activations ``(n, C)``.
    halves : bool
        Fit the second on the other random half of the rows; otherwise both see all of them.
    seed : int
        The first fit's seed, the second's is one more; also fixes the halves.

    References
    ----------
    Fel et al., "A holistic approach to unifying automatic concept extraction and concept
    importance estimation", NeurIPS 2023.
    """
    a = check_shape(a, "a", "n C")
    parts = (a, a)
    if halves:
        order = torch.randperm(len(a), generator=torch.Generator().manual_seed(seed))
        middle = len(a) // 2
        parts = (a[order[:middle].to(a.device)], a[order[middle:].to(a.device)])
    first, second = (make(seed + i).fit(part) for i, part in enumerate(parts))
    return match_dictionaries(
        torch.as_tensor(first.components_), torch.as_tensor(second.components_)
    )
