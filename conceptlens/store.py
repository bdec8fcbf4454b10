"""`ActivationStore`: a layer's activations on disk, computed once, sealed or absent."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .batching import in_batches
from .files import write_atomically
from .images import Pictures, UnreadableImageError, transform_fingerprint
from .progress import bar

if TYPE_CHECKING:
    from .backbone import Backbone

FORMAT = 1
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Large enough for sequential reads, small enough that a kill costs little.
SHARD_BYTES = 64 * 2**20
# How many shards' vectors are mixed at a time.
SHUFFLED_SHARDS = 4


class StoreError(ValueError):
    """A store is absent, unfinished, damaged or of other content; the message says which."""


@dataclass(frozen=True)
class _Shard:
    """One file: the rows of the readable pictures from `start` to `stop`."""

    name: str
    rows: int
    size: int
    sha256: str


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
        manifest = _read_manifest(self.path)
        self._shards = [_Shard(*(s[f] for f in _SHARD_FIELDS)) for s in manifest["shards"]]
        self.key: dict[str, str] = manifest["key"]
        self.names: list[str] = manifest["names"]
        self.dtype = DTYPES[self.key["dtype"]]
        self.shape: tuple[int, int, int] = (len(self.names), *manifest["row shape"])
        self._starts = [0]
        for shard in self._shards:
            _check_size(self.path / shard.name, shard.size)
            self._starts.append(self._starts[-1] + shard.rows)

    @classmethod
    def open(cls, path: str | Path) -> ActivationStore:
        """Open a sealed store.

        Raises
        ------
        StoreError
            If there is none, or a file is missing or of another size than the manifest says.
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
        if dtype not in DTYPES.values():
            raise ValueError(f"dtype must be one of {list(DTYPES)}, got {dtype}")
        pictures = images if isinstance(images, Pictures) else Pictures(images, bb.transform)
        if num_workers is not None:
            pictures.num_workers = num_workers
        key = {
            "weights and layer": bb.fingerprint(),
            "transform": transform_fingerprint(pictures.transform),
            "pictures": pictures.fingerprint(),
            "dtype": str(dtype).removeprefix("torch."),
            "batch size": str(batch_size),
        }
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        with FileLock(path / ".lock"):  # let go by the system when its owner dies
            if not _is_sealed(path, key):
                _Builder(bb, pictures, path, batch_size, key, shard_bytes).run()
        return cls(path)

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
            if _sha256(self.path / shard.name) != shard.sha256:
                raise StoreError(f"{self.path / shard.name} is damaged: its checksum differs")

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


class _Builder:
    """Writes the missing shards of a store, then its manifest."""

    def __init__(
        self,
        bb: Backbone,
        pictures: Pictures,
        path: Path,
        batch_size: int,
        key: dict[str, str],
        shard_bytes: int,
    ) -> None:
        self.bb, self.pictures, self.path, self.batch_size = bb, pictures, path, batch_size
        self.key = key
        self.dtype = DTYPES[key["dtype"]]
        self.shard_bytes = shard_bytes
        self.digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()

    def run(self) -> None:
        self._claim()
        shards, names, row_shape = [], [], None
        n = len(self.pictures)
        step = self._pictures_per_shard()
        with bar("activations", n, "pictures") as progress:
            for start in range(0, n, step):
                stop = min(start + step, n)
                shard = self.path / f"activations-{start:09d}-{stop:09d}.safetensors"
                if not self._is_whole(shard):
                    self._write(shard, start, stop)
                record, kept, row_shape = self._describe(shard, row_shape)
                if record.rows:
                    shards.append(vars(record))
                names += [self.pictures.names[i] for i in kept]
                progress.update(stop - start)
        if not names:
            raise ValueError(f"none of the {n} pictures can be read; nothing was sealed")
        manifest = {
            "format": FORMAT,
            "key": self.key,
            "row shape": row_shape,
            "shards": shards,
            "names": names,
        }
        write_atomically(self.path / "manifest.json", _json(manifest))

    def _claim(self) -> None:
        """Say what the folder is for before the first shard, or refuse what is there."""
        for leftover in self.path.glob(".*.tmp"):
            leftover.unlink()
        claim = self.path / "key.json"
        if claim.exists():
            _check_key(self.path, _load_json(claim).get("key"), self.key)
        elif any(self.path.glob("activations-*.safetensors")):
            raise StoreError(f"{self.path} holds shards of unknown origin: delete them")
        else:
            write_atomically(claim, _json({"format": FORMAT, "key": self.key}))

    def _pictures_per_shard(self) -> int:
        """A whole number of batches that fills about `shard_bytes`."""
        # The first readable picture tells the size of a row.
        for _, x in self.pictures.batches(1):
            row = self.bb.activations(x)
            break
        size = row.numel() * self.dtype.itemsize * self.batch_size
        return max(1, self.shard_bytes // size) * self.batch_size

    def _is_whole(self, shard: Path) -> bool:
        if not shard.exists():
            return False
        try:
            with safe_open(shard, "pt") as file:
                return (file.metadata() or {}).get("key") == self.digest
        except (OSError, SafetensorError) as error:
            raise StoreError(f"{shard} cannot be read: {error}; delete it to compute it") from error

    def _write(self, shard: Path, start: int, stop: int) -> None:
        indices: list[int] = []
        parts: list[Tensor] = []
        try:
            for batch, x in self.pictures.batches(self.batch_size, start, stop):
                a = in_batches(self.bb.activations, x, self.batch_size).to(self.dtype).cpu()
                finite = torch.isfinite(a).flatten(1).all(1)
                if not finite.all():
                    name = self.pictures.names[batch[int((~finite).int().argmax())]]
                    raise ValueError(
                        f"the activations of layer {self.bb.layer!r} for {name} are NaN or "
                        f"infinite in {self.dtype}; nothing was sealed"
                    )
                indices += batch
                parts.append(a)
        except UnreadableImageError as error:  # a shard without one good picture is empty
            warnings.warn(str(error), stacklevel=2)
        rows = torch.cat(parts) if parts else torch.empty(0)
        tensors = {"activations": rows.contiguous(), "pictures": torch.tensor(indices).long()}
        # One key only: safetensors would write several in a random order.
        write_atomically(shard, save(tensors, {"key": self.digest}))

    def _describe(
        self, shard: Path, row_shape: list[int] | None
    ) -> tuple[_Shard, list[int], list[int] | None]:
        with safe_open(shard, "pt") as file:
            kept: list[int] = file.get_tensor("pictures").tolist()
            shape = file.get_slice("activations").get_shape()
        record = _Shard(shard.name, len(kept), shard.stat().st_size, _sha256(shard))
        return record, kept, shape[1:] if kept else row_shape


_SHARD_FIELDS = ("name", "rows", "size", "sha256")


def _is_sealed(path: Path, key: dict[str, str]) -> bool:
    if not (path / "manifest.json").exists():
        return False
    _check_key(path, _read_manifest(path)["key"], key)
    return True


def _check_key(path: Path, found: Any, expected: dict[str, str]) -> None:
    if not isinstance(found, dict):
        raise StoreError(f"{path} holds a damaged key.json: delete the folder")
    differ = [part for part, value in expected.items() if found.get(part) != value]
    if differ:
        raise StoreError(
            f"{path} holds activations of other content: {', '.join(differ)} changed. Delete the "
            "folder or give another path"
        )


def _read_manifest(path: Path) -> dict[str, Any]:
    """The manifest, with every entry checked for its type and every name for its form."""
    file = path / "manifest.json"
    if not file.exists():
        unfinished = (path / "key.json").exists()
        state = "an unfinished store: run build again" if unfinished else "no store"
        raise StoreError(f"{path} holds {state}")
    manifest = _load_json(file)
    if manifest.get("format") != FORMAT:
        raise StoreError(
            f"{file} has format {manifest.get('format')!r}, this version reads {FORMAT}"
        )
    key: Any
    names: Any
    shards: Any
    key, names, shards = (manifest.get(part) for part in ("key", "names", "shards"))
    good = (
        isinstance(key, dict)
        and key.get("dtype") in DTYPES
        and _list_of(names, str)
        and _list_of(manifest.get("row shape"), int, 2)
        and _list_of(shards, dict)
        and all(_is_shard(s) for s in shards)
        and sum(s["rows"] for s in shards) == len(names)
    )
    if not good:
        raise StoreError(f"{file} is damaged: its entries are not those of a manifest")
    return manifest


def _is_shard(record: dict[str, Any]) -> bool:
    name, rows, size, checksum = (record.get(f) for f in _SHARD_FIELDS)
    return (
        isinstance(name, str)
        and re.fullmatch(r"activations-\d{9}-\d{9}\.safetensors", name) is not None
        and all(isinstance(number, int) and number > 0 for number in (rows, size))
        and isinstance(checksum, str)
    )


def _list_of(value: Any, kind: type, length: int | None = None) -> bool:
    return (
        isinstance(value, list)
        and all(isinstance(item, kind) for item in value)
        and length in (None, len(value))
    )


def _load_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise StoreError(f"{file} is damaged: it holds no object")
    return content


def _check_size(path: Path, size: int) -> None:
    try:
        found = path.stat().st_size
    except OSError as error:
        raise StoreError(f"{path} is missing") from error
    if found != size:
        raise StoreError(f"{path} has {found} bytes, the manifest says {size}")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True).encode()
