"""`ActivationStore`: a layer's activations on disk, computed once, sealed or absent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from html import escape
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock
from torch import Tensor

from . import distributed
from .building import Compute, StoreWriter, fill
from .checks import check_backbone, check_names, check_path, check_seed, check_whole
from .images import Pictures, transform_fingerprint
from .manifest import (
    DTYPES,
    SHARD_FIELDS,
    Shard,
    StoreError,
    check_shard,
    is_sealed,
    read_manifest,
    verify_shard,
)
from .reading import ShardReader
from .sealing import digest

if TYPE_CHECKING:
    from .backbone import Backbone

__all__ = ["ActivationStore", "StoreError"]

# Large enough for sequential reads, small enough that a kill costs little.
SHARD_BYTES = 16 * 2**20


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

    Examples
    --------
    >>> from torch import nn
    >>> from conceptlens import Backbone
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(512, 5))
    >>> bb = Backbone(model, "1")
    >>> store = ActivationStore.build(bb, torch.rand(6, 3, 32, 32), "activations")
    >>> len(store), tuple(store[2:5].shape)
    (6, (3, 64, 8))
    >>> sum(len(rows) for rows in store.vectors(batch_size=100))
    384
    """

    def __init__(self, path: str | Path) -> None:
        self.path = check_path(path, "path")
        manifest = read_manifest(self.path)
        self._shards = [Shard(*(s[f] for f in SHARD_FIELDS)) for s in manifest["shards"]]
        self.key: dict[str, str] = manifest["key"]
        self.names: list[str] = manifest["names"]
        self.dtype = DTYPES[self.key["dtype"]]
        self.shape: tuple[int, int, int] = (len(self.names), *manifest["row shape"])
        for shard in self._shards:
            check_shard(self.path, shard, manifest)
        self._reader = ShardReader(self.path, self._shards, self.shape[1:], self.dtype)

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
            Processes that read pictures. Default: the DataLoader's; else none for a network on the
            CPU, which needs the cores itself, and all cores but one for any other.
        shard_bytes : int
            About how large a file becomes.

        Raises
        ------
        StoreError
            If `path` holds a store of other content: the message says what differs.
        ValueError
            If no picture can be read or activations are not finite; nothing is sealed.
        """
        check_backbone(bb)
        stores = build_stores(
            {bb.layer: check_path(path, "path")}, {bb.layer: bb.fingerprint()},
            lambda x, _: [bb.activations(x)], Pictures.of(images, bb.transform), batch_size,
            dtype=dtype, num_workers=num_workers, shard_bytes=shard_bytes,
        )  # fmt: skip
        return stores[bb.layer]

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

        Each holds what the store that `build` makes with a backbone cut there does, to the last
        bit, in the folder of `path` that has the layer's name; what is said there holds for each.

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
        check_backbone(bb)
        path = check_path(path, "path")
        folders = {layer: path / layer for layer in check_names(layers, "layers")}
        if not folders:
            raise ValueError("layers is empty: name one of those that Backbone.layers() lists")

        def activations(x: Tensor, wanted: Sequence[str]) -> Sequence[Tensor]:
            return list(bb.activations_at(x, wanted).values())

        fingerprints = {layer: bb.replace(layer=layer).fingerprint() for layer in layers}
        return build_stores(
            folders, fingerprints, activations, Pictures.of(images, bb.transform),
            batch_size, dtype=dtype, num_workers=num_workers, shard_bytes=shard_bytes,
        )  # fmt: skip

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice) -> Tensor:
        """Read one picture's activations ``(P, C)``, or a range's ``(m, P, C)``."""
        if isinstance(index, Integral):
            index = int(index)
            if not -len(self) <= index < len(self):
                raise IndexError(f"index {index} in a store of {len(self)} pictures")
            return self[index % len(self) : index % len(self) + 1][0]
        if not isinstance(index, slice):
            raise TypeError(f"a store must be read by an index or a slice, got {index!r}")
        start, stop, step = index.indices(len(self))
        if step < 0:
            raise ValueError("a store is read forwards: take a slice with a positive step")
        return self._reader.rows(start, stop)[::step]

    def vectors(
        self,
        batch_size: int,
        shuffle: bool = True,
        seed: int = 0,
        pictures: range | None = None,
    ) -> Iterator[Tensor]:
        """Iterate once over all n·P vectors in batches ``(batch_size, C)``, the last smaller.

        A thread reads ahead: shards in order or, with `shuffle`, pieces of shards in a random
        order, of which a few shards' worth are mixed at a time, so that memory is bounded (twice
        that) and reading is quick. Consecutive `pictures` restrict it to theirs.
        """
        check_whole(batch_size, "batch_size")
        check_seed(seed)
        if pictures is not None and not isinstance(pictures, range):
            raise TypeError(f"pictures must be a range, got {pictures!r}")
        some = pictures or range(len(self))
        generator = torch.Generator().manual_seed(seed) if shuffle else None
        yield from self._reader.vectors(some.start, some.stop, batch_size, generator)

    def verify(self) -> None:
        """Read every file and compare it with its checksum.

        Raises
        ------
        StoreError
            Naming the first file that differs.
        """
        for shard in self._shards:  # opening compared the checksums they hold with the manifest's
            verify_shard(self.path / shard.name)

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


def build_stores(
    folders: Mapping[str, Path],
    fingerprints: Mapping[str, str],
    compute: Compute,
    pictures: Pictures,
    batch_size: int,
    *,
    dtype: torch.dtype = torch.float32,
    num_workers: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    update: bool = False,
    contents: Sequence[str] | None = None,
) -> dict[str, ActivationStore]:
    """Build stores of whatever is computed from pictures, in one pass over them.

    Parameters
    ----------
    folders : mapping of str to Path
        Of each store its folder, by the store's name.
    fingerprints : mapping of str to str
        What each store's rows depend on besides the pictures and how they are read.
    compute : callable
        Pictures ``(b, 3, H, W)`` and names of stores → the rows ``(b, P, C)`` of each of these.
    pictures, batch_size, dtype, num_workers, shard_bytes
        As `ActivationStore.build` takes them.
    update : bool
        Bring stores of other pictures up to date, in which only the shards are computed whose
        pictures changed. Until the new manifest is written the old one holds.

    contents : sequence of str, optional
        What `shared_fingerprints` returned for the pictures, where it was called already.

    Returns
    -------
    dict of str to ActivationStore
        One a folder, in their order.
    """
    if dtype not in DTYPES.values():
        raise ValueError(f"dtype must be one of {list(DTYPES)}, got {dtype}")
    check_whole(batch_size, "batch_size")
    check_whole(shard_bytes, "shard_bytes")
    if num_workers is not None:
        check_whole(num_workers, "num_workers", 0)
        pictures.num_workers = num_workers
    if contents is None:
        contents = shared_fingerprints(pictures)
    common = {
        "transform": transform_fingerprint(pictures.transform),
        "pictures": digest(contents),
        "dtype": str(dtype).removeprefix("torch."),
        "batch size": str(batch_size),
    }
    with ExitStack() as locks:  # let go by the system when their owner dies
        writers = []
        for name in sorted(folders):  # in one order, so that no two processes wait for each other
            key = {"weights and layer": fingerprints[name], **common}
            writer = StoreWriter(name, pictures.names, contents, folders[name], key)
            if _is_wanted(writer, update, locks):
                writers.append(writer)
        if writers:
            fill(writers, compute, pictures, batch_size, shard_bytes)
    return {name: ActivationStore(folder) for name, folder in folders.items()}


def shared_fingerprints(pictures: Pictures) -> list[str]:
    """The pictures' fingerprints, of which each process computes a part."""
    mine = distributed.my_part(len(pictures))
    sums = bytearray.fromhex("".join(pictures.fingerprints(mine)))
    found = torch.zeros(len(pictures), 32, dtype=torch.uint8)
    if mine:
        found[mine.start : mine.stop] = torch.frombuffer(sums, dtype=torch.uint8).view(-1, 32)
    return [row.tobytes().hex() for row in distributed.all_reduce_(found).numpy()]


def _is_wanted(writer: StoreWriter, update: bool, locks: ExitStack) -> bool:
    """Whether the store is still to be filled; process 0 finds out, and locks and claims it."""
    wanted = torch.zeros(1, dtype=torch.int64)
    if distributed.rank() == 0:
        folder, changeable = writer.path, ("pictures",) if update else ()
        # A sealed one may lie where nothing can be written.
        if not is_sealed(folder, writer.key, changeable):
            folder.mkdir(parents=True, exist_ok=True)
            locks.enter_context(FileLock(folder / ".lock"))
            # Another process may have sealed it in between.
            wanted[0] = not is_sealed(folder, writer.key, changeable)
        if wanted:
            writer.claim(update)
    return bool(distributed.broadcast_(wanted))
