"""Running a function over many rows in batches that fit the memory, and reading ahead of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

from .checks import check_whole
from .progress import bar

Item = TypeVar("Item")


def in_batches(
    fn: Callable[[Tensor], Tensor], rows: Tensor, batch_size: int, unit: str | None = None
) -> Tensor:
    """Apply `fn` to consecutive slices of `rows` and concatenate what it returns.

    Parameters
    ----------
    fn : callable
        Maps ``(b, ...)`` to ``(b, ...)``.
    rows : Tensor
        ``(n, ...)`` with n ≥ 1.
    batch_size : int
        The most rows `fn` is given at once. When the device runs out of memory the batch is
        halved for the rest of the call, with a warning that says so.
    unit : str, optional
        What the rows are, for a progress bar. Default: no bar.

    Raises
    ------
    ValueError
        If `batch_size` is less than 1 or `rows` is empty.
    TypeError
        If `batch_size` is no number.
    """
    check_whole(batch_size, "batch_size")
    if len(rows) == 0:
        raise ValueError(f"there are no rows to work on: the input has shape {tuple(rows.shape)}")
    parts: list[Tensor] = []
    start = 0
    with bar("conceptlens", len(rows), unit or "", hidden=unit is None) as progress:
        while start < len(rows):
            try:
                parts.append(fn(rows[start : start + batch_size]))
            except torch.OutOfMemoryError:
                if batch_size == 1:
                    raise
                batch_size //= 2
                warnings.warn(
                    f"out of memory: going on with batches of {batch_size}",
                    RuntimeWarning,
                    stacklevel=2,
                )
                continue
            progress.update(min(batch_size, len(rows) - start))
            start += batch_size
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def ahead(items: Iterable[Item]) -> Generator[Item, None, None]:
    """Iterate over `items`, of which a thread makes the next while one is worked on."""
    source, end = iter(items), object()
    with ThreadPoolExecutor(1) as reader:
        following: Any = reader.submit(next, source, end)
        while (item := following.result()) is not end:
            following = reader.submit(next, source, end)
            yield item
