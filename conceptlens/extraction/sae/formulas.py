"""What the variants' formulas share.

Letters: a (n, C) rows, scaled so that E‖a‖² = C; u (n, k) codes; V (k, C) the dictionary, its rows
of unit norm; b (C,) the intercept. Every variant decodes â = u V + b and encodes by way of
z = (a − b) Wᵀ + c. The losses are made of the unexplained share ‖a − â‖² / C, averaged over rows,
and a term of the variant's own; none depends on the data's scale or on C.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

# By name: "encoder" W (k, C), "encoder_bias" c (k,), "components" V (k, C), "intercept" b (C,),
# and what the variant adds.
Weights = dict[str, Tensor]


class Outcome(NamedTuple):
    """What a loss says of one process's rows of a batch.

    Attributes
    ----------
    loss : Tensor
        The rows' part of the batch's loss, to be minimised.
    error : Tensor
        ‖a − â‖² summed over the rows.
    active : Tensor
        ``(k,)``: in how many rows each unit was on.
    """

    loss: Tensor
    error: Tensor
    active: Tensor


@dataclass(frozen=True, eq=False)
class Step:
    """What a loss needs to know besides weights and rows.

    Attributes
    ----------
    number : int
        Steps done before this one.
    sparsity : float
        The estimator's option, for penalties scaled by the warm-up.
    n : int
        Rows of the batch in all processes.
    dead : Tensor
        Numbers of the units that have been silent for long.
    """

    number: int
    sparsity: float
    n: int
    dead: Tensor


def preactivations(w: Weights, a: Tensor) -> Tensor:
    """Return z ``(n, k)`` of rows ``(n, C)``."""
    return torch.addmm(w["encoder_bias"], a - w["intercept"], w["encoder"].T)


def squared_error(w: Weights, a: Tensor, u: Tensor) -> Tensor:
    """‖a − â‖², summed over rows."""
    return mse_loss(torch.addmm(w["intercept"], u, w["components"]), a, reduction="sum")
