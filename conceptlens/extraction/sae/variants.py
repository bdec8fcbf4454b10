"""The variants of the sparse autoencoder: one line each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from . import dense, picked
from .formulas import Outcome, Step, Weights


@dataclass(frozen=True)
class Variant:
    """How a variant encodes and what it minimises.

    Attributes
    ----------
    codes : callable
        (weights, rows, sparsity) → codes ``(n, k)`` once fitted, differentiable.
    loss : callable
        (weights, rows, step) → Outcome.
    sparsity : float
        The default of the option.
    counts : bool
        Whether `sparsity` is a number of units a row, or the weight of a penalty.
    more : callable
        (k, C) → the weights it learns besides W, c, V and b. One number alone is not learnt by
        gradient: the loss sets it.
    """

    codes: Callable[[Weights, Tensor, float], Tensor]
    loss: Callable[[Weights, Tensor, Step], Outcome]
    sparsity: float
    counts: bool
    more: Callable[[int, int], Weights] = lambda k, c: {}


def _threshold(k: int, c: int) -> Weights:
    return {"log_threshold": torch.full((k,), 0.1 * c**0.5).log()}


def _gate(k: int, c: int) -> Weights:
    return {"log_scale": torch.zeros(k), "magnitude_bias": torch.zeros(k)}


def _level(k: int, c: int) -> Weights:
    return {"log_threshold": torch.tensor(0.0)}


# fmt: off
VARIANTS = {
    "relu": Variant(dense.relu_codes, dense.relu_loss, 0.05, False),
    "topk": Variant(picked.top_k_codes, picked.top_k_loss, 32, True),
    "batchtopk": Variant(dense.jump_codes, picked.batch_top_k_loss, 32, True, _level),
    "jumprelu": Variant(dense.jump_codes, dense.jump_loss, 1e-3, False, _threshold),
    "gated": Variant(dense.gated_codes, dense.gated_loss, 0.05, False, _gate),
    "matryoshka": Variant(dense.jump_codes, picked.matryoshka_loss, 32, True, _level),
}
# fmt: on
