"""`PosthocCBM`: a bank of concept activation vectors, and a sparse linear head on projections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.svm import LinearSVC
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..backbone import Backbone
from .base import Bottleneck, Network
from .data import TrainingData, deviations, is_binary
from .head import fit_head

CLASSIFIERS = {"logistic": LogisticRegression, "svm": LinearSVC}
# Corrections move a projection to where training rows without and with the concept lie.
ABSENT, PRESENT = 0.05, 0.95


class ProjectionNetwork(Network):
    """Projections on concept vectors, a linear head, and for hybrids a residual on features."""

    def __init__(self, n_features: int, n_concepts: int, n_classes: int, hybrid: bool) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.ones(n_concepts, n_features))
        self.to_classes = nn.Linear(n_concepts, n_classes)
        self.residual = nn.Linear(n_features, n_classes) if hybrid else None
        # A label is predicted as slope · code + offset, of binary ones through a sigmoid.
        for name in ("slope", "offset", "absent", "present"):
            self.register_buffer(name, torch.zeros(n_concepts))
        self.register_buffer("binary", torch.zeros(n_concepts, dtype=torch.bool))
        self.slope: Tensor
        self.offset: Tensor
        self.absent: Tensor
        self.present: Tensor
        self.binary: Tensor

    def concepts(self, features: Tensor) -> Tensor:
        """Projections ⟨a, v_k⟩ / ‖v_k‖²."""
        return features @ (self.vectors / self.vectors.square().sum(1, keepdim=True)).T

    def classify(self, codes: Tensor) -> Tensor:
        """Codes ``(n, k)`` → logits ``(n, n_classes)``, without the residual."""
        return self.to_classes(codes)

    def logits(self, features: Tensor, codes: Tensor) -> Tensor:
        """Codes and, in hybrids, features → logits ``(n, n_classes)``."""
        logits = self.classify(codes)
        return logits if self.residual is None else logits + self.residual(features)

    @property
    def directions(self) -> Tensor:
        """The concept vectors, at the length that gives projections."""
        return self.vectors / self.vectors.square().sum(1, keepdim=True)


class PosthocCBM(Bottleneck):
    """A bottleneck put on a trained network: nothing of the network is trained again.

    Each concept is a vector in feature space, the normal of a linear classifier of its labels or
    given; a picture's codes are its projections ⟨a, v⟩ / ‖v‖², and few of them enter the logits.

    Parameters
    ----------
    backbone : Backbone, optional
        What pictures are run through. Without one, x is features.
    hybrid : bool
        Add to the logits a linear function of the features, fitted to what concepts leave open.
        `classify` gives the concepts' part of the logits, `predict` and `intervene` the whole.
    concept_vectors : array or Tensor, optional
        ``(k, C)``, such as embeddings of words by CLIP; then no concept labels are needed, and a
        concept's values are 0 and 1 at the 5th and 95th percentile of its projections.
    classifier : {"logistic", "svm"}
        What finds vectors for binary concepts; for continuous ones it is ridge regression.
    strength : float
        scikit-learn's C of these classifiers, on standardised features.
    penalty : float, optional
        λ of the head's elastic net. Default: the one of a path with the best held-out accuracy.
    concept_names : sequence of str, optional
        Default: "concept 0", "concept 1", ...
    class_weight : {None, "balanced"}
        Weights of the classes in the head's loss.
    max_epochs, batch_size, lr, weight_decay, patience
        Of the residual's training, as in `ConceptBottleneck`.
    validation_fraction : float
        The share of each class's rows that is held out.
    random_state : int
        Fixes which rows are held out, and the residual's training.

    References
    ----------
    Yuksekgonul, Wang and Zou, "Post-hoc Concept Bottleneck Models", ICLR 2023.
    """

    network_: ProjectionNetwork

    def __init__(
        self,
        backbone: Backbone | None = None,
        *,
        hybrid: bool = False,
        concept_vectors: Any = None,
        classifier: str = "logistic",
        strength: float = 1.0,
        penalty: float | None = None,
        concept_names: Sequence[str] | None = None,
        class_weight: str | None = None,
        max_epochs: int = 100,
        batch_size: int = 64,
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
        patience: int | None = 10,
        validation_fraction: float = 0.2,
        random_state: int = 0,
    ) -> None:
        self.backbone = backbone
        self.hybrid = hybrid
        self.concept_vectors = concept_vectors
        self.classifier = classifier
        self.strength = strength
        self.penalty = penalty
        self.concept_names = concept_names
        self.class_weight = class_weight
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.random_state = random_state

    def _network(self, n_features: int, n_concepts: int, n_classes: int) -> ProjectionNetwork:
        return ProjectionNetwork(n_features, n_concepts, n_classes, self.hybrid)

    def _options(self) -> dict[str, Any]:
        return super()._options() | {"concept_vectors": None}  # they are among the weights

    @torch.no_grad()
    def _fit(self, data: TrainingData) -> ProjectionNetwork:
        vectors, offset, binary = self._bank(data)
        network = self._network(data.features.shape[1], len(vectors), data.n_classes)
        network.to(data.features)
        network.vectors.copy_(vectors)
        codes = network.concepts(data.features)
        ends = torch.tensor([ABSENT, PRESENT]).to(codes)
        network.absent, network.present = codes.quantile(ends, dim=0)
        network.binary.copy_(binary)
        if self.concept_vectors is None:
            network.slope, network.offset = vectors.square().sum(1), offset
        else:
            network.slope = 1 / (network.present - network.absent)
            network.offset = -network.slope * network.absent
        head = network.to_classes
        fit_head(head, network.concepts, data, self.class_weight, penalty=self.penalty)
        if network.residual is not None:
            self._fit_residual(network, network.residual, data)
        return network

    def _bank(self, data: TrainingData) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors ``(k, C)``, offsets ``(k,)``, and which of the concepts are binary."""
        c = data.features.shape[1]
        if self.concept_vectors is not None:
            vectors = torch.as_tensor(self.concept_vectors).to(data.features)
            if vectors.ndim != 2 or vectors.shape[1] != c or not vectors.norm(dim=1).gt(0).all():
                raise ValueError(
                    f"concept_vectors must have shape (k, {c}), one that is not zero a concept, "
                    f"got {tuple(vectors.shape)}"
                )
            none = torch.zeros(len(vectors)).to(vectors)
            return vectors, none, none.bool()
        if self.classifier not in CLASSIFIERS:
            raise ValueError(f"classifier must be one of {[*CLASSIFIERS]}, got {self.classifier!r}")
        labels = data.labelled
        binary = is_binary(labels)
        features = data.features.double().cpu()
        mean, scale = features.mean(0).numpy(), deviations(features).numpy()
        rows = (features.numpy() - mean) / scale
        found = []
        for column, two in zip(labels.T.double().cpu().numpy(), binary.tolist(), strict=True):
            known = ~np.isnan(column)
            linear = self._linear(two).fit(rows[known], column[known])
            normal = linear.coef_.reshape(-1) / scale
            found.append(np.append(normal, float(np.squeeze(linear.intercept_)) - normal @ mean))
        bank = torch.from_numpy(np.stack(found)).to(data.features)
        return bank[:, :-1], bank[:, -1], binary

    def _linear(self, binary: bool) -> Any:
        if not binary:
            return Ridge(alpha=1 / self.strength)
        options = {"C": self.strength, "class_weight": "balanced", "max_iter": 5000}
        return CLASSIFIERS[self.classifier](**options)

    def _fit_residual(
        self, network: ProjectionNetwork, residual: nn.Linear, data: TrainingData
    ) -> None:
        """Fit what the features add to the concepts' logits, which stay."""
        nn.init.zeros_(residual.weight)
        nn.init.zeros_(residual.bias)
        weights = data.class_weights(self.class_weight)

        def loss(batch: TrainingData) -> Tensor:
            codes = network.concepts(batch.features)
            logits = network.classify(codes).detach() + residual(batch.features)
            return cross_entropy(logits, batch.y, weights)

        self._train(residual, loss, data)

    def codes_with(self, codes: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Put corrected concepts into codes, as the projections that stand for them."""
        w = self.network_
        between = w.absent + values.to(codes) * (w.present - w.absent)
        given = torch.where(w.binary, between, (values.to(codes) - w.offset) / w.slope)
        return torch.where(mask, given, codes)

    def _concept_values(self, features: Tensor) -> Tensor:
        w = self.network_
        values = w.slope * w.concepts(features) + w.offset
        return torch.where(w.binary, values.sigmoid(), values)
