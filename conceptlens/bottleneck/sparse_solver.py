"""Elastic-net multinomial logistic regression by accelerated proximal quasi-Newton steps.

The Hessian is taken as (mean covariance of the class indicators) ⊗ (Gram matrix of the codes): a
step then costs two products with the codes, whatever the codes' correlations, and about ten steps
are enough. Letters: W ``(K, s)`` weights, z = W xᵀ ``(K, n)`` logits without intercepts, K classes,
s concepts of the working set.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# The most steps of the inner solver, which minimises the quadratic model of a step; and what a new
# step counts in the mean of gradients.
INNER, NEW = 50, 0.3


class Loss:
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
        # Where the true classes are in a flat (K, n).
        self.places = self.y * len(y) + torch.arange(len(y), device=codes.device)
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
        each = logits.logsumexp(0) - logits.take(self.places)
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
        p.view(-1)[self.places] -= sign
        return p

    def dual(self, residual: Tensor, gradient: Tensor, penalty: Penalty) -> float:
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
class Penalty:
    """Σ l1 |w| + l2/2 w², the strengths being numbers or one a concept ``(s,)``."""

    l1: float | Tensor
    l2: float | Tensor

    def __call__(self, weight: Tensor) -> Tensor:
        """The penalty."""
        return (self.l1 * weight.abs() + self.l2 / 2 * weight.square()).sum()

    def scaled(self, scale: Tensor) -> Penalty:
        """The same penalty of weights that were multiplied by `scale`."""
        return Penalty(self.l1 / scale, self.l2 / scale.square())

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


def solve(
    x: Tensor,
    loss: Loss,
    penalty: Penalty,
    weight: Tensor,
    b: Tensor,
    tol: float,
    max_iter: int,
) -> tuple[Tensor, Tensor, int]:
    """Minimise over the weights of standardised codes.

    Returns them, a mean of the last steps' gradients in the logits, and the number of steps. The
    mean bounds the minimum far better in the end than they do one by one: about the minimum they
    swing from side to side, and what they are off by costs 1/l2 of its square.
    """
    gram, rounding = (x * loss.share[:, None]).T @ x, 10 * torch.finfo(x.dtype).eps
    z = weight @ x.T
    widest = _largest_eigenvalue(gram)
    ahead, z_ahead, momentum, stretch, bound = weight, z, 1.0, 1.0, float("-inf")
    calm, calm_gradient = z, weight  # of the first step, where they count nothing
    for step in range(1, max_iter + 1):
        value, b, residual = loss(z_ahead, b)
        gradient = residual @ x
        objective = value + float(penalty(ahead))
        new_share = 1.0 if step == 1 else NEW
        calm = calm.lerp(residual, new_share)
        calm_gradient = calm_gradient.lerp(gradient, new_share)
        for r, g in ((residual, gradient), (calm, calm_gradient)):
            bound = max(bound, loss.dual(r, g, penalty))
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
            return new, calm, step
        # Momentum is dropped where it points uphill.
        uphill = float(((ahead - new) * (new - weight)).sum()) > 0
        following = (1 + (1 + 4 * (1.0 if uphill else momentum) ** 2) ** 0.5) / 2
        share = 0.0 if uphill else (momentum - 1) / following
        ahead, z_ahead = new + share * (new - weight), z_new + share * (z_new - z)
        weight, z, momentum, stretch = new, z_new, following, max(0.9 * stretch, 0.5)
    return weight, calm, max_iter


def _step(
    ahead: Tensor, gradient: Tensor, gram: Tensor, widest: float, metric: Tensor, penalty: Penalty
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
