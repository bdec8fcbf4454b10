"""Factorisation of signed activations into nonnegative codes."""

from __future__ import annotations

from torch import Tensor

from . import starts
from .alternate import Checkpoint, alternate
from .nmf import NMF
from .rows import Rows
from .updates import hals, least_squares


class SemiNMF(NMF):
    """Factorise signed rows: A ≈ U V with U ≥ 0 and V free.

    Parameters and attributes are `NMF`'s; `l1_ratio` bears on U alone, and there is one solver.
    The start is the leading singular pairs with each left vector split into its positive or
    negative part.

    References
    ----------
    Ding, Li & Jordan, "Convex and semi-nonnegative matrix factorizations", IEEE TPAMI 2010.
    """

    requires_nonnegative = False

    def _alternate(
        self, rows: Rows, u: Tensor, v: Tensor, checkpoint: Checkpoint | None, done: int
    ) -> tuple[Tensor, int]:
        return alternate(
            rows, u, v, (hals, least_squares), self._penalties(rows.n_all, rows.channels),
            project=lambda x: x, tol=self.tol, max_iter=self.max_iter,
            checkpoint=checkpoint, done=done,
        )  # fmt: skip

    def _first(self, rows: Rows) -> tuple[Tensor, Tensor]:
        if self.init == "random":
            return super()._first(rows)
        return starts.split(rows, self.n_components, self.random_state)
