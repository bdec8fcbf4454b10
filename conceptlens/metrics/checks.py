"""The checks that the metrics share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..checks import check_finite


def check_shape(value: Any, name: str, letters: str, **sizes: int) -> Tensor:
    """Return `value` as a finite tensor with one axis a letter of `letters`, none of them empty.

    Parameters
    ----------
    value : array-like
        What the caller gave.
    name : str
        The argument's name, for the message.
    letters : str
        The axes, such as ``"n k"``.
    **sizes : int
        The size that some axes must have, such as ``k=10``.
    """
    tensor = as_numbers(value, name)
    axes = letters.split()
    wanted = [sizes.get(axis) for axis in axes]
    fits = tensor.ndim == len(axes) and 0 not in tensor.shape
    if not fits or any(w not in (None, s) for w, s in zip(wanted, tensor.shape, strict=True)):
        shape = ", ".join(
            axis if w is None else f"{axis} = {w}" for axis, w in zip(axes, wanted, strict=True)
        )
        raise ValueError(f"{name} must have shape ({shape}), got {tuple(tensor.shape)}")
    check_finite(tensor, name)
    return tensor


def as_numbers(value: Any, name: str) -> Tensor:
    """Return `value` as a tensor of real numbers."""
    try:
        tensor = torch.as_tensor(value)
    except (RuntimeError, TypeError, ValueError):
        kind = type(value).__name__
        raise TypeError(f"{name} must be numbers, got {kind} {value!r:.80}") from None
    if tensor.is_complex():
        raise TypeError(f"{name} must be real numbers, got {tensor.dtype}")
    return tensor


def check_one_of(value: str, name: str, choices: tuple[str, ...]) -> None:
    """Raise unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")


def check_binary(value: Any, name: str, letters: str, **sizes: int) -> Tensor:
    """Return `value`, which may hold only 0 and 1, as a Boolean tensor of that shape."""
    tensor = check_shape(value, name, letters, **sizes)
    if tensor.dtype != torch.bool and not ((tensor == 0) | (tensor == 1)).all():
        raise ValueError(
            f"{name} must hold only 0 and 1, got values from {float(tensor.min()):.3g} to "
            f"{float(tensor.max()):.3g}: threshold it first"
        )
    return tensor.bool()
