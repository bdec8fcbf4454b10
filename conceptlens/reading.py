"""Reading the rows of a store's shards: some, or all as a stream of shuffled vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from .batching import ahead
from .manifest import Shard, StoreError
from .sealing import read_rows

# In how many pieces a shard is streamed, and how many shards' worth of shuffled vectors is mixed.
PIECES = 2
MIXED_SHARDS = 8

Piece = tuple[int, int, int]  # shard, first row, last row + 1


class ShardReader:
    """The rows of consecutive shards.

    Parameters
    ----------
    folder : Path
        Where the files lie.
    shards : sequence of Shard
        In the order of their pictures.
    row_shape : tuple of int
        (P, C).
    dtype : torch.dtype
        Of the rows.
    """

    def __init__(
        self, folder: Path, shards: Sequence[Shard], row_shape: tuple[int, int], dtype: torch.dtype
    ) -> None:
        self.folder, self.shards, self.row_shape, self.dtype = folder, shards, row_shape, dtype
        self._starts = [0]
        for shard in shards:
            self._starts.append(self._starts[-1] + shard.rows)

    def rows(self, start: int, stop: int) -> Tensor:
        """The rows ``(m, P, C)`` of the pictures from `start` to `stop`."""
        pieces = self._pieces(start, stop)
        rows = torch.empty(_length(pieces), *self.row_shape, dtype=self.dtype)
        self._read(pieces, rows)
        return rows

    def vectors(
        self, start: int, stop: int, batch_size: int, generator: torch.Generator | None
    ) -> Iterator[Tensor]:
        """Batches ``(batch_size, C)`` of their vectors, mixed if there is a `generator`."""
        pieces = [part for piece in self._pieces(start, stop) for part in _parts(piece)]
        group = PIECES
        if generator is not None:
            group *= MIXED_SHARDS
            if len(pieces) > group:  # else all are mixed
                places = torch.randperm(len(pieces), generator=generator)
                pieces = [pieces[i] for i in places.tolist()]
        groups = [pieces[i : i + group] for i in range(0, len(pieces), group)]
        most = max(map(_length, groups), default=0)
        # Made here, as what a thread frees cannot be used again by the next one.
        memory = [torch.empty(most, *self.row_shape, dtype=self.dtype) for _ in groups[:2]]
        batch = torch.empty(0, self.row_shape[1], dtype=self.dtype)
        with closing(ahead(self._pools(groups, memory))) as pools:
            for pool in pools:
                order = torch.arange(len(pool))
                if generator is not None:
                    order = torch.randperm(len(pool), generator=generator)
                lacking = batch_size - len(batch)
                for some in [order[:lacking], *order[lacking:].split(batch_size)]:
                    rows = pool.index_select(0, some)
                    batch = torch.cat([batch, rows]) if len(batch) else rows
                    if len(batch) == batch_size:
                        yield batch
                        batch = batch[:0]
        if len(batch):
            yield batch

    def _pools(
        self, groups: Sequence[Sequence[Piece]], memory: Sequence[Tensor]
    ) -> Iterator[Tensor]:
        """The vectors ``(m, C)`` of groups of pieces, in two blocks of memory by turns."""
        for i, some in enumerate(groups):
            rows = memory[i % 2][: _length(some)]
            self._read(some, rows)
            yield rows.flatten(0, 1)

    def _pieces(self, start: int, stop: int) -> list[Piece]:
        """Where pictures from `start` to `stop` lie."""
        return [
            (i, max(start, low) - low, min(stop, high) - low)
            for i, (low, high) in enumerate(pairwise(self._starts))
            if max(start, low) < min(stop, high)
        ]

    def _read(self, pieces: Sequence[Piece], rows: Tensor) -> None:
        """Fill `rows` with those of the pieces."""
        for i, start, stop in pieces:
            part, rows = rows[: stop - start], rows[stop - start :]
            with _as_store_error():
                read_rows(self.folder / self.shards[i].name, "activations", start, part)


def _parts(piece: Piece) -> list[Piece]:
    """A piece cut into `PIECES`, or into its rows if they are fewer."""
    shard, start, stop = piece
    size = -(-(stop - start) // PIECES)
    return [(shard, low, min(low + size, stop)) for low in range(start, stop, size)]


@contextmanager
def _as_store_error() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise StoreError(str(error)) from error


def _length(pieces: Sequence[Piece]) -> int:
    return sum(stop - start for _, start, stop in pieces)
