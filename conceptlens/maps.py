"""Concept activation maps: where in the picture a concept is."""

from __future__ import annotations

import torch
from torch import Tensor

from .model import ConceptModel


def concept_maps(cm: ConceptModel, x: Tensor) -> Tensor:
    """Map each concept over each picture.

    The codes of the positions on the grid are interpolated bicubically to the picture's size and
    cut at zero where they are nonnegative.

    Parameters
    ----------
    cm : ConceptModel
        The classifier in concept space.
    x : Tensor
        Preprocessed pictures ``(B, 3, H, W)``.

    Returns
    -------
    Tensor
        ``(B, k, H, W)``, in the codes' unit.

    Raises
    ------
    ValueError
        If the model's positions have no places in the picture.
    """
    with torch.no_grad():
        codes = cm.encode(x)
    return upsample(codes_on_grid(cm, codes), (x.shape[-2], x.shape[-1]))


def codes_on_grid(cm: ConceptModel, codes: Tensor) -> Tensor:
    """Lay codes ``(B, P, k)`` out on the grid as ``(B, k, h, w)``, without prefix tokens."""
    if cm.grid == (1, 1):
        raise ValueError(
            "the codes have one position a picture, so there is nothing to map: cut the backbone "
            "at an earlier layer, one whose grid is larger than 1×1"
        )
    return codes[:, cm.n_prefix :].transpose(1, 2).unflatten(2, cm.grid)


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Interpolate ``(B, k, h, w)`` to ``(B, k, *size)`` without leaving the range of the values."""
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    large = torch.nn.functional.interpolate(maps, size, mode="bicubic", align_corners=False)
    return torch.minimum(torch.maximum(large, low), high)
