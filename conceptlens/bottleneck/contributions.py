"""What each concept adds to a logit of a linear head, and how few concepts carry most of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..metrics.checks import check_one_of, check_shape
from ..metrics.result import Estimate

SHARES = (0.9, 0.95, 0.99)
SIGNS = ("positive", "absolute")


@dataclass(frozen=True)
class Coverage:
    """How many concepts it takes to make up a share of a logit.

    Attributes
    ----------
    concepts : dict of float to Estimate
        For each share the smallest number of concepts whose contributions make it up: mean over
        pictures, with one value a picture.
    signs : str
        "positive": the share of the sum of what speaks for the class; "absolute": of the sum of
        all magnitudes.
    """

    concepts: dict[float, Estimate]
    signs: str

    def __repr__(self) -> str:
        parts = (f"{100 * share:g} %: {found.mean:.1f}" for share, found in self.concepts.items())
        return f"concepts for a share of the {self.signs} contributions: {', '.join(parts)}"


def contributions(codes: Tensor, weight: Tensor, classes: Tensor) -> Tensor:
    """What each concept adds to the logit of one class a picture: u_j W_yj.

    Parameters
    ----------
    codes : Tensor
        ``(n, k)``.
    weight : Tensor
        ``(n_classes, k)`` of the linear head.
    classes : Tensor
        ``(n,)``, indices of classes.

    Returns
    -------
    Tensor
        ``(n, k)``; with the intercept they sum to the logit.
    """
    codes = check_shape(codes, "codes", "n k")
    weight = check_shape(weight, "weight", "n_classes k", k=codes.shape[1])
    return codes * weight[check_shape(classes, "classes", "n", n=len(codes))]


def coverage(
    contributions: Tensor, signs: str = "absolute", shares: Sequence[float] = SHARES
) -> Coverage:
    """Count the concepts that make up 90, 95 and 99 % of a logit.

    Parameters
    ----------
    contributions : Tensor
        ``(n, k)``, as `contributions` returns.
    signs : {"absolute", "positive"}
        Whether shares are of all magnitudes or of what speaks for the class alone.
    shares : sequence of float
        Above 0, at most 1.

    Returns
    -------
    Coverage
        Pictures without any contribution of that sign need no concept.
    """
    check_one_of(signs, "signs", SIGNS)
    if not all(0 < share <= 1 for share in shares):
        raise ValueError(f"shares must be above 0 and at most 1, got {list(shares)}")
    parts = check_shape(contributions, "contributions", "n k").double()
    parts = parts.abs() if signs == "absolute" else parts.clamp(min=0)
    running = parts.sort(1, descending=True).values.cumsum(1)
    # A share is reached but for rounding: 0.9 of ten equal parts is nine of them.
    missing = torch.tensor(list(shares), device=parts.device) * (1 - 1e-9) * running[:, -1:]
    counts = (running[:, :, None] < missing[:, None]).sum(1) + (running[:, -1:] > 0)
    return Coverage({share: Estimate(counts[:, i]) for i, share in enumerate(shares)}, signs)
