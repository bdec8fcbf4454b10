"""What says what a store holds: its manifest and its key, read with suspicion."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open

from . import sealing

FORMAT = 1
# Of a shard's key in its name: enough to tell apart those of one range.
KEY_DIGITS = 12
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

SHARD_NAME = r"activations-(\d{9})-(\d{9})-([0-9a-f]{12})\.safetensors"

Read = TypeVar("Read")


REMEDY = "delete the folder and build again"


class StoreError(ValueError):
    """A store is absent, unfinished, damaged or of other content; the message says which."""


@dataclass(frozen=True)
class Shard:
    """One file: the rows of the readable pictures from `start` to `stop`."""

    name: str
    rows: int
    size: int
    sha256: str


SHARD_FIELDS = ("name", "rows", "size", "sha256")


def shard_name(pictures: range, key: str) -> str:
    """What the shard of these pictures is called: where they lie and what it depends on."""
    return f"activations-{pictures.start:09d}-{pictures.stop:09d}-{key[:KEY_DIGITS]}.safetensors"


def shard_key(key: dict[str, str], contents: Sequence[str]) -> str:
    """What a shard depends on: the store's key, but of its own pictures' fingerprints alone."""
    return sealing.digest([key | {"pictures": ""}, list(contents)])


def is_sealed(path: Path, key: dict[str, str], changeable: Collection[str] = ()) -> bool:
    """Whether the folder holds a sealed store of this key.

    Raises
    ------
    StoreError
        If it holds one whose key differs in more than the `changeable` parts.
    """
    if not (path / "manifest.json").exists():
        return False
    found = read_manifest(path)["key"]
    check_key(path, found, key, changeable)
    return bool(found == key)


def check_key(
    path: Path, found: Any, expected: dict[str, str], changeable: Collection[str] = ()
) -> None:
    """Raise `StoreError` unless the key `found` is the `expected` one, but for some parts."""
    if not isinstance(found, dict):
        raise StoreError(f"{path} holds a damaged key.json: {REMEDY}")
    differ = [
        part
        for part, value in expected.items()
        if found.get(part) != value and part not in changeable
    ]
    if differ:
        raise StoreError(
            f"{path} holds activations of other content: {', '.join(differ)} changed: "
            f"{REMEDY}, or give another path"
        )


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest, with every entry checked for its type and every name for its form."""
    file = path / "manifest.json"
    if not file.exists():
        unfinished = (path / "key.json").exists()
        state = "an unfinished store: run build again" if unfinished else "no store"
        raise StoreError(f"{path} holds {state}")
    manifest = unseal(file)
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
        and all(isinstance(value, str) for value in key.values())
        and key.get("dtype") in DTYPES
        and _list_of(names, str)
        and _list_of(manifest.get("row shape"), int, 2)
        and min(manifest["row shape"]) > 0
        and _list_of(shards, dict)
        and shards
        and all(_is_shard(s) for s in shards)
        and sum(s["rows"] for s in shards) == len(names)
    )
    if not good:
        raise StoreError(f"{file} is damaged, its entries are not those of a manifest: {REMEDY}")
    return manifest


def _is_shard(record: dict[str, Any]) -> bool:
    name, rows, size, checksum = (record.get(f) for f in SHARD_FIELDS)
    return (
        isinstance(name, str)
        and re.fullmatch(SHARD_NAME, name) is not None
        and all(type(number) is int and number > 0 for number in (rows, size))
        and isinstance(checksum, str)
    )


def _list_of(value: Any, kind: type, length: int | None = None) -> bool:
    return (
        isinstance(value, list)
        and all(isinstance(item, kind) for item in value)
        and length in (None, len(value))
    )


def unseal(file: Path) -> dict[str, Any]:
    """Read a sealed record; `StoreError` if the file is missing or damaged."""
    return _trusted(sealing.unseal, file)


def verify_shard(file: Path) -> None:
    """Read a shard whole; `StoreError` if it is not what its own checksum says."""
    _trusted(sealing.unpack, file)


def _trusted(read: Callable[[Path], Read], file: Path) -> Read:
    try:
        return read(file)
    except ValueError as error:
        raise StoreError(f"{error}: {REMEDY}") from error


def check_shard(folder: Path, shard: Shard, manifest: dict[str, Any]) -> None:
    """Raise `StoreError` unless the file has the size and the header that the manifest says.

    Its numbers are not read: what they should be only the checksum tells.
    """
    path = folder / shard.name
    try:
        found = path.stat().st_size
    except OSError as error:
        raise StoreError(f"{path} is missing: {REMEDY}") from error
    if found != shard.size:
        raise StoreError(f"{path} has {found} bytes, not {shard.size}: {REMEDY}")
    start, stop, key = re.fullmatch(SHARD_NAME, shard.name).groups()  # type: ignore[union-attr]
    try:
        with safe_open(path, "pt") as file:
            rows = file.get_slice("activations")
            pictures = file.get_tensor("pictures")
            record = sealing.record_of(file)
            good = (
                str(record.get("key"))[:KEY_DIGITS] == key
                and record.get(sealing.SUM) == shard.sha256
                and rows.get_shape() == [shard.rows, *manifest["row shape"]]
                and rows[:0].dtype == DTYPES[manifest["key"]["dtype"]]
                and pictures.shape == (shard.rows,)
                and bool(((pictures >= int(start)) & (pictures < int(stop))).all())
            )
    except (OSError, SafetensorError, ValueError) as error:
        raise StoreError(f"{path} cannot be read, {error}: {REMEDY}") from error
    if not good:
        raise StoreError(f"{path} is damaged, its header is not that of this shard: {REMEDY}")
