"""What says what a store holds: its manifest and its key, read with suspicion."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

FORMAT = 1
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


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
        raise StoreError(f"{path} holds a damaged key.json: delete the folder")
    differ = [part for part, value in expected.items() if found.get(part) != value]
    if differ:
        raise StoreError(
            f"{path} holds activations of other content: {', '.join(differ)} changed. Delete the "
            "folder or give another path"
        )


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest, with every entry checked for its type and every name for its form."""
    file = path / "manifest.json"
    if not file.exists():
        unfinished = (path / "key.json").exists()
        state = "an unfinished store: run build again" if unfinished else "no store"
        raise StoreError(f"{path} holds {state}")
    manifest = load_json(file)
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
    name, rows, size, checksum = (record.get(f) for f in SHARD_FIELDS)
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


def load_json(file: Path) -> dict[str, Any]:
    """Read a JSON object; `StoreError` if the file holds none."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise StoreError(f"{file} is damaged: it holds no object")
    return content


def check_size(path: Path, size: int) -> None:
    """Raise `StoreError` unless the file is there and has `size` bytes."""
    try:
        found = path.stat().st_size
    except OSError as error:
        raise StoreError(f"{path} is missing") from error
    if found != size:
        raise StoreError(f"{path} has {found} bytes, the manifest says {size}")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, read piece by piece."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def to_json(content: dict[str, Any]) -> bytes:
    """JSON as the store's files have it."""
    return json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True).encode()
