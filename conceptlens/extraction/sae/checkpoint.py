"""Tensors and a JSON record in safetensors files that are whole or refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ...files import write_atomically

FORMAT = 1
NAME = "checkpoint.safetensors"


def write(folder: Path, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
    """Replace the checkpoint in `folder`, in one file."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / NAME, pack(tensors, record))


def read(
    folder: Path, expected: dict[str, Tensor], record: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Read the checkpoint in `folder`, or None if it holds none.

    Raises
    ------
    ValueError
        If it is damaged, or belongs to another fit than `expected` and `record` are of.
    """
    path = folder / NAME
    if not path.exists():
        return None
    tensors, found = unpack(path)
    for what in ("settings", "data"):
        if found.get(what) != record[what]:
            raise ValueError(
                f"{path} is a checkpoint of other {what}{_differences(found.get(what), record)}: "
                "fit as before, or give another folder"
            )
    check_tensors(path, tensors, expected)
    numbers = (found.get("number"), found.get("rows"))
    if not all(isinstance(n, int) and n >= 0 for n in numbers) or not is_history(found):
        raise ValueError(f"{path} is damaged: its record is not that of a checkpoint")
    return tensors, found


def pack(tensors: dict[str, Tensor], record: dict[str, Any]) -> bytes:
    """Bytes of a safetensors file whose metadata is `record`, a format number and a checksum."""
    here = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    content = {"format": FORMAT, "sha256": _sha256(here), **record}
    return save(here, {"conceptlens": json.dumps(content)})


def unpack(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what `pack` wrote.

    Raises
    ------
    ValueError
        If the file is missing, damaged or not one of ours.
    """
    try:
        with safe_open(path, "pt") as file:
            record = json.loads((file.metadata() or {})["conceptlens"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error!r}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError(f"{path} is not of format {FORMAT}, which this version reads")
    if record.get("sha256") != _sha256(tensors):
        raise ValueError(f"{path} is damaged: its checksum differs")
    return tensors, record


def check_tensors(path: Path, tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Refuse tensors of other names, shapes or types than `expected`."""
    kinds, wanted = (
        {name: (tuple(t.shape), t.dtype) for name, t in group.items()}
        for group in (tensors, expected)
    )
    if kinds != wanted:
        wrong = sorted(n for n in kinds.keys() | wanted if kinds.get(n) != wanted.get(n))
        raise ValueError(f"{path} does not hold the expected tensors: see {', '.join(wrong)}")


def is_history(record: dict[str, Any]) -> bool:
    """Whether `record` has the figures of each epoch."""
    history = record.get("history")
    return isinstance(history, list) and all(
        isinstance(entry, dict) and all(isinstance(x, (int, float)) for x in entry.values())
        for entry in history
    )


def _differences(found: Any, record: dict[str, Any]) -> str:
    settings = record["settings"]
    if not isinstance(found, dict):
        return ""
    differ = [f"{n}={found.get(n)!r}, not {v!r}" for n, v in settings.items() if found.get(n) != v]
    return f" ({'; '.join(differ)})"


def _sha256(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)} {tensors[name].dtype}".encode())
        digest.update(tensors[name].numpy().data)
    return digest.hexdigest()
