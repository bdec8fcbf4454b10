"""How much of what a classifier knows its reconstructed activations keep."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..base import Extractor


@torch.no_grad()
def loss_recovered(
    extractor: Extractor,
    head: Callable[[Tensor], Tensor],
    a: Tensor,
    labels: Tensor | None = None,
) -> float:
    """Return the fraction of a classifier's cross-entropy that â recovers in the place of a.

    Parameters
    ----------
    extractor : Extractor
        Fitted on the activations.
    head : callable
        Activations ``(B, P, C)`` → logits ``(B, n_classes)``, as `Backbone.head`.
    a : Tensor
        Activations ``(B, P, C)``.
    labels : Tensor, optional
        Classes ``(B,)``. Default: those that the classifier gives from `a`.

    Returns
    -------
    float
        (L(0) − L(â)) / (L(0) − L(a)) where L is the cross-entropy: 1 if nothing is lost, 0 if â
        is worth no more than zeros.

    Raises
    ------
    ValueError
        If the classifier does no better from `a` than from zeros.
    """
    rows = a.flatten(0, 1)
    reconstructed = extractor.inverse_transform(extractor.transform(rows)).view_as(a)
    logits = head(a)
    classes = logits.argmax(1) if labels is None else labels
    nothing, ours = head(torch.zeros_like(a)), head(reconstructed)
    zero, part, full = (float(cross_entropy(x, classes)) for x in (nothing, ours, logits))
    if not full < zero:
        raise ValueError(
            f"the cross-entropy is {full:.3g} from the activations and {zero:.3g} from zeros: "
            "there is nothing to recover; check labels and head"
        )
    return (zero - part) / (zero - full)
