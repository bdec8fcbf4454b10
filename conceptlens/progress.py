"""The one progress bar of the library."""

from __future__ import annotations

from functools import cache
from threading import RLock
from typing import Any

from .distributed import rank


def bar(description: str, total: int, unit: str, *, hidden: bool = False) -> Any:
    """Return a bar to be advanced by ``update``, inside ``with``.

    It is tqdm's, in terminals and notebooks alike, and shows once the work has lasted a second;
    ``TQDM_DISABLE=1`` silences it, and a `hidden` one never shows. Of processes that work together
    the first shows its own.
    """
    # Only a hidden bar says so: a given False would outvote the environment variable.
    options: dict[str, Any] = {"disable": True} if hidden or rank() > 0 else {}
    return _bar()(desc=description, total=total, unit=f" {unit}", delay=1.0, leave=False, **options)


@cache
def _bar() -> Any:
    from tqdm.auto import tqdm

    class Bar(tqdm):  # type: ignore[misc, type-arg]
        pass

    # tqdm's own is shared by forked processes: if one is killed that holds it, all others hang.
    Bar.set_lock(RLock())
    return Bar
