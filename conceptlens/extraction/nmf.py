"""Nonnegative matrix factorisation of activations."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from torch import Tensor

from .base import check_rows, like
from .implicit import implicit_nnls
from .nnls import nnls

# A few sweeps over the k components cost little beside the two products with the data.
SWEEPS = 2


class NMF(BaseEstimator):
    """Factorise nonnegative rows: A ≈ U V with U, V ≥ 0.

    Minimises the Frobenius norm of A − U V by hierarchical alternating least squares on Gram
    matrices: each iteration forms A Vᵀ and Uᵀ A and never A − U V. In float32 the residual that
    those give is too coarse to stop by, so the change of V tells when to stop.

    Parameters
    ----------
    n_components : int
        Number k of concepts.
    init : {"nndsvd", "random"}
        How U and V start.
    tol : float
        Stop when an iteration changes V by less than this share of its norm.
    max_iter : int
        The most iterations; reaching it warns.
    random_state : int
        Fixes the start.

    Attributes
    ----------
    components_ : Tensor
        The dictionary V ``(k, C)``.
    reconstruction_err_ : float
        ‖A − U V‖ after the fit.
    n_iter_ : int
        Iterations done.
    n_features_in_ : int
        Number C of channels.

    References
    ----------
    Cichocki & Phan, "Fast local algorithms for large scale nonnegative matrix and tensor
    factorizations", IEICE 2009; Boutsidis & Gallopoulos, "SVD based initialization", 2008.
    """

    requires_nonnegative = True

    def __init__(
        self,
        n_components: int = 10,
        *,
        init: str = "nndsvd",
        tol: float = 1e-3,
        max_iter: int = 500,
        random_state: int = 0,
    ) -> None:
        self.n_components = n_components
        self.init = init
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, a: Any) -> NMF:
        """Learn the dictionary from rows ``(n, C)``, a tensor or an array."""
        self._factorise(self._check_fit(a))
        return self

    def fit_transform(self, a: Any, u: Tensor | None = None, v: Tensor | None = None) -> Any:
        """Learn the dictionary and return the codes ``(n, k)``.

        Parameters
        ----------
        a : Tensor or array
            Rows ``(n, C)``.
        u, v : Tensor, optional
            Start from these codes ``(n, k)`` and this dictionary ``(k, C)`` instead of `init`.
        """
        start = None if u is None or v is None else (u, v)
        return like(self._factorise(self._check_fit(a), start), a)

    def transform(self, a: Any) -> Any:
        """Return the exact nonnegative least-squares codes ``(n, k)`` of rows; differentiable."""
        rows = self._check_transform(a)
        return like(implicit_nnls(rows, self._dictionary(rows)), a)

    def inverse_transform(self, u: Any) -> Any:
        """Return the rows ``(n, C)`` that codes ``(n, k)`` stand for; differentiable."""
        codes = torch.as_tensor(u)
        return like(codes @ self._dictionary(codes), u)

    def _check_fit(self, a: Any) -> Tensor:
        rows = self._check_sign(check_rows(a))
        most = min(rows.shape)
        if not 1 <= self.n_components <= most:
            raise ValueError(
                f"n_components={self.n_components} for rows of shape {tuple(rows.shape)}: it must "
                f"be between 1 and {most}; give more pictures or fewer concepts"
            )
        if not rows.any():
            raise ValueError("all activations are zero: there is nothing to factorise")
        return rows

    def _check_transform(self, a: Any) -> Tensor:
        rows = self._check_sign(check_rows(a))
        if not hasattr(self, "components_"):
            raise NotFittedError(f"this {type(self).__name__} is not fitted yet: call fit first")
        if rows.shape[1] != self.n_features_in_:
            raise ValueError(
                f"rows have {rows.shape[1]} channels, the dictionary has {self.n_features_in_}"
            )
        return rows

    def _check_sign(self, rows: Tensor) -> Tensor:
        if self.requires_nonnegative and rows.min() < 0:
            raise ValueError(
                f"activations hold negative values (down to {float(rows.min()):.3g}) and NMF needs "
                "nonnegative ones: cut at a layer after a ReLU, or use SemiNMF"
            )
        return rows

    def _dictionary(self, rows: Tensor) -> Tensor:
        return torch.as_tensor(self.components_).to(rows)

    def _factorise(self, a: Tensor, start: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Learn U and V by alternating; returns U ``(n, k)``."""
        u, v = self._start(a) if start is None else (start[0].to(a), start[1].to(a))
        codes, v = u.T.contiguous(), v.clone()  # (k, n): a concept's codes are contiguous
        for self.n_iter_ in range(1, self.max_iter + 1):  # noqa: B020
            _sweep(codes, v @ v.T, v @ a.T)
            before = v.clone()
            v = self._update_dictionary(v, codes @ codes.T, codes @ a)
            if (v - before).norm() <= self.tol * before.norm():
                break
        else:
            warnings.warn(
                f"not converged after max_iter={self.max_iter} iterations", ConvergenceWarning,
                stacklevel=3,
            )  # fmt: skip
        self.components_, self.n_features_in_ = v, a.shape[1]
        u = nnls(a, v)
        self.reconstruction_err_ = float((a - u @ v).norm(dtype=torch.float64))
        return u

    def _update_dictionary(self, v: Tensor, gram: Tensor, cross: Tensor) -> Tensor:
        _sweep(v, gram, cross)
        return v

    def _start(self, a: Tensor) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.random_state)
        if self.init == "random":
            scale = float(a.mean() / self.n_components) ** 0.5
            u = torch.rand(len(a), self.n_components, generator=generator).to(a)
            v = torch.rand(self.n_components, a.shape[1], generator=generator).to(a)
            return scale * u, scale * v
        if self.init == "nndsvd":
            return nndsvd(a, self.n_components, generator)
        raise ValueError(f"init must be 'nndsvd' or 'random', got {self.init!r}")


def nndsvd(a: Tensor, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Start from the nonnegative parts of the k leading singular pairs of `a`.

    Zeros, which multiplicative sweeps could not leave, stay: coordinate descent can.
    """
    left, values, right = leading_svd(a, k, generator)
    up, vp = left.clamp(min=0), right.clamp(min=0)
    un, vn = (-left).clamp(min=0), (-right).clamp(min=0)
    positive, negative = up.norm(dim=0) * vp.norm(dim=1), un.norm(dim=0) * vn.norm(dim=1)
    larger = positive >= negative
    u, v = torch.where(larger, up, un), torch.where(larger[:, None], vp, vn)
    u_norm, v_norm = u.norm(dim=0), v.norm(dim=1)
    tiny = torch.finfo(a.dtype).tiny
    scale = (values * torch.maximum(positive, negative)).sqrt()
    return u / u_norm.clamp(min=tiny) * scale, v * (scale / v_norm.clamp(min=tiny))[:, None]


def leading_svd(
    a: Tensor, k: int, generator: torch.Generator, n_power: int = 4
) -> tuple[Tensor, Tensor, Tensor]:
    """The k leading singular triplets, by randomised range finding (Halko et al. 2011)."""
    width = min(k + 10, *a.shape)
    basis = torch.randn(a.shape[1], width, generator=generator, dtype=a.dtype).to(a.device)
    for _ in range(n_power):
        basis = torch.linalg.qr(a.T @ torch.linalg.qr(a @ basis).Q).Q
    q = torch.linalg.qr(a @ basis).Q
    left, values, right = torch.linalg.svd(q.T @ a, full_matrices=False)
    return (q @ left)[:, :k], values[:k], right[:k]


def _sweep(x: Tensor, gram: Tensor, cross: Tensor) -> None:
    """Coordinate descent on the rows of `x`, in place: min ‖·‖² with x ≥ 0."""
    for _ in range(SWEEPS):
        for j in range(len(x)):
            if gram[j, j] > 0:
                x[j].add_((cross[j] - gram[j] @ x) / gram[j, j]).clamp_(min=0)
