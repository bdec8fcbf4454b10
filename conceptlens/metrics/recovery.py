"""Recovery against the truth: whether the concepts found match those that were planted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..importance.result import Importance
from .checks import as_numbers, check_binary, check_one_of, check_shape
from .matching import cosines, match, matched
from .places import iou, pointing_game

N_SHUFFLES = 20
# What a planted concept scores that no concept was left for.
NOTHING = {"auc": 0.5, "cosine": 0.0}


@dataclass(frozen=True, eq=False)
class Recovery:
    """How well m planted concepts are found among k extracted ones.

    Attributes
    ----------
    scores : Tensor
        ``(m,)``, each planted concept's AUC (or cosine) with the concept matched to it.
    matches : Tensor
        ``(m,)``, the index of that concept; −1 where k < m leaves none.
    chance : float
        Mean score when the codes are shuffled among the pictures. It is above 0.5 because the
        best of many random matches is better than a random one.
    names : list of str
        The planted concepts.
    score : str
        ``"auc"`` or ``"cosine"``.
    table : Tensor
        ``(k, m)``, the score of every extracted concept with every planted one.
    """

    scores: Tensor
    matches: Tensor
    chance: float
    names: list[str]
    score: str
    table: Tensor

    @property
    def mean(self) -> float:
        """Mean score over the planted concepts."""
        return float(self.scores.mean())

    def share(self, threshold: float = 0.9) -> float:
        """Share of the planted concepts whose score reaches `threshold`."""
        return float((self.scores >= threshold).double().mean())

    def __repr__(self) -> str:
        head = f"Recovery of {len(self.names)} concepts, mean {self.score} {self.mean:.3f} "
        rows = (f"  {name}: {score:.3f}, concept {i}" for name, score, i in self._rows())
        return "\n".join([head + f"(chance {self.chance:.3f})", *rows])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{escape(name)}</td><td>{score:.3f}</td><td>{i}</td></tr>"
            for name, score, i in self._rows()
        )
        caption = (
            f"{self.score} with the matched concept, mean {self.mean:.3f}, chance {self.chance:.3f}"
        )
        return f"<table><caption>{caption}</caption>{rows}</table>"

    def _rows(self) -> list[tuple[str, float, int]]:
        return list(zip(self.names, self.scores.tolist(), self.matches.tolist(), strict=True))


def recovery(
    codes: Any,
    labels: Any,
    *,
    names: Sequence[str] | None = None,
    score: str = "auc",
    seed: int = 0,
) -> Recovery:
    """Match extracted concepts to planted ones and score each pair.

    Parameters
    ----------
    codes : Tensor
        ``(n, k)``, or ``(n, P, k)`` of which each concept's highest position or its mean counts,
        whichever tells the planted concept better.
    labels : Tensor
        ``(n, m)`` of 0 and 1: which planted concepts are in which picture.
    names : sequence of str, optional
        The planted concepts' names.
    score : {"auc", "cosine"}
        Area under the ROC curve of the code as a detector of the label, or cosine of code and
        label over the pictures.
    seed : int
        Fixes the shuffles that tell the chance level.

    Raises
    ------
    ValueError
        If a label is the same in all pictures, or shapes do not fit.
    """
    check_one_of(score, "score", ("auc", "cosine"))
    codes = as_numbers(codes, "codes")
    pooled = [codes.amax(1), codes.mean(1)] if codes.ndim == 3 else [codes]
    pooled = [check_shape(rows, "codes", "n k").detach().double().cpu() for rows in pooled]
    labels = check_binary(labels, "labels", "n m", n=len(codes)).cpu()
    m = labels.shape[1]
    names = [f"planted {j}" for j in range(m)] if names is None else list(names)
    if len(names) != m:
        raise ValueError(f"{len(names)} names for {m} planted concepts")
    _check_varying(labels, names)

    def scored(order: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tables = [
            aucs(rows[order], labels)
            if score == "auc"
            else cosines(rows[order].T, labels.T.double())
            for rows in pooled
        ]
        table = torch.stack(tables).amax(0)
        matches = match(table)
        return matched(table, matches, NOTHING[score]), matches, table

    generator = torch.Generator().manual_seed(seed)
    shuffles = (torch.randperm(len(codes), generator=generator) for _ in range(N_SHUFFLES))
    chance = float(torch.stack([scored(s)[0].mean() for s in shuffles]).mean())
    scores, matches, table = scored(torch.arange(len(codes)))
    return Recovery(scores, matches, chance, names, score, table)


def aucs(codes: Any, labels: Any) -> Tensor:
    """AUC of each code ``(n, k)`` as a detector of each label ``(n, m)``: ``(k, m)`` in float64.

    Ties count half; NaN for a label that is the same in all pictures.
    """
    from scipy.stats import rankdata

    codes = check_shape(codes, "codes", "n k").detach().double().cpu()
    labels = check_binary(labels, "labels", "n m", n=len(codes)).cpu().double()
    ranks = torch.from_numpy(rankdata(codes.numpy(), axis=0)).double()
    n_positive = labels.sum(0)
    n_negative = len(labels) - n_positive
    # Mann and Whitney: the positives' rank sum less the least that it can be.
    return (ranks.T @ labels - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)


@dataclass(frozen=True, eq=False)
class MapRecovery:
    """How well the maps of the matched concepts show the planted concepts' places.

    Attributes
    ----------
    pointing, iou : Tensor
        ``(m,)``, means over the pictures that have the concept; 0 where no concept was matched.
    chance : Tensor
        ``(m,)``, the mean share of the picture that the place takes up.
    """

    pointing: Tensor
    iou: Tensor
    chance: Tensor


def map_recovery(maps: Any, masks: Any, matches: Any, tolerance: int = 0) -> MapRecovery:
    """Pointing game and IoU of each planted concept's mask with its matched concept's map.

    Parameters
    ----------
    maps : Tensor
        ``(n, k, H, W)``, the extracted concepts' maps.
    masks : Tensor
        ``(n, m, H, W)`` of 0 and 1, the planted concepts' places.
    matches : Tensor
        ``(m,)``, as `Recovery.matches`.
    tolerance : int
        As in `pointing_game`.
    """
    maps = check_shape(maps, "maps", "n k H W")
    n, k, height, width = maps.shape
    masks = check_binary(masks, "masks", "n m H W", n=n, H=height, W=width)
    found = _check_matches(matches, masks.shape[1], k)
    rows = []
    for j, i in enumerate(found):
        place = masks[:, j]
        placed = place.flatten(1).any(1)
        chance = float(place[placed].double().mean()) if placed.any() else math.nan
        if i < 0:
            rows.append((0.0, 0.0, chance))
        else:
            own = maps[:, i]
            rows.append((pointing_game(own, place, tolerance).mean, iou(own, place).mean, chance))
    pointing, overlap, chance_ = torch.tensor(rows, dtype=torch.float64).T
    return MapRecovery(pointing, overlap, chance_)


def importance_recovery(importance: Importance | Any, truth: Any, matches: Any) -> float:
    """Spearman's correlation of the matched concepts' importance with the true importance.

    Parameters
    ----------
    importance : Importance or Tensor
        Of the k extracted concepts, ``(k,)``.
    truth : Tensor
        ``(m,)``, of the planted concepts.
    matches : Tensor
        ``(m,)``, as `Recovery.matches`; a planted concept without a match counts as importance 0.

    Returns
    -------
    float
        From −1 to 1; 0 where all importances found are equal, which tells nothing.
    """
    from scipy.stats import spearmanr

    values = importance.values if isinstance(importance, Importance) else importance
    values = check_shape(values, "importance", "k").detach().double().cpu()
    truth = check_shape(truth, "truth", "m").double().cpu()
    if len(truth) < 2 or (truth == truth[0]).all():
        raise ValueError(f"truth must hold at least two different values, got {truth.tolist()}")
    found = torch.tensor(_check_matches(matches, len(truth), len(values)))
    own = torch.where(found >= 0, values[found.clamp(min=0)], 0.0)
    if (own == own[0]).all():
        return 0.0
    return float(spearmanr(own.numpy(), truth.numpy()).statistic)


def importance_of_parts(
    importance: Importance | Any, found: Recovery, threshold: float = 0.7
) -> Tensor:
    """Importance of the planted concepts, each of which may be found in parts: ``(m,)``.

    Parameters
    ----------
    importance : Importance or Tensor
        Of the k extracted concepts, ``(k,)``.
    found : Recovery
        An extracted concept is a part of the planted one that it scores best for.
    threshold : float
        Extracted concepts that score no better are part of none.
    """
    values = importance.values if isinstance(importance, Importance) else importance
    best, owner = found.table.max(1)
    values = check_shape(values, "importance", "k", k=len(best)).detach().double().cpu()
    total = torch.zeros(found.table.shape[1], dtype=torch.float64)
    return total.index_add_(0, owner, values * (best > threshold))


def _check_varying(labels: Tensor, names: Sequence[str]) -> None:
    constant = (labels.all(0) | ~labels.any(0)).nonzero()[:, 0].tolist()
    if constant:
        listed = ", ".join(names[j] for j in constant)
        raise ValueError(
            f"labels must vary: {listed} is the same in all {len(labels)} pictures, so nothing "
            "can be said about it; leave it out or give more pictures"
        )


def _check_matches(matches: Any, m: int, k: int) -> list[int]:
    found = np.asarray(check_shape(matches, "matches", "m", m=m).cpu()).astype(int).tolist()
    if any(not -1 <= i < k for i in found):
        raise ValueError(f"matches must hold indices of the {k} concepts or -1, got {found}")
    return found
