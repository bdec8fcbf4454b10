"""Filling stores: the missing shards of one layer or several, from one pass over the pictures."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from .batching import in_batches
from .files import write_atomically
from .images import Pictures, UnreadableImageError
from .manifest import (
    DTYPES,
    FORMAT,
    REMEDY,
    Shard,
    StoreError,
    check_key,
    sha256_of,
    unseal,
)
from .progress import bar
from .sealing import digest, pack, seal, unpack


def fill(
    writers: Sequence[StoreWriter],
    activations: Callable[[Tensor], Sequence[Tensor]],
    pictures: Pictures,
    batch_size: int,
    shard_bytes: int,
) -> None:
    """Compute the shards that any of the stores lacks and seal all stores.

    Parameters
    ----------
    writers : sequence of StoreWriter
        One a layer.
    activations : callable
        Pictures ``(b, 3, H, W)`` → the activations ``(b, P, C)`` of each of these layers.
    pictures, batch_size, shard_bytes
        As `ActivationStore.build` takes them.
    """
    for writer in writers:
        writer.claim()
    _, first = next(pictures.batches(1))  # it tells the size of a row
    rows = activations(first)
    for writer, row in zip(writers, rows, strict=True):
        writer.plan(row.numel() * batch_size, batch_size, shard_bytes)
    sizes = [row.numel() for row in rows]

    def flat(x: Tensor) -> Tensor:
        return torch.cat([a.flatten(1) for a in activations(x)], 1)

    n = len(pictures)
    # Layers have rows of different sizes and so shards of different lengths: between two cuts
    # no shard of any layer begins or ends.
    cuts = sorted({cut for writer in writers for cut in writer.cuts})
    with bar("activations", n, "pictures") as progress:
        for start, stop in pairwise(cuts):
            lacking = [writer.lacks(start) for writer in writers]
            try:
                for batch, x in pictures.batches(batch_size, start, stop) if any(lacking) else ():
                    parts = in_batches(flat, x, batch_size).split(sizes, 1)
                    for writer, missing, row, part in zip(
                        writers, lacking, rows, parts, strict=True
                    ):
                        if missing:
                            writer.add(batch, part.unflatten(1, row.shape[1:]))
            except UnreadableImageError as error:  # a shard without one good picture is empty
                warnings.warn(str(error), stacklevel=4)
            for writer, missing in zip(writers, lacking, strict=True):
                if missing and stop in writer.cuts:
                    writer.write(stop)
            progress.update(stop - start)
    for writer in writers:
        writer.seal()


class StoreWriter:
    """Writes the missing shards of the store of one layer, then its manifest."""

    def __init__(self, layer: str, names: Sequence[str], path: Path, key: dict[str, str]) -> None:
        self.layer, self.names, self.path, self.key = layer, names, path, key
        self.dtype = DTYPES[key["dtype"]]
        self.digest = digest(key)
        self.cuts: list[int] = []
        self._indices: list[int] = []
        self._parts: list[Tensor] = []

    def claim(self) -> None:
        """Say what the folder is for before the first shard, or refuse what is there."""
        for leftover in self.path.glob(".*.tmp"):
            leftover.unlink()
        claim = self.path / "key.json"
        if claim.exists():
            check_key(self.path, unseal(claim).get("key"), self.key)
        elif any(self.path.glob("activations-*.safetensors")):
            raise StoreError(f"{self.path} holds shards of unknown origin: {REMEDY}")
        else:
            write_atomically(claim, seal({"format": FORMAT, "key": self.key}))

    def plan(self, numbers: int, batch_size: int, shard_bytes: int) -> None:
        """Cut the pictures into shards: whole batches, of `numbers` each, of some `shard_bytes`."""
        n = len(self.names)
        step = max(1, shard_bytes // (numbers * self.dtype.itemsize)) * batch_size
        self.cuts = [*range(0, n, step), n]

    def lacks(self, picture: int) -> bool:
        """Whether the shard that `picture` belongs to is still to be computed."""
        shard = self._shard(next(i for i, cut in enumerate(self.cuts) if picture < cut))
        try:
            _, record = unpack(shard)
        except ValueError:  # missing, or damaged before it was sealed
            return True
        return record.get("key") != self.digest

    def add(self, pictures: list[int], a: Tensor) -> None:
        """Take the activations ``(b, P, C)`` of the next pictures of the shard."""
        a = a.to(self.dtype).cpu()
        finite = torch.isfinite(a).flatten(1).all(1)
        if not finite.all():
            name = self.names[pictures[int((~finite).int().argmax())]]
            raise ValueError(
                f"the activations of layer {self.layer!r} for {name} are NaN or "
                f"infinite in {self.dtype}; nothing was sealed"
            )
        self._indices += pictures
        self._parts.append(a)

    def write(self, stop: int) -> None:
        """Write the shard that ends before picture `stop`."""
        rows = torch.cat(self._parts) if self._parts else torch.empty(0)
        tensors = {"activations": rows.contiguous(), "pictures": torch.tensor(self._indices).long()}
        shard = self._shard(self.cuts.index(stop))
        write_atomically(shard, pack(tensors, {"key": self.digest}))
        self._indices, self._parts = [], []

    def seal(self) -> None:
        """Write the manifest, which makes the shards a store."""
        shards: list[dict[str, Any]] = []
        kept: list[int] = []
        row_shape: list[int] = []
        for i in range(1, len(self.cuts)):
            path = self._shard(i)
            with safe_open(path, "pt") as file:
                pictures: list[int] = file.get_tensor("pictures").tolist()
                shape: list[int] = file.get_slice("activations").get_shape()
            if pictures:
                record = Shard(path.name, len(pictures), path.stat().st_size, sha256_of(path))
                shards.append(vars(record))
                kept += pictures
                row_shape = shape[1:]
        if not kept:
            raise ValueError(
                f"none of the {len(self.names)} pictures can be read; nothing was sealed"
            )
        manifest = {
            "format": FORMAT,
            "key": self.key,
            "row shape": row_shape,
            "shards": shards,
            "names": [self.names[i] for i in kept],
        }
        write_atomically(self.path / "manifest.json", seal(manifest))

    def _shard(self, i: int) -> Path:
        """The file of the shard that ends at the `i`-th cut."""
        start, stop = self.cuts[i - 1], self.cuts[i]
        return self.path / f"activations-{start:09d}-{stop:09d}.safetensors"
