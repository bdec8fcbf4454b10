"""The sparse linear head of a bottleneck, chosen from a path of penalties."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .data import TrainingData, deviations
from .sparse_head import fit_sparse_head, sparse_path


@torch.no_grad()
def fit_head(
    head: nn.Linear,
    encode: Callable[[Tensor], Tensor],
    data: TrainingData,
    class_weight: str | None,
    *,
    penalty: float | None = None,
    nonzeros: float | None = None,
) -> None:
    """Fill `head` with a sparse classifier of codes.

    It is fitted to standardised codes, that the penalty may treat all concepts alike, and then
    put in terms of the codes themselves.

    Parameters
    ----------
    head : nn.Linear
        k → n_classes.
    encode : callable
        Features ``(n, C)`` → codes ``(n, k)``.
    data : TrainingData
        Rows.
    class_weight : {None, "balanced"}
        Weights of the classes.
    penalty : float, optional
        λ. Default: chosen from a path, from large to small ones.
    nonzeros : float, optional
        Take the densest of the path whose classes use at most so many concepts on average.
        Default: the one with the best accuracy, on held-out rows if there are any.
    """
    codes = encode(data.features).double()  # classes that separate leave losses near rounding
    mean, std = codes.mean(0), deviations(codes)
    rows, y, n_classes = (codes - mean) / std, data.y, data.n_classes
    if penalty is not None:
        found = fit_sparse_head(rows, y, n_classes, lam=penalty, class_weight=class_weight)
    else:
        path = sparse_path(rows, y, n_classes, class_weight=class_weight)
        if nonzeros is not None:
            fitting = [p for p in path if p.weight.count_nonzero() <= nonzeros * n_classes]
            found = (fitting or path)[-1]
        else:
            judge = data if data.held_out is None else data.held_out
            held = (encode(judge.features) - mean) / std
            right = [((held @ p.weight.T + p.intercept).argmax(1) == judge.y).sum() for p in path]
            found = path[int(torch.stack(right).argmax())]
    weight = found.weight / std
    head.weight.copy_(weight)
    head.bias.copy_(found.intercept - weight @ mean)
