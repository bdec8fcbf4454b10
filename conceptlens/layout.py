"""How a layer's output is laid out, and its translation to positions × channels and back."""

from __future__ import annotations

from dataclasses import dataclass
from math import log

from torch import Tensor

# Class and register tokens stand before the patch tokens; no published network has more.
MAX_PREFIX_TOKENS = 16


@dataclass(frozen=True)
class Layout:
    """The form of a layer's output without its batch dimension.

    Attributes
    ----------
    kind : {"vector", "tokens", "channels_first", "channels_last"}
        ``(C,)``, ``(T, C)``, ``(C, h, w)`` or ``(h, w, C)``.
    shape : tuple of int
        The output's shape without the batch dimension.
    grid : tuple of int
        ``(h, w)``, the places of the picture that the positions stand for.
    n_prefix : int
        Tokens before the grid's (class, registers); positions P = n_prefix + h·w.
    """

    kind: str
    shape: tuple[int, ...]
    grid: tuple[int, int]
    n_prefix: int = 0

    @classmethod
    def infer(
        cls, shape: tuple[int, ...], picture: tuple[int, int], n_prefix: int | None = None
    ) -> Layout | None:
        """Read the layout off an output's shape, or return None where there is none to read.

        Parameters
        ----------
        shape : tuple of int
            The output's shape without the batch dimension.
        picture : tuple of int
            Height and width of the network's input. Of the two readings of a 3-d output the one
            whose grid is closer to the picture's proportions is taken, channels first in a tie.
        n_prefix : int, optional
            Number of class and register tokens, where the model states it.
        """
        if len(shape) == 1:
            return cls("vector", shape, (1, 1))
        if len(shape) == 2:
            return cls._infer_tokens(shape, picture, n_prefix)
        if len(shape) == 3:
            first, last = (shape[1], shape[2]), (shape[0], shape[1])
            if _distortion(first, picture) <= _distortion(last, picture):
                return cls("channels_first", shape, first)
            return cls("channels_last", shape, last)
        return None

    @classmethod
    def _infer_tokens(
        cls, shape: tuple[int, ...], picture: tuple[int, int], n_prefix: int | None
    ) -> Layout | None:
        for prefix in range(MAX_PREFIX_TOKENS) if n_prefix is None else (n_prefix,):
            grid = _grid_of(shape[0] - prefix, picture)
            if grid is not None:
                return cls("tokens", shape, grid, prefix)
        return None

    @property
    def channels(self) -> int:
        """Number of channels C."""
        return self.shape[0] if self.kind == "channels_first" else self.shape[-1]

    @property
    def positions(self) -> int:
        """Number of positions P."""
        return self.n_prefix + self.grid[0] * self.grid[1]

    def to_positions(self, output: Tensor) -> Tensor:
        """Turn a layer's output ``(B, *shape)`` into ``(B, P, C)``."""
        if self.kind == "channels_first":
            return output.flatten(2).transpose(1, 2)
        return output.reshape(len(output), self.positions, self.channels)

    def from_positions(self, activations: Tensor) -> Tensor:
        """Turn ``(B, P, C)`` back into a layer's output ``(B, *shape)``."""
        if self.kind == "channels_first":
            activations = activations.transpose(1, 2)
        return activations.reshape(len(activations), *self.shape)


def _distortion(grid: tuple[int, int], picture: tuple[int, int]) -> float:
    """How far the grid's proportions are from the picture's, 0 where they are the same."""
    return abs(log(grid[0] * picture[1] / (grid[1] * picture[0])))


def _grid_of(n_tokens: int, picture: tuple[int, int]) -> tuple[int, int] | None:
    """The grid of `n_tokens` cells with the picture's proportions, if there is one."""
    if n_tokens < 1:
        return None
    height = round((n_tokens * picture[0] / picture[1]) ** 0.5)
    if height < 1 or n_tokens % height:
        return None
    grid = (height, n_tokens // height)
    # A grid is at most one cell off the exact proportions, as patches do not overlap borders.
    exact = grid[0] * picture[1] / picture[0]
    return grid if abs(grid[1] - exact) <= 1 else None
