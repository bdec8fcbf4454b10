"""Rows of activations as a factorisation sees them: two products, wherever the rows lie."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from .. import distributed
from .base import check_rows

# Below this share of nonzeros sparse products are quicker. Measured on two cores, C = 1280: at
# 0.2 they take half the time of dense ones for k = 10 to 50, at 0.35 as much, at 0.5 twice.
SPARSE_BELOW = 0.3
# A streamed block takes this much, or 256 rows if those are more.
BLOCK_BYTES = 16 * 2**20
# Numbers that stay in the cache while the zeros among them are left out.
CACHED = 2**19
# Rows that are taken at a time where nothing but their codes may take memory.
PART = 2**14


class Block:
    """Some rows ``(b, C)`` in memory."""

    def __init__(self, a: Tensor) -> None:
        self.a = a

    def cross(self, v: Tensor) -> Tensor:
        """``v aᵀ (k, b)``, contiguous by concept."""
        return (self.a @ v.T).T.contiguous()

    def times(self, codes: Tensor) -> Tensor:
        """``codes a (k, C)`` for codes ``(k, b)``."""
        return codes @ self.a

    def numbers(self) -> Tensor:
        """All numbers that are not zero, and maybe some that are, in short rows."""
        return self.a

    def dense(self) -> Tensor:
        """The rows themselves."""
        return self.a


class SparseBlock(Block):
    """The same rows, of which only the numbers that are not zero are kept, by rows and turned."""

    def __init__(self, a: Tensor) -> None:
        by_rows = _compressed(a.detach().numpy())
        turned = by_rows.tocsc()
        self.a = _as_torch(by_rows, by_rows.shape)
        self.turned = _as_torch(turned, by_rows.shape[::-1])

    def times(self, codes: Tensor) -> Tensor:  # noqa: D102
        return (self.turned @ codes.T.contiguous()).T.contiguous()

    def numbers(self) -> Tensor:  # noqa: D102
        return self.a.values().double()

    def dense(self) -> Tensor:  # noqa: D102
        return self.a.to_dense()


class LowRankBlock(Block):
    """Rows ``a right (b, C)`` that are kept as their coordinates `a` ``(b, k)``."""

    def __init__(self, a: Tensor, right: Tensor) -> None:
        super().__init__(a)
        self.right = right

    def cross(self, v: Tensor) -> Tensor:  # noqa: D102
        return (v @ self.right.T) @ self.a.T

    def times(self, codes: Tensor) -> Tensor:  # noqa: D102
        return (codes @ self.a) @ self.right

    def dense(self) -> Tensor:  # noqa: D102
        return self.a @ self.right


class Rows:
    """All rows of a fit: in memory, or streamed block by block; under torchrun, one's own.

    Attributes
    ----------
    n, n_all, channels : int
        Rows of this process, of all processes, and channels C.
    norm2, mean : float
        Squared Frobenius norm and mean, over all processes.
    smallest : float
        The smallest activation of this process.
    """

    def __init__(self, blocks: Callable[[], Iterator[Block]]) -> None:
        self._blocks = blocks
        n, total, norm2, smallest = 0, 0.0, 0.0, float("inf")
        for block in blocks():
            n += len(block.a)
            values = block.numbers()
            norm2 += float(torch.linalg.vector_norm(values, dim=-1).double().square().sum())
            total += float(values.sum(-1).sum(dtype=torch.float64))
            smallest = min(smallest, float(values.min()) if values.numel() else 0.0)
        self.n, self.channels, self.smallest = n, block.a.shape[1], smallest
        self.empty = torch.empty(0, dtype=block.a.dtype, device=block.a.device)
        sums = self.empty.new_tensor([n, norm2, total], dtype=torch.float64)
        n_all, self.norm2, total = distributed.all_reduce_(sums).tolist()
        self.n_all, self.mean = int(n_all), total / (n_all * self.channels)

    def __iter__(self) -> Iterator[tuple[slice, Block]]:
        """The blocks in order, each with the place of its rows."""
        start = 0
        for block in self._blocks():
            stop = start + block.a.shape[0]
            yield slice(start, stop), block
            start = stop

    def cross(self, v: Tensor) -> Tensor:
        """``v Aᵀ (k, n)``."""
        out = self.empty.new_empty(len(v), self.n)
        for place, block in self:
            out[:, place] = block.cross(v)
        return out

    def times(self, codes: Tensor) -> Tensor:
        """``codes A (k, C)``, summed over all processes."""
        out = self.empty.new_zeros(len(codes), self.channels)
        for place, block in self:
            out += block.times(codes[:, place])
        return distributed.all_reduce_(out)

    def gram_times(self, v: Tensor) -> Tensor:
        """``v Aᵀ A (k, C)`` in one pass, summed over all processes."""
        out = self.empty.new_zeros(v.shape)
        for _, block in self:
            out += block.times(block.cross(v))
        return distributed.all_reduce_(out)


class LowRankRows(Rows):
    """What a few singular triplets hold of rows: their products take a fraction of the time.

    Attributes
    ----------
    left, values, right : Tensor
        The triplets: vectors as rows ``(k, n)``, values ``(k,)``, vectors as rows ``(k, C)``.
    """

    def __init__(self, rows: Rows, left: Tensor, values: Tensor, right: Tensor) -> None:
        vars(self).update(vars(rows))
        self.left, self.values, self.right = left, values, right
        self.norm2 = float(values.double().square().sum())
        scaled = values[:, None] * right
        self._blocks = lambda: (LowRankBlock(part.T, scaled) for part in left.split(PART, 1))


def as_rows(a: Any) -> Rows:
    """Rows ``(n, C)`` or whatever has ``vectors(batch_size, shuffle)``, checked."""
    if hasattr(a, "vectors"):
        return Rows(lambda: (Block(check_rows(part)) for part in blocks_of(a)))
    rows = check_rows(a)
    sparse = rows.device.type == "cpu" and _share_of_nonzeros(rows) < SPARSE_BELOW
    block = SparseBlock(rows) if sparse else Block(rows)
    return Rows(lambda: iter([block]))


def blocks_of(source: Any) -> Iterator[Tensor]:
    """The vectors of a store in order, in blocks of about `BLOCK_BYTES`."""
    width = source.shape[-1]
    return source.vectors(max(256, BLOCK_BYTES // (4 * width)), shuffle=False)


def _compressed(a: np.ndarray) -> scipy.sparse.csr_array:
    """`a` without its zeros, which threads look for in parts that stay in the cache."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        parts = list(pool.map(_compressed_part, np.array_split(a, -(-a.size // CACHED))))
    return scipy.sparse.vstack(parts, "csr")


def _compressed_part(a: np.ndarray) -> scipy.sparse.csr_array:
    at, channels = np.flatnonzero(a != 0), a.shape[1]
    ends = np.searchsorted(at, channels * np.arange(len(a) + 1))
    # Of 32 bits, as the products' kernels take them: they would convert others each time.
    indices = (at % channels).astype(np.int32), ends.astype(np.int32)
    return scipy.sparse.csr_array((a.ravel()[at], *indices), a.shape)


def _as_torch(by_rows: Any, shape: tuple[int, ...]) -> Tensor:
    parts = [torch.from_numpy(x) for x in (by_rows.indptr, by_rows.indices, by_rows.data)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse")  # torch's, that they are new
        return torch.sparse_csr_tensor(parts[0], parts[1], parts[2], size=shape)


def _share_of_nonzeros(rows: Tensor) -> float:
    sample = rows[:: max(1, len(rows) // 1000)]
    return int(sample.count_nonzero()) / sample.numel()
