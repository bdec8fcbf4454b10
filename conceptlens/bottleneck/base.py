"""What every concept bottleneck model is: a scikit-learn classifier and a `ConceptModel`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import NotFittedError
from torch import Tensor, nn
from torch.utils.data import Subset

from ..backbone import Backbone
from ..checks import check_names, check_path
from ..extraction.base import like
from ..files import write_atomically
from ..metrics.checks import as_numbers
from . import saving
from .data import (
    TrainingData,
    as_labels,
    as_pictures,
    check_classes,
    check_concepts,
    features_of,
    is_pictures,
)
from .options import check_options
from .training import Loss, train

Self = TypeVar("Self", bound="Bottleneck")
# The options of `train` that models have under the same names.
TRAINING = ("max_epochs", "batch_size", "lr", "weight_decay", "patience", "random_state")


class Network(nn.Module, ABC):
    """All that a bottleneck model learns, as two differentiable functions of tensors."""

    @abstractmethod
    def concepts(self, features: Tensor) -> Tensor:
        """Features ``(n, C)`` → codes ``(n, k)``, 0 where a concept is absent."""

    @abstractmethod
    def classify(self, codes: Tensor) -> Tensor:
        """Codes ``(n, k)`` → logits ``(n, n_classes)``."""

    def logits(self, features: Tensor, codes: Tensor) -> Tensor:
        """The logits of rows with these codes, for networks whose logits see more than codes."""
        return self.classify(codes)

    @property
    def directions(self) -> Tensor | None:
        """The vectors ``(k, C)`` that raise each concept, where that is linear in the features."""
        return None


class Bottleneck(ClassifierMixin, BaseEstimator, ABC):
    """A classifier that sees only concepts: features → codes → logits.

    A subclass says in `_fit` how its `Network` is learnt and in `_network` what it is made of.

    Attributes
    ----------
    classes_ : array
        The classes, sorted; logits and probabilities are in this order.
    network_ : Network
        All that was learnt, in eval mode and out of autograd.
    n_features_in_ : int
        Number C of features.
    history_ : list of dict
        The losses of each epoch, where there are epochs.
    held_out_ : TrainingData or None
        The rows that were kept back; not saved.
    backbone_ : Backbone or None
        What pictures are run through: `backbone`, or a copy of it that `fit` trained further.
    """

    grid = (1, 1)
    n_prefix = 0
    backbone: Backbone | None
    random_state: int
    validation_fraction: float = 0.0

    classes_: np.ndarray
    network_: Network
    n_features_in_: int
    history_: list[dict[str, float]]
    held_out_: TrainingData | None
    backbone_: Backbone | None

    # -- what a subclass says ---------------------------------------------------------------

    @abstractmethod
    def _fit(self, data: TrainingData) -> Network:
        """Learn from checked data; may set `history_`, and `concept_names_` if they change."""

    @abstractmethod
    def _network(self, n_features: int, n_concepts: int, n_classes: int) -> Network:
        """An untrained network: `_fit` may start from it and `load` fills it."""

    def codes_with(self, codes: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Put corrected concepts into codes.

        Parameters
        ----------
        codes : Tensor
            ``(n, k)``, as ``network_.concepts`` returns.
        values : Tensor
            ``(n, k)`` in the units of the concept labels: 0 or 1 if they were binary.
        mask : Tensor
            ``(n, k)`` bool: which concepts are corrected.
        """
        return torch.where(mask, values.to(codes), codes)

    def _concept_values(self, features: Tensor) -> Tensor:
        """The predicted concepts ``(n, k)`` in the units of the labels; codes by default."""
        return self.network_.concepts(features)

    def _options(self) -> dict[str, Any]:
        """The arguments of ``__init__`` that `save` writes, as JSON can say them."""
        return {k: v for k, v in self.get_params(deep=False).items() if k != "backbone"}

    # -- scikit-learn's classifier ------------------------------------------------------------

    def fit(self: Self, x: Any, y: Any, *, concepts: Any = None) -> Self:
        """Learn concepts and classes.

        Parameters
        ----------
        x : Tensor, array, ActivationStore or pictures
            Features ``(n, C)``, activations ``(n, P, C)`` or a store of them, averaged over
            positions; or, with a backbone, preprocessed pictures ``(n, 3, H, W)``, a folder, list
            or Dataset.
        y : array, Tensor or list
            The class of each row, as whole numbers or strings ``(n,)``.
        concepts : array or Tensor, optional
            Concept labels ``(n, k)``: columns of 0 and 1 are binary, others continuous; NaN is a
            missing label.

        Raises
        ------
        ValueError
            If rows do not match, features are not finite, y has one class, or a concept is
            constant or never labelled.
        """
        check_options(self.get_params())
        features = features_of(x, self.backbone).detach()
        classes, indices = check_classes(y, len(features))
        labels = None if concepts is None else check_concepts(concepts, features)
        pictures = None
        if self.backbone is not None and is_pictures(x):
            pictures = as_pictures(x, self.backbone)
        self.concept_names_ = None if labels is None else self._names(labels.shape[1])
        self.history_ = []
        self.backbone_ = self.backbone
        device = features.device
        everything = TrainingData(
            features,
            torch.from_numpy(indices).to(device),
            labels,
            torch.arange(len(features), device=device),
            len(classes),
            pictures,
        )
        data = everything.split(self.validation_fraction, self.random_state)
        data.check_concepts(self.concept_names_ or ())
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(self.random_state)
            network = self._fit(data)
        network.eval().requires_grad_(False)
        k = network.concepts(features[:1]).shape[1]
        names = self.concept_names_ or self._names(k)
        self._learn(network, classes, names, features.shape[1], self.history_)
        self.held_out_ = self._kept_back(data.held_out)
        return self

    def decision_function(self, x: Any) -> Any:
        """Return the logits ``(n, n_classes)``; an array for an array, else a tensor."""
        return like(self._logits(self._features(x)), x)

    def predict_proba(self, x: Any) -> Any:
        """Return the probabilities ``(n, n_classes)`` of the `classes_`."""
        return like(self._logits(self._features(x)).softmax(1), x)

    def predict(self, x: Any) -> np.ndarray:
        """Return the most probable class ``(n,)`` of each row, as in `classes_`."""
        logits = self._logits(self._features(x))
        return self.classes_[as_labels(logits.argmax(1))]

    def predict_concepts(self, x: Any) -> Any:
        """Return the concepts ``(n, k)`` in the units of their labels: binary ones from 0 to 1."""
        return like(self._concept_values(self._features(x)), x)

    def score(self, x: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the share of rows whose class is predicted right."""
        labels = as_labels(y)
        if labels.ndim != 1:
            raise ValueError(f"y must have shape (n,), got {labels.shape}")
        return float(super().score(x, labels, sample_weight))

    def intervene(self, x: Any, corrections: Mapping[str | int, Any]) -> Any:
        """Return the logits ``(n, n_classes)`` that follow when concepts are corrected.

        Parameters
        ----------
        x : as in `fit`
            Rows.
        corrections : mapping
            ``{concept: value}``: by name or index, one value for all rows or ``(n,)``, in the
            units of the labels (0 or 1 if binary). NaN leaves a row as predicted.

        Raises
        ------
        ValueError
            For an unknown concept or values of another shape.
        """
        return like(self._corrected(*self._corrections(x, corrections))[1], x)

    def concepts_with(self, x: Any, corrections: Mapping[str | int, Any]) -> Any:
        """Return the concepts ``(n, k)`` that follow when some are corrected, as `intervene`."""
        return like(self._corrected(*self._corrections(x, corrections))[0], x)

    # -- ConceptModel -------------------------------------------------------------------------

    @property
    def concept_names(self) -> list[str]:
        """One name a concept; before `fit`, what was given to ``__init__``."""
        return getattr(self, "concept_names_", None) or self._concept_names

    @concept_names.setter
    def concept_names(self, names: Any) -> None:
        self._concept_names = names

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the arguments of ``__init__``, untouched by `fit`."""
        params = super().get_params(deep=False)
        if "concept_names" in params:
            params["concept_names"] = self._concept_names
        return params

    @property
    def class_names(self) -> list[str]:
        """One name a class."""
        self._check_fitted()
        return [str(label) for label in self.classes_]

    @property
    def directions(self) -> Tensor | None:
        """The vectors ``(k, C)`` that raise each concept, or None if that is not linear."""
        self._check_fitted()
        return self.network_.directions

    def encode(self, images: Tensor) -> Tensor:
        """Turn pictures ``(B, 3, H, W)``, or features, into codes ``(B, 1, k)``; differentiable."""
        features = self._features(images)
        return self.network_.concepts(features)[:, None]

    def classify(self, codes: Tensor) -> Tensor:
        """Turn codes ``(B, P, k)``, averaged over P, into logits ``(B, n_classes)``."""
        self._check_fitted()
        return self.network_.classify(codes.mean(1))

    def concept_index(self, concept: str | int) -> int:
        """Return the index of a concept given by name or index.

        Raises
        ------
        ValueError
            If there is none or several; the message suggests near names.
        """
        names = self.concept_names
        if isinstance(concept, str):
            if names.count(concept) == 1:
                return names.index(concept)
            near = get_close_matches(concept, names, n=3, cutoff=0.4) or names[:3]
            what = "several concepts" if concept in names else "no concept"
            raise ValueError(f"{what} called {concept!r}; near names: {near}")
        if not 0 <= concept < len(names):
            raise ValueError(f"concept {concept} does not exist: there are {len(names)}")
        return int(concept)

    # -- files --------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write weights (safetensors) and options (JSON) into a folder; not the backbone."""
        self._check_fitted()
        saving.save(self, check_path(path, "path"))

    @classmethod
    def load(cls: type[Self], path: str | Path, backbone: Backbone | None = None) -> Self:
        """Read what `save` wrote.

        Raises
        ------
        ValueError
            If a file is missing, damaged or another model's.
        """
        return saving.load(cls, check_path(path, "path"), backbone)

    def report(self, path: str | Path, x: Any = None, y: Any = None, concepts: Any = None) -> Path:
        """Write one self-contained HTML page that judges the model; return its path.

        Parameters
        ----------
        path : str or Path
            The page's file.
        x, y, concepts : as in `fit`
            Rows that the model has not learnt from. Default: those that `fit` kept back. Without
            binary concepts the page judges classes alone.

        Raises
        ------
        ValueError
            If there are no rows, or a class or number of concepts that the model does not know.
        """
        from ..report.bottleneck import render_bottleneck

        self._check_fitted()
        path = check_path(path, "path")
        page = render_bottleneck(self, self._judged(x, y, concepts))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, page.encode())
        return path

    # -- how ----------------------------------------------------------------------------------

    def _train(self, part: nn.Module, loss: Loss, data: TrainingData, **changes: Any) -> None:
        """Train a part of the network by this model's options, but for `changes`."""
        options = {name: getattr(self, name) for name in TRAINING if hasattr(self, name)}
        self.history_ += train(part, loss, data, **(options | changes))

    def _judged(self, x: Any, y: Any, concepts: Any) -> TrainingData:
        """Rows to judge the model by, checked; those held out where x is None."""
        k = len(self.concept_names)
        if x is None:
            if self.held_out_ is None:
                raise ValueError(
                    "no rows were held out, or they were not saved with the model: give rows "
                    "report(path, x, y, concepts) to judge it by"
                )
            held, labels = self.held_out_, self.held_out_.concepts
            # A model that finds concepts by itself may have been given labels of others.
            return held if labels is None or labels.shape[1] == k else replace(held, concepts=None)
        features, classes = self._features(x), as_labels(y)
        if classes.shape != (len(features),) or not np.isin(classes, self.classes_).all():
            raise ValueError(
                f"y must hold one of {self.class_names} for each of {len(features)} rows, got "
                f"shape {classes.shape} of {np.unique(classes)[:9].tolist()}"
            )
        labels = None if concepts is None else check_concepts(concepts, features)
        if labels is not None and labels.shape[1] != k:
            raise ValueError(f"concepts must have {k} columns, got {labels.shape[1]}")
        indices = torch.from_numpy(np.searchsorted(self.classes_, classes)).to(features.device)
        rows = torch.arange(len(features))
        pictures = as_pictures(x, self.backbone_) if self.backbone_ and is_pictures(x) else None
        return TrainingData(features, indices, labels, rows, len(self.classes_), pictures)

    def _learn(
        self,
        network: Network,
        classes: np.ndarray,
        names: list[str],
        n_features: int,
        history: list[dict[str, float]],
    ) -> None:
        self.network_ = network.eval().requires_grad_(False)
        self.classes_, self.concept_names_ = classes, names
        self.n_features_in_, self.history_ = n_features, history
        self.held_out_ = None

    def _kept_back(self, held_out: TrainingData | None) -> TrainingData | None:
        """The rows held out as the model sees them after `fit`."""
        if held_out is None or held_out.pictures is None or self.backbone_ is self.backbone:
            return held_out
        pictures = Subset(held_out.pictures, held_out.rows.tolist())
        return replace(held_out, features=features_of(pictures, self.backbone_))

    def _names(self, k: int) -> list[str]:
        given = self._concept_names
        if given is None:
            return [f"concept {i}" for i in range(k)]
        return check_names(given, "concept_names", k)

    def _features(self, x: Any) -> Tensor:
        """Features ``(n, C)`` as the network takes them."""
        self._check_fitted()
        features = features_of(x, self.backbone_)
        if features.shape[1] != self.n_features_in_:
            raise ValueError(
                f"x has {features.shape[1]} features a row, the model was fitted with "
                f"{self.n_features_in_}"
            )
        weights = self.network_.state_dict().values()
        floating = (tensor for tensor in weights if tensor.is_floating_point())
        return features.to(next(floating, features))

    def _logits(self, features: Tensor) -> Tensor:
        return self.network_.logits(features, self.network_.concepts(features))

    def _corrected(self, features: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Concepts ``(n, k)``, in the labels' units, and logits after corrections, NaN for none."""
        mask = ~values.isnan()
        codes = self.codes_with(self.network_.concepts(features), values, mask)
        concepts = torch.where(mask, values, self._concept_values(features))
        return concepts, self.network_.logits(features, codes)

    def _corrections(self, x: Any, corrections: Mapping[str | int, Any]) -> tuple[Tensor, Tensor]:
        """Features ``(n, C)`` and what to correct in them ``(n, k)``, NaN for nothing."""
        features = self._features(x)
        n = len(features)
        if not isinstance(corrections, Mapping):
            raise TypeError(f"corrections must be {{concept: value}}, got {corrections!r:.80}")
        values = features.new_full((n, len(self.concept_names)), torch.nan)
        for concept, value in corrections.items():
            given = as_numbers(value, f"the correction of {concept!r}").to(values)
            if given.shape not in ((), (n,)) or given.isinf().any():
                raise ValueError(
                    f"the correction of {concept!r} must be one finite number or one a row "
                    f"({n},), got {value!r:.80} of shape {tuple(given.shape)}"
                )
            values[:, self.concept_index(concept)] = given
        return features, values

    def _check_fitted(self) -> None:
        if not hasattr(self, "network_"):
            raise NotFittedError(f"this {type(self).__name__} is not fitted yet: call fit first")
