"""What says what a store holds: its manifest and its key, read with suspicion."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open

from . import sealing

FORMAT = 1
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

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


def is_sealed(path: Path, key: dict[str, str]) -> bool:
    """Whether the folder holds a sealed store; raise `StoreError` if it is of another key."""
    if not (path / "manifest.json").exists():
        return False
    check_key(path, read_manifest(path)["key"], key)
    return True


def check_key(path: Path, found: Any, expected: dict[str, str]) -> None:
    """Raise `StoreError` unless the key `found` in a folder is the `expected` one."""
    if not isinstance(found, dict):
        raise StoreError(f"{path} holds a damaged key.json: {REMEDY}")
    differ = [part for part, value in expected.items() if found.get(part) != value]
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
        and re.fullmatch(r"activations-\d{9}-\d{9}\.safetensors", name) is not None
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


def sha256_of(file: Path) -> str:
    """SHA-256 of a file; `StoreError` if it cannot be read."""
    return _trusted(sealing.sha256_of, file)


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
    start, stop = map(int, re.findall(r"\d{9}", shard.name))
    try:
        with safe_open(path, "pt") as file:
            rows = file.get_slice("activations")
            pictures = file.get_tensor("pictures")
            good = (
                sealing.record_of(file).get("key") == sealing.digest(manifest["key"])
                and rows.get_shape() == [shard.rows, *manifest["row shape"]]
                and rows[:0].dtype == DTYPES[manifest["key"]["dtype"]]
                and pictures.shape == (shard.rows,)
                and bool(((pictures >= start) & (pictures < stop)).all())
            )
    except (OSError, SafetensorError, ValueError) as error:
        raise StoreError(f"{path} cannot be read, {error}: {REMEDY}") from error
    if not good:
        raise StoreError(f"{path} is damaged, its header is not that of this shard: {REMEDY}")
