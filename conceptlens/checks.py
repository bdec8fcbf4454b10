"""Checks of arguments: a message names the argument, what it may be and what was given."""

from __future__ import annotations

import math
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor


def check_whole(value: Any, name: str, least: int = 1) -> None:
    """Raise unless `value` is a whole number from `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        kind = TypeError if not isinstance(value, Real) else ValueError
        raise kind(f"{name} must be a whole number, at least {least}, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")


def check_number(
    value: Any, name: str, low: float = 0.0, high: float = math.inf, *, above: bool = False
) -> None:
    """Raise unless `value` is a finite number from `low` (or above it) to `high`."""
    span = f"a finite number {'above' if above else 'from'} {low:g}"
    span += f" to {high:g}" if high < math.inf else ""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be {span}, got {value!r}")
    try:
        number = float(value)
    except OverflowError:  # a whole number that no float can hold
        number = math.inf
    if not low <= number <= high or math.isinf(number) or (above and number == low):
        raise ValueError(f"{name} must be {span}, got {value!r}")


def check_seed(value: Any, name: str = "seed") -> None:
    """Raise unless `value` can seed a generator."""
    check_whole(value, name, 0)


def check_path(value: Any, name: str = "folder") -> Path:
    """Return `value` as a path; raise unless a file can have it."""
    if not isinstance(value, (str, PathLike)):
        raise TypeError(f"{name} must be a str or Path, got {value!r}")
    if "\0" in str(value):
        raise ValueError(f"{name} must have no NUL character, got {str(value)!r}")
    try:
        str(value).encode()
    except UnicodeEncodeError as error:  # such a file safetensors does not open
        raise ValueError(f"{name} must be UTF-8, got {str(value)!r}: rename it") from error
    return Path(value)


def check_tensor(value: Any, name: str, letters: str) -> None:
    """Raise unless `value` is a floating-point tensor with an axis a letter, none of them empty."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a floating-point tensor ({letters}), got {kind}")
    if value.ndim != len(letters.split(", ")) or 0 in value.shape:
        raise ValueError(
            f"{name} must have shape ({letters}), none of them 0, got {tuple(value.shape)}"
        )


def all_finite(value: Tensor) -> bool:
    """Whether `value` holds neither NaN nor infinite values."""
    # A finite sum has finite terms, and is had quicker than a mask of them.
    return bool(value.sum().isfinite() or value.isfinite().all())


def check_finite(value: Tensor, name: str) -> None:
    """Raise if `value` holds NaN or infinite values; the message counts those."""
    if not all_finite(value):
        bad = int((~value.isfinite()).sum())
        raise ValueError(f"{name} must be finite: {bad} of {value.numel()} are NaN or infinite")


def check_backbone(value: Any, name: str = "backbone") -> None:
    """Raise unless `value` is a classifier that is cut."""
    if not hasattr(value, "activations") or not hasattr(value, "head"):
        raise TypeError(f"{name} must be a Backbone, got {type(value).__name__}")


def check_names(value: Any, name: str, n: int | None = None) -> list[str]:
    """Return `value` as a list of strings, n of them if that is known."""
    if isinstance(value, str) or not all(isinstance(v, str) for v in _listed(value, name)):
        raise TypeError(f"{name} must be a sequence of strings, got {value!r}")
    if n is not None and len(value) != n:
        raise ValueError(f"{name} must have {n} names, got {len(value)}: {list(value)!r:.200}")
    return list(value)


def _listed(value: Any, name: str) -> Any:
    try:
        return list(value)
    except TypeError:
        raise TypeError(f"{name} must be a sequence of strings, got {value!r}") from None
