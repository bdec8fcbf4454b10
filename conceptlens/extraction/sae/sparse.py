"""Codes of which few are not zero: chosen, decoded and differentiated without the zeros.

Of the six products of a dense autoencoder's step only the encoder's forward one must be dense:
it tells which codes are large. The others touch ``k`` of ``n_components`` units a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from ...distributed import all_reduce_, rank, world_size


@dataclass(frozen=True, eq=False)
class Picks:
    """Which units are on in which rows, row after row.

    Attributes
    ----------
    rows, units : Tensor
        int64 ``(nnz,)``, sorted by row.
    shape : tuple of int
        (rows, units).
    """

    rows: Tensor
    units: Tensor
    shape: tuple[int, int]

    def row_starts(self) -> Tensor:
        """Where each row's entries begin ``(n,)``."""
        return _starts(self.rows, self.shape[0])

    def by_unit(self) -> tuple[Tensor, Tensor]:
        """Order the entries by unit ``(nnz,)``; also where each unit's begin ``(k,)``."""
        return torch.sort(self.units, stable=True).indices, _starts(self.units, self.shape[1])

    def sum_by_unit(self, weights: Tensor, table: Tensor) -> Tensor:
        """Sum, for each unit, the rows of `table` that have it, weighted: ``(k, C)``."""
        order, starts = self.by_unit()
        return _bags(table, self.rows[order], starts, weights[order])

    def sum_by_row(self, weights: Tensor, table: Tensor) -> Tensor:
        """Sum, for each row, the units' rows of `table` ``(k, C)``, weighted: ``(n, C)``."""
        return _bags(table, self.units, self.row_starts(), weights)

    def dot(self, rows: Tensor, table: Tensor) -> Tensor:
        """Product of each entry's row ``(n, C)`` with its unit's row of `table`: ``(nnz,)``."""
        # What embedding_bag's own gradient calls: nothing of size (nnz, C) is made.
        return torch.ops.aten._embedding_bag_per_sample_weights_backward(
            rows.contiguous(), table, self.units, self.row_starts(), self.rows, 0
        )


def top_k(pre: Tensor, k: int) -> Picks:
    """Pick the k largest entries of each row of `pre` ``(n, units)``."""
    units = pre.topk(k, dim=1, sorted=False).indices
    rows = torch.arange(len(pre), device=pre.device).repeat_interleave(k)
    return Picks(rows, units.flatten(), (pre.shape[0], pre.shape[1]))


def top_of_batch(pre: Tensor, count: int) -> tuple[Picks, Tensor]:
    """Pick the `count` largest positive entries of all rows, those of other processes included.

    Returns the picks and the least value that is picked.
    """
    values, units = _largest(pre, count)
    tiny = torch.finfo(pre.dtype).tiny
    level = _level(values.flatten(), count).clamp(min=tiny)
    on = values >= level
    rows = torch.arange(len(pre), device=pre.device)[:, None].expand_as(on)
    return Picks(rows[on], units[on], (pre.shape[0], pre.shape[1])), level


def encode(a: Tensor, weight: Tensor, bias: Tensor, pre: Tensor, picks: Picks) -> Tensor:
    """Return the picked entries ``(nnz,)`` of ``pre = a weightᵀ + bias``.

    `pre` ``(n, k)`` is computed before, without a graph; the gradients are those of the formula.
    """
    return _Encode.apply(a, weight, bias, pre, picks)


def decode(values: Tensor, picks: Picks, dictionary: Tensor) -> Tensor:
    """Return ``codes @ dictionary`` ``(n, C)`` for codes that are `values` at `picks`."""
    return _Decode.apply(values, dictionary, picks)


class _Encode(Function):
    @staticmethod
    def forward(
        ctx: Any, a: Tensor, weight: Tensor, bias: Tensor, pre: Tensor, picks: Picks
    ) -> Tensor:
        ctx.save_for_backward(a, weight)
        ctx.picks = picks
        return pre[picks.rows, picks.units]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        a, weight = ctx.saved_tensors
        picks: Picks = ctx.picks
        to_a = picks.sum_by_row(gradient, weight) if ctx.needs_input_grad[0] else None
        to_bias = gradient.new_zeros(len(weight)).index_add_(0, picks.units, gradient)
        return to_a, picks.sum_by_unit(gradient, a), to_bias, None, None


class _Decode(Function):
    """embedding_bag, but for the gradient of its table, which it computes slowly.

    Its own graph would also fail up to torch 2.5, where only the weights require a gradient.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, dictionary: Tensor, picks: Picks) -> Tensor:
        ctx.save_for_backward(values, dictionary)
        ctx.picks = picks
        return picks.sum_by_row(values, dictionary)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        values, dictionary = ctx.saved_tensors
        picks: Picks = ctx.picks
        to_values = picks.dot(gradient, dictionary) if ctx.needs_input_grad[0] else None
        to_dictionary = picks.sum_by_unit(values, gradient) if ctx.needs_input_grad[1] else None
        return to_values, to_dictionary, None


def _bags(table: Tensor, indices: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    return F.embedding_bag(indices, table, starts, mode="sum", per_sample_weights=weights)


def _starts(groups: Tensor, n: int) -> Tensor:
    counts = torch.bincount(groups, minlength=n)
    return counts.cumsum(0) - counts


def _largest(pre: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return entries of each row among which the `count` largest of all rows are; their units.

    Rows are searched for a few times their share first: sorting everything is ten times slower.
    """
    width = min(pre.shape[1], 4 * -(-count // max(1, len(pre))))
    while True:
        values, units = pre.topk(width, dim=1)
        if width == pre.shape[1] or not len(pre):
            return values, units
        if values[:, -1].max() < values.flatten().topk(count).values[-1]:
            return values, units  # no row can hold another one
        width = min(pre.shape[1], 2 * width)


def _level(values: Tensor, count: int) -> Tensor:
    """The `count`-th largest of all processes' values."""
    own = values.topk(min(count, len(values))).values
    everyone = values.new_zeros(world_size(), count)
    everyone[rank(), : len(own)] = own
    return all_reduce_(everyone).flatten().topk(count).values[-1]
