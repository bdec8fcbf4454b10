"""Names by labelled pictures: Network Dissection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..metrics.checks import check_binary, check_one_of, check_shape
from ..metrics.places import iou
from .names import TOP, Names, best
from .vocabulary import check_words

METRICS = ("auc", "ap")


def by_labels(
    activations: Any,
    labels: Any,
    label_names: Sequence[str],
    *,
    metric: str = "auc",
    top: int = TOP,
) -> Names:
    """Name each concept by the label that its activation tells best.

    Parameters
    ----------
    activations : Tensor or array
        ``(n, k)``: each concept's strength in n pictures.
    labels : Tensor or array
        ``(n, m)`` of 0 and 1.
    label_names : sequence of str
        m different names. Each label must be 0 in some pictures and 1 in others.
    metric : {"auc", "ap"}
        The area under the ROC curve, or the average precision.
    top : int
        How many candidates to keep.

    Returns
    -------
    Names
        Scores and confidence are the metric.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    check_one_of(metric, "metric", METRICS)
    words = check_words(label_names)
    strength = check_shape(activations, "activations", "n k").detach().cpu().numpy()
    truth = check_binary(labels, "labels", "n m", n=len(strength), m=len(words)).cpu()
    if constant := [w for w, c in zip(words, truth.T, strict=True) if c.all() or not c.any()]:
        raise ValueError(f"these labels are the same in all pictures: {constant}")
    score = roc_auc_score if metric == "auc" else average_precision_score
    columns = truth.numpy()
    scores = [[score(y, a) for y in columns.T] for a in strength.T]
    name = "area under the ROC curve" if metric == "auc" else "average precision"
    return best(torch.tensor(scores), words, f"{name} with labels", top=top)


def by_places(maps: Tensor, masks: Tensor, label_names: Sequence[str], *, top: int = TOP) -> Names:
    """Name each concept by the label whose place its map covers best.

    Parameters
    ----------
    maps : Tensor
        ``(n, k, H, W)``, as of `concept_maps`.
    masks : Tensor
        ``(n, m, H, W)`` of 0 and 1: where each label is. Pictures without it are left out.
    label_names : sequence of str
        m different names.
    top : int
        How many candidates to keep.

    Returns
    -------
    Names
        Scores and confidence are intersection over union, as `metrics.iou` has it.

    References
    ----------
    Bau et al., "Network dissection: quantifying interpretability of deep visual representations",
    CVPR 2017.
    """
    words = check_words(label_names)
    maps = check_shape(maps, "maps", "n k H W")
    n, _, height, width = maps.shape
    masks = check_binary(masks, "masks", "n m H W", n=n, m=len(words), H=height, W=width)
    if empty := [w for w, mask in zip(words, masks.movedim(1, 0), strict=True) if not mask.any()]:
        raise ValueError(f"these labels have no place in any picture: {empty}")
    scores = [[float(iou(one, mask)) for mask in masks.movedim(1, 0)] for one in maps.movedim(1, 0)]
    return best(torch.tensor(scores), words, "IoU with labelled places", top=top)
