"""Figures of an explanation; each function returns a matplotlib `Figure`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .maps import upsample

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .explanation import Explanation

# Okabe and Ito's colours, told apart by readers with any colour vision.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#7F7F7F")


def colour(rank: int) -> str:
    """The colour of the concept at this rank of importance, the same in every figure."""
    return PALETTE[rank % len(PALETTE)]


def drawable(name: str) -> str:
    """What a font can draw of a name: bytes that are no UTF-8, as files may have, become "?"."""
    return name.encode(errors="replace").decode()


def overlay(picture: Tensor, maps: Tensor, colours: list[str], opacity: float = 0.75) -> Tensor:
    """Paint concepts over a greyed picture, each where it is stronger than the others.

    Parameters
    ----------
    picture : Tensor
        uint8 ``(3, H, W)``.
    maps : Tensor
        ``(m, H, W)``, scaled so that 1 is a concept's full strength.
    colours : list of str
        m colours.
    opacity : float
        Of a concept at full strength.

    Returns
    -------
    Tensor
        uint8 ``(3, H, W)``.
    """
    from matplotlib.colors import to_rgb

    grey = picture.float().mean(0, keepdim=True).expand(3, -1, -1)
    paint = torch.tensor([to_rgb(c) for c in colours]) * 255  # (m, 3)
    strength, strongest = maps.clamp(0, 1).max(0)
    # Weak responses are everywhere; half of the full strength and less stays unpainted.
    alpha = opacity * ((strength - 0.35) / 0.4).clamp(0, 1)
    painted = (1 - alpha) * (0.35 * picture + 0.65 * grey) + alpha * paint[strongest].movedim(-1, 0)
    return painted.round().to(torch.uint8)


def scaled_maps(explanation: Explanation, concepts: list[int], picture: int) -> Tensor:
    """Maps ``(m, H, W)`` of a picture at its size, scaled as `grid_maps`."""
    height, width = explanation.pictures.shape[-2:]
    return upsample(grid_maps(explanation, concepts)[picture][None], (height, width))[0]


def grid_maps(explanation: Explanation, concepts: list[int]) -> Tensor:
    """Maps ``(n, m, h, w)`` on the grid, 1 at each concept's strongest place anywhere.

    A concept's strongest place is its 99th percentile over all pictures.
    """
    maps = explanation.concept_maps[:, concepts].float()
    peak = maps.movedim(1, 0).flatten(1).quantile(0.99, dim=1).clamp(min=1e-12)
    return maps / peak[:, None, None]


def concept_gallery(explanation: Explanation, n_crops: int = 8) -> Figure:
    """One row a concept: its best crops, its importance with standard error at the left."""
    from matplotlib.figure import Figure

    rows = len(explanation.concepts)
    figure = Figure(figsize=(1.9 + 1.05 * n_crops, 1.1 * rows + 0.5), layout="constrained")
    figure.suptitle(f"Concepts of “{explanation.target}”, most important first")
    axes = figure.subplots(rows, n_crops + 1, squeeze=False, width_ratios=[1.6] + [1] * n_crops)
    for rank, (concept, row) in enumerate(zip(explanation.concepts, axes, strict=True)):
        label = f"{concept.name}\n{concept.importance:.3f} ± {concept.stderr:.3f}"
        row[0].text(0.96, 0.5, label, ha="right", va="center", fontsize=9, color=_dark(rank))
        for ax, crop in zip(row[1:], concept.crops, strict=False):
            ax.imshow(_array(explanation.pixels(crop)))
        for ax in row:
            ax.set_axis_off()
    return figure


def overlays(explanation: Explanation, n_pictures: int = 4, n_concepts: int = 4) -> Figure:
    """One row a picture: the picture, its concepts painted on it, and their importance there."""
    from matplotlib.figure import Figure

    chosen = [c.index for c in explanation.concepts[:n_concepts]]
    pictures = range(min(n_pictures, len(explanation.pictures)))
    figure = Figure(figsize=(7.5, 2.2 * len(pictures) + 0.4), layout="constrained")
    figure.suptitle(f"Where “{explanation.target}” finds its main concepts")
    axes = figure.subplots(len(pictures), 3, squeeze=False, width_ratios=[1, 1, 1.3])
    colours = [colour(rank) for rank in range(len(chosen))]
    for i, (plain, painted, bars) in zip(pictures, axes, strict=True):
        plain.imshow(_array(explanation.pictures[i]))
        maps = scaled_maps(explanation, chosen, i)
        painted.imshow(_array(overlay(explanation.pictures[i], maps, colours)))
        names = [c.name for c in explanation.concepts[:n_concepts]]
        bars.barh(names, explanation.importance.per_image[i, chosen].tolist(), color=colours)
        bars.invert_yaxis()
        bars.spines[["top", "right"]].set_visible(False)
        plain.set_axis_off()
        painted.set_axis_off()
    axes[-1, 2].set_xlabel("importance in this picture")
    return figure


def importance_bars(explanation: Explanation) -> Figure:
    """Importance of every concept with its standard error."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 0.8 + 0.3 * len(explanation.concepts)), layout="constrained")
    ax = explanation.importance.plot(figure.subplots())
    for rank, patch in enumerate(ax.patches):
        patch.set_facecolor(colour(rank))
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def summary(explanation: Explanation, n_concepts: int = 5, n_crops: int = 6) -> Figure:
    """One page: importance at the left, the best crops of the main concepts at the right."""
    from matplotlib.figure import Figure

    shown = explanation.concepts[:n_concepts]
    figure = Figure(figsize=(11, 1.05 * max(len(shown), 3) + 0.6), layout="constrained")
    figure.suptitle(f"How the network recognises “{explanation.target}”")
    left, right = np.asarray(figure.subfigures(1, 2, width_ratios=[1, 1.6]))
    ax = explanation.importance.plot(left.subplots())
    for rank, patch in enumerate(ax.patches):
        patch.set_facecolor(colour(rank))
    ax.spines[["top", "right"]].set_visible(False)
    axes = right.subplots(len(shown), n_crops + 1, squeeze=False)
    for rank, (concept, row) in enumerate(zip(shown, axes, strict=True)):
        row[0].text(1, 0.5, concept.name, ha="right", va="center", color=_dark(rank), fontsize=9)
        for ax, crop in zip(row[1:], concept.crops, strict=False):
            ax.imshow(_array(explanation.pixels(crop)))
        for ax in row:
            ax.set_axis_off()
    return figure


def _dark(rank: int) -> Any:
    """The concept's colour, darkened until it reads as text on white."""
    from matplotlib.colors import to_rgb

    return tuple(0.65 * np.array(to_rgb(colour(rank))))


def _array(picture: Tensor) -> np.ndarray:
    return picture.movedim(0, -1).numpy()
