"""What an explanation depends on beside the model: its probe set, its concepts, its length.

References
----------
Ramaswamy et al., "Overlooked factors in concept-based explanations: dataset choice, concept
learnability, and human capability", CVPR 2023.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..importance.result import Importance
from .checks import check_binary, check_shape
from .faithfulness import Curve, c_insertion

# People follow explanations of at most so many concepts.
HUMAN_LIMIT = 32


@dataclass(frozen=True)
class ProbeSensitivity:
    """Agreement of two explanations that differ only in the pictures they were made from.

    Attributes
    ----------
    rank_correlation : float
        Spearman's, over all concepts.
    overlap : float
        Share of the most important concepts that both name.
    chance : float
        The overlap of random choices.
    """

    rank_correlation: float
    overlap: float
    chance: float


def probe_sensitivity(first: Any, second: Any, top: int = 5) -> ProbeSensitivity:
    """Compare the importances that the same method finds from two probe sets.

    Parameters
    ----------
    first, second : Importance or Tensor
        Of the same concepts, ``(k,)``.
    top : int
        How many of the most important concepts are compared, from 1 to k.
    """
    from scipy.stats import spearmanr

    x, y = (
        check_shape(v.values if isinstance(v, Importance) else v, "importance", "k").double().cpu()
        for v in (first, second)
    )
    k = len(x)
    if k < 2 or len(y) != k:
        raise ValueError(
            f"both importances must be of the same two or more concepts, got {k} and {len(y)}"
        )
    if not 1 <= top <= k:
        raise ValueError(f"top must lie between 1 and k = {k}, got {top}")
    if (x == x[0]).all() or (y == y[0]).all():
        raise ValueError("an importance that is equal for all concepts has no ranks to compare")
    best = [set(v.argsort(descending=True, stable=True)[:top].tolist()) for v in (x, y)]
    correlation = float(spearmanr(x.numpy(), y.numpy()).statistic)
    return ProbeSensitivity(correlation, len(best[0] & best[1]) / top, top / k)


def normalised_ap(scores: Any, labels: Any, prevalence: float = 0.5) -> Tensor:
    """Average precision at a common prevalence, so that rare and frequent labels compare.

    Precision at each threshold is π r / (π r + (1 − π) f), with r and f the rates of true and
    false positives and π the prevalence; a random score has about π.

    Parameters
    ----------
    scores : Tensor
        ``(n, m)``.
    labels : Tensor
        ``(n, m)`` of 0 and 1, both of which each column must hold.
    prevalence : float
        π, between 0 and 1.

    Returns
    -------
    Tensor
        ``(m,)``.

    References
    ----------
    Hoiem et al., "Diagnosing error in object detectors", ECCV 2012.
    """
    from sklearn.metrics import average_precision_score

    scores = check_shape(scores, "scores", "n m").detach().double().cpu().numpy()
    n, m = scores.shape
    labels = check_binary(labels, "labels", "n m", n=n, m=m).cpu().numpy()
    if not 0 < prevalence < 1:
        raise ValueError(f"prevalence must lie between 0 and 1, got {prevalence}")
    constant = np.flatnonzero(labels.all(0) | ~labels.any(0)).tolist()
    if constant:
        raise ValueError(f"labels {constant} are the same in all {n} rows")
    share = labels.mean(0)
    weights = np.where(labels, prevalence / share, (1 - prevalence) / (1 - share))
    values = [
        average_precision_score(labels[:, j], scores[:, j], sample_weight=weights[:, j])
        for j in range(m)
    ]
    return torch.tensor(values, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class Learnability:
    """How well linear probes learn concepts and classes from the same features.

    Attributes
    ----------
    concepts : Tensor
        ``(m,)``, normalised average precision of each concept on unseen rows.
    classes : Tensor
        ``(n_classes,)``, the same of each class.
    """

    concepts: Tensor
    classes: Tensor

    def harder(self, explains: Any) -> Tensor:
        """Which concepts are harder to learn than a class that they explain, ``(m,)`` of bool.

        Parameters
        ----------
        explains : Tensor
            ``(n_classes, m)`` of 0 and 1: which concepts explain which class.
        """
        n, m = len(self.classes), len(self.concepts)
        explains = check_binary(explains, "explains", "n_classes m", n_classes=n, m=m)
        return ((self.concepts < self.classes[:, None]) & explains.cpu()).any(0)


def learnability(features: Any, concepts: Any, classes: Any, *, seed: int = 0) -> Learnability:
    """Fit a logistic probe for each concept and class on half of the rows, judge it on the rest.

    Parameters
    ----------
    features : Tensor
        ``(n, C)``.
    concepts : Tensor
        ``(n, m)`` of 0 and 1.
    classes : Tensor
        ``(n,)``, the class of each row, integers from 0 up.
    seed : int
        Fixes the halves.
    """
    x = check_shape(features, "features", "n C").detach().double().cpu().numpy()
    concepts = check_binary(concepts, "concepts", "n m", n=len(x)).cpu().numpy()
    owners = check_shape(classes, "classes", "n", n=len(x)).cpu().long()
    of_class = torch.nn.functional.one_hot(owners).numpy()
    labels = np.concatenate([concepts, of_class], axis=1)
    order = np.random.default_rng(seed).permutation(len(x))
    train, test = np.array_split(order, 2)
    scores = probe_scores(x, labels, train, test)
    ap = normalised_ap(torch.from_numpy(scores), torch.from_numpy(labels[test]))
    m = concepts.shape[1]
    return Learnability(ap[:m], ap[m:])


def simplicity_curve(
    cm: Any,
    codes: Tensor,
    target: int | str,
    importance: Importance | Tensor,
    *,
    max_concepts: int = HUMAN_LIMIT,
    batch_size: int = 256,
) -> Curve:
    """How often the model still decides for or against the class with the best m concepts alone.

    Parameters
    ----------
    cm, codes, target, importance, batch_size
        As in `c_deletion`; `codes` should be of pictures of several classes. Give the absolute
        values of a signed importance: what speaks against the class decides as well, and left for
        the end it would make every picture one of the class.
    max_concepts : int
        The longest explanation considered.

    Returns
    -------
    Curve
        For m = 0, 1, …, min(k, `max_concepts`): 1 for each picture whose decision is as with all
        concepts.
    """
    if max_concepts < 1:
        raise ValueError(f"max_concepts must be at least 1, got {max_concepts}")
    decisions = c_insertion(
        cm, codes, target, importance, score="decision", batch_size=batch_size
    ).per_image
    same = (decisions == decisions[:, -1:]).double()[:, : max_concepts + 1]
    return Curve(same, "Simplicity", "agreement")


def probe_scores(
    x: np.ndarray, labels: np.ndarray, train: np.ndarray, test: np.ndarray
) -> np.ndarray:
    """Scores of one logistic regression a column of `labels`, fitted on the rows `train`."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    constant = np.flatnonzero(labels[train].min(0) == labels[train].max(0)).tolist()
    if constant:
        raise ValueError(
            f"concepts and classes {constant} are the same in all {len(train)} rows that the "
            "probes are fitted on: leave them out or give more rows"
        )
    scaler = StandardScaler().fit(x[train])
    known, unknown = scaler.transform(x[train]), scaler.transform(x[test])
    columns = [
        LogisticRegression(max_iter=1000).fit(known, labels[train, j]).decision_function(unknown)
        for j in range(labels.shape[1])
    ]
    return np.stack(columns, axis=1)
