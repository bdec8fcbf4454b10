"""One side of a factorisation, improved while the other is fixed.

Each update lowers ½‖A − UV‖² + l1·ΣX + ½ l2‖X‖² over X ≥ 0, X being Uᵀ ``(k, n)`` or V ``(k, C)``,
in place, from ``gram (k, k)`` and ``cross``, of X's shape.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Over U; one sweep, or four, ended in worse optima on real activations, or took longer (measured).
SWEEPS = 2
# Over V, which is small; see how the extrapolation was chosen in `alternate`.
SWEEPS_OF_V = 3
# Columns swept at once, so that a block of X stays in the cache.
CACHED = 2**19


def hals(
    x: Tensor, gram: Tensor, cross: Tensor, l1: float = 0, l2: float = 0, sweeps: int = SWEEPS
) -> None:
    """Coordinate descent on the rows of `x`: each becomes its exact minimum in turn."""
    diagonal = gram.diagonal() + l2
    used = diagonal > 0
    scale = torch.where(used, diagonal, 1)[:, None]
    weights = gram / scale
    weights.fill_diagonal_(0)
    rows, weight = used.nonzero()[:, 0].tolist(), weights.unbind()
    columns = max(1, CACHED // len(x))
    for block, crossed in zip(x.split(columns, 1), cross.split(columns, 1), strict=True):
        target, parts, new = ((crossed - l1) / scale).unbind(), block.unbind(), block.new_empty(0)
        for _ in range(sweeps):
            for j in rows:
                torch.addmv(target[j], block.T, weight[j], alpha=-1, out=new)
                torch.clamp(new, min=0, out=parts[j])


def hals_of_v(x: Tensor, gram: Tensor, cross: Tensor, l1: float = 0, l2: float = 0) -> None:
    """Coordinate descent with the number of sweeps that suits V."""
    hals(x, gram, cross, l1, l2, SWEEPS_OF_V)


def multiplicative(x: Tensor, gram: Tensor, cross: Tensor, l1: float = 0, l2: float = 0) -> None:
    """Lee & Seung's update: it never leaves a zero, and never raises the objective."""
    below = torch.addmm(l2 * x, gram, x).add_(l1)
    x.mul_(cross.clamp(min=0) / below.clamp(min=torch.finfo(x.dtype).eps))


def least_squares(x: Tensor, gram: Tensor, cross: Tensor, l1: float = 0, l2: float = 0) -> None:
    """Set `x` to its minimum without the sign constraint; `l1` does not apply."""
    kind = torch.finfo(gram.dtype)  # below its eps a ridge would not mend rows of lower rank
    ridge = max(1e-8, 10 * kind.eps) * gram.diagonal().max().clamp(min=kind.tiny) + l2
    x.copy_(torch.linalg.solve(gram + ridge * torch.eye(len(gram)).to(gram), cross))
