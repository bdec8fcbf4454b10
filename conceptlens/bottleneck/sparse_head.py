"""A sparse linear layer from concepts to classes: elastic-net multinomial logistic regression.

The problem is solved on a growing working set of concepts, each time by `sparse_solver.solve`,
until its duality gap is small.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from ..checks import check_finite
from ..progress import bar
from .sparse_solver import Loss, Penalty, solve

# Concepts in the first working set.
FIRST = 64


@dataclass(frozen=True, eq=False)
class SparseHead:
    """A linear layer from codes ``(n, k)`` to logits ``(n, n_classes)``: call it.

    Attributes
    ----------
    weight, intercept : Tensor
        ``(n_classes, k)`` and ``(n_classes,)``.
    lam : float
        The strength of the penalty.
    objective : float
        What was minimised, at these weights.
    gap : float
        The objective is at most this much above its minimum (the duality gap, up to rounding).
    n_iter : int
        Steps taken.
    """

    weight: Tensor
    intercept: Tensor
    lam: float
    objective: float
    gap: float
    n_iter: int

    def __call__(self, codes: Tensor) -> Tensor:
        """Return the logits."""
        return codes @ self.weight.T + self.intercept

    @property
    def nonzeros(self) -> Tensor:
        """Concepts that each class uses, ``(n_classes,)``."""
        return self.weight.count_nonzero(1)

    def __repr__(self) -> str:
        classes, k = self.weight.shape
        return (
            f"SparseHead(lam={self.lam:.3g}: {classes} classes, {k} concepts, "
            f"{float(self.nonzeros.double().mean()):.1f} used a class, "
            f"objective {self.objective:.4g}, gap {self.gap:.1e})"
        )


def fit_sparse_head(
    codes: Tensor,
    y: Tensor,
    n_classes: int,
    *,
    lam: float,
    l1_ratio: float = 0.99,
    intercept: bool = True,
    class_weight: str | None = None,
    start: SparseHead | None = None,
    tol: float = 1e-4,
    max_iter: int = 500,
) -> SparseHead:
    """Minimise mean cross-entropy + lam (l1_ratio ‖W‖₁ + (1 − l1_ratio)/2 ‖W‖²).

    Parameters
    ----------
    codes : Tensor
        ``(n, k)``, float32 or float64; the work is done in that dtype and on that device. The
        penalty sees the codes as they are: standardise them first where their scales differ.
    y : Tensor
        ``(n,)`` of class indices.
    n_classes : int
        With an intercept, each of them must occur in `y`.
    lam, l1_ratio : float
        lam > 0; l1_ratio from 0 (ridge) to 1 (lasso).
    intercept : bool
        Whether there is one, which is not penalised.
    class_weight : {None, "balanced"}
        ``"balanced"``: every class counts alike in the mean, whatever its number of rows.
    start : SparseHead, optional
        Of a similar problem, such as a neighbouring `lam`.
    tol : float
        The objective ends within this share of its minimum.
    max_iter : int
        The most steps; a ConvergenceWarning says when they did not suffice.

    References
    ----------
    Lee, Sun & Saunders, "Proximal Newton-type methods for minimizing composite functions", SIAM J.
    Optim. 2014. Working sets and gaps: Massias, Gramfort & Salmon, "Celer", ICML 2018. The layer:
    Wong, Santurkar & Madry, "Leveraging sparse linear layers for debuggable deep networks",
    ICML 2021.
    """
    _check(codes, y, n_classes, intercept, class_weight)
    if not lam > 0 or not 0 <= l1_ratio <= 1:
        raise ValueError(f"lam must be positive and l1_ratio from 0 to 1, got {lam} and {l1_ratio}")
    loss = Loss(y, n_classes, intercept, class_weight, codes)
    penalty = Penalty(lam * l1_ratio, lam * (1 - l1_ratio))
    weight, b = loss.zero(codes.shape[1]) if start is None else (start.weight, start.intercept)
    weight, b = weight.to(codes).clone(), b.to(codes).clone()
    chosen = (weight != 0).any(0)
    steps, bound = 0, float("-inf")
    calm: Tensor | None = None
    while True:
        value, b, residual = loss(weight @ codes.T, b)
        gradient = residual @ codes
        objective = value + float(penalty(weight))
        bound = max(bound, loss.dual(residual, gradient, penalty))
        if calm is not None:
            bound = max(bound, loss.dual(calm, calm @ codes, penalty))
        gap = objective - bound
        if gap <= tol * objective or steps >= max_iter:
            break
        violation = (gradient.abs() - penalty.l1).amax(0).masked_fill(chosen, 0).clamp(min=0)
        chosen = _grown(chosen, violation)
        precision = max(0.1 * gap / objective, 0.5 * tol)
        x = codes[:, chosen]
        centre, scale = _standardise(x, loss.share if intercept else None)
        scaled = weight[:, chosen] * scale
        offset = b + weight[:, chosen] @ centre
        solved, calm, used = solve(
            x, loss, penalty.scaled(scale), scaled, offset, precision, max_iter - steps
        )
        weight[:, chosen] = solved / scale
        steps += used
    if gap > tol * objective:
        warnings.warn(
            f"the sparse head did not converge in max_iter = {max_iter} steps: its objective is "
            f"within {gap / objective:.1e} of the minimum, not {tol:.1e}",
            ConvergenceWarning,
            stacklevel=2,
        )
    return SparseHead(weight, b, lam, objective, gap, steps)


def sparse_path(
    codes: Tensor,
    y: Tensor,
    n_classes: int,
    *,
    n_lambdas: int = 30,
    lam_min_ratio: float = 1e-3,
    l1_ratio: float = 0.99,
    intercept: bool = True,
    class_weight: str | None = None,
    tol: float = 1e-4,
) -> list[SparseHead]:
    """Fit heads from the lam at which all weights become zero down to `lam_min_ratio` of it.

    Each starts from the one before it. The arguments are `fit_sparse_head`'s; l1_ratio > 0.

    Returns
    -------
    list of SparseHead
        The sparsest first.
    """
    if n_lambdas < 2 or not 0 < lam_min_ratio < 1 or not 0 < l1_ratio <= 1:
        raise ValueError(
            "a path needs n_lambdas ≥ 2, lam_min_ratio between 0 and 1 and l1_ratio in (0, 1], "
            f"got {n_lambdas}, {lam_min_ratio} and {l1_ratio}"
        )
    _check(codes, y, n_classes, intercept, class_weight)
    loss = Loss(y, n_classes, intercept, class_weight, codes)
    weight, b = loss.zero(codes.shape[1])
    _, _, residual = loss(weight @ codes.T, b)
    largest = float((residual @ codes).abs().max()) / l1_ratio
    if largest == 0:
        raise ValueError("the codes tell nothing of the classes: all gradients are zero")
    heads: list[SparseHead] = []
    with bar("sparse head", n_lambdas, "lam") as progress:
        for i in range(n_lambdas):
            head = fit_sparse_head(
                codes,
                y,
                n_classes,
                lam=largest * lam_min_ratio ** (i / (n_lambdas - 1)),
                l1_ratio=l1_ratio,
                intercept=intercept,
                class_weight=class_weight,
                start=heads[-1] if heads else None,
                tol=tol,
            )
            heads.append(head)
            progress.update()
    return heads


def _grown(chosen: Tensor, violation: Tensor) -> Tensor:
    """The working set with the concepts added that violate optimality most: at most doubled."""
    most = min(max(FIRST, int(chosen.sum())), int((violation > 0).sum()))
    chosen = chosen.clone()
    chosen[violation.topk(most).indices] = True
    return chosen


def _standardise(x: Tensor, share: Tensor | None) -> tuple[Tensor, Tensor]:
    """Bring columns to unit size in place; about their mean where an intercept makes up for it."""
    centre = torch.zeros_like(x[0]) if share is None else share @ x
    x -= centre
    scale = x.norm(dim=0) / len(x) ** 0.5
    scale = torch.where(scale > 0, scale, 1)
    x /= scale
    return centre, scale


def _check(
    codes: Tensor, y: Tensor, n_classes: int, intercept: bool, class_weight: str | None
) -> None:
    if codes.ndim != 2 or codes.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"codes must be float32 or float64 (n, k), got {codes.dtype} {tuple(codes.shape)}"
        )
    check_finite(codes, "codes")
    if y.shape != codes.shape[:1] or y.is_floating_point() or len(y) == 0:
        raise ValueError(f"y must hold a class index for each of {len(codes)} rows, got {y}")
    if n_classes < 2 or int(y.min()) < 0 or int(y.max()) >= n_classes:
        raise ValueError(
            f"y must lie in 0 … n_classes − 1, with n_classes ≥ 2, got {int(y.min())} to "
            f"{int(y.max())} for n_classes = {n_classes}"
        )
    if class_weight not in (None, "balanced"):
        raise ValueError(f"class_weight must be None or 'balanced', got {class_weight!r}")
    absent = sorted(set(range(n_classes)) - set(y.unique().tolist()))
    if absent and (intercept or class_weight):
        raise ValueError(f"y has no row of the classes {absent}: their intercepts have no optimum")
