"""`Scene`: where concepts go in a picture, and the drawing of many pictures at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import drawing
from .drawing import PHOTOS, WHOLE, Drawing

MIN_CELL = 12  # pixels in which shapes can still be told apart


@dataclass(frozen=True)
class Scenery:
    """What varies from picture to picture whatever its concepts are."""

    cells: Tensor  # (n, m): where on the grid
    centre: Tensor  # (n, m, 2): from the cell's middle, in [-1, 1] of the room there is
    radius: Tensor  # (n, m): in [0, 1], from the smallest to the largest
    angle: Tensor  # (n, m): in radians
    shade: Tensor  # (n, m)
    photo: Tensor  # (n,)
    place: Tensor  # (n, 2)
    zoom: Tensor  # (n,)

    def __getitem__(self, rows: slice) -> Scenery:
        return Scenery(**{name: values[rows] for name, values in vars(self).items()})


class Scene:
    """A grid of cells, one a concept, on a background.

    Parameters
    ----------
    drawings : sequence of sequence of Drawing
        For each of m concepts what is drawn where it is and, optionally, where it is not.
    size : int
        The pictures' side in pixels.
    cards : bool
        Whether concepts are on cards and concept i always in cell i, or in cells drawn at random.
    reserve : bool
        Whether the last cell is kept for the artefact.
    """

    def __init__(
        self, drawings: Sequence[Sequence[Drawing]], size: int, *, cards: bool, reserve: bool
    ) -> None:
        shapes = [d.shape for d, *_ in drawings]
        self.drawings, self.size, self.cards, self.reserve = drawings, size, cards, reserve
        self.symbols = [i for i, shape in enumerate(shapes) if shape not in WHOLE]
        self.frame = max(3, size // 16) if "border" in shapes else 0
        # One cell more than there are symbols, so that all settings have cells of one size.
        self.grid = math.ceil((len(self.symbols) + 1) ** 0.5)
        self.cell = (size - 2 * self.frame) // self.grid
        if self.cell < MIN_CELL:
            raise ValueError(
                f"size={size} is too small for {len(shapes)} concepts: their cells need {MIN_CELL} "
                f"pixels, so size must be at least {MIN_CELL * self.grid + 2 * self.frame}"
            )

    def arrange(self, n: int, generator: torch.Generator) -> Scenery:
        """Draw all that does not depend on the concepts of n pictures."""
        m = len(self.drawings)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(n, *shape, generator=generator)

        free = self.grid**2 - self.reserve
        places = uniform(free).argsort(1)
        if self.cards:
            places = torch.arange(free).expand(n, -1)
        cells = torch.zeros(n, m, dtype=torch.int64)
        cells[:, self.symbols] = places[:, : len(self.symbols)]
        return Scenery(
            cells=cells,
            centre=2 * uniform(m, 2) - 1,
            radius=uniform(m),
            angle=0.7 * uniform(m) - 0.35,
            shade=0.88 + 0.24 * uniform(m),
            photo=torch.randint(len(PHOTOS), (n,), generator=generator),
            place=uniform(2),
            zoom=0.45 + 0.55 * uniform(),
        )

    def draw(self, s: Scenery, present: Tensor, artefact: Tensor) -> tuple[Tensor, Tensor]:
        """Draw pictures.

        Parameters
        ----------
        s : Scenery
            Of b pictures.
        present, artefact : Tensor
            ``(b, m)`` and ``(b,)`` bool: what is in them.

        Returns
        -------
        images : Tensor
            ``(b, 3, size, size)`` in [0, 1].
        masks : Tensor
            ``(b, m, size, size)`` bool.
        """
        b, m = present.shape
        rows = torch.arange(b)
        tiles = torch.zeros(b, self.grid**2, 4, self.cell, self.cell)
        masks = torch.zeros(b, self.grid**2, m, self.cell, self.cell, dtype=torch.bool)
        if self.cards:
            tiles[:, self.symbols] = _layer(*drawing.card(self.cell))
        tiles[artefact, -1] = _layer(*drawing.tag(self.cell))
        for i in self.symbols:
            cells = s.cells[:, i]
            for j, d in enumerate(self.drawings[i]):
                there = present[:, i] if j == 0 else ~present[:, i]
                colour, opacity = drawing.symbol(d, self.cell, *self._pose(s, i))
                opacity = opacity * there[:, None, None]
                tiles[rows, cells] = _over(_layer(colour, opacity), tiles[rows, cells])
                if j == 0:
                    masks[rows, cells, i] = opacity > 0
        return self._behind(s, present, self._unfold(tiles), self._unfold(masks))

    def tag_mask(self) -> Tensor:
        """The pixels ``(size, size)`` bool of the artefact."""
        tiles = torch.zeros(1, self.grid**2, 1, self.cell, self.cell, dtype=torch.bool)
        tiles[:, -1] = drawing.tag(self.cell)[1] > 0
        return self._unfold(tiles)[0, 0]

    def _behind(
        self, s: Scenery, present: Tensor, layers: Tensor, masks: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Put border and background behind the symbols ``(b, 4, H, W)``."""
        shapes = [d.shape for d, *_ in self.drawings]
        if "border" in shapes:
            i = shapes.index("border")
            colour, opacity = drawing.border(
                self.drawings[i][0], self.size, self.frame, s.shade[:, i]
            )
            opacity = opacity * present[:, i, None, None]
            layers = _over(layers, _layer(colour, opacity))
            masks[:, i] = opacity > 0
        photo = s.photo
        if "background" in shapes:
            i = shapes.index("background")
            index = PHOTOS.index(self.drawings[i][0].colour)
            photo = torch.where(present[:, i], index, 1 - index)
            masks[:, i] = (layers[:, 3] < 1) & present[:, i, None, None]
        behind = drawing.background(photo, s.place, s.zoom, self.size)
        return (layers[:, :3] + behind * (1 - layers[:, 3:])).clamp(0, 1), masks

    def _pose(self, s: Scenery, i: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Centre, radius, angle and shade of a symbol, so that it stays inside its cell."""
        half = self.cell / 2
        margin = half / 6 if self.cards else 0.6
        radius = (half - margin) * (0.78 + 0.10 * s.radius[:, i])
        room = half - margin - radius
        return s.centre[:, i] * room[:, None], radius, s.angle[:, i], s.shade[:, i]

    def _unfold(self, tiles: Tensor) -> Tensor:
        """Lay tiles ``(b, cells, channels, cell, cell)`` out as ``(b, channels, H, W)``."""
        side, channels = self.grid * self.cell, tiles.shape[2]
        rows = tiles.unflatten(1, (self.grid, self.grid)).permute(0, 3, 1, 4, 2, 5)
        out = torch.zeros(len(tiles), channels, self.size, self.size, dtype=tiles.dtype)
        start = (self.size - side) // 2
        inner = slice(start, start + side)
        out[:, :, inner, inner] = rows.reshape(len(tiles), channels, side, side)
        return out


def _layer(colour: Tensor, opacity: Tensor) -> Tensor:
    """Colour times opacity, and opacity, as four channels."""
    return torch.cat([colour * opacity[:, None], opacity[:, None]], 1)


def _over(front: Tensor, back: Tensor) -> Tensor:
    """One layer ``(b, 4, h, w)`` before another."""
    return front + back * (1 - front[:, 3:])
