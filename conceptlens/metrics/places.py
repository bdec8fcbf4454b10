"""Whether a map lies where the concept is: pointing game, relevance inside, IoU.

Every function takes maps ``(n, H, W)`` and masks ``(n, H, W)`` of one concept in n pictures and
leaves out the pictures whose mask is empty. A map that is the same everywhere scores the mask's
share of the picture, which is chance.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .checks import check_binary, check_shape
from .result import Estimate


def pointing_game(maps: Any, masks: Any, tolerance: int = 0) -> Estimate:
    """Share of the pictures whose map peaks inside the mask.

    Where several pixels are highest, the picture counts by the share of them that lie inside.

    Parameters
    ----------
    maps, masks : Tensor
        ``(n, H, W)``; masks hold 0 and 1.
    tolerance : int
        Peaks so many pixels outside the mask count as inside.

    References
    ----------
    Zhang et al., "Top-down neural attention by excitation backprop", IJCV 2018.
    """
    maps, masks = _check(maps, masks)
    if tolerance < 0:
        raise ValueError(f"tolerance must be at least 0 pixels, got {tolerance}")
    wide = masks
    if tolerance:
        size = 2 * tolerance + 1
        wide = torch.nn.functional.max_pool2d(masks[:, None].float(), size, 1, tolerance)[:, 0] > 0
    peaks = maps == maps.amax((1, 2), keepdim=True)
    return _estimate((peaks & wide).sum((1, 2)) / peaks.sum((1, 2)), masks)


def relevance_inside(relevance: Any, masks: Any) -> Estimate:
    """Share of a map's absolute mass that lies inside the mask.

    Parameters
    ----------
    relevance : Tensor
        ``(n, H, W)``, of either sign; sum an attribution over the colour channels first. A map
        without any mass is left out.
    masks : Tensor
        ``(n, H, W)`` of 0 and 1.

    References
    ----------
    Furby et al., "Can we constrain concept bottleneck models to learn semantically meaningful
    input features?", 2024.
    """
    relevance, masks = _check(relevance, masks)
    mass = relevance.double().abs()
    return _estimate((mass * masks).sum((1, 2)) / mass.sum((1, 2)), masks)  # 0 / 0 is NaN


def iou(maps: Any, masks: Any) -> Estimate:
    """Intersection over union of each mask with as many of the map's highest pixels.

    Taking the mask's own number of pixels needs no threshold; pixels as high as the last one
    taken are taken too.
    """
    maps, masks = _check(maps, masks)
    area = masks.sum((1, 2)).clamp(min=1)
    falling = maps.flatten(1).sort(1, descending=True).values
    threshold = falling.gather(1, (area - 1)[:, None])[..., None]
    above = maps >= threshold
    return _estimate((above & masks).sum((1, 2)) / (above | masks).sum((1, 2)), masks)


def _check(maps: Any, masks: Any) -> tuple[Tensor, Tensor]:
    maps = check_shape(maps, "maps", "n H W")
    n, height, width = maps.shape
    return maps, check_binary(masks, "masks", "n H W", n=n, H=height, W=width).to(maps.device)


def _estimate(values: Tensor, masks: Tensor) -> Estimate:
    placed = masks.any(2).any(1)
    return Estimate(torch.where(placed, values.double(), torch.nan).cpu())
