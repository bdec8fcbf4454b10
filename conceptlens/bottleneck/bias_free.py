"""A sparse linear head without bias, for each of a path of penalties."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from ..progress import bar

# The weakest penalty of a path, as a share of the one that leaves no weight.
LEAST = 3e-3
# A path ends where so small a share of the loss without weights is left: below it heads overfit.
EXPLAINED = 0.02


@dataclass(frozen=True, eq=False)
class BiasFreeHead:
    """Codes ``(n, k)`` → logits ``(n, n_classes)``: call it.

    Attributes
    ----------
    weight : Tensor
        ``(n_classes, k)``.
    lam : float
        The weight of ‖W‖₁ that it was fitted with.
    """

    weight: Tensor
    lam: float

    def __call__(self, codes: Tensor) -> Tensor:
        """The logits ``(n, n_classes)`` of codes ``(n, k)``."""
        return codes @ self.weight.T

    @property
    def nonzeros(self) -> float:
        """Concepts used a class, on average."""
        return float(self.weight.count_nonzero(1).double().mean())


def bias_free_path(
    codes: Tensor, y: Tensor, n_classes: int, n_lambdas: int, weights: Tensor | None = None
) -> list[BiasFreeHead]:
    """Fit heads from the λ at which all weights become zero down to 3 ‰ of it, or to no loss.

    Parameters
    ----------
    codes : Tensor
        ``(n, k)``.
    y : Tensor
        ``(n,)``, class indices.
    n_classes : int
        Number of classes.
    n_lambdas : int
        At least two; fewer heads come back where the classes can be told without error.
    weights : Tensor, optional
        ``(n_classes,)``: of the classes in the loss.
    """
    if n_lambdas < 2:
        raise ValueError(f"a path needs n_lambdas ≥ 2, got {n_lambdas}")
    weights = None if weights is None else weights.to(codes)
    weight, rows = codes.new_zeros(n_classes, codes.shape[1]).double(), codes.double()
    largest = float(_gradient(weight, rows, *_truth(rows, y, n_classes, weights)).abs().max())
    if largest == 0:
        raise ValueError("the codes tell nothing of the classes: no concept is ever on")
    path: list[BiasFreeHead] = []
    with bar("sparse head", n_lambdas, "λ") as progress:
        for i in range(n_lambdas):
            lam = largest * LEAST ** (i / (n_lambdas - 1))
            head = fit_bias_free(codes, y, n_classes, lam, weights, start=weight)
            weight = head.weight
            path.append(head)
            progress.update()
            if cross_entropy(head(codes), y, weights) < EXPLAINED * math.log(n_classes):
                break
    return path


def fit_bias_free(
    codes: Tensor,
    y: Tensor,
    n_classes: int,
    lam: float,
    weights: Tensor | None = None,
    *,
    start: Tensor | None = None,
    tol: float = 3e-3,
    max_iter: int = 5000,
) -> BiasFreeHead:
    """Minimise the mean cross-entropy of ``codes @ W.T`` + lam ‖W‖₁.

    By accelerated proximal gradient steps, restarted where they turn back, until the optimality
    conditions hold to `tol` of lam.

    Parameters
    ----------
    codes, y, n_classes, weights
        As for `bias_free_path`.
    lam : float
        Above 0.
    start : Tensor, optional
        ``(n_classes, k)``, of a similar problem.
    tol : float
        How far a slope may be from what optimality asks, as a share of lam.
    max_iter : int
        The most steps; a ConvergenceWarning says when they did not suffice.

    References
    ----------
    Beck & Teboulle, "A fast iterative shrinkage-thresholding algorithm", 2009; O'Donoghue &
    Candès, "Adaptive restart for accelerated gradient schemes", 2015.
    """
    if not 0 < lam < float("inf"):
        raise ValueError(f"lam must be a number above 0, got {lam}")
    dtype, codes = codes.dtype, codes.double()  # single precision cannot tell the last steps
    truth, share = _truth(codes, y, n_classes, weights)
    weight = codes.new_zeros(n_classes, codes.shape[1]) if start is None else start.to(codes)
    # The softmax's second derivative is at most 1/2.
    step = 2 / _largest_eigenvalue(codes * share.sqrt())
    ahead, momentum = weight, 1.0
    for _ in range(max_iter):
        slope = _gradient(ahead, codes, truth, share)
        moved = ahead - step * slope
        new = moved.sign() * (moved.abs() - step * lam).clamp(min=0)
        if float((ahead - new).abs().max()) <= tol * lam * step:
            return BiasFreeHead(new.to(dtype), lam)
        uphill = float(((ahead - new) * (new - weight)).sum()) > 0
        following = (1 + (1 + 4 * (1.0 if uphill else momentum) ** 2) ** 0.5) / 2
        ahead = new if uphill else new + (momentum - 1) / following * (new - weight)
        weight, momentum = new, following
    warnings.warn(
        f"the head with lam={lam:.3g} is not optimal after max_iter={max_iter} steps",
        ConvergenceWarning,
        stacklevel=2,
    )
    return BiasFreeHead(weight.to(dtype), lam)


def _truth(
    codes: Tensor, y: Tensor, n_classes: int, weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The classes as ``(n, n_classes)`` of 0 and 1, and each row's share ``(n, 1)`` of the loss."""
    share = torch.ones_like(codes[:, 0]) if weights is None else weights.to(codes)[y]
    return one_hot(y, n_classes).to(codes), (share / share.sum())[:, None]


def _gradient(weight: Tensor, codes: Tensor, truth: Tensor, share: Tensor) -> Tensor:
    return (((codes @ weight.T).softmax(1) - truth) * share).T @ codes


def _largest_eigenvalue(rows: Tensor) -> float:
    """Of ``rowsᵀ rows``, from the smaller of the two Gram matrices."""
    gram = rows.T @ rows if len(rows) > rows.shape[1] else rows @ rows.T
    return float(torch.linalg.eigvalsh(gram)[-1])
