"""`compare`: several explanations side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .checks import check_names, check_path
from .explanation import Explanation
from .files import write_atomically
from .metrics.matching import cosines, match

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FACTS = ("model", "layer", "extractor", "importance", "pictures used", "seed")
# Fewer values than this say nothing about a correlation.
MIN_COMMON = 3
# Concepts that are as alike as this, from −1 to 1, count as one that two explanations share.
SHARED = 0.8


@dataclass(frozen=True, eq=False)
class Matching:
    """How the concepts of one explanation correspond to those of the reference.

    Attributes
    ----------
    by : str
        "cosine" of the dictionaries' rows, where both explain the same layer of the same network;
        "correlation" of the concepts' strengths over the pictures that both explain; or "nothing".
    partners : dict of int to int
        The reference's concepts, by index, to this explanation's.
    similarity : dict of int to float
        Of each matched concept of the reference, from −1 to 1.
    rank_correlation : float
        Spearman's, of the matched concepts' importance; NaN for fewer than three.
    """

    by: str
    partners: dict[int, int]
    similarity: dict[int, float]
    rank_correlation: float

    @property
    def shared(self) -> list[int]:
        """The reference's concepts whose similarity to their partner is 0.8 or more."""
        return [i for i, similarity in self.similarity.items() if similarity >= SHARED]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Several explanations, each matched to the first one.

    Attributes
    ----------
    explanations : dict of str to Explanation
        By name; the first is the reference.
    matchings : dict of str to Matching
        By name; the reference's own is the identity.
    """

    explanations: dict[str, Explanation]
    matchings: dict[str, Matching]

    @property
    def reference(self) -> Explanation:
        """The first explanation."""
        return next(iter(self.explanations.values()))

    @property
    def targets(self) -> str:
        """The classes that are explained, in quotes."""
        names = dict.fromkeys(e.target for e in self.explanations.values())
        return " and ".join(f"“{name}”" for name in names)

    @property
    def table(self) -> dict[str, dict[str, float | int | str]]:
        """Facts, metrics and agreement with the reference: row → explanation → value."""
        items = self.explanations.items()
        rows: dict[str, dict[str, float | int | str]] = {
            "class": {name: e.target for name, e in items}
        }
        for fact in FACTS:
            rows[fact] = {n: e.provenance[fact] for n, e in items if fact in e.provenance}
        for metric in dict.fromkeys(m for e in self.explanations.values() for m in e.metrics):
            rows[metric] = {n: e.metrics[metric] for n, e in items if metric in e.metrics}
        others = list(self.matchings.items())[1:]
        rows["concepts matched by"] = {name: m.by for name, m in others}
        rows["mean similarity"] = {
            n: sum(m.similarity.values()) / len(m.similarity) for n, m in others if m.similarity
        }
        rows["concepts shared"] = {n: len(m.shared) for n, m in others if m.similarity}
        rows["rank correlation of importance"] = {
            n: m.rank_correlation for n, m in others if m.rank_correlation == m.rank_correlation
        }
        return {label: row for label, row in rows.items() if row}

    def plot(self) -> Figure:
        """Draw a panel an explanation; matched concepts share row and colour with the reference."""
        from matplotlib.figure import Figure

        from .plots import colour, drawable

        order = [c.index for c in self.reference.concepts]
        names = [drawable(c.name) for c in self.reference.concepts]
        width = 2.2 + 2.3 * len(self.explanations)
        figure = Figure(figsize=(width, 1.2 + 0.32 * len(order)), layout="constrained")
        axes = figure.subplots(1, len(self.explanations), sharey=True, squeeze=False)[0]
        for ax, (name, explanation) in zip(axes, self.explanations.items(), strict=True):
            partners = self.matchings[name].partners
            for rank, index in enumerate(order):
                if index in partners:
                    value = float(explanation.importance.values[partners[index]])
                    error = float(explanation.importance.stderr[partners[index]])
                    ax.barh(rank, value, xerr=error, color=colour(rank), capsize=2)
            ax.set_title(name, fontsize=10)
            ax.spines[["top", "right"]].set_visible(False)
            ax.set_xlabel(explanation.importance.method, fontsize=8)
        axes[0].set_yticks(range(len(order)), names)
        axes[0].invert_yaxis()
        figure.suptitle(f"Importance of the concepts of {self.targets}")
        return figure

    def to_html(self, path: str | Path) -> Path:
        """Write one self-contained HTML page; return its path."""
        from .report.compared import render_comparison

        path = check_path(path, "path")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, render_comparison(self).encode(errors="replace"))
        return path

    def __repr__(self) -> str:
        lines = [f"Comparison of {len(self.explanations)} explanations"]
        for label, row in self.table.items():
            values = ", ".join(f"{name}: {shown(value)}" for name, value in row.items())
            lines.append(f"  {label}: {values}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        names = list(self.explanations)
        head = "".join(f"<th>{escape(name)}</th>" for name in names)
        rows = "".join(
            f"<tr><th>{escape(label)}</th>"
            + "".join(f"<td>{escape(shown(row.get(name, '')))}</td>" for name in names)
            + "</tr>"
            for label, row in self.table.items()
        )
        return f"<table><tr><th></th>{head}</tr>{rows}</table>"


def compare(explanations: Mapping[str, Explanation]) -> Comparison:
    """Set explanations side by side: other classes, estimators, extractors, models or checkpoints.

    Concepts are matched one to one to those of the first explanation. Explanations that were
    loaded from disk do as well; no network is needed.

    Parameters
    ----------
    explanations : mapping of str to Explanation
        Two or more, by the names that they shall be shown under.

    Returns
    -------
    Comparison
        With a ``table``, ``plot()`` and ``to_html(path)``.

    Raises
    ------
    TypeError
        For what is no mapping from names to explanations.
    ValueError
        For fewer than two.

    Examples
    --------
    >>> ours, theirs = Explanation.load("a"), Explanation.load("b")  # doctest: +SKIP
    >>> compare({"ours": ours, "theirs": theirs})  # doctest: +SKIP
    """
    if not isinstance(explanations, Mapping):
        raise TypeError(
            "explanations must be a mapping from names to Explanations, got "
            f"{type(explanations).__name__}"
        )
    if len(explanations) < 2:
        raise ValueError(f"explanations must be two or more, got {len(explanations)}")
    check_names(list(explanations), "the names of explanations")
    for name, explanation in explanations.items():
        if not isinstance(explanation, Explanation):
            raise TypeError(
                f"explanations[{name!r}] must be an Explanation, got {type(explanation).__name__}"
            )
    first = next(iter(explanations.values()))
    matchings = {name: _matching(first, other) for name, other in explanations.items()}
    return Comparison(dict(explanations), matchings)


def shown(value: float | int | str) -> str:
    """A cell of the table as text."""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _matching(first: Explanation, other: Explanation) -> Matching:
    by, scores = _similarity(first, other)
    pairs: dict[int, int] = {}
    if scores is not None:
        partners = match(scores.T).tolist()  # of each row of the reference its column
        pairs = {i: int(j) for i, j in enumerate(partners) if j >= 0}
    return Matching(
        by=by,
        partners=pairs,
        similarity={} if scores is None else {i: float(scores[i, j]) for i, j in pairs.items()},
        rank_correlation=_rank_correlation(
            first.importance.values[list(pairs)], other.importance.values[list(pairs.values())]
        ),
    )


def _similarity(first: Explanation, other: Explanation) -> tuple[str, Tensor | None]:
    """What concepts are matched by, and how alike they are ``(k, k')``."""
    # The fingerprint is of weights and layer: channels of another network mean something else.
    same_network = first.provenance.get("fingerprint") == other.provenance.get("fingerprint")
    if same_network and first.components.shape[1] == other.components.shape[1]:
        return "cosine", cosines(first.components, other.components)
    common = [name for name in first.picture_names if name in other.picture_names]
    if len(common) < MIN_COMMON:
        return "nothing", None
    a, b = (_strengths(e, common) for e in (first, other))
    return "correlation", cosines(a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True))


def _strengths(explanation: Explanation, pictures: list[str]) -> Tensor:
    """Mean code of each concept in each picture, ``(k, n)``."""
    rows = [explanation.picture_names.index(name) for name in pictures]
    return explanation.concept_maps[rows].double().mean((2, 3)).T


def _rank_correlation(a: Tensor, b: Tensor) -> float:
    from scipy.stats import spearmanr

    if len(a) < MIN_COMMON or a.unique().numel() == 1 or b.unique().numel() == 1:
        return float(torch.nan)
    return float(spearmanr(a.double().numpy(), b.double().numpy()).statistic)
