"""The one progress bar of the library."""

from __future__ import annotations

from typing import Any


def bar(description: str, total: int, unit: str) -> Any:
    """Return a bar to be advanced by ``update``, inside ``with``.

    It is tqdm's, in terminals and notebooks alike, and shows once the work has lasted a second;
    ``TQDM_DISABLE=1`` silences it.
    """
    from tqdm.auto import tqdm

    return tqdm(desc=description, total=total, unit=unit, delay=1.0, leave=False)
