"""Nonnegative least squares that gradients flow through, by the implicit function theorem."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .nnls import CHUNK_NUMBERS, nnls_from_grams


def implicit_nnls(a: Tensor, v: Tensor) -> Tensor:
    """Solve min ‖a − u v‖² over u ≥ 0 as `nnls` does; gradients flow to `a`.

    On its support S the solution of a row solves the linear system u_S (v_S v_Sᵀ) = a v_Sᵀ, and S
    stays where it is under small changes of the row unless a code is about to enter or leave it.
    So ∂u_S/∂a = (v_S v_Sᵀ)⁻¹ v_S, and the other codes do not move.

    Parameters
    ----------
    a : Tensor
        Rows ``(n, C)``.
    v : Tensor
        Dictionary ``(k, C)`` of the same dtype and device, held fixed.

    Returns
    -------
    Tensor
        Codes ``(n, k)``.

    References
    ----------
    Fel et al., "CRAFT: Concept Recursive Activation FacTorization for Explainability", CVPR 2023
    (section 3.4); Blondel et al., "Efficient and modular implicit differentiation", NeurIPS 2022.
    """
    return implicit_nnls_from_grams(v @ v.T, a @ v.T)


def implicit_nnls_from_grams(gram: Tensor, b: Tensor, start: Tensor | None = None) -> Tensor:
    """Solve as `nnls_from_grams` does; gradients flow to ``b = a vᵀ``."""
    return _ImplicitNNLS.apply(gram, b, start)  # type: ignore[no-any-return]


class _ImplicitNNLS(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gram: Tensor, b: Tensor, start: Tensor | None) -> Tensor:
        u = nnls_from_grams(gram, b, start)
        ctx.save_for_backward(gram, u)
        return u

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:
        gram, u = ctx.saved_tensors
        return None, _solve_on_supports(gram, u > 0, gradient), None


def _solve_on_supports(gram: Tensor, support: Tensor, b: Tensor) -> Tensor:
    """Solve x_S gram_SS = b_S for each row's support S ``(n, k)``; x is zero elsewhere."""
    k, gram = len(gram), gram.double()
    # The same ridge as in the forward pass: of a repeated concept both copies stay in the support.
    gram = gram + 1e-12 * gram.diagonal().max() * torch.eye(k, dtype=gram.dtype, device=gram.device)
    chunk = max(1, CHUNK_NUMBERS // k**2)
    parts = []
    for keep, right in zip(support.double().split(chunk), b.double().split(chunk), strict=True):
        systems = gram * keep[:, :, None] * keep[:, None, :] + torch.diag_embed(1 - keep)
        factors, _ = torch.linalg.cholesky_ex(systems)
        parts.append(torch.cholesky_solve((right * keep)[:, :, None], factors)[:, :, 0])
    return torch.cat(parts).to(b)
