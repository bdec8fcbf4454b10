"""What bottleneck models learn from: features, classes and concept labels, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.utils.multiclass import check_classification_targets
from torch import Tensor

from ..backbone import Backbone
from ..batching import in_batches
from ..extraction.base import check_rows
from ..images import Pictures
from ..store import ActivationStore

# Pictures of a forward pass, and rows of a store read at once.
BATCH = 64
STORE_BATCH = 1024


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Rows to learn from.

    Attributes
    ----------
    features : Tensor
        ``(n, C)``, of a floating dtype that the network shares.
    y : Tensor
        ``(n,)`` int64, indices of classes.
    concepts : Tensor or None
        ``(n, k)`` of the features' dtype, NaN where a label is missing.
    rows : Tensor
        ``(n,)`` int64: which of the rows given to `fit` these are.
    n_classes : int
        Number of classes.
    pictures : Pictures or None
        All that was given to `fit`, if that was pictures; these are ``pictures[i]``, i in `rows`.
    held_out : TrainingData or None
        The rows kept back, to stop at and to choose by.
    """

    features: Tensor
    y: Tensor
    concepts: Tensor | None
    rows: Tensor
    n_classes: int
    pictures: Pictures | None = None
    held_out: TrainingData | None = None

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: Tensor) -> TrainingData:
        """The rows at `index` ``(m,)``, without what is held out."""
        return replace(
            self,
            features=self.features[index],
            y=self.y[index],
            concepts=None if self.concepts is None else self.concepts[index],
            rows=self.rows[index],
            held_out=None,
        )

    @property
    def labelled(self) -> Tensor:
        """The concept labels, of a model that cannot do without.

        Raises
        ------
        ValueError
            If there are none.
        """
        if self.concepts is None:
            raise ValueError("this model learns from concept labels: give fit(..., concepts=)")
        return self.concepts

    def class_weights(self, class_weight: str | None) -> Tensor | None:
        """One weight a class: None, or for "balanced" n / (n_classes · rows of the class)."""
        if class_weight is None:
            return None
        if class_weight != "balanced":
            raise ValueError(f"class_weight must be None or 'balanced', got {class_weight!r}")
        counts = torch.bincount(self.y, minlength=self.n_classes).to(self.features)
        return len(self) / (self.n_classes * counts)

    def split(self, fraction: float, seed: int) -> TrainingData:
        """Keep back this share of each class's rows, drawn by `seed`; at least one row stays."""
        if not 0 <= fraction < 1:
            raise ValueError(f"validation_fraction must be at least 0 and below 1, got {fraction}")
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self), generator=generator)
        kept = torch.ones(len(self), dtype=torch.bool)
        shuffled = self.y.cpu()[order]
        for label in range(self.n_classes):
            members = order[shuffled == label]
            kept[members[: int(fraction * len(members))]] = False
        device = self.features.device
        train, back = (part.nonzero().flatten().to(device) for part in (kept, ~kept))
        return replace(self[train], held_out=self[back] if len(back) else None)

    def check_concepts(self, names: Sequence[str]) -> None:
        """Refuse a concept without labels or with one value alone, naming it."""
        if self.concepts is None:
            return
        for name, column in zip(names, self.concepts.T, strict=True):
            known = column[~column.isnan()]
            if len(known) == 0:
                raise ValueError(f"the concept {name!r} has no label in {len(self)} training rows")
            if (known == known[0]).all():
                raise ValueError(
                    f"the concept {name!r} is constant, {float(known[0]):g} in all {len(known)} "
                    "training rows with a label: nothing can be learnt about it, leave it out"
                )


def is_binary(concepts: Tensor) -> Tensor:
    """Which columns of ``(n, k)`` hold only 0, 1 and NaN: ``(k,)`` bool."""
    return ((concepts == 0) | (concepts == 1) | concepts.isnan()).all(0)


def deviations(rows: Tensor) -> Tensor:
    """The standard deviations ``(C,)`` of rows ``(n, C)``, 1 for columns that are constant."""
    found = rows.std(0, correction=0)
    return torch.where(found > 0, found, 1)


def features_of(x: Any, backbone: Backbone | None) -> Tensor:
    """Return features ``(n, C)``: the activations at the cut, averaged over positions.

    Parameters
    ----------
    x : Tensor, array, ActivationStore or pictures
        Features ``(n, C)``, activations ``(n, P, C)`` or a store of them; or pictures
        ``(n, 3, H, W)``, a folder, list, Dataset or DataLoader as `Pictures` takes them.
    backbone : Backbone or None
        What pictures are run through; gradients flow where they ask for them.

    Raises
    ------
    ValueError
        For pictures without a backbone, pictures that cannot be read, and features of another
        shape or not finite.
    """
    if x is None or isinstance(x, Mapping) or callable(x):
        raise TypeError(f"x must be features, pictures or a store of them, got {type(x).__name__}")
    if isinstance(x, ActivationStore):
        parts = [x[i : i + STORE_BATCH].mean(1) for i in range(0, len(x), STORE_BATCH)]
        return check_rows(torch.cat(parts), "x")
    if is_pictures(x):
        return check_rows(_features_of_pictures(x, backbone), "x")
    if not isinstance(x, Tensor):
        x = np.asarray(x)
        if x.dtype.kind not in "fiub":
            raise TypeError(f"x must be numbers, pictures or an ActivationStore, got {x.dtype}")
        x = torch.from_numpy(x if x.dtype.kind == "f" else x.astype(np.float32))
    return check_rows(x.mean(1) if x.ndim == 3 else x, "x")


def is_pictures(x: Any) -> bool:
    """Whether `x` is pictures, not features: four axes, or what only `Pictures` takes."""
    if isinstance(x, (Tensor, np.ndarray)):
        return x.ndim == 4
    if isinstance(x, (list, tuple)) and x:
        first = x[0]
        is_map = getattr(first, "ndim", 0) == 3
        return is_map or isinstance(first, (str, Path, Image.Image))
    return not isinstance(x, (list, tuple, ActivationStore)) and not hasattr(x, "__array__")


def as_pictures(x: Any, backbone: Backbone) -> Pictures:
    """`x` as `Pictures`; arrays of floats count as transformed, as tensors do."""
    if isinstance(x, np.ndarray) and x.dtype.kind == "f":
        x = torch.from_numpy(x)
    return x if isinstance(x, Pictures) else Pictures(x, backbone.transform)


def _features_of_pictures(x: Any, backbone: Backbone | None) -> Tensor:
    if backbone is None:
        raise ValueError(
            f"x must be features (n, C), got {type(x).__name__}, and the model has no backbone to "
            "run pictures through: give backbone="
        )

    def features(batch: Tensor) -> Tensor:
        return backbone.activations(batch).mean(1)

    if isinstance(x, Tensor) and x.is_floating_point():
        return in_batches(features, x, BATCH, "pictures")
    pictures = as_pictures(x, backbone)
    parts = [in_batches(features, batch, BATCH) for _, batch in pictures.batches(BATCH)]
    found = torch.cat(parts)
    if len(found) < len(pictures):
        raise ValueError(
            f"{len(pictures) - len(found)} of {len(pictures)} pictures cannot be read, so that "
            "labels would belong to other pictures: remove them (the warning names them)"
        )
    return found


def check_classes(y: Any, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the sorted classes and the index of each row's ``(n,)``.

    Raises
    ------
    ValueError
        If there is not one label a row, or only one class, or numbers that are no classes.
    """
    labels = as_labels(y)
    if y is None:
        raise TypeError(f"y must have shape ({n},), one class a row of x, got None")
    if labels.shape != (n,):
        raise ValueError(f"y must have shape ({n},), one class a row of x, got {labels.shape}")
    check_classification_targets(labels)
    classes, indices = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"y must have at least two classes, got only {classes[0]!r}")
    return classes, indices


def as_labels(y: Any) -> np.ndarray:
    """Class labels as an array, wherever they are."""
    return y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)


def check_concepts(concepts: Any, like: Tensor) -> Tensor:
    """Return concept labels ``(n, k)`` with the device, dtype and rows of `like` ``(n, C)``.

    Raises
    ------
    ValueError
        For another shape, or infinite values; NaN is a missing label.
    """
    if not isinstance(concepts, Tensor):
        try:
            concepts = torch.from_numpy(np.asarray(concepts, dtype=np.float64))
        except (TypeError, ValueError):
            raise TypeError(f"concepts must be numbers (n, k), got {concepts!r:.80}") from None
    labels = concepts.detach().to(like)
    if labels.ndim != 2 or len(labels) != len(like) or labels.shape[1] == 0:
        raise ValueError(
            f"concepts must have shape ({len(like)}, k), one row a row of x, got "
            f"{tuple(labels.shape)}"
        )
    if labels.isinf().any():
        raise ValueError(f"concepts hold {int(labels.isinf().sum())} infinite values")
    return labels
