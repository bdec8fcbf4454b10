"""Factorisation into concepts that are averages of activations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import distributed
from .alternate import Solver, Update, alternate
from .nmf import NMF
from .rows import Rows
from .updates import hals

# Added to the clusters' one-hot codes at the start, since no update leaves a zero.
SOFTENING = 0.2


class ConvexNMF(NMF):
    """Factorise signed rows: A ≈ U V with U ≥ 0 and every concept an average of rows of A.

    V = W A with W ≥ 0 whose rows sum to 1, so that a concept lies among the activations and can be
    shown as a mixture of real positions. U is improved by coordinate descent, W by multiplicative
    updates; the start are the clusters of k-means. All rows must fit the memory, in one process.

    Parameters
    ----------
    n_components : int
        Number k of concepts.
    tol : float
        Stop when an iteration lowers the objective by less than this share of it.
    max_iter : int
        The most iterations; reaching it warns.
    random_state : int
        Fixes the clusters.

    Attributes
    ----------
    weights_ : Tensor
        W ``(k, n)``: how much of each row is in each concept.
    components_, reconstruction_err_, n_iter_, n_features_in_
        As `NMF`'s.

    References
    ----------
    Ding, Li & Jordan, "Convex and semi-nonnegative matrix factorizations", IEEE TPAMI 2010.
    """

    requires_nonnegative = False

    def __init__(
        self,
        n_components: int = 10,
        *,
        tol: float = 1e-5,
        max_iter: int = 500,
        random_state: int = 0,
    ) -> None:
        super().__init__(n_components, tol=tol, max_iter=max_iter, random_state=random_state)

    def _learnt(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, figures = super()._learnt()
        return tensors | {"weights": self.weights_}, figures

    def _relearn(self, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        super()._relearn(tensors, record)
        self.weights_ = tensors["weights"]

    def _first(self, rows: Rows) -> tuple[Tensor, Tensor]:
        from sklearn.cluster import KMeans

        a = _in_memory(rows)
        clusters = KMeans(self.n_components, n_init=1, random_state=self.random_state)
        labels = torch.from_numpy(clusters.fit_predict(a.cpu().numpy())).long().to(a.device)
        codes = torch.nn.functional.one_hot(labels, self.n_components).T.to(a) + SOFTENING
        return codes, _averages(codes) @ a

    def _alternate(self, rows: Rows, u: Tensor, v: Tensor, **how: Any) -> tuple[Tensor, int, bool]:
        a, w = _in_memory(rows), _averages(u)
        solver = Solver(hals, _update_of(w, u, a))
        penalties = self._penalties(rows.n_all, rows.channels)
        _, done, converged = alternate(rows, u, w @ a, solver, penalties, **how)
        self.weights_ = _averages(w)
        return self.weights_ @ a, done, converged


def _update_of(w: Tensor, u: Tensor, a: Tensor) -> Update:
    """The multiplicative update of W ``(k, n)``, in place, for the present U; sets V to W A.

    With A = P − M for P, M ≥ 0, the Gram matrix A Aᵀ is a difference of nonnegative ones, and so is
    the gradient; W moves by the root of their ratio. No n × n matrix is formed.
    """
    parts = [part for part in (a.clamp(min=0), (-a).clamp(min=0)) if part.any()]

    def update(v: Tensor, gram: Tensor, cross: Tensor, l1: float, l2: float) -> None:
        rises, falls = torch.zeros_like(w), torch.full_like(w, torch.finfo(w.dtype).tiny)
        for i, first in enumerate(parts):
            data, model = u @ first, gram @ (w @ first)
            for j, second in enumerate(parts):
                same = i == j
                rises += (data if same else model) @ second.T
                falls += (model if same else data) @ second.T
        w.mul_((rises / falls).sqrt_())
        torch.matmul(w, a, out=v)

    return update


def _averages(w: Tensor) -> Tensor:
    return w / w.sum(1, keepdim=True).clamp(min=torch.finfo(w.dtype).tiny)


def _in_memory(rows: Rows) -> Tensor:
    if distributed.world_size() > 1:
        raise ValueError("ConvexNMF fits in one process: leave `distributed.together`, or use NMF")
    return torch.cat([block.dense() for _, block in rows])
