"""A sparse linear layer from concepts to classes: elastic-net multinomial logistic regression.

Accelerated proximal quasi-Newton steps on a growing working set of concepts. The Hessian is taken
as (mean covariance of the class indicators) ⊗ (Gram matrix of the codes): a step then costs two
products with the codes, whatever the codes' correlations, and about ten steps are enough.
Letters: W ``(K, s)`` weights, z = W xᵀ ``(K, n)`` logits without intercepts, K classes, s concepts
of the working set.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..progress import bar

# Concepts in the first working set, and the most steps of a subproblem's inner solver.
FIRST, INNER = 64, 50


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
    loss = _Loss(y, n_classes, intercept, class_weight, codes)
    penalty = _Penalty(lam * l1_ratio, lam * (1 - l1_ratio))
    weight, b = loss.zero(codes.shape[1]) if start is None else (start.weight, start.intercept)
    weight, b = weight.to(codes).clone(), b.to(codes).clone()
    chosen = (weight != 0).any(0)
    steps, bound = 0, float("-inf")
    while True:
        value, b, residual = loss(weight @ codes.T, b)
        gradient = residual @ codes
        objective = value + float(penalty(weight))
        bound = max(bound, loss.dual(residual, gradient, penalty))
        gap = objective - bound
        if gap <= tol * objective or steps >= max_iter:
            break
        violation = (gradient.abs() - penalty.l1).amax(0).masked_fill(chosen, 0).clamp(min=0)
        chosen = _grown(chosen, violation)
        precision = 0.1 * gap / objective
        x, centre, scale = _standardised(codes[:, chosen], loss.share if intercept else None)
        scaled = weight[:, chosen] * scale
        offset = b + weight[:, chosen] @ centre
        solved, used = _solve(
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
    loss = _Loss(y, n_classes, intercept, class_weight, codes)
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


class _Loss:
    """Weighted mean cross-entropy of logits ``(K, n)``, with the best intercepts for them."""

    def __init__(
        self, y: Tensor, n_classes: int, intercept: bool, class_weight: str | None, codes: Tensor
    ) -> None:
        self.y, self.intercept = y.to(codes.device).long(), intercept
        counts = torch.bincount(self.y, minlength=n_classes).to(codes)
        weight = 1 / counts if class_weight == "balanced" else torch.ones_like(counts)
        share = weight[self.y]
        self.share = share / share.sum()
        self.n_classes = n_classes
        self.prior = torch.bincount(self.y, self.share, minlength=n_classes)
        self.precise = 1e-2 * torch.finfo(codes.dtype).eps ** 0.5

    def zero(self, k: int) -> tuple[Tensor, Tensor]:
        """Zero weights with the intercepts that are best for them."""
        b = self.prior.log() if self.intercept else torch.zeros_like(self.prior)
        return self.prior.new_zeros(self.n_classes, k), b

    def __call__(self, z: Tensor, b: Tensor) -> tuple[float, Tensor, Tensor]:
        """The loss, the intercepts that minimise it, and its gradient ``(K, n)`` in the logits."""
        for _ in range(50):
            logits = z + b[:, None]
            p = logits.softmax(0)
            residual = self._minus_truth(p) * self.share
            slope = residual.sum(1)
            if not self.intercept or float(slope.abs().max()) <= self.precise:
                break
            step = torch.linalg.solve(self.covariance(p) + 1 / self.n_classes, slope)
            b = b - step / step.abs().max().clamp(min=1)
        each = cross_entropy(logits.T, self.y, reduction="none")
        return float(each @ self.share), b, residual

    def covariance(self, p: Tensor) -> Tensor:
        """Mean covariance ``(K, K)`` of the class indicators under probabilities ``(K, n)``."""
        weighted = p * self.share
        return weighted.sum(1).diag() - weighted @ p.T

    def probabilities(self, residual: Tensor) -> Tensor:
        """``(K, n)``, from the gradient in the logits."""
        return self._minus_truth(residual / self.share, -1)

    def _minus_truth(self, p: Tensor, sign: int = 1) -> Tensor:
        p = p.clone()
        p[self.y, torch.arange(len(self.y), device=p.device)] -= sign
        return p

    def dual(self, residual: Tensor, gradient: Tensor, penalty: _Penalty) -> float:
        """The best lower bound of the objective among a few shrunken residuals.

        Any residual s R, 0 ≤ s ≤ 1, bounds it: by the entropy of the probabilities that s R stands
        for, less the penalty's conjugate at s times the gradient.
        """
        least = float((penalty.l1 / gradient.abs().clamp(min=1e-30)).min())
        bounds = []
        for s in torch.linspace(min(1.0, least), 1, 6, dtype=torch.float64).tolist():
            q = self.probabilities(s * residual).clamp(min=0)
            entropy = torch.special.entr(q).sum(0) @ self.share
            bounds.append(float(entropy) - penalty.conjugate(s * gradient))
        return max(bounds)


@dataclass(frozen=True)
class _Penalty:
    """Σ l1 |w| + l2/2 w², the strengths being numbers or one a concept ``(s,)``."""

    l1: float | Tensor
    l2: float | Tensor

    def __call__(self, weight: Tensor) -> Tensor:
        return (self.l1 * weight.abs() + self.l2 / 2 * weight.square()).sum()

    def scaled(self, scale: Tensor) -> _Penalty:
        """The same penalty of weights that were multiplied by `scale`."""
        return _Penalty(self.l1 / scale, self.l2 / scale.square())

    def prox(self, weight: Tensor, step: float) -> Tensor:
        """The minimiser of ``(w − weight)²/2 + step · penalty``."""
        shrunk = (weight.abs() - step * self.l1).clamp(min=0)
        return weight.sign() * shrunk / (1 + step * self.l2)

    def conjugate(self, gradient: Tensor) -> float:
        """Its convex conjugate; where l2 is 0, a gradient within rounding of l1 is feasible."""
        over = (gradient.abs() - self.l1).clamp(min=0)
        if not torch.as_tensor(self.l2).any():
            rounding = 10 * torch.finfo(gradient.dtype).eps
            return float("inf") if (over > rounding * self.l1).any() else 0.0
        return float((over.square() / (2 * self.l2)).sum())


def _solve(
    x: Tensor,
    loss: _Loss,
    penalty: _Penalty,
    weight: Tensor,
    b: Tensor,
    tol: float,
    max_iter: int,
) -> tuple[Tensor, int]:
    """Minimise over the weights of standardised codes; returns them and the steps taken."""
    gram, rounding = (x * loss.share[:, None]).T @ x, 10 * torch.finfo(x.dtype).eps
    z = weight @ x.T
    widest = _largest_eigenvalue(gram)
    ahead, z_ahead, momentum, stretch, bound = weight, z, 1.0, 1.0, float("-inf")
    for step in range(1, max_iter + 1):
        value, b, residual = loss(z_ahead, b)
        gradient = residual @ x
        objective = value + float(penalty(ahead))
        bound = max(bound, loss.dual(residual, gradient, penalty))
        done = objective - bound <= tol * objective
        metric = loss.covariance(loss.probabilities(residual))
        metric += 1e-3 * metric.diagonal().mean() * torch.eye(len(metric)).to(metric)
        while True:
            new = _step(ahead, gradient, gram, widest, stretch * metric, penalty)
            z_new = new @ x.T
            move = new - ahead
            model = (gradient * move).sum() + stretch / 2 * (metric @ (move @ gram) * move).sum()
            rise = loss(z_new, b)[0] - value
            if rise <= float(model) + rounding * value:
                break
            stretch *= 1.5
        if done:
            return new, step
        # Momentum is dropped where it points uphill.
        uphill = float(((ahead - new) * (new - weight)).sum()) > 0
        following = (1 + (1 + 4 * (1.0 if uphill else momentum) ** 2) ** 0.5) / 2
        share = 0.0 if uphill else (momentum - 1) / following
        ahead, z_ahead = new + share * (new - weight), z_new + share * (z_new - z)
        weight, z, momentum, stretch = new, z_new, following, max(0.9 * stretch, 0.5)
    return weight, max_iter


def _step(
    ahead: Tensor, gradient: Tensor, gram: Tensor, widest: float, metric: Tensor, penalty: _Penalty
) -> Tensor:
    """Minimise ⟨gradient, D⟩ + ½⟨metric D gram, D⟩ + penalty over D = W − ahead, roughly."""
    size = float(torch.linalg.eigvalsh(metric)[-1]) * widest
    weight, trial, momentum, first = ahead, ahead, 1.0, 0.0
    for _ in range(INNER):
        slope = gradient + metric @ ((trial - ahead) @ gram)
        new = penalty.prox(trial - slope / size, 1 / size)
        move = new - weight
        uphill = float(((trial - new) * move).sum()) > 0
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        trial = new + (0.0 if uphill else (momentum - 1) / following) * move
        weight, momentum = new, 1.0 if uphill else following
        moved = float(move.norm())
        first = max(first, moved)
        if moved <= 1e-2 * first:
            break
    return weight


def _largest_eigenvalue(gram: Tensor) -> float:
    """An upper bound, by ‖G⁴‖^¼."""
    scale = float(gram.norm())
    square = (gram / scale) @ (gram / scale)
    return scale * float((square @ square).norm()) ** 0.25


def _grown(chosen: Tensor, violation: Tensor) -> Tensor:
    """The working set with the concepts added that violate optimality most: at most doubled."""
    most = min(max(FIRST, int(chosen.sum())), int((violation > 0).sum()))
    chosen = chosen.clone()
    chosen[violation.topk(most).indices] = True
    return chosen


def _standardised(x: Tensor, share: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Columns of unit size, about their mean where there is an intercept to make up for it."""
    centre = torch.zeros_like(x[0]) if share is None else share @ x
    x = x - centre
    scale = x.square().mean(0).sqrt()
    scale = torch.where(scale > 0, scale, 1)
    return x / scale, centre, scale


def _check(
    codes: Tensor, y: Tensor, n_classes: int, intercept: bool, class_weight: str | None
) -> None:
    if codes.ndim != 2 or codes.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"codes must be float32 or float64 (n, k), got {codes.dtype} {tuple(codes.shape)}"
        )
    if not torch.isfinite(codes).all():
        raise ValueError(f"codes hold NaN or infinite values: {int((~codes.isfinite()).sum())}")
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
