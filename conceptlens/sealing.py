"""JSON records and tensors with checksums, so that a changed byte is refused and not believed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

FORMAT = 1
SUM = "sha256"
ENTRY = "conceptlens"
MAX_HEADER = 10**8  # safetensors' own limit
BLOCK = 2**18  # bytes that are read in one go


def seal(record: dict[str, Any]) -> bytes:
    """`record` as JSON, with the SHA-256 of its content as one more entry."""
    # Escaped to ASCII: names of files may hold bytes that UTF-8 has no place for.
    content = json.loads(json.dumps(record))
    return json.dumps({**content, SUM: digest(content)}, indent=1).encode()


def unseal(path: Path) -> dict[str, Any]:
    """Read what `seal` made.

    Raises
    ------
    ValueError
        If the file is missing, is no JSON object, or its content is not that of its checksum.
    """
    record = load_json(path)
    expected = record.pop(SUM, None)
    try:
        found = digest(record)
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply") from error
    if found != expected:
        raise ValueError(f"{path} is damaged: its checksum differs")
    return record


def load_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; ValueError if the file holds none."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it holds no object")
    return content


def load_config(path: Path) -> dict[str, Any]:
    """Read a JSON object of this format; ValueError if the file holds none."""
    config = load_json(path)
    _check_format(path, config)
    return config


def digest(content: Any) -> str:
    """SHA-256 of what JSON can say, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, read piece by piece; ValueError if it cannot be read."""
    found = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(2**20):
                found.update(block)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    return found.hexdigest()


def pack(tensors: dict[str, Tensor], record: dict[str, Any]) -> bytes:
    """Bytes of a safetensors file whose metadata is `record`, a format number and a checksum.

    The checksum is over the tensors and the record.
    """
    here = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    content = json.loads(json.dumps({"format": FORMAT, **record}))
    return save(here, {ENTRY: json.dumps({**content, SUM: _sha256(here, content)})})


def unpack(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what `pack` wrote.

    Raises
    ------
    ValueError
        If the file is missing, damaged or not one of ours.
    """
    try:
        with safe_open(path, "pt") as file:
            record = record_of(file)
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    _check_format(path, record)
    if record.pop(SUM, None) != _sha256(tensors, record):
        raise ValueError(f"{path} is damaged: its checksum differs")
    return tensors, record


def read_rows(path: Path, name: str, start: int, rows: Tensor) -> None:
    """Fill `rows` with those of a packed tensor from row `start` on.

    They are read in small blocks, which the system reads ahead of: of large ones, or of a file
    that is mapped to memory as safetensors does, a disk gives half as much.

    Raises
    ------
    ValueError
        If the file cannot be read or holds no such rows.
    """
    content = memoryview(rows.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
    row_size = len(content) // max(1, len(rows))
    with _part_of(path, name, start * row_size, len(content)) as (file, place):
        file.seek(place)
        while len(content):
            n = file.readinto(content[:BLOCK])
            if not n:
                raise ValueError("it ends early")
            content = content[n:]


@contextmanager
def _part_of(path: Path, name: str, start: int, size: int) -> Iterator[tuple[FileIO, int]]:
    """The open file, and where in it so many bytes of a packed tensor lie, from `start` on."""
    try:
        with path.open("rb", buffering=0) as file:
            header = file.read(min(int.from_bytes(file.read(8), "little"), MAX_HEADER))
            low, high = json.loads(header)[name]["data_offsets"]
            if low + start + size > high:
                raise ValueError(f"{name} ends before byte {start + size}")
            yield file, 8 + len(header) + low + start
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def record_of(file: Any) -> dict[str, Any]:
    """The record that `pack` put into an open safetensors file; ValueError if there is none."""
    try:
        record = json.loads((file.metadata() or {}).get(ENTRY, ""))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its metadata are not ours ({error})") from error
    if not isinstance(record, dict):
        raise ValueError("its metadata hold no record of ours")
    return record


def check_tensors(path: Path, tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Refuse tensors of other names, shapes or types than `expected`."""
    kinds, wanted = (
        {name: (tuple(t.shape), t.dtype) for name, t in group.items()}
        for group in (tensors, expected)
    )
    if kinds != wanted:
        wrong = sorted(n for n in kinds.keys() | wanted if kinds.get(n) != wanted.get(n))
        raise ValueError(f"{path} does not hold the expected tensors: see {', '.join(wrong)}")


def _check_format(path: Path, record: dict[str, Any]) -> None:
    if record.get("format") != FORMAT:
        raise ValueError(f"{path} is not of format {FORMAT}, which this version reads")


def _sha256(tensors: dict[str, Tensor], record: dict[str, Any]) -> str:
    found = hashlib.sha256(digest(record).encode())
    for name in sorted(tensors):
        found.update(f"{name} {tuple(tensors[name].shape)} {tensors[name].dtype}".encode())
        found.update(tensors[name].flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()
