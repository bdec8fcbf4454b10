"""Nonnegative least squares, exact and batched over rows."""

from __future__ import annotations

import scipy.optimize
import torch
from torch import Tensor

from .rows import PART
from .updates import hals

# Rows solved at once: their k × k systems take chunk · k² numbers, which fit a cache.
CHUNK_NUMBERS = 2**20
# Real codes need about ten exchanges; where rounding makes a row cycle, SciPy takes it over.
MAX_EXCHANGES = 200
# Supports whose sizes differ by less are solved together.
SIZES = 4


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


def nnls_from_grams(gram: Tensor, b: Tensor, start: Tensor | None = None) -> Tensor:
    """Solve the same problem from ``gram = v vᵀ (k, k)`` and ``b = a vᵀ (n, k)``.

    Codes ``(n, k)`` near the solution, if there are any to `start` from, spare most of the sweeps.
    """
    k, sweeps = len(gram), 20 if start is None else 5
    chunk = max(1, CHUNK_NUMBERS // k**2)
    # A product in float32 is not symmetric to the last bit, and exchanges then cycle.
    exact = (gram.double() + gram.T.double()) / 2
    # A dictionary with repeated rows has many solutions; the ridge picks one.
    scale = exact.diagonal().max().clamp(min=torch.finfo(torch.float64).tiny)
    exact = exact + 1e-12 * scale * torch.eye(k, dtype=exact.dtype, device=exact.device)
    codes = b.new_empty(b.shape)
    for first in range(0, len(b), PART):
        part = slice(first, first + PART)
        near = torch.zeros_like(b[part]) if start is None else start[part]
        near = near.T.clone(memory_format=torch.contiguous_format)
        hals(near, gram, b[part].T.contiguous(), sweeps=sweeps)
        pairs = zip(b[part].double().split(chunk), (near.T > 0).split(chunk), strict=True)
        codes[part] = torch.cat([_pivot(exact, rows, passive, scale) for rows, passive in pairs])
    return codes


def _pivot(gram: Tensor, b: Tensor, passive: Tensor, scale: Tensor) -> Tensor:
    """Block principal pivoting: exchange all offending indices, or one where that cycles."""
    n, k = b.shape
    passive = passive.contiguous()
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
    """Solve row by row with SciPy's Lawson-Hanson, as least squares in a root of the matrix."""
    if not len(b):
        return b
    # Not Cholesky's: repeated concepts make the matrix indefinite by rounding.
    values, vectors = torch.linalg.eigh(gram)
    root = values.clamp(min=1e-12 * float(values[-1])).sqrt()
    targets = ((b @ vectors) / root).cpu().numpy()
    design = (vectors * root).T.cpu().numpy()
    rows = [torch.as_tensor(scipy.optimize.nnls(design, target)[0]) for target in targets]
    return torch.stack(rows).to(b)


def _solve_on(gram: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """The least-squares solution on each row's support `mask`, zero elsewhere.

    Only the systems of the supports are solved, rows of about the same size together.
    """
    u = torch.zeros_like(b)
    size = mask.sum(1)
    for low in range(0, int(size.max()), SIZES):
        rows = ((size > low) & (size <= low + SIZES)).nonzero()[:, 0]
        if len(rows):
            u[rows] = _solve_padded(gram, b[rows], mask[rows], min(low + SIZES, len(gram)))
    return u


def _solve_padded(gram: Tensor, b: Tensor, mask: Tensor, width: int) -> Tensor:
    """The same for supports of at most `width`, each padded to it by an identity."""
    row, column = mask.nonzero(as_tuple=True)
    place = (mask.cumsum(1) - 1)[row, column]
    index = torch.zeros(len(b), width, dtype=torch.long, device=b.device)
    index[row, place] = column
    used = torch.arange(width, device=b.device) < mask.sum(1, keepdim=True)
    both = used[:, :, None] & used[:, None, :]
    systems = torch.where(both, gram[index[:, :, None], index[:, None, :]], 0)
    systems.diagonal(dim1=1, dim2=2).add_(~used)
    right = torch.where(used, b.gather(1, index), 0)
    solution = torch.linalg.solve(systems, right[:, :, None])[:, :, 0]
    return torch.zeros_like(b).index_put_((row, column), solution[row, place])


def kkt_residual(a: Tensor, v: Tensor, u: Tensor) -> float:
    """The largest violation of the optimality conditions, relative to ``max |a vᵀ|``."""
    b = a.double() @ v.double().T
    gradient = u.double() @ (v.double() @ v.double().T) - b
    stationarity = torch.where(u > 0, gradient.abs(), (-gradient).clamp(min=0))
    return float(stationarity.max() / b.abs().max().clamp(min=1e-300))
