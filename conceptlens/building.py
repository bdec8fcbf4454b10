"""Filling stores: the missing shards of one or several, from one pass over the pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from . import distributed
from .batching import ahead, in_batches
from .checks import all_finite
from .files import write_atomically
from .images import Pictures, cut_into_batches, warn_of_left_out
from .manifest import (
    DTYPES,
    FORMAT,
    REMEDY,
    Shard,
    StoreError,
    check_key,
    shard_key,
    shard_name,
    unseal,
)
from .progress import bar
from .sealing import SUM, pack, record_of, seal, unpack

# The most pictures of a shard: where rows are small a kill would otherwise cost hours of passes.
SHARD_PICTURES = 4096

Compute = Callable[[Tensor, Sequence[str]], Sequence[Tensor]]


def fill(
    writers: Sequence[StoreWriter],
    compute: Compute,
    pictures: Pictures,
    batch_size: int,
    shard_bytes: int,
) -> None:
    """Compute the shards that any of the stores lacks and seal all stores.

    Pictures are read ahead of the network and shards written behind it, each by a thread. The
    processes of `distributed.together` share the shards; process 0 seals.

    Parameters
    ----------
    writers : sequence of StoreWriter
        One a store.
    compute : callable
        Pictures ``(b, 3, H, W)`` and the stores' names → the rows ``(b, P, C)`` of each.
    pictures, batch_size, shard_bytes
        As `ActivationStore.build` takes them.
    """
    names = [writer.name for writer in writers]
    rows = compute(pictures.first(), names)  # it tells their sizes, and where they are computed
    for writer, row in zip(writers, rows, strict=True):
        writer.row_shape = tuple(row.shape[1:])
    largest = max(r.numel() * w.dtype.itemsize for r, w in zip(rows, writers, strict=True))
    step = min(shard_bytes // largest, SHARD_PICTURES) // batch_size * batch_size
    ranges = cut_into_batches(range(len(pictures)), max(step, batch_size))
    todo = _share(ranges, writers)
    batches = [cut_into_batches(some, batch_size) for some, _ in todo]
    unreadable: list[str] = []
    writing: list[Future[None]] = []
    n = sum(len(some) for some, _ in todo)
    with (
        closing(ahead(pictures.read(list(chain(*batches)), rows[0].device))) as reading,
        ThreadPoolExecutor(1) as behind,
        bar("activations", n, "pictures") as progress,
    ):
        for (some, lacking), parts in zip(todo, batches, strict=True):
            for indices, x, errors in islice(reading, len(parts)):
                if indices:
                    _add(lacking, compute, indices, x, batch_size)
                unreadable += errors
                progress.update(len(indices) + len(errors))
            _finish(writing)
            writing = [behind.submit(w.write, some, *w.take()) for w in lacking]
        _finish(writing)
    warn_of_left_out(unreadable)
    distributed.barrier()
    if distributed.rank() == 0:
        for writer in writers:
            writer.seal(ranges)
    distributed.barrier()


def _share(
    ranges: Sequence[range], writers: Sequence[StoreWriter]
) -> list[tuple[range, list[StoreWriter]]]:
    """The ranges that this process fills, each with the stores that lack its shard.

    Each process looks for a part of the shards, and fills as many of the missing ones.
    """
    rank, world = distributed.rank(), distributed.world_size()
    lacks = torch.zeros(len(ranges), len(writers), dtype=torch.int64)
    for i in range(rank, len(ranges), world):
        lacks[i] = torch.tensor([writer.lacks(ranges[i]) for writer in writers])
    missing = [
        (some, [writer for writer, is_missing in zip(writers, row, strict=True) if is_missing])
        for some, row in zip(ranges, distributed.all_reduce_(lacks).tolist(), strict=True)
        if any(row)
    ]
    mine = distributed.my_part(len(missing))
    return missing[mine.start : mine.stop]


def _add(
    writers: Sequence[StoreWriter], compute: Compute, batch: list[int], x: Tensor, batch_size: int
) -> None:
    """Compute the rows of a batch in one pass and give each writer its own."""
    names = [writer.name for writer in writers]
    sizes = [torch.Size(writer.row_shape).numel() for writer in writers]

    def flat(some: Tensor) -> Tensor:
        return torch.cat([a.flatten(1) for a in compute(some, names)], 1)

    for writer, rows in zip(writers, in_batches(flat, x, batch_size).split(sizes, 1), strict=True):
        writer.add(batch, rows.unflatten(1, writer.row_shape))


def _finish(writing: list[Future[None]]) -> None:
    """Wait for the shards that are being written, so that at most one range of them is."""
    for future in writing:
        future.result()


class StoreWriter:
    """Writes the missing shards of one store, then its manifest.

    Parameters
    ----------
    name : str
        What is stored, such as a layer.
    pictures : sequence of str
        Names of the pictures.
    contents : sequence of str
        Their fingerprints.
    path : Path
        The folder.
    key : dict of str
        What the rows depend on.
    """

    row_shape: tuple[int, ...]

    def __init__(
        self,
        name: str,
        pictures: Sequence[str],
        contents: Sequence[str],
        path: Path,
        key: dict[str, str],
    ) -> None:
        self.name, self.pictures, self.contents = name, pictures, contents
        self.path, self.key = path, key
        self.dtype = DTYPES[key["dtype"]]
        self._indices: list[int] = []
        self._parts: list[Tensor] = []

    def claim(self, update: bool) -> None:
        """Say what the folder is for before the first shard, or refuse what is there."""
        for leftover in self.path.glob(".*.tmp"):
            leftover.unlink()
        claim, changeable = self.path / "key.json", ("pictures",) if update else ()
        if claim.exists():
            check_key(self.path, unseal(claim).get("key"), self.key, changeable)
        elif any(self.path.glob("activations-*.safetensors")):
            raise StoreError(f"{self.path} holds shards of unknown origin: {REMEDY}")
        write_atomically(claim, seal({"format": FORMAT, "key": self.key}))

    def lacks(self, some: range) -> bool:
        """Whether the shard of these pictures is still to be computed."""
        try:
            _, record = unpack(self._shard(some))
        except ValueError:  # missing, or damaged before it was sealed
            return True
        return record.get("key") != self._key(some)

    def add(self, pictures: list[int], a: Tensor) -> None:
        """Take the rows ``(b, P, C)`` of the next pictures of the shard."""
        a = a.to(self.dtype).cpu()
        if not all_finite(a):
            bad = ~a.isfinite().flatten(1).all(1)
            name = self.pictures[pictures[int(bad.int().argmax())]]
            raise ValueError(
                f"the activations of layer {self.name!r} for {name} are NaN or "
                f"infinite in {self.dtype}; nothing was sealed"
            )
        self._indices += pictures
        self._parts.append(a)

    def take(self) -> tuple[list[int], list[Tensor]]:
        """What was added since the last call."""
        taken = self._indices, self._parts
        self._indices, self._parts = [], []
        return taken

    def write(self, some: range, indices: list[int], parts: list[Tensor]) -> None:
        """Write the shard of these pictures, of which those at `indices` could be read."""
        rows = torch.cat(parts) if parts else torch.empty(0)
        tensors = {"activations": rows.contiguous(), "pictures": torch.tensor(indices).long()}
        write_atomically(self._shard(some), pack(tensors, {"key": self._key(some)}))

    def seal(self, ranges: Sequence[range]) -> None:
        """Write the manifest, which makes the shards a store; drop what it does not name."""
        shards: list[dict[str, Any]] = []
        kept: list[int] = []
        for some in ranges:
            path = self._shard(some)
            with safe_open(path, "pt") as file:
                indices: list[int] = file.get_tensor("pictures").tolist()
                checksum = record_of(file)[SUM]
            if indices:
                shards.append(vars(Shard(path.name, len(indices), path.stat().st_size, checksum)))
                kept += indices
        if not kept:
            raise ValueError(
                f"none of the {len(self.pictures)} pictures can be read; nothing was sealed"
            )
        manifest = {
            "format": FORMAT,
            "key": self.key,
            "row shape": self.row_shape,
            "shards": shards,
            "names": [self.pictures[i] for i in kept],
        }
        write_atomically(self.path / "manifest.json", seal(manifest))
        named = {shard["name"] for shard in shards}
        for path in self.path.glob("activations-*.safetensors"):
            if path.name not in named:
                path.unlink()

    def _key(self, some: range) -> str:
        return shard_key(self.key, self.contents[some.start : some.stop])

    def _shard(self, some: range) -> Path:
        return self.path / shard_name(some, self._key(some))
