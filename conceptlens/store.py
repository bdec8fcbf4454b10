"""`ActivationStore`: a layer's activations on disk, computed once, sealed or absent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .building import StoreWriter, fill
from .images import Pictures, transform_fingerprint
from .manifest import (
    DTYPES,
    REMEDY,
    SHARD_FIELDS,
    Shard,
    StoreError,
    check_shard,
    is_sealed,
    read_manifest,
    sha256_of,
)

if TYPE_CHECKING:
    from .backbone import Backbone

__all__ = ["ActivationStore", "StoreError"]

# Large enough for sequential reads, small enough that a kill costs little.
SHARD_BYTES = 64 * 2**20
# How many shards' vectors are mixed at a time.
SHUFFLED_SHARDS = 4


class ActivationStore:
    """Activations ``(n, P, C)`` of n pictures, in immutable shards that are read lazily.

    Made by `build`, read by `open`. The format is described in ``docs/store-format.md``.

    Attributes
    ----------
    path : Path
        The folder.
    shape : tuple of int
        (n, P, C).
    dtype : torch.dtype
        float32, float16 or bfloat16.
    names : list of str
        The name of each picture.
    key : dict of str
        Fingerprints of what the content depends on.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        manifest = read_manifest(self.path)
        self._shards = [Shard(*(s[f] for f in SHARD_FIELDS)) for s in manifest["shards"]]
        self.key: dict[str, str] = manifest["key"]
        self.names: list[str] = manifest["names"]
        self.dtype = DTYPES[self.key["dtype"]]
        self.shape: tuple[int, int, int] = (len(self.names), *manifest["row shape"])
        self._starts = [0]
        for shard in self._shards:
            check_shard(self.path, shard, manifest)
            self._starts.append(self._starts[-1] + shard.rows)

    @classmethod
    def open(cls, path: str | Path) -> ActivationStore:
        """Open a sealed store.

        Raises
        ------
        StoreError
            If there is none, or the manifest is damaged, or a file is missing or of another size
            or header than the manifest says. What the numbers are only `verify` checks.
        """
        return cls(path)

    @classmethod
    def build(
        cls,
        bb: Backbone,
        images: Any,
        path: str | Path,
        batch_size: int = 64,
        *,
        dtype: torch.dtype = torch.float32,
        num_workers: int | None = None,
        shard_bytes: int = SHARD_BYTES,
    ) -> ActivationStore:
        """Compute what is missing of the store at `path`, seal it and open it.

        Parameters
        ----------
        bb : Backbone
            The classifier, cut at the layer whose activations are kept.
        images : folder, list, Dataset, DataLoader or Tensor
            As `Pictures` takes them.
        path : str or Path
            The folder. A sealed store of the same content is opened at once; an unfinished one
            is finished, its shards kept. Another process that builds it is waited for.
        batch_size : int
            Pictures a forward pass. Batches are cut at fixed places, so that a resumed store is
            equal to the last bit to one built in one go.
        dtype : torch.dtype
            float32, float16 or bfloat16.
        num_workers : int, optional
            Processes that read pictures. Default: the DataLoader's, or none.
        shard_bytes : int
            About how large a file becomes.

        Raises
        ------
        StoreError
            If `path` holds a store of other content: the message says what differs.
        ValueError
            If no picture can be read or activations are not finite; nothing is sealed.
        """
        folders = {bb.layer: Path(path)}
        _build(
            bb, folders, lambda x, _: [bb.activations(x)], images, batch_size,
            dtype, num_workers, shard_bytes,
        )  # fmt: skip
        return cls(path)

    @classmethod
    def build_layers(
        cls,
        bb: Backbone,
        images: Any,
        path: str | Path,
        batch_size: int = 64,
        *,
        layers: Sequence[str],
        dtype: torch.dtype = torch.float32,
        num_workers: int | None = None,
        shard_bytes: int = SHARD_BYTES,
    ) -> dict[str, ActivationStore]:
        """Build the stores of several layers from one pass over the pictures.

        Each is the store that `build` would make with a backbone cut there, to the last bit, in
        the folder of `path` that has the layer's name; what is said there holds for each.

        Parameters
        ----------
        bb : Backbone
            The classifier; where it is cut does not matter.
        layers : sequence of str
            Names of layers that can be cut.
        images, path, batch_size, dtype, num_workers, shard_bytes
            As `build` takes them.

        Returns
        -------
        dict of str to ActivationStore
            One a layer, in the order of `layers`.
        """
        folders = {layer: Path(path) / layer for layer in layers}
        if not folders:
            raise ValueError("layers is empty: name one of those that Backbone.layers() lists")

        def activations(x: Tensor, wanted: Sequence[str]) -> Sequence[Tensor]:
            return list(bb.activations_at(x, wanted).values())

        _build(bb, folders, activations, images, batch_size, dtype, num_workers, shard_bytes)
        return {layer: cls(folder) for layer, folder in folders.items()}

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice) -> Tensor:
        """Read one picture's activations ``(P, C)``, or a range's ``(m, P, C)``."""
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"index {index} in a store of {len(self)} pictures")
            return self[index % len(self) : index % len(self) + 1][0]
        start, stop, step = index.indices(len(self))
        if step < 0:
            raise ValueError("a store is read forwards: take a slice with a positive step")
        parts = [self._read(*piece) for piece in self._pieces(start, stop)]
        rows = torch.cat(parts) if parts else torch.empty(0, *self.shape[1:], dtype=self.dtype)
        return rows[::step]

    def vectors(
        self,
        batch_size: int,
        shuffle: bool = True,
        seed: int = 0,
        pictures: range | None = None,
    ) -> Iterator[Tensor]:
        """Iterate once over all n·P vectors in batches ``(batch_size, C)``, the last smaller.

        Shards are read in order, a shuffled one if `shuffle`, and the vectors of a few of them are
        mixed at a time, so that memory is bounded and reading sequential. Consecutive `pictures`
        restrict it to theirs.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        generator = torch.Generator().manual_seed(seed)
        some = pictures or range(len(self))
        pieces = self._pieces(some.start, some.stop)
        numbers = range(len(pieces))
        order = torch.randperm(len(numbers), generator=generator).tolist() if shuffle else numbers
        group = SHUFFLED_SHARDS if shuffle else 1
        rest = torch.empty(0, self.shape[2], dtype=self.dtype)
        for i in range(0, len(numbers), group):
            parts = [self._read(*pieces[j]).flatten(0, 1) for j in order[i : i + group]]
            pool = torch.cat([rest, *parts])
            if shuffle:
                pool = pool[torch.randperm(len(pool), generator=generator)]
            whole = len(pool) // batch_size * batch_size
            if whole:  # an empty tensor would be split into one empty batch
                yield from pool[:whole].split(batch_size)
            rest = pool[whole:].clone()
        if len(rest):
            yield rest

    def verify(self) -> None:
        """Read every file and compare it with its checksum.

        Raises
        ------
        StoreError
            Naming the first file that differs.
        """
        for shard in self._shards:
            if sha256_of(self.path / shard.name) != shard.sha256:
                path = self.path / shard.name
                raise StoreError(f"{path} is damaged, its checksum differs: {REMEDY}")

    def _pieces(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """Where pictures from `start` to `stop` lie: (shard, first row, last row + 1) of each."""
        return [
            (i, max(start, low) - low, min(stop, high) - low)
            for i, (low, high) in enumerate(zip(self._starts, self._starts[1:], strict=False))
            if low < stop and start < high
        ]

    def _read(self, i: int, start: int, stop: int) -> Tensor:
        path = self.path / self._shards[i].name
        try:
            with safe_open(path, "pt") as file:
                rows: Tensor = file.get_slice("activations")[start:stop]
        except (OSError, SafetensorError) as error:
            raise StoreError(f"{path} cannot be read: {error}") from error
        return rows

    def __repr__(self) -> str:
        n, p, c = self.shape
        size = sum(shard.size for shard in self._shards) / 2**20
        dtype = self.key["dtype"]
        return (
            f"ActivationStore({str(self.path)!r}, {n} pictures × {p} positions × {c} channels, "
            f"{dtype}, {len(self._shards)} shards, {size:.1f} MiB)"
        )

    def _repr_html_(self) -> str:
        return f"<code>{escape(repr(self))}</code>"


def _build(
    bb: Backbone,
    folders: Mapping[str, Path],
    activations: Callable[[Tensor, Sequence[str]], Sequence[Tensor]],
    images: Any,
    batch_size: int,
    dtype: torch.dtype,
    num_workers: int | None,
    shard_bytes: int,
) -> None:
    """Seal a store in each layer's folder; `activations` are those of pictures at some layers."""
    if dtype not in DTYPES.values():
        raise ValueError(f"dtype must be one of {list(DTYPES)}, got {dtype}")
    pictures = images if isinstance(images, Pictures) else Pictures(images, bb.transform)
    if num_workers is not None:
        pictures.num_workers = num_workers
    common = {
        "transform": transform_fingerprint(pictures.transform),
        "pictures": pictures.fingerprint(),
        "dtype": str(dtype).removeprefix("torch."),
        "batch size": str(batch_size),
    }
    writers = {}
    with ExitStack() as locks:  # let go by the system when their owner dies
        for layer in sorted(folders):  # in one order, so that no two processes wait for each other
            folder = folders[layer]
            key = {"weights and layer": bb.replace(layer=layer).fingerprint(), **common}
            if is_sealed(folder, key):  # it never changes, and may lie where nothing can be written
                continue
            folder.mkdir(parents=True, exist_ok=True)
            locks.enter_context(FileLock(folder / ".lock"))
            if not is_sealed(folder, key):  # another process may have sealed it in between
                writers[layer] = StoreWriter(layer, pictures.names, folder, key)
        if writers:
            missing = list(writers)
            fill(
                list(writers.values()), lambda x: activations(x, missing), pictures, batch_size,
                shard_bytes,
            )  # fmt: skip
