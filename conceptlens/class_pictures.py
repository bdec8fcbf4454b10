"""The pictures of one class as CRAFT sees them: their activations, logits and crops."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .backbone import Backbone
from .batching import in_batches
from .checks import check_finite, check_names
from .images import Pictures
from .progress import bar


@dataclass(frozen=True, eq=False)
class ClassPictures:
    """What the network makes of the pictures that a class is explained on.

    Attributes
    ----------
    x : Tensor
        The pictures as the network takes them, ``(n, 3, H, W)``.
    activations : Tensor
        ``(n, P, C)``.
    logits : Tensor
        ``(n, n_classes)``.
    names : list of str
        One a picture.
    target : int
        The class.
    n_given : int
        How many pictures these were chosen from.
    predicted_only : bool
        Whether pictures that the model gives to another class were left out.
    """

    x: Tensor
    activations: Tensor
    logits: Tensor
    names: list[str]
    target: int
    n_given: int
    predicted_only: bool


def select(
    bb: Backbone, source: Pictures, target: int | None, predicted_only: bool, batch_size: int
) -> ClassPictures:
    """Run all pictures through the network once and keep those of the class.

    With a `target`, memory holds its pictures alone; None is the class predicted most often, which
    is known at the end only.
    """
    names: list[str] = []
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    predicted: list[Tensor] = []
    with bar("conceptlens", len(source), "pictures") as progress:
        for indices, batch in source.batches(batch_size):
            a = in_batches(bb.activations, batch, batch_size)
            logits = in_batches(bb.head, a, batch_size)
            _check(bb, a, logits, target)
            classes = logits.argmax(1)
            keep = torch.ones_like(classes).bool()
            if predicted_only and target is not None:
                keep = classes == target
            predicted.append(classes)
            names += [source.names[i] for i, k in zip(indices, keep.tolist(), strict=True) if k]
            parts.append((batch[keep.to(batch.device)], a[keep], logits[keep]))
            progress.update(len(batch))
    classes = torch.cat(predicted)
    most = int(classes.mode().values)
    x, a, logits = map(torch.cat, zip(*parts, strict=True))
    if target is None:
        target = most
        keep = classes == most if predicted_only else torch.ones_like(classes).bool()
        names = [name for name, k in zip(names, keep.tolist(), strict=True) if k]
        x, a, logits = x[keep.to(x.device)], a[keep], logits[keep]
    if not names:
        raise ValueError(
            f"none of the {len(classes)} pictures is given to class {class_name(bb, target)!r} by "
            f"the model; most are given to {class_name(bb, most)!r}. Name that class, give other "
            "pictures, or pass predicted_only=False"
        )
    return ClassPictures(x, a, logits, names, target, len(classes), predicted_only)


def _check(bb: Backbone, a: Tensor, logits: Tensor, target: int | None) -> None:
    if bb.class_names is not None:
        check_names(bb.class_names, "class_names", logits.shape[1])
    if target is not None and target >= logits.shape[1]:
        raise ValueError(f"class {target} does not exist: the model has {logits.shape[1]} classes")
    check_finite(a, f"the activations of layer {bb.layer!r}")


def class_name(bb: Backbone, index: int) -> str:
    """What the class is called."""
    return f"class {index}" if bb.class_names is None else bb.class_names[index]
