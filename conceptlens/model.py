"""A classifier in concept space: the `ConceptModel` protocol and `DictionaryModel`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from .backbone import Backbone
from .checks import check_backbone, check_names, check_tensor
from .extraction import Extractor, as_extractor
from .extraction.base import check_fitted


@runtime_checkable
class ConceptModel(Protocol):
    """A classifier as two functions, pictures → codes → logits.

    Importance, maps, metrics, interventions and reports are written against this pair alone.

    Attributes
    ----------
    concept_names : list of str
        One name a concept.
    class_names : list of str or None
        One name a class.
    """

    concept_names: list[str]
    class_names: list[str] | None

    @property
    def grid(self) -> tuple[int, int]:
        """``(h, w)``: the places of the picture that the last h·w positions stand for."""

    @property
    def n_prefix(self) -> int:
        """How many positions before the grid's have no place in the picture."""

    def encode(self, images: Tensor) -> Tensor:
        """Turn pictures ``(B, 3, H, W)`` into codes ``(B, P, k)``."""

    def classify(self, codes: Tensor) -> Tensor:
        """Turn codes ``(B, P, k)`` into logits ``(B, n_classes)``."""


class DictionaryModel:
    """A frozen network read through a dictionary of concepts.

    Parameters
    ----------
    backbone : Backbone
        The classifier, cut at a layer.
    extractor : Extractor or scikit-learn estimator
        Fitted on the activations of that layer.
    concept_names : sequence of str, optional
        Default: "concept 0", "concept 1", ...

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from conceptlens import NMF, Backbone
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(512, 5))
    >>> bb, x = Backbone(model, "1"), torch.rand(6, 3, 32, 32)
    >>> cm = DictionaryModel(bb, NMF(3).fit(bb.activations(x).flatten(0, 1)))
    >>> codes = cm.encode(x)
    >>> tuple(codes.shape), tuple(cm.classify(codes).shape)
    ((6, 64, 3), (6, 5))
    """

    def __init__(
        self, backbone: Backbone, extractor: Extractor, concept_names: Sequence[str] | None = None
    ) -> None:
        check_backbone(backbone)
        extractor = as_extractor(extractor)
        check_fitted(extractor)
        k = len(extractor.components_)
        names = [f"concept {i}" for i in range(k)] if concept_names is None else concept_names
        self.backbone = backbone
        self.extractor = extractor
        self.concept_names = check_names(names, "concept_names", k)
        self.class_names = backbone.class_names

    @property
    def grid(self) -> tuple[int, int]:
        """The backbone's grid ``(h, w)``."""
        return self.backbone.grid

    @property
    def n_prefix(self) -> int:
        """The backbone's number of class and register tokens."""
        return self.backbone.n_prefix

    def encode(self, images: Tensor) -> Tensor:
        """Turn preprocessed pictures ``(B, 3, H, W)`` into codes ``(B, P, k)``."""
        a = self.backbone.activations(images)
        return self.extractor.transform(a.flatten(0, 1)).unflatten(0, a.shape[:2])

    def classify(self, codes: Tensor) -> Tensor:
        """Turn codes ``(B, P, k)`` into logits ``(B, n_classes)``; gradients flow to `codes`."""
        check_tensor(codes, "codes", "B, P, k")
        a = self.extractor.inverse_transform(codes.flatten(0, 1))
        return self.backbone.head(a.unflatten(0, codes.shape[:2]))

    def __repr__(self) -> str:
        return f"DictionaryModel({self.backbone!r}, {self.extractor!r})"
