"""Nonnegative matrix factorisation of activations."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from ..checks import check_number, check_seed, check_whole
from . import starts
from .alternate import Checkpoint, Penalty, Solver, alternate, squared_error
from .base import SklearnExtractor, check_codes, check_rows, check_transform, like
from .implicit import implicit_nnls_from_grams
from .rows import Rows, as_rows, blocks_of
from .updates import hals, hals_of_v, multiplicative

SOLVERS: dict[str, Solver] = {
    "hals": Solver(hals, hals_of_v, lambda v: v.clamp_(min=0)),
    "mu": Solver(multiplicative, multiplicative),
}
STARTS = {"nndsvd": starts.nndsvd, "nndsvda": starts.nndsvda}
# Rows of low rank stand for all until an iteration lowers the objective by less than this share of
# ‖A‖². A smaller share costs iterations and led into other optima (benchmarks/nmf.py).
COARSE = 3e-5
# The most of these iterations: not `max_iter`, of which the path of a fit should not depend.
COARSE_ITER = 100


class NMF(SklearnExtractor):
    """Factorise nonnegative rows: A ≈ U V with U, V ≥ 0.

    Minimises scikit-learn's objective ``½‖A − UV‖² + alpha_W·C·(l1_ratio ΣU + ½(1 − l1_ratio)‖U‖²)
    + alpha_H·n·(l1_ratio ΣV + ½(1 − l1_ratio)‖V‖²)`` by hierarchical alternating least squares:
    per iteration two products with the data, a few sweeps over the concepts after each, and an
    extrapolation of V that restarts when the objective rises. A − UV is never formed. Rows in
    memory of which less than a third is not zero are multiplied as sparse ones. The start, unless
    random, is improved on what the k + 10 leading singular triplets hold of the rows.

    A store, or whatever has ``vectors(batch_size, shuffle)``, is fitted out of core: beside what
    the store needs to read, memory holds a block of 16 MiB (or 256 rows), its codes and the codes
    U ``(n, k)``, three times over. Inside `conceptlens.distributed.together` each process
    gives its own rows, and only sums of k × k and k × C numbers travel.

    Parameters
    ----------
    n_components : int
        Number k of concepts.
    solver : {"hals", "mu"}
        Coordinate descent, or Lee & Seung's multiplicative updates, slower and monotone.
    init : {"nndsvd", "nndsvda", "random"}
        How U and V start; "mu" cannot leave the zeros of "nndsvd".
    tol : float
        Stop when an iteration lowers the objective by less than this share of it.
    max_iter : int
        The most iterations; reaching it warns.
    alpha_W, alpha_H, l1_ratio : float
        Regularisation of U and V, as scikit-learn's; ``alpha_H="same"`` takes alpha_W.
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
    factorizations", IEICE 2009; Ang & Gillis, "Accelerating nonnegative matrix factorization
    algorithms using extrapolation", Neural Computation 2019; Lee & Seung, NIPS 2000.

    Examples
    --------
    >>> a = torch.rand(200, 4) @ torch.rand(4, 16)
    >>> nmf = NMF(4)
    >>> codes = nmf.fit_transform(a)
    >>> tuple(codes.shape), tuple(nmf.components_.shape)
    ((200, 4), (4, 16))
    >>> bool((nmf.inverse_transform(codes) - a).norm() < 0.05 * a.norm())
    True
    """

    requires_nonnegative = True
    _starts = STARTS

    def __init__(
        self,
        n_components: int = 10,
        *,
        solver: str = "hals",
        init: str = "nndsvd",
        tol: float = 3e-6,
        max_iter: int = 500,
        alpha_W: float = 0.0,
        alpha_H: float | str = "same",
        l1_ratio: float = 0.0,
        random_state: int = 0,
    ) -> None:
        self.n_components = n_components
        self.solver = solver
        self.init = init
        self.tol = tol
        self.max_iter = max_iter
        self.alpha_W = alpha_W
        self.alpha_H = alpha_H
        self.l1_ratio = l1_ratio
        self.random_state = random_state

    def fit(self, a: Any, y: None = None, *, checkpoint: str | Path | None = None) -> NMF:
        """Learn the dictionary.

        Parameters
        ----------
        a : Tensor, array or store
            Rows ``(n, C)``, or an `ActivationStore` that is read block by block.
        y : None
            Ignored; scikit-learn's pipelines pass it.
        checkpoint : path, optional
            A file that keeps the dictionary every ten iterations, and from which an interrupted
            fit of the same rows goes on.
        """
        self._factorise(a, checkpoint=checkpoint)
        return self

    def fit_transform(
        self,
        a: Any,
        y: None = None,
        *,
        u: Tensor | None = None,
        v: Tensor | None = None,
        checkpoint: str | Path | None = None,
    ) -> Any:
        """Learn the dictionary and return the codes ``(n, k)``.

        Parameters
        ----------
        a, y, checkpoint
            As `fit` takes them.
        u, v : Tensor, optional
            Start from these codes ``(n, k)`` and this dictionary ``(k, C)`` instead of `init`;
            from `v` alone, its exact codes are the start.
        """
        return like(self._factorise(a, u, v, checkpoint).T.contiguous(), a)

    def transform(self, a: Any) -> Any:
        """Return the exact (regularised) codes ``(n, k)`` of rows ``(n, C)``; differentiable."""
        if hasattr(a, "vectors"):
            return torch.cat([self.transform(block) for block in blocks_of(a)])
        rows = check_transform(self, a)
        self._check_sign(float(rows.detach().min()))
        v = self._dictionary(rows)
        return like(self._exact(v, rows @ v.T, rows.shape[1]), a)

    def inverse_transform(self, u: Any) -> Any:
        """Return the rows ``(n, C)`` that codes ``(n, k)`` stand for; differentiable."""
        codes = check_codes(self, u)
        return like(codes @ self._dictionary(codes), u)

    def _learnt(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        figures = {"n_iter": self.n_iter_, "reconstruction_err": self.reconstruction_err_}
        return {"components": self.components_}, figures

    def _relearn(self, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        v = check_rows(tensors["components"], "components")
        if len(v) != self.n_components or (self.requires_nonnegative and v.min() < 0):
            raise ValueError("its components are not those of its options")
        self._penalties(*v.shape)  # numbers, or they raise
        self.components_, self.n_features_in_ = v, v.shape[1]
        self.n_iter_ = int(record["n_iter"])
        self.reconstruction_err_ = float(record["reconstruction_err"])

    def _check_fit(self, rows: Rows) -> None:
        self._check_sign(rows.smallest)
        check_whole(self.n_components, "n_components")
        check_whole(self.max_iter, "max_iter")
        check_seed(self.random_state, "random_state")
        check_number(self.tol, "tol")
        check_number(self.alpha_W, "alpha_W")
        if self.alpha_H != "same":
            check_number(self.alpha_H, "alpha_H")
        check_number(self.l1_ratio, "l1_ratio", high=1)
        most = min(rows.n_all, rows.channels)
        if not 1 <= self.n_components <= most:
            raise ValueError(
                f"n_components={self.n_components} for rows of shape "
                f"{(rows.n_all, rows.channels)}: it must be between 1 and {most}; give more "
                "pictures or fewer concepts"
            )
        if not rows.norm2:
            raise ValueError("all activations are zero: there is nothing to factorise")
        kind = torch.finfo(rows.empty.dtype)
        if not kind.tiny / kind.eps < rows.norm2 < kind.max * kind.eps:
            raise ValueError(
                f"the squares of all activations sum to {rows.norm2:.3g}, out of the range that "
                f"{rows.empty.dtype} computes with: rescale them or give float64"
            )
        for name, given, known in (
            ("init", self.init, [*STARTS, "random"]),
            ("solver", self.solver, SOLVERS),
        ):
            if given not in known:
                raise ValueError(f"{name} must be one of {list(known)}, got {given!r}")

    def _check_sign(self, smallest: float) -> None:
        if self.requires_nonnegative and smallest < 0:
            raise ValueError(
                f"activations hold negative values (down to {smallest:.3g}) and NMF needs "
                "nonnegative ones: cut at a layer after a ReLU, or use SemiNMF"
            )

    def _dictionary(self, rows: Tensor) -> Tensor:
        return torch.as_tensor(self.components_).to(rows)

    def _penalties(self, n: int, channels: int) -> tuple[Penalty, Penalty]:
        """Those on U and on V, scaled as scikit-learn does."""
        alpha_v = self.alpha_W if self.alpha_H == "same" else float(self.alpha_H)
        sides = (self.alpha_W * channels, alpha_v * n)
        u, v = (Penalty(side * self.l1_ratio, side * (1 - self.l1_ratio)) for side in sides)
        return u, v

    def _factorise(
        self,
        a: Any,
        u: Tensor | None = None,
        v: Tensor | None = None,
        checkpoint: str | Path | None = None,
    ) -> Tensor:
        """Learn U and V by alternating; returns Uᵀ ``(k, n)``."""
        rows = as_rows(a)
        self._check_fit(rows)
        kept, done = None if checkpoint is None else Checkpoint(Path(checkpoint)), 0
        found = None if kept is None else kept.load(rows, self.n_components)
        if found is not None:
            (v, done), u = found, None
        u, v = self._start(rows, u, v)
        v, self.n_iter_, converged = self._alternate(
            rows, u, v, tol=self.tol, max_iter=self.max_iter, checkpoint=kept, done=done
        )
        if not converged:
            warnings.warn(
                f"not converged after max_iter={self.max_iter} iterations",
                ConvergenceWarning,
                stacklevel=3,
            )
        self.components_, self.n_features_in_ = v, rows.channels
        cross = rows.cross(v)
        u = self._exact(v, cross.T, rows.channels, u).T
        self.reconstruction_err_ = max(0.0, squared_error(rows, u, v, cross)) ** 0.5
        return u

    def _start(self, rows: Rows, u: Tensor | None, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """Uᵀ ``(k, n)`` and V ``(k, C)``, which the fit may change."""
        if v is None:
            return self._first(rows)
        v = v.to(rows.empty)
        if u is None:
            u = self._exact(v, rows.cross(v).T, rows.channels)
        return u.T.to(rows.empty, copy=True).contiguous(), v

    def _first(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """The start, improved on rows of low rank as far as those will do."""
        if self.init == "random":
            return starts.random(rows, self.n_components, self.random_state)
        low = starts.low_rank(rows, self.n_components, self.random_state)
        u, v = self._starts[self.init](low, self.n_components)
        if self.solver == "hals":
            v, _, _ = self._alternate(low, u, v, tol=0, max_iter=COARSE_ITER, least=COARSE)
        return u, v

    def _solver(self) -> Solver:
        return SOLVERS[self.solver]

    def _alternate(self, rows: Rows, u: Tensor, v: Tensor, **how: Any) -> tuple[Tensor, int, bool]:
        penalties = self._penalties(rows.n_all, rows.channels)
        return alternate(rows, u, v, self._solver(), penalties, **how)

    def _exact(self, v: Tensor, b: Tensor, channels: int, u: Tensor | None = None) -> Tensor:
        """The best codes ``(n, k)`` for `v`, from ``b = A Vᵀ``, and from near ones if given."""
        penalty, _ = self._penalties(0, channels)
        gram = v @ v.T + penalty.l2 * torch.eye(len(v)).to(v)
        b = b - penalty.l1 if penalty.l1 else b
        return implicit_nnls_from_grams(gram, b, None if u is None else u.T)
