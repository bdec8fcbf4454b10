"""Variants that pick their codes by rank, and train on those alone: topk, batchtopk, matryoshka."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from .formulas import Outcome, Step, Weights, preactivations
from .sparse import Picks, decode, encode, top_k, top_of_batch

# How much the dead units' part of the loss weighs (Gao et al. 2024).
DEAD_WEIGHT = 1 / 32
# A matryoshka's dictionaries: the whole, its first half, quarter, ...
NESTED = 5
# How slowly the threshold of a fitted batchtopk follows those of the batches.
FOLLOW = 0.01


def top_k_codes(w: Weights, a: Tensor, sparsity: float) -> Tensor:
    """Return u = max(z, 0) where z is among its row's largest."""
    z = preactivations(w, a)
    values, units = z.topk(int(sparsity), dim=1)
    return torch.zeros_like(z).scatter(1, units, values.relu())


def top_k_loss(w: Weights, a: Tensor, step: Step) -> Outcome:
    """Share + what the dead units leave of the residual, / 32."""
    return _loss(w, a, step, lambda z: top_k(z, int(step.sparsity)))


def batch_top_k_loss(w: Weights, a: Tensor, step: Step, n_nested: int = 1) -> Outcome:
    """The same, where z is among the batch's largest."""

    def pick(z: Tensor) -> Picks:
        picks, level = top_of_batch(z, step.n * int(step.sparsity))
        follow = max(FOLLOW, 1 / (1 + step.number))
        w["log_threshold"].lerp_(level.log(), follow)
        return picks

    return _loss(w, a, step, pick, n_nested)


def matryoshka_loss(w: Weights, a: Tensor, step: Step) -> Outcome:
    """The same, the share being averaged over nested dictionaries."""
    return batch_top_k_loss(w, a, step, NESTED)


def _loss(
    w: Weights, a: Tensor, step: Step, pick: Callable[[Tensor], Picks], n_nested: int = 1
) -> Outcome:
    centred = a - w["intercept"]
    with torch.no_grad():
        z = torch.addmm(w["encoder_bias"], centred, w["encoder"].T)
        picks = pick(z)
    values = encode(centred, w["encoder"], w["encoder_bias"], z, picks).relu()
    parts = (decode(values[inside], p, w["components"]) for p, inside in _rings(picks, n_nested))
    nested = list(accumulate(parts))
    errors = [mse_loss(decoded, centred, reduction="sum") for decoded in nested]
    loss = torch.stack(errors).mean()
    if len(step.dead):
        rest = (centred - nested[-1]).detach()
        loss = loss + DEAD_WEIGHT * _dead_error(w, centred, z, rest, step)
    active = torch.bincount(picks.units[values.detach() > 0], minlength=picks.shape[1])
    return Outcome(loss / (step.n * a.shape[1]), errors[-1].detach(), active)


def _rings(picks: Picks, n_nested: int) -> Iterator[tuple[Picks, Any]]:
    """Yield the picks that each dictionary adds to the one nested in it, and their places."""
    if n_nested == 1:
        yield picks, ...
        return
    ends = [0, *(picks.shape[1] >> i for i in reversed(range(n_nested)))]
    for low, high in pairwise(ends):
        inside = (picks.units >= low) & (picks.units < high)
        yield Picks(picks.rows[inside], picks.units[inside], picks.shape), inside


def _dead_error(w: Weights, centred: Tensor, z: Tensor, rest: Tensor, step: Step) -> Tensor:
    """‖rest − r̂‖² where r̂ decodes the dead units' largest codes, as many as a row has live ones.

    The paper takes C / 2 of them: where many units are dead that costs several times the rest of
    the step, and on EfficientNet-Lite0's activations it revives hardly more of them.
    """
    few = top_k(z[:, step.dead], min(len(step.dead), int(step.sparsity)))
    picks = Picks(few.rows, step.dead[few.units], (z.shape[0], z.shape[1]))
    values = encode(centred, w["encoder"], w["encoder_bias"], z, picks).relu()
    return mse_loss(decode(values, picks, w["components"]), rest, reduction="sum")
