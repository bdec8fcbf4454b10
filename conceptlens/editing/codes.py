"""What happens to a classifier's decisions when concepts are removed, scaled or set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..batching import in_batches
from ..importance.score import ClassScore
from ..metrics.checks import check_shape
from ..model import ConceptModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Concepts = int | str | Sequence[int | str]


@dataclass(frozen=True, eq=False)
class Effect:
    """The decisions of a classifier before and after an edit.

    Attributes
    ----------
    before, after : Tensor
        The logits, ``(n, n_classes)``.
    labels : Tensor or None
        The true classes, ``(n,)``.
    edit : str
        What was done.
    class_names : list of str
        One name a class.
    """

    before: Tensor
    after: Tensor
    labels: Tensor | None
    edit: str
    class_names: list[str]

    @property
    def change(self) -> Tensor:
        """The mean change of each logit, ``(n_classes,)``."""
        return (self.after - self.before).mean(0)

    @property
    def flipped(self) -> float:
        """The share of pictures whose predicted class is another."""
        return float((self.before.argmax(1) != self.after.argmax(1)).double().mean())

    @property
    def accuracy(self) -> tuple[float, float]:
        """The accuracy before and after.

        Raises
        ------
        ValueError
            Where no labels were given.
        """
        if self.labels is None:
            raise ValueError("there is no accuracy without labels: give labels=")
        right = [logits.argmax(1) == self.labels for logits in (self.before, self.after)]
        return float(right[0].double().mean()), float(right[1].double().mean())

    @property
    def rates(self) -> Tensor:
        """Before and after, the share of each class's pictures that is given to it.

        ``(2, n_classes)`` in float64, NaN for a class without pictures. Without labels: the share
        of all pictures that is given to each class.
        """
        n_classes = len(self.class_names)
        given = torch.stack([self.before.argmax(1), self.after.argmax(1)])
        hits = torch.nn.functional.one_hot(given, n_classes).double()
        if self.labels is None:
            return hits.mean(1)
        mine = torch.nn.functional.one_hot(self.labels, n_classes).double()
        return (hits * mine).sum(1) / mine.sum(0)

    def plot(self) -> Figure:
        """Draw the rates of each class and the mean change of its logit."""
        from matplotlib.figure import Figure

        n = len(self.class_names)
        figure = Figure(figsize=(8, 1.4 + 0.4 * n), layout="constrained")
        rates, changes = figure.subplots(1, 2, sharey=True)
        places = torch.arange(n)
        for row, shift, label in ((0, -0.2, "before"), (1, 0.2, "after")):
            rates.barh(
                (places + shift).tolist(), self.rates[row].tolist(), height=0.38, label=label
            )
        rates.set_yticks(range(n), self.class_names)
        rates.invert_yaxis()
        rates.set_xlim(0, 1)
        rates.set_xlabel("share given to the class" + (", of its own" * (self.labels is not None)))
        figure.legend(loc="outside upper right", ncols=2, frameon=False)
        changes.barh(places.tolist(), self.change.tolist(), color="0.5")
        changes.axvline(0, color="0.7", linewidth=0.8)
        changes.set_xlabel("mean change of the logit")
        figure.suptitle(self.edit, fontsize=10, x=0.02, ha="left")
        return figure

    def __repr__(self) -> str:
        lines = [f"Effect of {self.edit} on {len(self.before)} pictures: {self.flipped:.1%} flip"]
        if self.labels is not None:
            lines.append("  accuracy {:.3f} → {:.3f}".format(*self.accuracy))
        for name, (old, new), change in zip(
            self.class_names, self.rates.T.tolist(), self.change.tolist(), strict=True
        ):
            lines.append(f"  {name}: {old:.3f} → {new:.3f}, logit {change:+.3f}")
        return "\n".join(lines)


def ablate(
    cm: ConceptModel,
    codes: Tensor,
    concepts: Concepts,
    *,
    labels: Any = None,
    batch_size: int = 256,
) -> Effect:
    """Remove concepts: their codes become 0 at all positions.

    Parameters
    ----------
    cm : ConceptModel
        Only ``classify`` is used.
    codes : Tensor
        Of n pictures, ``(n, P, k)``, as ``encode`` returns.
    concepts : int, str or sequence of them
        By index or by one of ``cm.concept_names``.
    labels : Tensor, optional
        The true classes ``(n,)``, for accuracy and rates.
    batch_size : int
        The most code grids given to ``classify`` at once.
    """
    return scale(cm, codes, concepts, 0.0, labels=labels, batch_size=batch_size)


def scale(
    cm: ConceptModel,
    codes: Tensor,
    concepts: Concepts,
    factor: float,
    *,
    labels: Any = None,
    batch_size: int = 256,
) -> Effect:
    """Multiply the codes of concepts by `factor` at all positions; else as `ablate`."""
    verb = "removing {}" if factor == 0 else f"scaling {{}} by {factor:.4g}"
    return _effect(cm, codes, concepts, verb, lambda part: part * factor, labels, batch_size)


def set(  # noqa: A001, RUF100 - the field's verb
    cm: ConceptModel,
    codes: Tensor,
    concepts: Concepts,
    value: float | Tensor,
    *,
    labels: Any = None,
    batch_size: int = 256,
) -> Effect:
    """Set the codes of concepts at all positions to a number, or to one a picture ``(n,)``.

    The other arguments are those of `ablate`.
    """
    if isinstance(value, Tensor) and value.ndim:
        value = check_shape(value, "value", "n", n=len(codes)).to(codes)[:, None, None]
        text = "values of their own"
    else:
        text = f"{float(value):.4g}"
    verb = f"setting {{}} to {text}"
    return _effect(
        cm, codes, concepts, verb, lambda part: torch.ones_like(part) * value, labels, batch_size
    )


def concept_indices(concepts: Concepts, names: Sequence[str]) -> list[int]:
    """The indices of concepts given by index or by name."""
    if concepts is None:
        raise TypeError("concepts must be indices or names, got None")
    given = [concepts] if isinstance(concepts, int | str) else list(concepts)
    if not given:
        raise ValueError("concepts must name at least one concept")
    return [_index(concept, names) for concept in given]


def _index(concept: int | str, names: Sequence[str]) -> int:
    if isinstance(concept, str):
        if concept not in names:
            near = get_close_matches(concept, names, n=3, cutoff=0.4) or list(names[:3])
            raise ValueError(f"unknown concept {concept!r}; near names: {', '.join(near)}")
        return list(names).index(concept)
    if isinstance(concept, bool) or not isinstance(concept, Integral):
        raise TypeError(f"a concept must be given by its index or name, got {concept!r}")
    if not 0 <= concept < len(names):
        raise ValueError(f"concept {concept} does not exist: there are {len(names)}")
    return int(concept)


def _effect(
    cm: ConceptModel,
    codes: Tensor,
    concepts: Concepts,
    verb: str,
    edit: Callable[[Tensor], Tensor],
    labels: Any,
    batch_size: int,
) -> Effect:
    score = ClassScore.of(cm, codes, 0, batch_size)  # checks the codes
    names = score.concept_names
    chosen = concept_indices(concepts, names)
    if labels is not None:
        labels = check_shape(labels, "labels", "n", n=len(codes)).to(codes.device).long()
    edited = score.codes.clone()
    edited[:, :, chosen] = edit(edited[:, :, chosen])
    with torch.no_grad():
        before, after = (
            in_batches(cm.classify, rows, batch_size) for rows in (score.codes, edited)
        )
    n_classes = before.shape[1]
    if labels is not None and not 0 <= int(labels.min()) <= int(labels.max()) < n_classes:
        raise ValueError(
            f"labels must lie between 0 and {n_classes - 1}, got {int(labels.min())} to "
            f"{int(labels.max())}"
        )
    text = verb.format(", ".join(names[i] for i in chosen))
    given = getattr(cm, "class_names", None)
    classes = [f"class {i}" for i in range(n_classes)] if given is None else list(given)
    return Effect(before, after, labels, text, classes)
