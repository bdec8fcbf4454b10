"""Where factorisations start: the leading singular triplets and their nonnegative parts."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import distributed
from .rows import PART, LowRankRows, Rows

# Subspace iterations: a start needs no more (measured by the objective after the fit).
POWERS = 3


def low_rank(rows: Rows, k: int, seed: int) -> LowRankRows:
    """The rows' part in their k + 10 leading singular triplets.

    A randomised subspace (Halko et al. 2011) is iterated with AᵀA, one pass over the rows each, so
    that nothing taller than C × (k + 10) is orthogonalised, whatever the number of rows.
    """
    generator = torch.Generator().manual_seed(seed)
    width = min(k + 10, rows.n_all, rows.channels)
    basis = torch.randn(width, rows.channels, generator=generator, dtype=rows.empty.dtype)
    basis = torch.linalg.qr(basis.to(rows.empty.device).T).Q.T
    for _ in range(POWERS):
        basis = torch.linalg.qr(rows.gram_times(basis).T).Q.T
    left = rows.cross(basis.contiguous())
    gram = left.new_zeros(width, width, dtype=torch.float64)
    for part in left.split(PART, 1):
        gram += part.double() @ part.double().T
    squares, turn = torch.linalg.eigh(distributed.all_reduce_(gram))
    values, turn = squares.flip(0).clamp(min=0).sqrt(), turn.flip(1).T
    # Rows of lower rank have triplets of zeros; dividing by those would give infinities.
    there = values > torch.finfo(left.dtype).eps * values[0]
    to_left = (turn / torch.where(there, values, torch.inf)[:, None]).to(left)
    for part in left.split(PART, 1):
        part.copy_(to_left @ part)
    return LowRankRows(rows, left, values.to(left), turn.to(left) @ basis)


def nndsvd(rows: LowRankRows, k: int) -> tuple[Tensor, Tensor]:
    """Start Uᵀ ``(k, n)`` and V ``(k, C)`` from the nonnegative parts of the singular pairs.

    References
    ----------
    Boutsidis & Gallopoulos, "SVD based initialization: a head start for nonnegative matrix
    factorization", Pattern Recognition 2008.
    """
    left, values, right = rows.left[:k], rows.values[:k], rows.right[:k]
    lengths, widths = _lengths(left), _sides(right)
    best = (lengths * widths).argmax(0, keepdim=True)
    sign = 1 - 2 * best[0, :, None]
    length, width = lengths.gather(0, best)[0], widths.gather(0, best)[0]
    scale, tiny = (values * length * width).sqrt(), torch.finfo(values.dtype).tiny
    u = (left * sign).clamp_(min=0).mul_((scale / length.clamp(min=tiny))[:, None])
    v = (right * sign).clamp_(min=0).mul_((scale / width.clamp(min=tiny))[:, None])
    return u, v


def nndsvda(rows: LowRankRows, k: int) -> tuple[Tensor, Tensor]:
    """`nndsvd` with the mean in place of zeros, which multiplicative updates could not leave."""
    u, v = nndsvd(rows, k)
    return u.masked_fill_(u == 0, rows.mean), v.masked_fill_(v == 0, rows.mean)


def split(rows: LowRankRows, k: int) -> tuple[Tensor, Tensor]:
    """Singular pairs, each signed so that the left vector's positive part is the larger."""
    left, values, right = rows.left[:k], rows.values[:k], rows.right[:k]
    positive, negative = _lengths(left)
    sign = torch.where(positive >= negative, values, -values)[:, None]
    return (left * sign.sign()).clamp_(min=0), right * sign


def random(rows: Rows, k: int, seed: int) -> tuple[Tensor, Tensor]:
    """A random V and a constant U, which is the same however rows are shared or streamed."""
    scale = (abs(rows.mean) / k) ** 0.5
    v = torch.rand(k, rows.channels, generator=torch.Generator().manual_seed(seed))
    return rows.empty.new_full((k, rows.n), scale), (2 * scale * v).to(rows.empty)


def _lengths(left: Tensor) -> Tensor:
    """`_sides` of rows ``(k, n)``, over all processes."""
    return distributed.all_reduce_(_sides(left).square()).sqrt()


def _sides(x: Tensor) -> Tensor:
    """Norms ``(2, k)`` of the positive and of the negative parts of k rows."""
    return torch.stack([x.clamp(min=0).norm(dim=1), x.clamp(max=0).norm(dim=1)])
