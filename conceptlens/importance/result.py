"""`Importance`: how much each concept matters, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class Importance:
    """The importance of k concepts for one class.

    Attributes
    ----------
    values, stderr : Tensor
        Mean importance over the pictures and its standard error, ``(k,)``.
    per_image : Tensor
        Importance picture by picture, ``(n, k)``.
    method : str
        The estimator, with what matters of its settings.
    target : str
        The class.
    concept_names : list of str
        One name a concept.
    """

    values: Tensor
    stderr: Tensor
    per_image: Tensor
    method: str
    target: str
    concept_names: list[str]

    @property
    def order(self) -> list[int]:
        """Indices of the concepts, most important first."""
        return [int(i) for i in self.values.argsort(descending=True, stable=True)]

    def plot(self, ax: Axes | None = None) -> Any:
        """Draw bars with standard errors, most important on top; returns the axes."""
        from matplotlib.figure import Figure

        if ax is None:
            figure = Figure(figsize=(5, 0.8 + 0.3 * len(self.values)), layout="constrained")
            ax = figure.subplots()
        order = self.order
        ax.barh(
            [self.concept_names[i] for i in order],
            [float(self.values[i]) for i in order],
            xerr=[float(self.stderr[i]) for i in order],
            capsize=2,
        )
        ax.invert_yaxis()
        ax.set_xlabel(f"importance for {self.target} ({self.method})")
        return ax

    def __repr__(self) -> str:
        rows = (
            f"  {self.concept_names[i]}: {self.values[i]:.3f} ± {self.stderr[i]:.3f}"
            for i in self.order
        )
        n, k = self.per_image.shape
        return "\n".join(
            [f"Importance of {k} concepts for {self.target!r}, {self.method}, {n} pictures", *rows]
        )

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{escape(self.concept_names[i])}</td><td>{self.values[i]:.3f}</td>"
            f"<td>± {self.stderr[i]:.3f}</td></tr>"
            for i in self.order
        )
        head = f"importance for {escape(self.target)} ({escape(self.method)})"
        return f"<table><caption>{head}</caption>{rows}</table>"
