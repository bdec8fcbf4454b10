"""`ConceptBottleneck`: concepts from features, classes from concepts, trained together or not."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from ..backbone import Backbone
from .base import Bottleneck, Network
from .data import TrainingData, deviations, is_binary
from .training import Loss

TRAININGS = ("joint", "sequential", "independent")


class LinearBottleneck(Network):
    """Two linear layers with the concepts between them, binary ones through a sigmoid.

    The first reads features standardised as the training rows were.
    """

    def __init__(self, n_features: int, n_concepts: int, n_classes: int) -> None:
        super().__init__()
        self.to_concepts = nn.Linear(n_features, n_concepts)
        self.to_classes = nn.Linear(n_concepts, n_classes)
        self.binary: Tensor
        self.register_buffer("binary", torch.ones(n_concepts, dtype=torch.bool))
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(n_features))
        self.deviation: Tensor
        self.register_buffer("deviation", torch.ones(n_features))

    def outputs(self, features: Tensor) -> Tensor:
        """Logits of binary concepts, values of continuous ones ``(n, k)``."""
        return self.to_concepts((features - self.mean) / self.deviation)

    def concepts(self, features: Tensor) -> Tensor:
        """Probabilities of binary concepts, values of continuous ones."""
        outputs = self.outputs(features)
        return torch.where(self.binary, outputs.sigmoid(), outputs)

    def classify(self, codes: Tensor) -> Tensor:
        """Codes ``(n, k)`` → logits ``(n, n_classes)``."""
        return self.to_classes(codes)

    @property
    def directions(self) -> Tensor:
        """The weights of the first layer, of features as they are."""
        return self.to_concepts.weight / self.deviation


class ConceptBottleneck(Bottleneck):
    """The concept bottleneck model: a linear layer to concepts, and one from them to classes.

    Parameters
    ----------
    backbone : Backbone, optional
        What pictures are run through. Without one, x is features.
    training : {"joint", "sequential", "independent"}
        Both layers at once; the classes after the concepts, from predicted ones; or the classes
        from the concept labels alone.
    concept_weight : float
        λ, the weight of the concepts' loss beside the classes' in joint training.
    concept_names : sequence of str, optional
        Default: "concept 0", "concept 1", ...
    finetune_epochs : int
        Train a copy of the backbone together with both layers for so many epochs at most, at a
        tenth of `lr`, after the layers were trained on its features; needs joint training and
        pictures. The backbone itself stays as it is, ``backbone_`` is the copy.
    class_weight : {None, "balanced"}
        Weights of the classes in their loss.
    max_epochs, batch_size : int
        The most epochs a stage, and rows a step.
    lr, weight_decay : float
        AdamW's.
    patience : int, optional
        Stop after so many epochs without a better loss on held-out rows; None never stops.
    validation_fraction : float
        The share of each class's rows that is held out.
    random_state : int
        Fixes the start, the order of rows and which are held out.

    References
    ----------
    Koh et al., "Concept Bottleneck Models", ICML 2020.

    Examples
    --------
    >>> x = torch.rand(200, 6)
    >>> concepts = x[:, :3] > 0.5
    >>> y = concepts.sum(1)  # the class is how many there are
    >>> cbm = ConceptBottleneck(max_epochs=20).fit(x, y, concepts=concepts)
    >>> tuple(cbm.predict_concepts(x).shape), tuple(cbm.predict_proba(x).shape)
    ((200, 3), (200, 4))
    """

    def __init__(
        self,
        backbone: Backbone | None = None,
        *,
        training: str = "joint",
        concept_weight: float = 1.0,
        finetune_epochs: int = 0,
        concept_names: Sequence[str] | None = None,
        class_weight: str | None = None,
        max_epochs: int = 200,
        batch_size: int = 64,
        lr: float = 1e-2,
        weight_decay: float = 1e-4,
        patience: int | None = 20,
        validation_fraction: float = 0.2,
        random_state: int = 0,
    ) -> None:
        self.backbone = backbone
        self.training = training
        self.concept_weight = concept_weight
        self.finetune_epochs = finetune_epochs
        self.concept_names = concept_names
        self.class_weight = class_weight
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.random_state = random_state

    def _network(self, n_features: int, n_concepts: int, n_classes: int) -> LinearBottleneck:
        network = LinearBottleneck(n_features, n_concepts, n_classes)
        if self.finetune_epochs:
            if self.backbone is None:
                raise ValueError("finetune_epochs trains the backbone, and there is none: give it")
            self.backbone_ = _copied(self.backbone)
            network.trunk = self.backbone_.model
        return network

    def _fit(self, data: TrainingData) -> LinearBottleneck:
        if self.training not in TRAININGS:
            raise ValueError(f"training must be one of {TRAININGS}, got {self.training!r}")
        labels = data.labelled
        network = self._network(data.features.shape[1], labels.shape[1], data.n_classes)
        network.to(data.features)
        network.binary.copy_(is_binary(labels))
        network.mean.copy_(data.features.mean(0))
        network.deviation.copy_(deviations(data.features))
        weights = data.class_weights(self.class_weight)

        def concept_loss(batch: TrainingData) -> Tensor:
            return labelled_loss(network.outputs(batch.features), batch.labelled, network.binary)

        def class_loss(batch: TrainingData) -> Tensor:
            codes = network.concepts(batch.features)
            if self.training != "joint":
                codes = codes.detach()
            if self.training == "independent":
                codes = torch.where(batch.labelled.isnan(), codes, batch.labelled)
            return cross_entropy(network.classify(codes), batch.y, weights)

        def joint_loss(batch: TrainingData) -> Tensor:
            return class_loss(batch) + self.concept_weight * concept_loss(batch)

        if self.training == "joint":
            layers = nn.ModuleList([network.to_concepts, network.to_classes])
            self._train(layers, joint_loss, data)
        else:
            self._train(network.to_concepts, concept_loss, data)
            self._train(network.to_classes, class_loss, data)
        if self.finetune_epochs:
            self._finetune(network, joint_loss, data)
        return network

    def _finetune(self, network: LinearBottleneck, joint_loss: Loss, data: TrainingData) -> None:
        """Train the copied backbone, which is a part of the network, and the layers on it."""
        pictures, backbone = data.pictures, self.backbone_
        if pictures is None or backbone is None or self.training != "joint":
            raise ValueError("finetune_epochs needs training='joint' and pictures as x")
        backbone.activations(pictures[0][None])  # cuts the copy at the size of these

        def loss(batch: TrainingData) -> Tensor:
            x = torch.stack([pictures[i] for i in batch.rows.tolist()]).to(batch.features)
            return joint_loss(replace(batch, features=backbone.trunk(x).mean(1)))

        self._train(network, loss, data, max_epochs=self.finetune_epochs, lr=self.lr / 10)


def _copied(backbone: Backbone) -> Backbone:
    """A backbone of a copy of the model, whose parameters can be trained."""
    model = copy.deepcopy(backbone.model).requires_grad_(True)
    return Backbone(
        model,
        backbone.layer,
        backbone.transform,
        backbone.class_names,
        output=backbone.output,
        autocast=backbone.autocast,
    )


def labelled_loss(outputs: Tensor, labels: Tensor, binary: Tensor) -> Tensor:
    """The mean loss over the labels there are: cross-entropy of binary ones, squares of others.

    Parameters
    ----------
    outputs : Tensor
        ``(n, k)``: logits of binary concepts, values of continuous ones.
    labels : Tensor
        ``(n, k)``, NaN where missing.
    binary : Tensor
        ``(k,)`` bool.
    """
    known = ~labels.isnan()
    truth = labels.nan_to_num(0.0)
    entropy = binary_cross_entropy_with_logits(
        outputs, torch.where(binary, truth, 0.0), reduction="none"
    )
    losses = torch.where(binary, entropy, (outputs - truth).square())
    return (losses * known).sum() / known.sum().clamp(min=1)
