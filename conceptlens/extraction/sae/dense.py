"""Variants whose codes are dense while they train: relu, jumprelu, gated."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function

from .formulas import Outcome, Step, Weights, preactivations, squared_error

# The width of the kernel that stands for the derivative of a jump, in units of √C.
BANDWIDTH = 0.05


def relu_codes(w: Weights, a: Tensor, sparsity: float) -> Tensor:
    """Return u = max(z, 0)."""
    return preactivations(w, a).relu()


def relu_loss(w: Weights, a: Tensor, step: Step) -> Outcome:
    """Share + sparsity · ‖u‖₁ / √C."""
    u = relu_codes(w, a, step.sparsity)
    error = squared_error(w, a, u)
    loss = error / a.shape[1] + step.sparsity * u.sum() / a.shape[1] ** 0.5
    return Outcome(loss / step.n, error.detach(), (u > 0).sum(0))


def jump_codes(w: Weights, a: Tensor, sparsity: float) -> Tensor:
    """Return u = z · [z > θ]."""
    z = preactivations(w, a)
    return z * (z > w["log_threshold"].exp())


def jump_loss(w: Weights, a: Tensor, step: Step) -> Outcome:
    """Share + sparsity · number of units on; θ learns straight through the jumps."""
    z, threshold = preactivations(w, a), w["log_threshold"].exp()
    width = BANDWIDTH * a.shape[1] ** 0.5
    u: Tensor = _JumpReLU.apply(z, threshold, width)
    error = squared_error(w, a, u)
    loss = error / a.shape[1] + step.sparsity * _Jump.apply(z, threshold, width).sum()
    return Outcome(loss / step.n, error.detach(), (u > 0).sum(0))


def gated_codes(w: Weights, a: Tensor, sparsity: float) -> Tensor:
    """Return u = max(exp(r) · (z − c) + m, 0) · [z > 0]."""
    return _open(w, preactivations(w, a))


def gated_loss(w: Weights, a: Tensor, step: Step) -> Outcome:
    """Share + sparsity · ‖max(z, 0)‖₁ / √C + the share that max(z, 0) leaves, V and b held."""
    z = preactivations(w, a)
    gate, u = z.relu(), _open(w, z)
    held = {name: w[name].detach() for name in ("components", "intercept")}
    error = squared_error(w, a, u)
    loss = (error + squared_error(held, a, gate)) / a.shape[1]
    loss = loss + step.sparsity * gate.sum() / a.shape[1] ** 0.5
    return Outcome(loss / step.n, error.detach(), (u > 0).sum(0))


def _open(w: Weights, z: Tensor) -> Tensor:
    linear = z - w["encoder_bias"]
    return (w["log_scale"].exp() * linear + w["magnitude_bias"]).relu() * (z > 0)


class _Jump(Function):
    """[z > θ], of which θ has the derivative −[|z − θ| < width / 2] / width and z none."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.width = width
        return (z > threshold).to(z)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        z, threshold = ctx.saved_tensors
        near = (z - threshold).abs() < ctx.width / 2
        return None, -(gradient * near).sum(0) / ctx.width, None


class _JumpReLU(Function):
    """z · [z > θ], of which θ has the derivative −θ [|z − θ| < width / 2] / width."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.width = width
        return z * (z > threshold)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        z, threshold = ctx.saved_tensors
        near = (z - threshold).abs() < ctx.width / 2
        to_threshold = -threshold * (gradient * near).sum(0) / ctx.width
        return gradient * (z > threshold), to_threshold, None
