"""Factorisation of signed activations into nonnegative codes."""

from __future__ import annotations

from . import starts
from .alternate import Solver
from .nmf import NMF, STARTS
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
    _starts = dict.fromkeys(STARTS, starts.split)

    def _solver(self) -> Solver:
        return Solver(hals, least_squares, lambda v: v)
