"""Explanations against concept labels and places: CGIM, CEM, CLM.

References
----------
Aysel et al., "Concept-based explainable artificial intelligence: metrics and benchmarks", 2025.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .checks import check_binary, check_one_of, check_shape
from .places import iou, pointing_game, relevance_inside
from .result import Estimate

HITS: dict[str, Callable[..., Estimate]] = {
    "peak": pointing_game,
    "mass": relevance_inside,
    "iou": iou,
}


@dataclass(frozen=True, eq=False)
class GlobalAgreement:
    """Likeness of two class × concept matrices, from −1 to 1.

    Attributes
    ----------
    whole : float
        Of the matrices as vectors.
    per_class : Tensor
        ``(n_classes,)``, over the concepts.
    per_concept : Tensor
        ``(k,)``, over the classes.
    likeness : str
        ``"cosine"`` or ``"pearson"``.

    Notes
    -----
    NaN where the truth tells nothing (zeros for a cosine, equal values for a correlation); 0
    where only the explanation does.
    """

    whole: float
    per_class: Tensor
    per_concept: Tensor
    likeness: str

    def __repr__(self) -> str:
        return (
            f"Agreement of importance with the truth ({self.likeness}): {self.whole:.3f}, "
            f"mean per class {float(self.per_class.nanmean()):.3f}, "
            f"mean per concept {float(self.per_concept.nanmean()):.3f}"
        )


def cgim(importance: Any, truth: Any, likeness: str = "cosine") -> GlobalAgreement:
    """Concept global importance: agreement of a model's class × concept matrix with the truth.

    Parameters
    ----------
    importance, truth : Tensor
        ``(n_classes, k)``.
    likeness : {"cosine", "pearson"}
        They differ most where weights are signed and the truth is not: Pearson's ignores a
        common offset.
    """
    check_one_of(likeness, "likeness", ("cosine", "pearson"))
    importance = check_shape(importance, "importance", "n_classes k").detach().double().cpu()
    n, k = importance.shape
    truth = check_shape(truth, "truth", "n_classes k", n_classes=n, k=k).double().cpu()

    def along_rows(x: Tensor, y: Tensor) -> Tensor:
        if likeness == "pearson":
            x, y = (_centred(v) for v in (x, y))
        size = y.norm(dim=1)
        cosine = (x * y).sum(1) / (x.norm(dim=1) * size).clamp(min=1e-300)
        return torch.where(size > 0, cosine, torch.nan)

    whole = along_rows(importance.reshape(1, -1), truth.reshape(1, -1))
    return GlobalAgreement(
        float(whole), along_rows(importance, truth), along_rows(importance.T, truth.T), likeness
    )


def cem(importance: Any, present: Any, top: int = 1) -> Estimate:
    """Concept existence: of a picture's most important concepts, the share that is in it.

    Parameters
    ----------
    importance : Tensor
        ``(n, k)``, of each concept in each picture. Equal ones keep their order.
    present : Tensor
        ``(n, k)`` of 0 and 1.
    top : int
        How many of the most important concepts, from 1 to k.

    Returns
    -------
    Estimate
        From 0 to 1 a picture. A random importance scores the share of concepts in a picture.
    """
    chosen, k = _top(importance, top)
    present = check_binary(present, "present", "n k", n=len(chosen), k=k).cpu()
    return Estimate(present.gather(1, chosen).double().mean(1))


def clm(
    importance: Any, maps: Any, masks: Any, top: int = 1, hit: str = "peak", tolerance: int = 0
) -> Estimate:
    """Concept location: of a picture's most important concepts, how many are mapped right.

    Only concepts that have a place in the picture count; a picture whose most important concepts
    have none is left out.

    Parameters
    ----------
    importance : Tensor
        ``(n, k)``.
    maps : Tensor
        ``(n, k, H, W)``.
    masks : Tensor
        ``(n, k, H, W)`` of 0 and 1; empty where a concept is not in the picture.
    top : int
        How many of the most important concepts, from 1 to k.
    hit : {"peak", "mass", "iou"}
        What is averaged: whether the map peaks in the mask, the share of its mass that lies
        there, or `iou`.
    tolerance : int
        For ``"peak"``, as in `pointing_game`.
    """
    check_one_of(hit, "hit", tuple(HITS))
    chosen, k = _top(importance, top)
    n = len(chosen)
    maps = check_shape(maps, "maps", "n k H W", n=n, k=k)
    height, width = maps.shape[2:]
    masks = check_binary(masks, "masks", "n k H W", n=n, k=k, H=height, W=width)
    picture = torch.arange(n)[:, None].expand_as(chosen).reshape(-1)
    concept = chosen.reshape(-1)
    options = {"tolerance": tolerance} if hit == "peak" else {}
    each = HITS[hit](maps[picture, concept], masks[picture, concept], **options)
    return Estimate(each.values.reshape(n, -1).nanmean(1))


def _top(importance: Any, top: int) -> tuple[Tensor, int]:
    """Indices ``(n, top)`` of the most important concepts, and k."""
    importance = check_shape(importance, "importance", "n k").detach().cpu()
    k = importance.shape[1]
    if not 1 <= top <= k:
        raise ValueError(f"top must lie between 1 and k = {k}, got {top}")
    return importance.argsort(dim=1, descending=True, stable=True)[:, :top], k


def _centred(rows: Tensor) -> Tensor:
    """Rows about their mean; exact zeros where all entries are equal."""
    same = (rows == rows[:, :1]).all(1, keepdim=True)
    return torch.where(same, 0.0, rows - rows.mean(1, keepdim=True))
