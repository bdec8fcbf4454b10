"""Nonnegative least squares, exact and batched over rows."""

from __future__ import annotations

import scipy.optimize
import torch
from torch import Tensor

# Rows solved at once: their k × k systems take chunk · k² numbers.
CHUNK_NUMBERS = 2**24
# Real codes need about ten exchanges; where rounding makes a row cycle, SciPy takes it over.
MAX_EXCHANGES = 200


def nnls(a: Tensor, v: Tensor) -> Tensor:
    """Solve min ‖a − u v‖² over u ≥ 0, each row of `a` by itself.

    Parameters
    ----------
    a : Tensor
        Rows ``(n, C)``.
    v : Tensor
        Dictionary ``(k, C)`` of the same dtype and device.

    Returns
    -------
    Tensor
        Codes ``(n, k)``. The stationarity, sign and complementarity conditions hold to rounding.

    References
    ----------
    Kim & Park, "Fast nonnegative matrix factorization: an active-set-like method and comparisons",
    SIAM J. Sci. Comput. 2011 (block principal pivoting).
    """
    return nnls_from_grams(v @ v.T, a @ v.T)


def nnls_from_grams(gram: Tensor, b: Tensor) -> Tensor:
    """Solve the same problem from ``gram = v vᵀ (k, k)`` and ``b = a vᵀ (n, k)``."""
    k = len(gram)
    # A product in float32 is not symmetric to the last bit, and exchanges then cycle.
    gram, right = (gram.double() + gram.T.double()) / 2, b.double()
    # A dictionary with repeated rows has many solutions; the ridge picks one.
    scale = gram.diagonal().max().clamp(min=torch.finfo(torch.float64).tiny)
    gram = gram + 1e-12 * scale * torch.eye(k, dtype=gram.dtype, device=gram.device)
    chunk = max(1, CHUNK_NUMBERS // k**2)
    parts = [_pivot(gram, rows, scale) for rows in right.split(chunk)]
    return torch.cat(parts).to(b.dtype)


def _pivot(gram: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """Block principal pivoting: exchange all offending indices, or one where that cycles."""
    n, k = b.shape
    passive = _support_by_sweeps(gram, b) > 0
    u = torch.zeros_like(b)
    best = torch.full((n,), k + 1, device=b.device)
    patience = torch.full((n,), 3, device=b.device)
    active = torch.arange(n, device=b.device)
    tolerance = 1e-10 * b.abs().amax(1).clamp(min=torch.finfo(b.dtype).tiny)
    last = torch.arange(k, device=b.device)
    for _ in range(MAX_EXCHANGES):
        mask = passive[active]
        u[active] = _solve_on(gram, b[active], mask)
        gradient = u[active] @ gram - b[active]
        offends = torch.where(
            mask,
            u[active] < -tolerance[active, None] / scale,
            gradient < -tolerance[active, None],
        )
        count = offends.sum(1)
        better = count < best[active]
        best[active] = torch.minimum(best[active], count)
        patience[active] = torch.where(better, 3, patience[active] - 1)
        # Murty's rule, exchanging only the last offending index, ends in exact arithmetic.
        single = torch.zeros_like(offends)
        single.scatter_(1, (offends * (last + 1)).argmax(1, keepdim=True), True)
        exchange = torch.where((patience[active] >= 0)[:, None], offends, single & offends)
        passive[active] = mask ^ exchange
        active = active[count > 0]
        if not len(active):
            break
    u[active] = _active_set(gram, b[active])
    return u.clamp(min=0)


def _active_set(gram: Tensor, b: Tensor) -> Tensor:
    """Solve row by row with SciPy's Lawson-Hanson, as least squares in a Cholesky factor."""
    factor = torch.linalg.cholesky(gram)
    targets = torch.linalg.solve_triangular(factor, b.T, upper=False).T.cpu().numpy()
    design = factor.T.cpu().numpy()
    rows = [torch.as_tensor(scipy.optimize.nnls(design, target)[0]) for target in targets]
    return torch.stack(rows).to(b) if rows else torch.zeros_like(b)


def _solve_on(gram: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """The least-squares solution on each row's support `mask`, zero elsewhere."""
    keep = mask.to(gram.dtype)
    systems = gram * keep[:, :, None] * keep[:, None, :] + torch.diag_embed(1 - keep)
    return torch.linalg.solve(systems, (b * keep)[:, :, None])[:, :, 0]


def _support_by_sweeps(gram: Tensor, b: Tensor, sweeps: int = 20) -> Tensor:
    """Cyclic coordinate descent from zero, close enough to start from its support."""
    u = torch.zeros_like(b.T).contiguous()  # (k, n): a coordinate of all rows is contiguous
    target, diagonal = b.T.contiguous(), gram.diagonal()
    for _ in range(sweeps):
        for j in range(len(u)):
            u[j] = (u[j] + (target[j] - gram[j] @ u) / diagonal[j]).clamp(min=0)
    return u.T


def kkt_residual(a: Tensor, v: Tensor, u: Tensor) -> float:
    """The largest violation of the optimality conditions, relative to ``max |a vᵀ|``."""
    b = a.double() @ v.double().T
    gradient = u.double() @ (v.double() @ v.double().T) - b
    stationarity = torch.where(u > 0, gradient.abs(), (-gradient).clamp(min=0))
    return float(stationarity.max() / b.abs().max().clamp(min=1e-300))
