"""The one progress bar of the library."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def track(
    items: Iterable[T], description: str, *, total: int | None = None, unit: str = "it"
) -> Iterator[T]:
    """Iterate over `items`, showing a bar once the work has lasted a second.

    The bar is tqdm's, in terminals and notebooks alike; ``TQDM_DISABLE=1`` silences it.
    """
    from tqdm.auto import tqdm

    yield from tqdm(items, desc=description, total=total, unit=unit, delay=1.0, leave=False)


def bar(description: str, total: int, unit: str):
    """Return a tqdm bar to be advanced by hand with ``update`` and closed with ``with``."""
    from tqdm.auto import tqdm

    return tqdm(desc=description, total=total, unit=unit, delay=1.0, leave=False)
