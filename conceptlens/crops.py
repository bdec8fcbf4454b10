"""Patches of pictures: those that a dictionary was learnt from, and where a concept is strong."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Crops that overlap more than this show the same thing; a gallery needs only one of them.
MAX_OVERLAP = 0.3


@dataclass(frozen=True)
class Crop:
    """A patch of a picture where a concept is strong.

    Attributes
    ----------
    picture : int
        Index of the picture.
    box : tuple of int
        Left, top, right and bottom in pixels.
    score : float
        The concept's code there.
    """

    picture: int
    box: tuple[int, int, int, int]
    score: float


@dataclass(frozen=True, eq=False)
class CropSet:
    """All crops that a dictionary was learnt from.

    Attributes
    ----------
    x : Tensor
        The pictures as the network takes them, ``(n, 3, H, W)``.
    boxes, owners : Tensor
        Of each of the m crops its box ``(m, 4)`` and its picture ``(m,)``.
    rows : Tensor
        Their activations, averaged over the grid, ``(m, C)``.
    codes : Tensor
        Their codes, ``(m, k)``.
    """

    x: Tensor
    boxes: Tensor
    owners: Tensor
    rows: Tensor
    codes: Tensor

    def best(self, concept: int, n: int = 10) -> list[Crop]:
        """The crops where a concept is strongest, without those that mostly repeat a better one."""
        codes, boxes, owners = self.codes[:, concept], self.boxes, self.owners
        chosen: list[int] = []
        for i in codes.argsort(descending=True).tolist():
            if len(chosen) == n or codes[i] <= 0:
                break
            same = [j for j in chosen if owners[j] == owners[i]]
            if all(_overlap(boxes[i], boxes[j]) <= MAX_OVERLAP for j in same):
                chosen.append(i)
        return [
            Crop(picture=int(owners[i]), box=tuple(boxes[i].tolist()), score=float(codes[i]))
            for i in chosen
        ]


def _overlap(a: Tensor, b: Tensor) -> float:
    """Intersection over union of two boxes (left, top, right, bottom)."""
    inner = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp(min=0)
    common = float(inner.prod())
    areas = [float((c[2:] - c[:2]).prod()) for c in (a, b)]
    return common / (sum(areas) - common)
