"""`JointDistribution`: how concepts and classes depend on each other, conditioned at will."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class JointDistribution:
    """p(c, y) of k binary concepts and the class.

    Every conditional probability is one of its parts after `given`:

    ===================  ==================================================
    p(c | y)             ``joint.given(label=y).probabilities.sum(1)``
    p(c_k | y)           ``joint.concepts_given_class()[y, k]``
    p(c_k | y, c_j)      ``joint.given({j: 1}, label=y).concept_probabilities[k]``
    p(y | c)             ``joint.given({0: 1, 1: 0, ...}).class_probabilities``
    p(c_−k, y | x, c_k)  ``cbm.joint(x).given({k: 1}).probabilities``, of one picture x
    ===================  ==================================================

    Attributes
    ----------
    concepts : Tensor
        ``(r, k)`` bool: all 2^k vectors in counting order, or vectors that were drawn.
    probabilities : Tensor
        ``(r, n_classes)`` float64, of each vector with each class; their sum is 1.
    concept_names, class_names : list of str
        One name a concept and a class.
    """

    concepts: Tensor
    probabilities: Tensor
    concept_names: list[str]
    class_names: list[str]

    @property
    def concept_probabilities(self) -> Tensor:
        """Of each concept being present ``(k,)``."""
        return self.probabilities.sum(1) @ self.concepts.double()

    @property
    def class_probabilities(self) -> Tensor:
        """Of each class ``(n_classes,)``."""
        return self.probabilities.sum(0)

    def given(
        self, concepts: Mapping[str | int, int] | None = None, label: str | int | None = None
    ) -> JointDistribution:
        """Return the distribution where some concepts, and perhaps the class, are known.

        Parameters
        ----------
        concepts : mapping, optional
            ``{concept: 0 or 1}``, by name or index.
        label : str or int, optional
            The class.

        Raises
        ------
        ValueError
            For an unknown concept or class, or if what is given has no probability.
        """
        kept = torch.ones_like(self.probabilities, dtype=torch.bool)
        for concept, value in (concepts or {}).items():
            if value not in (0, 1):
                raise ValueError(f"concept {concept!r} is given as {value!r}: it is 0 or 1")
            k = _index(concept, self.concept_names, "concept")
            kept &= (self.concepts[:, k] == bool(value))[:, None]
        if label is not None:
            y = _index(label, self.class_names, "class")
            kept &= torch.arange(kept.shape[1], device=kept.device) == y
        part = torch.where(kept, self.probabilities, 0.0)
        if not part.sum() > 0:
            raise ValueError(f"concepts {concepts} and class {label!r} have no probability")
        return replace(self, probabilities=part / part.sum())

    def concepts_given_class(self) -> Tensor:
        """The probability of each concept in each class: ``(n_classes, k)`` float64.

        NaN in rows of classes without probability.
        """
        with_class = self.probabilities.T @ self.concepts.double()
        return with_class / self.class_probabilities[:, None]

    def concepts_given_concepts(self, label: str | int | None = None) -> Tensor:
        """The probability of concept j where concept i is present: ``(k, k)`` float64, ij.

        Parameters
        ----------
        label : str or int, optional
            Within this class. Default: over all.
        """
        part = self if label is None else self.given(label=label)
        c = part.concepts.double()
        both = (c * part.probabilities.sum(1)[:, None]).T @ c
        return both / both.diagonal()[:, None]

    def plot_classes(self) -> Figure:
        """Draw the probability of each concept in each class."""
        return _heatmap(
            self.concepts_given_class(),
            self.class_names,
            self.concept_names,
            "probability of the concept in the class",
        )

    def plot_concepts(self, label: str | int | None = None) -> Figure:
        """Draw the probability of each concept (column) where another (row) is present."""
        names = self.concept_names
        title = "probability of the column's concept given the row's"
        if label is not None:
            title += f", in {self.class_names[_index(label, self.class_names, 'class')]}"
        return _heatmap(self.concepts_given_concepts(label), names, names, title)

    def __repr__(self) -> str:
        r, k = self.concepts.shape
        return f"JointDistribution({k} concepts in {r} vectors, classes {self.class_names})"


def _index(given: str | int, names: list[str], what: str) -> int:
    if isinstance(given, str) and names.count(given) == 1:
        return names.index(given)
    if isinstance(given, str) or not 0 <= given < len(names):
        raise ValueError(f"{given!r} is no {what} of {names}, nor the index of one")
    return given


def _heatmap(table: Tensor, rows: list[str], columns: list[str], title: str) -> Figure:
    """Draw probabilities as colours, with their figures where there is room for them."""
    from matplotlib.figure import Figure

    n, m = table.shape
    size = (2.6 + 0.55 * m, 1.8 + 0.45 * n)
    figure = Figure(figsize=size, layout="constrained")
    ax = figure.subplots()
    image = ax.imshow(table.cpu().numpy(), cmap="viridis", vmin=0, vmax=1, aspect="auto")
    ax.set_xticks(range(m), columns, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(n), rows)
    ax.set_title(title, fontsize=10)
    if m <= 20:
        for i, row in enumerate(table.tolist()):
            for j, p in enumerate(row):
                colour = "white" if p < 0.6 else "black"
                ax.text(j, i, f"{p:.2f}", ha="center", va="center", color=colour, fontsize=7)
    figure.colorbar(image, ax=ax)
    return figure
