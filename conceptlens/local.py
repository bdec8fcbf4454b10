"""From global to local: why one picture got its logit, concept by concept."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .backbone import class_index
from .batching import in_batches
from .checks import check_tensor, check_whole
from .importance.attribute import MAX_STEPS, attribute, integrated_gradients
from .importance.score import ClassScore
from .maps import concept_maps
from .model import ConceptModel, DictionaryModel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Parts smaller than this share of the largest one are not drawn.
VISIBLE = 1e-3
REST = "not explained by the concepts"
FOR, AGAINST, GREY, DARK = "#0072B2", "#D55E00", "0.72", "0.35"


@dataclass(frozen=True, eq=False)
class Waterfall:
    """The way from the base value to the logit of one picture.

    The base, the contributions, the integration error and the unexplained part sum to the logit.

    Attributes
    ----------
    target : str
        The class.
    concept_names : list of str
        One name a concept.
    base : float
        The logit with all codes at zero.
    contributions : Tensor
        ``(k,)`` float64: what each concept adds, by integrated gradients from zero to its code.
    integration_error : float
        What the contributions miss of the logit of the codes; at most a thousandth of the
        difference, and 0 but for rounding where the head is affine.
    unexplained : float
        The model's logit minus the logit of the codes: what the dictionary does not see.
    """

    target: str
    concept_names: list[str]
    base: float
    contributions: Tensor
    integration_error: float
    unexplained: float

    @property
    def logit(self) -> float:
        """The model's logit, the end of the way."""
        total = self.base + float(self.contributions.sum())
        return total + self.integration_error + self.unexplained

    @property
    def steps(self) -> list[tuple[str, float, int | None]]:
        """Name, height and concept of each step, largest concepts first, invisible ones left out.

        The concept is None for the integration error and for what the dictionary does not see.
        """
        order = self.contributions.abs().argsort(descending=True, stable=True).tolist()
        steps: list[tuple[str, float, int | None]] = [
            (self.concept_names[i], float(self.contributions[i]), i) for i in order
        ]
        steps.append((REST, self.unexplained, None))
        steps.append(("integration error", self.integration_error, None))
        largest = max(abs(height) for _, height, _ in steps)
        return [step for step in steps if abs(step[1]) > VISIBLE * largest]

    def plot(self, ax: Axes | None = None) -> Any:
        """Draw the steps from the base on top to the logit at the bottom; returns the axes.

        Concepts that speak for the class are blue, those against it orange; what is no concept
        is grey.
        """
        from matplotlib.figure import Figure

        steps = self.steps
        if ax is None:
            figure = Figure(figsize=(6, 1.1 + 0.3 * (len(steps) + 2)), layout="constrained")
            ax = figure.subplots()
        rows = [("base", 0.0, self.base, GREY)]
        level = self.base
        for name, height, concept in steps:
            tint = GREY if concept is None else FOR if height > 0 else AGAINST
            rows.append((name, level, height, tint))
            level += height
        rows.append((f"logit of {self.target}", 0.0, self.logit, DARK))
        for y, (_, start, height, tint) in enumerate(rows):
            ax.barh(y, height, left=start, color=tint)
            end = start + height
            if y + 1 < len(rows):
                ax.plot([end, end], [y, y + 1], color="0.4", linewidth=0.6)
            ax.annotate(
                f"{height:+.3g}", (max(start, end), y), (3, 0), textcoords="offset points",
                va="center", fontsize=8,
            )  # fmt: skip
        ax.set_yticks(range(len(rows)), [name for name, *_ in rows])
        ax.invert_yaxis()
        ax.use_sticky_edges = False
        ax.margins(x=0.12)
        ax.axvline(0, color="0.7", linewidth=0.8, zorder=0)
        ax.set_xlabel(f"logit of {self.target}")
        ax.spines[["top", "right"]].set_visible(False)
        return ax

    def __repr__(self) -> str:
        rows = "\n".join(f"  {name}: {height:+.4f}" for name, height, _ in self.steps)
        return f"Logit {self.logit:.4f} of {self.target!r}\n  base: {self.base:+.4f}\n{rows}"

    def _repr_html_(self) -> str:
        steps = [("base", self.base, None), *self.steps]
        rows = "".join(f"<tr><td>{escape(n)}</td><td>{v:+.3f}</td></tr>" for n, v, _ in steps)
        head = f"logit {self.logit:.3f} of {escape(self.target)}"
        return f"<table><caption>{head}</caption>{rows}</table>"


def waterfall(
    cm: ConceptModel, x: Tensor, target: int | str | None = None, *, batch_size: int = 256
) -> Waterfall:
    """Decompose the logit of one picture into what each concept adds to it.

    Parameters
    ----------
    cm : ConceptModel
        The classifier in concept space.
    x : Tensor
        The preprocessed picture ``(3, H, W)``.
    target : int or str, optional
        The class, by index or by one of ``cm.class_names``. Default: the one predicted.
    batch_size : int
        The most code grids given to ``classify`` at once.

    Returns
    -------
    Waterfall
        Its base, contributions and rest sum to the model's own logit. Models that classify by
        their codes alone leave nothing unexplained.
    """
    check_tensor(x, "x, one picture,", "3, H, W")
    check_whole(batch_size, "batch_size")
    with torch.no_grad():
        codes = cm.encode(x[None])
        is_dictionary = isinstance(cm, DictionaryModel)
        logits = cm.backbone(x[None]) if is_dictionary else cm.classify(codes)  # type: ignore[attr-defined]
    index = int(logits.argmax()) if target is None else class_index(target, cm.class_names)
    rows = logit_parts(cm, codes, logits, index, batch_size=batch_size)
    name = f"class {index}" if cm.class_names is None else cm.class_names[index]
    return waterfall_of(rows[0], name, cm.concept_names)


def logit_parts(
    cm: ConceptModel,
    codes: Tensor,
    logits: Tensor,
    target: int,
    *,
    batch_size: int = 256,
    max_steps: int = MAX_STEPS,
) -> Tensor:
    """Decompose the logits of many pictures, a row each.

    Parameters
    ----------
    cm : ConceptModel
        Only ``classify`` is used.
    codes : Tensor
        ``(n, P, k)``.
    logits : Tensor
        ``(n, n_classes)``, the model's own.
    target : int
        The class.
    batch_size : int
        The most code grids given to ``classify`` at once.
    max_steps : int
        The most steps of the integration.

    Returns
    -------
    Tensor
        ``(n, k + 3)`` in float64 on the CPU: base, the k contributions, integration error,
        unexplained. A row sums to the picture's logit.
    """
    with warnings.catch_warnings():  # what the integration misses is told by a part of its own
        warnings.simplefilter("ignore", RuntimeWarning)
        score = ClassScore.of(cm, codes, target, batch_size)
        parts = integrated_gradients(score, 0, max_steps)
    with torch.no_grad():
        blank = cm.classify(torch.zeros_like(codes[:1]))[:, target].double().cpu()
        rebuilt = in_batches(lambda u: cm.classify(u)[:, target], codes, batch_size).double().cpu()
    base = blank.expand(len(codes))
    error = rebuilt - base - parts.sum(1)
    unexplained = logits[:, target].double().cpu() - rebuilt
    return torch.cat([base[:, None], parts, error[:, None], unexplained[:, None]], 1)


def waterfall_of(row: Tensor, target: str, concept_names: list[str]) -> Waterfall:
    """The `Waterfall` of a row of `logit_parts`."""
    base, *_, error, unexplained = row.tolist()
    return Waterfall(target, list(concept_names), base, row[1:-2], error, unexplained)


def contrastive_maps(
    cm: ConceptModel,
    x: Tensor,
    target: int | str,
    other: int | str,
    method: str = "implicit",
    *,
    batch_size: int = 16,
    seed: int = 0,
) -> Tensor:
    """Map why pictures get class `target` rather than class `other`, by concept.

    Each concept's map is cut at zero and scaled so that its pixels sum to what the concept adds
    to the difference of the two logits, by integrated gradients in concept space. So it is
    positive where a concept speaks for `target` and negative where it speaks for `other`, and
    the maps of all concepts sum to the difference that the codes make.

    Parameters
    ----------
    cm, x, method, batch_size, seed
        As for `concept_maps`.
    target, other : int or str
        The two classes, by index or by one of ``cm.class_names``.

    Returns
    -------
    Tensor
        ``(B, k, H, W)`` in the logits' unit. A concept without a positive place has its part
        spread evenly over the picture.
    """
    maps = concept_maps(cm, x, method, batch_size=batch_size, seed=seed).clamp(min=0)
    total = maps.sum((2, 3), keepdim=True)
    shares = torch.where(total > 0, maps / total, 1 / maps[0, 0].numel())
    with torch.no_grad():
        codes = in_batches(cm.encode, x, batch_size)
    mine, others = (attribute(cm, codes, c).per_image for c in (target, other))
    return shares * (mine - others)[:, :, None, None].to(shares)
