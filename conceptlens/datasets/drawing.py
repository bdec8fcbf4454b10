"""Antialiased symbols, borders and photo backgrounds, drawn for many pictures at once.

A shape is a signed distance: a function of the coordinates ``x, y`` (y downwards) that is negative
inside. Shapes lie within the unit circle, so that they may be turned. A pattern is a function of
the same coordinates to the share, 0 to 1, of white in the fill.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

Field = Callable[[Tensor, Tensor], Tensor]

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.12, 0.14),
    "orange": (0.97, 0.53, 0.07),
    "yellow": (0.98, 0.86, 0.12),
    "green": (0.10, 0.60, 0.24),
    "cyan": (0.20, 0.77, 0.86),
    "blue": (0.11, 0.33, 0.84),
    "purple": (0.50, 0.17, 0.67),
    "pink": (0.96, 0.47, 0.70),
    "brown": (0.47, 0.28, 0.13),
    "black": (0.10, 0.10, 0.12),
    "white": (0.98, 0.98, 0.98),
}
INK = 0.07  # the outline's grey level
OUTLINE = 1.1  # its width in pixels
PHOTOS = ("china", "flower")  # scikit-learn's sample images
WHOLE = ("border", "background")  # shapes that concern the whole picture


def _polygon(sides: int, inradius: float, turn: float = 0.0) -> Field:
    """A regular polygon as the largest of its sides' distances."""
    angles = [turn + 2 * math.pi * i / sides for i in range(sides)]

    def distance(x: Tensor, y: Tensor) -> Tensor:
        edges = (x * math.cos(a) + y * math.sin(a) - inradius for a in angles)
        return torch.stack(list(edges)).amax(0)

    return distance


def _disc(x: Tensor, y: Tensor, cx: float = 0.0, cy: float = 0.0, radius: float = 0.92) -> Tensor:
    return (x - cx).hypot(y - cy) - radius


def _ring(x: Tensor, y: Tensor) -> Tensor:
    return (x.hypot(y) - 0.68).abs() - 0.27


def _box(x: Tensor, y: Tensor, width: float, height: float) -> Tensor:
    return torch.maximum(x.abs() - width, y.abs() - height)


def _cross(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(_box(x, y, 0.95, 0.29), _box(x, y, 0.29, 0.95))


def _star(x: Tensor, y: Tensor) -> Tensor:
    """Five points: the plane is folded onto half a point, which has one straight edge."""
    sector = 2 * math.pi / 5
    angle = torch.atan2(x, -y)
    folded = (torch.remainder(angle + sector / 2, sector) - sector / 2).abs()
    radius = x.hypot(y)
    px, py = radius * folded.cos(), radius * folded.sin()
    tip, notch = (1.0, 0.0), (0.46 * math.cos(sector / 2), 0.46 * math.sin(sector / 2))
    ex, ey = notch[0] - tip[0], notch[1] - tip[1]
    return ((px - tip[0]) * ey - (py - tip[1]) * ex) / math.hypot(ex, ey)


def _heart(x: Tensor, y: Tensor) -> Tensor:
    """Two lobes over a point: a square on its corner and a disc on either upper side."""
    square = ((x.abs() + (y - 0.12).abs()) / math.sqrt(2)) - 0.58
    lobe = _disc(x.abs(), y, 0.42, -0.30, 0.50)
    return torch.minimum(square, lobe)


def _spade(x: Tensor, y: Tensor) -> Tensor:
    leaf = _heart(x * 1.15, -(y + 0.12) * 1.15) / 1.15
    return torch.minimum(leaf, _stem(x, y))


def _club(x: Tensor, y: Tensor) -> Tensor:
    leaves = torch.minimum(_disc(x, y, 0.0, -0.48, 0.42), _disc(x.abs(), y, 0.46, 0.14, 0.42))
    return torch.minimum(leaves, _stem(x, y))


def _stem(x: Tensor, y: Tensor) -> Tensor:
    """A narrow triangle that stands on its base."""
    return torch.maximum(x.abs() - 0.08 - 0.28 * (y - 0.1), (y - 0.5).abs() - 0.4)


def _moon(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(_disc(x, y), -_disc(x, y, 0.45, -0.1, 0.72))


def _tag(x: Tensor, y: Tensor) -> Tensor:
    return _box(x, y, 0.95, 0.42)


SHAPES: dict[str, Field] = {
    "disc": _disc,
    "ring": _ring,
    "square": _polygon(4, 0.68),
    "diamond": lambda x, y: (x.abs() / 0.68 + y.abs() / 0.98 - 1) * 0.56,
    "triangle": _polygon(3, 0.5, turn=math.pi / 2),
    "hexagon": _polygon(6, 0.82),
    "cross": _cross,
    "star": _star,
    "heart": _heart,
    "spade": _spade,
    "club": _club,
    "moon": _moon,
}


def _soft(wave: Tensor) -> Tensor:
    """A wave about 0 to steps between 0 and 1 whose slope fits a pixel of a symbol of 8 pixels."""
    return (0.5 + 1.6 * wave).clamp(0, 1)


PATTERNS: dict[str, Field] = {
    "plain": lambda x, y: torch.zeros_like(x),
    "striped": lambda x, y: _soft((2 * math.pi * x / 0.62).sin()),
    "checked": lambda x, y: _soft(2 * (math.pi * x / 0.5).sin() * (math.pi * y / 0.5).sin()),
    "dotted": lambda x, y: _soft(
        1.2 * ((2 * math.pi * x / 0.72).cos() + (2 * math.pi * y / 0.72).cos()) - 1.0
    ),
}


@dataclass(frozen=True)
class Drawing:
    """What is drawn for a concept: words of `PATTERNS`, `COLOURS` and `SHAPES`, in any order.

    ``shape`` may also be "border", a frame around the whole picture, or "background", whose
    colour word is one of `PHOTOS`.
    """

    shape: str
    colour: str = "white"
    pattern: str = "plain"

    @property
    def text(self) -> str:
        """The drawing in words."""
        words = [self.pattern] * (self.pattern != "plain") + [self.colour, self.shape]
        return " ".join(words)

    @classmethod
    def parse(cls, text: str) -> Drawing:
        """Read "striped red disc"; the shape must be named, colour and pattern may be.

        Raises
        ------
        ValueError
            For a word that is not known, none for the shape, or two for the same thing.
        """
        kinds = {
            "shape": (*SHAPES, *WHOLE),
            "colour": (*COLOURS, *PHOTOS),
            "pattern": tuple(PATTERNS),
        }
        found: dict[str, str] = {}
        for word in text.split():
            kind = next((kind for kind, words in kinds.items() if word in words), None)
            if kind is None:
                known = "; ".join(f"{kind}: {', '.join(words)}" for kind, words in kinds.items())
                raise ValueError(f"{word!r} in the concept {text!r} cannot be drawn ({known})")
            if kind in found:
                raise ValueError(f"the concept {text!r} has two {kind}s")
            found[kind] = word
        if "shape" not in found:
            raise ValueError(f"the concept {text!r} names no shape: one of {kinds['shape']}")
        if (found["shape"] == "background") != (found.get("colour") in PHOTOS):
            raise ValueError(f"{text!r}: a background, and only it, is of one of {PHOTOS}")
        return cls(**found)


def symbol(
    drawing: Drawing, size: int, centre: Tensor, radius: Tensor, angle: Tensor, shade: Tensor
) -> tuple[Tensor, Tensor]:
    """Draw a symbol in a square cell, once for each of n places in it.

    Parameters
    ----------
    drawing : Drawing
        With a shape of `SHAPES`.
    size : int
        The cell's side in pixels.
    centre : Tensor
        ``(n, 2)``: x and y from the cell's middle, in pixels.
    radius, angle, shade : Tensor
        ``(n,)``: in pixels, in radians, and the brightness that the fill is multiplied by.

    Returns
    -------
    colour : Tensor
        ``(n, 3, size, size)``, in [0, 1].
    opacity : Tensor
        ``(n, size, size)``.
    """
    pixels = torch.arange(size) - (size - 1) / 2
    dx = pixels[None, None, :] - centre[:, 0, None, None]
    dy = pixels[None, :, None] - centre[:, 1, None, None]
    cos, sin = (f(angle)[:, None, None] / radius[:, None, None] for f in (torch.cos, torch.sin))
    x, y = dx * cos + dy * sin, dy * cos - dx * sin
    distance = SHAPES[drawing.shape](x, y) * radius[:, None, None]
    white = PATTERNS[drawing.pattern](x, y)
    fill = _fill(drawing, white, shade)
    inside = (0.5 - distance - OUTLINE).clamp(0, 1)[:, None]
    return INK + (fill - INK) * inside, (0.5 - distance).clamp(0, 1)


def border(drawing: Drawing, size: int, width: int, shade: Tensor) -> tuple[Tensor, Tensor]:
    """Draw a frame of `width` pixels around the picture: colour and opacity as of `symbol`."""
    x, y = _plane(size, 8.0)
    fill = _fill(drawing, PATTERNS[drawing.pattern](x, y), shade)
    opacity = torch.ones(size, size)
    opacity[width:-width, width:-width] = 0.0
    return fill, opacity.expand(len(shade), -1, -1)


def card(size: int) -> tuple[Tensor, Tensor]:
    """Draw a blank playing card that fills a cell: colour and opacity as of `symbol`, n = 1."""
    x, y = _plane(size, 1.0)
    half, corner = size / 2 - 0.8, size / 7
    qx, qy = x.abs() - half + corner, y.abs() - half + corner
    distance = qx.clamp(min=0).hypot(qy.clamp(min=0)) + torch.maximum(qx, qy).clamp(max=0) - corner
    paper = 0.45 + 0.53 * (0.5 - distance - 1.0).clamp(0, 1)
    return paper.expand(1, 3, -1, -1), (0.5 - distance).clamp(0, 1)


def tag(size: int) -> tuple[Tensor, Tensor]:
    """Draw the artefact, a white tag with two lines of black print; as of `symbol`, n = 1."""
    x, y = _plane(size, size / 2 - 1)
    print_ = (_soft((2 * math.pi * y / 0.42 + 0.6).cos()) > 0.5) & (x.abs() < 0.78)
    letters = print_ & ((x * 5.3).frac().abs() < 0.62) & (y.abs() < 0.3)
    opacity = (0.5 - _tag(x, y) * (size / 2 - 1)).clamp(0, 1)
    return torch.where(letters, 0.1, 1.0).expand(1, 3, -1, -1), opacity


def background(photo: Tensor, place: Tensor, zoom: Tensor, size: int) -> Tensor:
    """Cut washed-out pieces ``(n, 3, size, size)`` out of sample photos.

    Parameters
    ----------
    photo : Tensor
        ``(n,)``: indices into `PHOTOS`.
    place : Tensor
        ``(n, 2)`` in [0, 1]: from the leftmost and topmost piece to the last.
    zoom : Tensor
        ``(n,)``: the piece's side as a share of the photo's height.
    size : int
        The side in pixels.
    """
    steps = (torch.arange(size) + 0.5) / size * 2 - 1
    photos = _photos()
    height, width = photos.shape[-2:]
    half = torch.stack([zoom * height / width, zoom], 1)  # of the piece, in grid_sample's units
    middle = (2 * place - 1) * (1 - half)
    grid = torch.stack(
        [
            (middle[:, 0, None] + half[:, 0, None] * steps)[:, None, :].expand(-1, size, -1),
            (middle[:, 1, None] + half[:, 1, None] * steps)[:, :, None].expand(-1, -1, size),
        ],
        -1,
    )
    out = torch.empty(len(photo), 3, size, size)
    for i, picture in enumerate(photos):
        rows = photo == i
        source = picture.expand(int(rows.sum()), -1, -1, -1)
        out[rows] = torch.nn.functional.grid_sample(
            source, grid[rows], padding_mode="border", align_corners=False
        )
    return 0.38 + 0.5 * out


@lru_cache(maxsize=1)
def _photos() -> Tensor:
    """The sample photos at a quarter of their size: ``(2, 3, 106, 160)`` in [0, 1]."""
    from sklearn.datasets import load_sample_image

    arrays = [torch.from_numpy(load_sample_image(f"{name}.jpg").copy()) for name in PHOTOS]
    pixels = torch.stack(arrays).movedim(-1, 1).float() / 255
    return torch.nn.functional.avg_pool2d(pixels, 4)


def _fill(drawing: Drawing, white: Tensor, shade: Tensor) -> Tensor:
    """The colour ``(n, 3, h, w)`` of a drawing whose share of white is ``(n, h, w)``."""
    colour = torch.tensor(COLOURS[drawing.colour])[:, None, None] * shade[:, None, None, None]
    return torch.lerp(colour.clamp(max=1.0), torch.ones(()), white[:, None])


def _plane(size: int, unit: float) -> tuple[Tensor, Tensor]:
    """Coordinates x, y ``(1, size, size)`` of the pixels from the middle, in `unit` pixels."""
    steps = (torch.arange(size) - (size - 1) / 2) / unit
    return steps.expand(1, size, size), steps[:, None].expand(1, size, size)
