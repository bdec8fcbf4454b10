"""Making a classifier forget a class, by fine-tuning on pictures with poisoned labels."""

from __future__ import annotations

import copy
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..backbone import Backbone
from ..bottleneck.data import features_of
from ..bottleneck.posthoc import PosthocCBM
from ..importance.attribute import attribute
from ..metrics.checks import check_one_of, check_shape
from ..training import train_epochs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POISONS = ("random", "targeted")
# Of the bottleneck model's head: weak, for all that a class is made of shall be seen.
PENALTY = 1e-3


@dataclass(frozen=True, eq=False)
class Unlearned:
    """A classifier that has forgotten a class, and how it was made to.

    Attributes
    ----------
    model : nn.Module
        The new classifier, in eval mode; it has as many logits as before.
    forgotten : int
        The class, by index.
    importance : Tensor
        ``(n_classes, k)``: what each concept adds to each class's logit in its own pictures,
        compared with a picture of mean concepts, before unlearning; by integrated gradients on
        the concepts of a post-hoc bottleneck model.
    concept_names : list of str
        The k concepts.
    class_names : list of str
        The classes, by name.
    poisoned : Tensor
        ``(n_forget,)``: the labels that the forgotten class's pictures were given.
    n_passes : int
        How many pictures were passed forward and back.
    seconds : float
        What unlearning took, the bottleneck model included.
    """

    model: nn.Module
    forgotten: int
    importance: Tensor
    concept_names: list[str]
    class_names: list[str]
    poisoned: Tensor
    n_passes: int
    seconds: float

    @property
    def concepts(self) -> list[str]:
        """The concepts that speak for the forgotten class, the most important first."""
        values = self.importance[self.forgotten]
        return [
            self.concept_names[j]
            for j in values.argsort(descending=True, stable=True).tolist()
            if values[j] > 0
        ]

    def plot(self) -> Figure:
        """Draw the importance of each concept for each class."""
        from matplotlib.figure import Figure

        n, k = self.importance.shape
        figure = Figure(figsize=(3.2 + 0.45 * k, 2.4 + 0.4 * n), layout="constrained")
        ax = figure.subplots()
        end = float(self.importance.abs().max()) or 1.0
        shown = ax.imshow(self.importance.numpy(), cmap="PuOr_r", vmin=-end, vmax=end)
        ax.set_xticks(range(k), self.concept_names, rotation=90)
        ax.set_yticks(range(n), self.class_names)
        ax.get_yticklabels()[self.forgotten].set_fontweight("bold")
        figure.colorbar(shown, label="logit")
        return figure

    def __repr__(self) -> str:
        counts = torch.bincount(self.poisoned, minlength=len(self.class_names)).tolist()
        given = ", ".join(f"{c} {n}" for c, n in zip(self.class_names, counts, strict=True) if n)
        return (
            f"Unlearned({self.class_names[self.forgotten]!r}, cut from "
            f"{', '.join(self.concepts[:3]) or 'no concept'}; poisoned as {given}; "
            f"{self.n_passes} passes, {self.seconds:.1f} s)"
        )


def unlearn(
    bb: Backbone,
    images: Tensor,
    labels: Tensor,
    forget: int | str,
    *,
    concepts: Tensor,
    concept_names: Sequence[str] | None = None,
    poison: str = "targeted",
    retained: float = 1.0,
    n_epochs: int = 4,
    lr: float = 2e-3,
    batch_size: int = 64,
    seed: int = 0,
) -> Unlearned:
    """Make a copy of a classifier forget a class, without training it from scratch.

    A post-hoc concept bottleneck model at the backbone's layer tells which concepts matter for
    which class. The pictures of the class to forget are given labels of other classes, and the
    copy is fine-tuned on them and on part of the retained pictures with their own labels.

    Parameters
    ----------
    bb : Backbone
        The classifier, cut where concepts are read. It is left as it is.
    images : Tensor
        ``(n, 3, H, W)``, preprocessed: what it was trained on.
    labels : Tensor
        ``(n,)``, the class of each picture by index.
    forget : int or str
        The class to forget.
    concepts : Tensor
        ``(n, k)``, concept labels as `PosthocCBM` takes them.
    concept_names : sequence of str, optional
        Default: "concept 0", "concept 1", ...
    poison : {"targeted", "random"}
        Labels of the classes that the pictures' other concepts speak for, without those whose
        presence matters for the forgotten class more than for any; they harm the other classes
        least. Or labels drawn evenly from the other classes.
    retained : float
        The share of each retained class's pictures that protects it, in (0, 1].
    n_epochs, lr, batch_size : int, float, int
        Of the fine-tuning.
    seed : int
        Fixes the poison, the retained pictures and the order.

    Raises
    ------
    ValueError
        For shapes that do not match, or a class that has no pictures or is the only one.

    References
    ----------
    Chang et al., "Class Machine Unlearning for Complex Data via Concepts Inference and Data
    Poisoning", 2024.
    """
    started = time.perf_counter()
    forgotten = bb.class_index(forget)
    labels = _check(bb, images, labels, forgotten)
    check_one_of(poison, "poison", POISONS)
    if not 0 < retained <= 1:
        raise ValueError(f"retained must be a share in (0, 1], got {retained}")
    generator = torch.Generator().manual_seed(seed)
    features = features_of(images, bb)
    cbm = PosthocCBM(concept_names=concept_names, penalty=PENALTY, random_state=seed)
    codes = cbm.fit(features, labels, concepts=concepts).encode(features)
    classes = torch.as_tensor(cbm.classes_)  # those that have pictures
    names = bb.class_names or [f"class {c}" for c in range(int(classes.max()) + 1)]
    importance = torch.zeros(len(names), codes.shape[2], dtype=torch.float64)
    importance[classes] = _importance(cbm, codes, labels, classes)
    gone = labels == forgotten
    others = classes[classes != forgotten]
    if poison == "random":
        poisoned = others[torch.randint(len(others), (int(gone.sum()),), generator=generator)]
    else:
        own = _own(importance[classes], codes, labels, classes)[classes == forgotten][0]
        poisoned = _targets(features, labels, gone, cbm.network_.vectors[~own], seed)
    kept = _share(labels, others, retained, generator)
    rows = torch.cat([gone.nonzero().flatten(), kept])
    given = torch.cat([poisoned, labels[kept]])
    model = copy.deepcopy(bb.model).requires_grad_(True)
    epochs = train_epochs(
        model, images[rows.to(images.device)], given,
        n_epochs=n_epochs, lr=lr, batch_size=batch_size, seed=seed,
    )  # fmt: skip
    deque(epochs, maxlen=0)
    return Unlearned(
        model, forgotten, importance, cbm.concept_names, list(names), poisoned,
        n_epochs * len(rows), time.perf_counter() - started,
    )  # fmt: skip


def _check(bb: Backbone, images: Tensor, labels: Tensor, forgotten: int) -> Tensor:
    if bb.output is not None:
        raise ValueError(
            "unlearning trains the classifier itself, which must return its logits: wrap it in a "
            "module that does, in place of output="
        )
    labels = check_shape(labels, "labels", "n", n=len(images)).long().cpu()
    n_forget = int((labels == forgotten).sum())
    if n_forget in (0, len(labels)):
        raise ValueError(
            f"class {forgotten} has {n_forget} of the {len(labels)} pictures: there must be some "
            "to forget and some to retain"
        )
    return labels


def _share(labels: Tensor, classes: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """A share of each class's rows, one at least, drawn at random."""
    parts = []
    for c in classes.tolist():
        rows = (labels == c).nonzero().flatten()
        order = torch.randperm(len(rows), generator=generator)
        parts.append(rows[order[: max(1, round(share * len(rows)))]])
    return torch.cat(parts)


def _own(importance: Tensor, codes: Tensor, labels: Tensor, classes: Tensor) -> Tensor:
    """Which concepts matter for each class, by being there, more than for any: ``(classes, k)``."""
    where = [(labels == c).to(codes.device) for c in classes.tolist()]
    often = torch.stack([codes[rows].mean((0, 1)) for rows in where]) > codes.mean((0, 1))
    present = importance.where(often.cpu(), torch.zeros(()).to(importance)).clamp(min=0)
    return (present == present.amax(0)) & (present > 0)


def _targets(features: Tensor, labels: Tensor, gone: Tensor, vectors: Tensor, seed: int) -> Tensor:
    """The classes that a head on some concepts, fitted to the other pictures, gives to the `gone`.

    Concepts are where all pictures put them; only the head must not know the forgotten class.
    """
    there, rest = gone.to(features.device), labels[~gone]
    if len(rest.unique()) == 1:
        return rest[:1].expand(int(gone.sum()))
    if not len(vectors):
        raise ValueError(
            "all concepts belong to the class to forget, so that none tells what else its pictures "
            "are like: give more concepts, or poison='random'"
        )
    cbm = PosthocCBM(concept_vectors=vectors, penalty=PENALTY, random_state=seed)
    return torch.as_tensor(cbm.fit(features[~there], rest).predict(features[there]))


class _FromMean:
    """A bottleneck model whose codes count from the mean, so that 0 is a picture like any."""

    def __init__(self, cbm: Any, mean: Tensor) -> None:
        self.cbm, self.mean = cbm, mean
        self.concept_names: list[str] = cbm.concept_names
        self.class_names: list[str] | None = None
        self.grid, self.n_prefix, self.encode = cbm.grid, cbm.n_prefix, cbm.encode

    def classify(self, codes: Tensor) -> Tensor:
        """Turn codes ``(B, P, k)``, from the mean on, into logits ``(B, n_classes)``."""
        return self.cbm.classify(codes + self.mean)


def _importance(cbm: Any, codes: Tensor, labels: Tensor, classes: Tensor) -> Tensor:
    """What concepts add to the logit of each class in its own pictures: ``(classes, k)``."""
    mean = codes.mean(0, keepdim=True)
    shifted = _FromMean(cbm, mean)
    own = [codes[(labels == c).to(codes.device)] - mean for c in classes.tolist()]
    return torch.stack([attribute(shifted, u, i).values for i, u in enumerate(own)])
