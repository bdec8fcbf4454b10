"""Finding a shortcut among a network's concepts, and taking it out without training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..backbone import Backbone
from ..batching import in_batches
from ..explanation import Explanation
from ..images import Pictures
from ..metrics.checks import check_shape
from ..model import DictionaryModel
from .attach import attach
from .codes import Concepts, concept_indices
from .erasure import Moments
from .low_rank import LowRank

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Explained = Explanation | DictionaryModel


@dataclass(frozen=True, eq=False)
class Shortcuts:
    """What suppressing each concept does to the accuracy of groups of pictures.

    Attributes
    ----------
    before : Tensor
        The network's accuracy in each group, ``(g,)``.
    after : Tensor
        The same with each concept suppressed, ``(k, g)``.
    group_names : list of str
        One name a group.
    concept_names : list of str
        One name a concept.
    """

    before: Tensor
    after: Tensor
    group_names: list[str]
    concept_names: list[str]

    @property
    def gain(self) -> Tensor:
        """By how much the worst group's accuracy rises with each concept suppressed, ``(k,)``."""
        return self.after.amin(1) - self.before.min()

    @property
    def order(self) -> list[int]:
        """Indices of the concepts, the most suspicious first."""
        return [int(i) for i in self.gain.argsort(descending=True, stable=True)]

    def plot(self) -> Figure:
        """Draw the worst group's accuracy with each concept suppressed, most suspicious on top."""
        from matplotlib.figure import Figure

        order = self.order
        figure = Figure(figsize=(6, 1.0 + 0.3 * len(order)), layout="constrained")
        ax = figure.subplots()
        ax.barh([self.concept_names[i] for i in order], self.after.amin(1)[order].tolist())
        ax.axvline(float(self.before.min()), color="0.3", linestyle="--", label="as it is")
        ax.invert_yaxis()
        ax.set_xlim(0, 1)
        ax.set_xlabel("accuracy in the worst group with the concept suppressed")
        ax.legend(frameon=False, loc="lower right")
        return figure

    def __repr__(self) -> str:
        worst = int(self.before.argmin())
        lines = [
            f"Shortcuts among {len(self.after)} concepts; the worst group, "
            f"{self.group_names[worst]}, has accuracy {self.before[worst]:.3f}"
        ]
        for i in self.order[:5]:
            low = float(self.after[i].min())
            lines.append(f"  without {self.concept_names[i]}: {low:.3f} ({self.gain[i]:+.3f})")
        return "\n".join(lines)


def suppress(
    explained: Explained, concepts: Concepts, images: Any, *, batch_size: int = 64
) -> nn.Module:
    """Return a copy of the explained network that no longer sees some of its concepts.

    The concepts' codes at each position are erased from the activations by LEACE: no linear
    reader finds them any more, other activations are changed the least, and the mean over
    `images` stays, so that what the network expects of a class is neither there nor missing.

    Parameters
    ----------
    explained : Explanation or DictionaryModel
        What `CRAFT.explain` returned.
    concepts : int, str or sequence of them
        By index or by name.
    images : folder, list, Dataset, DataLoader or Tensor
        Pictures of all classes, as the network was trained on; no labels are needed.
    batch_size : int
        The most pictures given to the network at once.

    Returns
    -------
    nn.Module
        As `attach` returns; `detach` takes the edit out.
    """
    cm = _model(explained)
    chosen = concept_indices(concepts, cm.concept_names)
    edit = _moments(cm, images, batch_size).of(chosen).edit()
    return attach(cm.backbone, cm.backbone.layer, edit)


def shortcuts(
    explained: Explained,
    images: Any,
    audit: Tensor,
    labels: Any,
    *,
    groups: Any = None,
    batch_size: int = 64,
) -> Shortcuts:
    """Rank concepts by how much the network's worst group gains when they are suppressed.

    Parameters
    ----------
    explained, images, batch_size
        As for `suppress`.
    audit : Tensor
        Preprocessed pictures ``(n, 3, H, W)`` on which the shortcut fails, such as a few hundred
        of another source.
    labels : Tensor
        Their classes, ``(n,)``.
    groups : Tensor, optional
        Their groups, ``(n,)``, integers from 0 up. Default: the classes.
    """
    cm = _model(explained)
    bb = cm.backbone
    y = check_shape(labels, "labels", "n", n=len(audit)).cpu().long()
    group = y if groups is None else check_shape(groups, "groups", "n", n=len(y)).cpu().long()
    moments = _moments(cm, images, batch_size)
    with torch.no_grad():
        a = in_batches(bb.activations, audit, batch_size)
        before = _accuracy(bb, a, None, y, group, batch_size)
        after = [
            _accuracy(bb, a, moments.of([i]).edit(), y, group, batch_size)
            for i in range(len(cm.concept_names))
        ]
    present = group.unique()
    names = [f"group {i}" for i in present.tolist()]
    if groups is None and bb.class_names is not None:
        names = [bb.class_names[i] for i in present.tolist()]
    return Shortcuts(before[present], torch.stack(after)[:, present], names, cm.concept_names)


def _model(explained: Explained) -> DictionaryModel:
    cm = explained.model if isinstance(explained, Explanation) else explained
    if not isinstance(cm, DictionaryModel):
        raise TypeError(
            "the concepts of a network are needed, as CRAFT.explain returns them or a "
            f"DictionaryModel, got {type(cm).__name__}; a loaded Explanation has no network"
        )
    return cm


def _moments(cm: DictionaryModel, images: Any, batch_size: int) -> Moments:
    """Of activations and codes, at all positions of all pictures."""
    source = Pictures.of(images, cm.backbone.transform)
    moments = Moments()
    for _, x in source.batches(batch_size):
        a = in_batches(cm.backbone.activations, x, batch_size).flatten(0, 1)
        moments.update(a, torch.as_tensor(cm.extractor.transform(a)))
    return moments


def _accuracy(
    bb: Backbone, a: Tensor, edit: LowRank | None, labels: Tensor, groups: Tensor, batch_size: int
) -> Tensor:
    """The accuracy in each group, NaN for one without pictures."""
    predicted = in_batches(lambda b: bb.head(b if edit is None else edit(b)), a, batch_size)
    right = (predicted.argmax(1).cpu() == labels).double()
    return torch.stack([right[groups == i].mean() for i in range(int(groups.max()) + 1)])
