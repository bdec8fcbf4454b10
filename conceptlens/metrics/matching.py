"""One-to-one matching of concepts by the Hungarian method."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .checks import check_shape


def match(scores: Any) -> Tensor:
    """Match rows to columns one to one so that the sum of the matched scores is largest.

    Parameters
    ----------
    scores : Tensor
        ``(k, m)``, the likeness of k found and m wanted concepts.

    Returns
    -------
    Tensor
        ``(m,)`` integers on the CPU: the row of each column, −1 where the rows do not suffice.
    """
    from scipy.optimize import linear_sum_assignment

    scores = check_shape(scores, "scores", "k m")
    rows, columns = linear_sum_assignment(scores.detach().double().cpu().numpy(), maximize=True)
    found = np.full(scores.shape[1], -1)
    found[columns] = rows
    return torch.from_numpy(found)


def matched(scores: Tensor, matches: Tensor, missing: float) -> Tensor:
    """The score of each column with its row, ``(m,)``; `missing` for those without one."""
    values = scores[matches.clamp(min=0), torch.arange(len(matches))]
    return torch.where(matches >= 0, values, missing)


def cosines(a: Any, b: Any) -> Tensor:
    """Cosine of each row of `a` ``(k, C)`` with each of `b` ``(m, C)``; 0 for rows of zeros."""
    a = check_shape(a, "a", "k C").detach().double()
    b = check_shape(b, "b", "m C", C=a.shape[1]).detach().double().to(a.device)
    normalise = torch.nn.functional.normalize
    return (normalise(a, dim=1) @ normalise(b, dim=1).T).clamp(-1, 1).cpu()
