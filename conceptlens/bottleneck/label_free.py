"""`LabelFreeCBM`: concepts from similarities of pictures and words, without labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..backbone import Backbone
from .base import Bottleneck, Network
from .data import TrainingData, deviations
from .head import fit_head


class StandardisedNetwork(Network):
    """A projection whose outputs are standardised, and a linear head on them."""

    def __init__(self, n_features: int, n_concepts: int, n_classes: int) -> None:
        super().__init__()
        self.to_concepts = nn.Linear(n_features, n_concepts)
        self.to_classes = nn.Linear(n_concepts, n_classes)
        # Mean and deviation of the similarities that codes of 0 and 1 stand for.
        for name in ("similarity_mean", "similarity_std"):
            self.register_buffer(name, torch.zeros(n_concepts))
        self.similarity_mean: Tensor
        self.similarity_std: Tensor

    def concepts(self, features: Tensor) -> Tensor:
        """Projections, with mean 0 and deviation 1 on the training rows."""
        return self.to_concepts(features)

    def classify(self, codes: Tensor) -> Tensor:
        """Codes ``(n, k)`` → logits ``(n, n_classes)``."""
        return self.to_classes(codes)

    @property
    def directions(self) -> Tensor:
        """The weights of the projection."""
        return self.to_concepts.weight


class LabelFreeCBM(Bottleneck):
    """A bottleneck of concepts that a vision-language model recognises, not people.

    ``fit(..., concepts=)`` takes the similarities ``(n, k)`` of pictures and words for concepts.
    A projection of the features learns to follow them; concepts that it does not follow on
    held-out rows are dropped, and few of the rest enter the logits.

    Parameters
    ----------
    backbone : Backbone, optional
        What pictures are run through. Without one, x is features.
    interpretability : float
        The cubed cosine with the similarities that a concept must exceed on held-out rows.
    nonzeros : float
        How many concepts a class reads at most, on average: the densest such head of a path.
    penalty : float, optional
        λ of the head's elastic net, in place of `nonzeros`.
    concept_names : sequence of str, optional
        The k words. After `fit` it lists those that were kept.
    class_weight : {None, "balanced"}
        Weights of the classes in the head's loss.
    max_epochs, batch_size : int
        The most epochs of the projection, and rows a step.
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
    Oikarinen et al., "Label-Free Concept Bottleneck Models", ICLR 2023.
    """

    network_: StandardisedNetwork

    def __init__(
        self,
        backbone: Backbone | None = None,
        *,
        interpretability: float = 0.45,
        nonzeros: float = 30,
        penalty: float | None = None,
        concept_names: Sequence[str] | None = None,
        class_weight: str | None = None,
        max_epochs: int = 200,
        batch_size: int = 2048,
        lr: float = 1e-2,
        weight_decay: float = 0.0,
        patience: int | None = 20,
        validation_fraction: float = 0.2,
        random_state: int = 0,
    ) -> None:
        self.backbone = backbone
        self.interpretability = interpretability
        self.nonzeros = nonzeros
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

    def _network(self, n_features: int, n_concepts: int, n_classes: int) -> StandardisedNetwork:
        return StandardisedNetwork(n_features, n_concepts, n_classes)

    def _fit(self, data: TrainingData) -> StandardisedNetwork:
        if data.held_out is None:
            raise ValueError(
                "no rows are held out to choose concepts by: give a larger validation_fraction "
                f"than {self.validation_fraction} or more rows"
            )
        c, k = data.features.shape[1], data.labelled.shape[1]
        projection = nn.Linear(c, k, bias=False).to(data.features)
        deviation = deviations(data.features)

        def loss(batch: TrainingData) -> Tensor:
            return -cubed_cosine(projection(batch.features / deviation), batch.labelled).mean()

        self._train(projection, loss, data)
        with torch.no_grad():
            projection.weight.div_(deviation)
            kept = self._kept(projection, data.held_out)
            network = self._network(c, len(kept), data.n_classes).to(data.features)
            self._standardise(network, projection, kept, data)
            fit_head(
                network.to_classes,
                network.concepts,
                data,
                self.class_weight,
                penalty=self.penalty,
                nonzeros=self.nonzeros,
            )
        return network

    def _kept(self, projection: nn.Linear, held_out: TrainingData) -> Tensor:
        """Indices of the concepts that the projection follows."""
        follows = cubed_cosine(projection(held_out.features), held_out.labelled)
        kept = (follows > self.interpretability).nonzero().flatten()
        if len(kept) == 0:
            raise ValueError(
                f"no concept's cubed cosine with its similarities exceeds interpretability="
                f"{self.interpretability} on held-out rows; the best has {float(follows.max()):.3f}"
            )
        names = self.concept_names
        self.concept_names_ = [names[i] for i in kept.tolist()]
        self._kept_columns = kept
        return kept

    def _kept_back(self, held_out: TrainingData | None) -> TrainingData | None:
        held_out = super()._kept_back(held_out)
        if held_out is None:
            return None
        return replace(held_out, concepts=held_out.labelled[:, self._kept_columns])

    def _standardise(
        self, network: StandardisedNetwork, projection: nn.Linear, kept: Tensor, data: TrainingData
    ) -> None:
        """Fill the network with the kept rows, scaled so that codes have mean 0 and deviation 1."""
        weight = projection.weight[kept]
        codes = data.features @ weight.T
        mean, std = codes.mean(0), deviations(codes)
        network.to_concepts.weight.copy_(weight / std[:, None])
        network.to_concepts.bias.copy_(-mean / std)
        labels = data.labelled[:, kept]
        network.similarity_mean = labels.nanmean(0)
        network.similarity_std = (labels - network.similarity_mean).square().nanmean(0).sqrt()

    def codes_with(self, codes: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Put corrected similarities into codes."""
        w = self.network_
        given = (values.to(codes) - w.similarity_mean) / w.similarity_std
        return torch.where(mask, given, codes)

    def _concept_values(self, features: Tensor) -> Tensor:
        w = self.network_
        return w.concepts(features) * w.similarity_std + w.similarity_mean


def cubed_cosine(found: Tensor, wanted: Tensor) -> Tensor:
    """The cosine of each concept's standardised and cubed values over rows, ``(k,)``.

    Cubing lets the rows count that show a concept most.

    Parameters
    ----------
    found, wanted : Tensor
        ``(n, k)``; rows where `wanted` is NaN do not count.
    """
    known = ~wanted.isnan()
    cubes = [_standardised(values, known).pow(3) for values in (found, wanted.nan_to_num(0.0))]
    return nn.functional.cosine_similarity(cubes[0], cubes[1], dim=0)


def _standardised(values: Tensor, known: Tensor) -> Tensor:
    """Values less their mean over their deviation, of the known ones; 0 elsewhere."""
    count = known.sum(0).clamp(min=1)
    centred = (values - (values * known).sum(0) / count) * known
    deviation = (centred.square().sum(0) / count).sqrt()
    return centred / deviation.clamp(min=torch.finfo(values.dtype).eps)
