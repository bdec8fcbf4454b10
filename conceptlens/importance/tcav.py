"""TCAV: whether a class's score rises along directions that stand for labelled concepts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..backbone import Backbone, class_index
from ..batching import in_batches
from ..checks import check_finite, check_seed, check_tensor, check_whole
from ..extraction.base import check_rows

if TYPE_CHECKING:
    from ..store import ActivationStore

CORRECTIONS = ("holm", "benjamini-hochberg")


@dataclass(frozen=True, eq=False)
class CAVs:
    """Concept activation vectors, of length 1.

    Attributes
    ----------
    names : list of str
        One name a concept.
    vectors : Tensor
        ``(m, runs, C)``, each run from rows of its own.
    random : Tensor
        ``(runs, C)``, vectors of negatives against negatives: what no concept gives.
    method : str
        How they were found.
    """

    names: list[str]
    vectors: Tensor
    random: Tensor
    method: str

    def __repr__(self) -> str:
        m, runs, channels = self.vectors.shape
        names = ", ".join(self.names)
        return f"CAVs of {m} concepts ({names}), {self.method}, {runs} runs, C={channels}"


@dataclass(frozen=True, eq=False)
class TCAV:
    """The share of a class's pictures whose score rises along each concept.

    Attributes
    ----------
    scores, spread : Tensor
        Mean and standard deviation over the runs, ``(m,)``.
    p_values : Tensor
        ``(m,)``, of Welch's t-test against random vectors, corrected for m tests.
    random : float
        The mean score of random vectors.
    names : list of str
        One name a concept.
    target : str
        The class.
    method : str
        How vectors were found and p-values corrected.
    """

    scores: Tensor
    spread: Tensor
    p_values: Tensor
    random: float
    names: list[str]
    target: str
    method: str

    def _rows(self) -> list[tuple[str, str, str]]:
        order = self.scores.argsort(descending=True, stable=True).tolist()
        return [
            (
                self.names[i],
                f"{self.scores[i]:.3f} ± {self.spread[i]:.3f}",
                f"p = {self.p_values[i]:.2g}",
            )
            for i in order
        ]

    def __repr__(self) -> str:
        head = f"TCAV of {len(self.names)} concepts for {self.target!r}, {self.method}"
        rows = [f"  {name}: {score}, {p}" for name, score, p in self._rows()]
        return "\n".join([f"{head}, random {self.random:.3f}", *rows])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{escape(name)}</td><td>{score}</td><td>{p}</td></tr>"
            for name, score, p in self._rows()
        )
        head = f"TCAV for {escape(self.target)} ({escape(self.method)})"
        return f"<table><caption>{head}</caption>{rows}</table>"


def fit_cavs(
    concept_rows: Mapping[str, Tensor | ActivationStore],
    negatives: Tensor | ActivationStore,
    *,
    method: str = "mean",
    n_runs: int = 20,
    seed: int = 0,
) -> CAVs:
    """Find the direction in which each concept lies from pictures without it.

    Parameters
    ----------
    concept_rows : mapping of str to Tensor or ActivationStore
        For each concept the activations ``(n_j, C)`` that show it.
    negatives : Tensor or ActivationStore
        Activations ``(n, C)`` that show none of them.
    method : {"mean", "linear"}
        The difference of the means (FastCAV), or the normal of a logistic regression.
    n_runs : int
        Number of vectors a concept, and of random ones. The rows are dealt out to the runs, so
        that none serves twice: runs that shared rows would agree on what these have in common by
        chance, and the test would call nearly half of all concepts without effect significant.
    seed : int
        Fixes who gets which rows.

    Raises
    ------
    ValueError
        For fewer rows than runs, or fewer negatives than three a run: a third is set against the
        concepts, a third against the last third.

    References
    ----------
    Kim et al., "Interpretability Beyond Feature Attribution", ICML 2018; Schmalwasser et al.,
    "FastCAV", ICML 2025.
    """
    if method not in _METHODS:
        raise ValueError(f"method must be one of {sorted(_METHODS)}, got {method!r}")
    check_whole(n_runs, "n_runs", 2)
    check_seed(seed)
    if not isinstance(concept_rows, Mapping):
        raise TypeError(f"concept_rows must be a mapping of name to rows, got {concept_rows!r:.80}")
    if not concept_rows:
        raise ValueError("concept_rows is empty: give the activations of one concept or more")
    positives = {
        name: _rows(rows, f"concept_rows[{name!r}]") for name, rows in concept_rows.items()
    }
    others = _rows(negatives, "negatives")
    if len(others) < 3 * n_runs:
        raise ValueError(
            f"negatives must have 3 rows a run or more, {3 * n_runs} for n_runs = {n_runs}, got "
            f"{len(others)}"
        )
    for name, rows in positives.items():
        if len(rows) < n_runs:
            raise ValueError(
                f"concept_rows[{name!r}] has {len(rows)} rows for n_runs = {n_runs}: each run "
                "needs rows of its own, so give more or ask for fewer runs"
            )
        if rows.shape[1] != others.shape[1]:
            raise ValueError(
                f"concept_rows[{name!r}] has {rows.shape[1]} channels, negatives {others.shape[1]}"
            )
    find = _METHODS[method]
    generator = torch.Generator().manual_seed(seed)
    against, one, other = (_deal(third, n_runs) for third in _deal(others, 3, generator))
    vectors = [
        torch.stack(list(map(find, _deal(rows, n_runs, generator), against)))
        for rows in positives.values()
    ]
    random = torch.stack(list(map(find, one, other)))
    return CAVs(list(positives), torch.stack(vectors), random, method)


def tcav(
    backbone: Backbone | Callable[[Tensor], Tensor],
    activations: Tensor | ActivationStore,
    target: int | str,
    cavs: CAVs,
    *,
    correction: str = "holm",
    batch_size: int = 64,
) -> TCAV:
    """Measure how often a class's score rises along each concept.

    The directional derivative along a vector is the gradient of the logit at the cut, summed over
    positions, times the vector. Gradients are computed once, for all concepts and runs.

    Parameters
    ----------
    backbone : Backbone or callable
        The classifier, cut where the activations come from, or its head ``(B, P, C)`` → logits.
    activations : Tensor or ActivationStore
        ``(n, P, C)``, of pictures of the class.
    target : int or str
        The class, by index or by one of the backbone's class names.
    cavs : CAVs
        From `fit_cavs`.
    correction : {"holm", "benjamini-hochberg"}
        Bounds the chance of one false finding, or the expected share of false findings.
    batch_size : int
        The most pictures given to the head at once.

    Raises
    ------
    ValueError
        For an unknown class or correction, or activations of another shape.
    """
    if correction not in CORRECTIONS:
        raise ValueError(f"correction must be one of {CORRECTIONS}, got {correction!r}")
    first = activations if isinstance(activations, Tensor) else _first(activations)
    check_tensor(first, "activations", "n, P, C")
    check_finite(first, "activations")
    if first.shape[2] != cavs.vectors.shape[2]:
        raise ValueError(
            f"activations must have shape (n, P, C) with C = {cavs.vectors.shape[2]}, as the "
            f"vectors have, got (n, {', '.join(map(str, first.shape[1:]))})"
        )
    names = getattr(backbone, "class_names", None)
    index = class_index(target, names)
    gradients = _gradients(getattr(backbone, "head", backbone), activations, index, batch_size)
    scores, random = (
        (gradients @ vectors.to(gradients).flatten(0, -2).T > 0).double().mean(0).cpu()
        for vectors in (cavs.vectors, cavs.random)
    )
    scores = scores.reshape(cavs.vectors.shape[:2])
    return TCAV(
        scores=scores.mean(1),
        spread=scores.std(1),
        p_values=_corrected(_against_chance(scores, random), correction),
        random=float(random.mean()),
        names=cavs.names,
        target=f"class {index}" if names is None else names[index],
        method=f"{cavs.method} vectors, {correction}",
    )


def _deal(rows: Tensor, parts: int, generator: torch.Generator | None = None) -> tuple[Tensor, ...]:
    """Parts that share no row, of nearly the same size; shuffled before if asked."""
    if generator is not None:
        rows = rows[torch.randperm(len(rows), generator=generator).to(rows.device)]
    return rows.tensor_split(parts)


def _first(store: Any) -> Tensor:
    """The activations of a store's first picture."""
    if not hasattr(store, "vectors"):
        raise TypeError(f"activations must be a tensor or a store, got {type(store).__name__}")
    return store[:1]


def _gradients(head: Callable[[Tensor], Tensor], activations: Any, index: int, size: int) -> Tensor:
    """The logit's gradient at the cut, summed over positions: ``(n, C)``."""

    def block(a: Tensor) -> Tensor:
        a = a.detach().clone().requires_grad_()
        with torch.enable_grad():
            logits = head(a)
            if index >= logits.shape[1]:
                raise ValueError(f"class {index} does not exist: there are {logits.shape[1]}")
            (gradient,) = torch.autograd.grad(logits[:, index].sum(), a)
        return gradient.sum(1)

    return in_batches(block, activations, size)


def _against_chance(scores: Tensor, random: Tensor) -> Tensor:
    """Welch's p-values ``(m,)`` of runs ``(m, runs)`` against random vectors' ``(runs,)``."""
    from scipy.stats import ttest_ind_from_stats

    def moments(runs: Tensor) -> tuple[float, float, int]:
        return float(runs.mean()), float(runs.std()), len(runs)

    p = []
    for runs in scores:
        if (runs == runs[0]).all() and (random == random[0]).all():  # no variance to compare with
            p.append(float(runs[0] == random[0]))
        else:
            test = ttest_ind_from_stats(*moments(runs), *moments(random), equal_var=False)
            p.append(float(test.pvalue))
    return torch.tensor(p, dtype=torch.float64)


def _corrected(p: Tensor, correction: str) -> Tensor:
    from scipy.stats import false_discovery_control

    if correction == "benjamini-hochberg":
        return torch.from_numpy(false_discovery_control(p.numpy()))
    order = p.argsort()
    held = (p[order] * torch.arange(len(p), 0, -1)).cummax(0).values.clamp(max=1)
    return torch.empty_like(p).scatter(0, order, held)


def _rows(rows: Any, name: str) -> Tensor:
    """The activations ``(n, C)`` as a tensor; a store's are read, not computed again."""
    if not isinstance(rows, Tensor) and hasattr(rows, "vectors"):
        rows = torch.cat(list(rows.vectors(4096, shuffle=False)))
    return check_rows(rows, name)


def _difference_of_means(positives: Tensor, negatives: Tensor) -> Tensor:
    return torch.nn.functional.normalize(positives.mean(0) - negatives.mean(0), dim=0)


def _logistic_regression(positives: Tensor, negatives: Tensor) -> Tensor:
    from sklearn.linear_model import LogisticRegression

    rows = torch.cat([positives, negatives])
    labels = torch.arange(len(rows)) < len(positives)
    fitted = LogisticRegression(max_iter=1000).fit(rows.detach().cpu().numpy(), labels.numpy())
    return torch.nn.functional.normalize(torch.from_numpy(fitted.coef_[0]).to(rows), dim=0)


_METHODS = {"mean": _difference_of_means, "linear": _logistic_regression}
