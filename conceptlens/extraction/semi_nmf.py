"""Factorisation of signed activations into nonnegative codes."""

from __future__ import annotations

import torch
from torch import Tensor

from .nmf import NMF, leading_svd


class SemiNMF(NMF):
    """Factorise signed rows: A ≈ U V with U ≥ 0 and V free.

    Parameters and attributes are `NMF`'s; the start is the leading singular pairs with each
    left vector split into its positive or negative part.

    References
    ----------
    Ding, Li & Jordan, "Convex and semi-nonnegative matrix factorizations", IEEE TPAMI 2010.
    """

    requires_nonnegative = False

    def _update_dictionary(self, v: Tensor, gram: Tensor, cross: Tensor) -> Tensor:
        ridge = 1e-8 * gram.diagonal().max() * torch.eye(len(gram)).to(gram)
        return torch.linalg.solve(gram + ridge, cross)

    def _start(self, a: Tensor) -> tuple[Tensor, Tensor]:
        if self.init == "random":
            return super()._start(a.abs())
        generator = torch.Generator().manual_seed(self.random_state)
        left, values, right = leading_svd(a, self.n_components, generator)
        sign = torch.where(left.clamp(min=0).norm(dim=0) >= (-left).clamp(min=0).norm(dim=0), 1, -1)
        return (left * sign).clamp(min=0), right * (values * sign)[:, None]
