"""Tensors and a JSON record in safetensors files that are whole or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ...files import write_atomically
from ...sealing import check_tensors, pack, unpack

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
