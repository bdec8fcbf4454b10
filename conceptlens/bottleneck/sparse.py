"""`SparseCBM`: a bottleneck of concept texts, made sparse in one of three ways."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from ..backbone import Backbone
from ..metrics.checks import check_one_of, check_shape
from .base import Bottleneck, Network
from .data import TrainingData
from .lora import AdaptedBackbone, LowRankAdapters
from .sparse_losses import contrastive_loss, gumbel_loss, l1_loss, similarity_loss

# The ways, with the default weight of each one's loss beside the classes' cross-entropy.
SPARSITIES = {"gumbel": 1.0, "l1": 1e-3, "contrastive": 1.0}


class SparseNetwork(Network):
    """Scores by text, a linear layer from k to k concepts and one to classes, without biases."""

    texts: Tensor

    def __init__(self, n_features: int, n_concepts: int, n_classes: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("texts", torch.zeros(n_concepts, n_features))
        self.bottleneck = nn.Linear(n_concepts, n_concepts, bias=False)
        self.head = nn.Linear(n_concepts, n_classes, bias=False)
        self.adapters: LowRankAdapters | None = None
        nn.init.eye_(self.bottleneck.weight)  # each output begins as its own concept's score

    def scores(self, features: Tensor) -> Tensor:
        """The scaled cosines ``(n, k)`` of embeddings ``(n, e)`` with the concept texts."""
        return self.scale * normalize(features, dim=1) @ self.texts.T

    def concepts(self, features: Tensor) -> Tensor:
        """The bottleneck layer's outputs ``(n, k)``."""
        return self.bottleneck(self.scores(features))

    def classify(self, codes: Tensor) -> Tensor:
        """Codes ``(n, k)`` → logits ``(n, n_classes)``."""
        return self.head(codes)

    @property
    def directions(self) -> Tensor:
        """The codes are the scaled products of these ``(k, e)`` with embeddings of unit norm."""
        return self.bottleneck.weight @ self.texts


class SparseCBM(Bottleneck):
    """A bottleneck whose concepts are texts: CLIP's scores, mixed by a layer that is made sparse.

    The score of a concept is the scaled cosine of the picture's embedding with the embedding of
    the concept's text. A linear layer mixes the k scores into k concept activations, another turns
    these into logits; neither has a bias. Both are trained by cross-entropy, and the first by a
    loss of its own beside it.

    Parameters
    ----------
    backbone : Backbone, optional
        Cut where it returns embeddings in the texts' space: the image tower of CLIP, such as
        ``layer="visual"``. Without one, x is embeddings.
    concept_embeddings : Tensor or array
        ``(k, e)``: embeddings of the concepts' texts, of any length. (The saved model has them in
        its weights; to fit it again, give them again.)
    sparsity : {"gumbel", "l1", "contrastive"}
        The first layer's own loss: −log of Gumbel-softmax samples of its outputs, over concepts
        and over the batch; the magnitudes of its weights; or symmetric cross-entropy between
        pictures and concepts.
    strength : float, optional
        Its weight. Default: 1, and 0.001 for "l1".
    similarity_weight : float
        The weight of 1 − cos³ between scores and activations, which keeps concepts what they are.
    tau_start, tau_end : float
        The temperature of the Gumbel-softmax at the first and at the last step; geometric between.
    hard : bool
        Whether that loss counts only what one-hot samples pick, which makes a few activations
        stand out. Averaged over all entries, as in the authors' code, it makes them alike.
    scale : float
        Of the cosines; CLIP's own is 100.
    lora_rank : int, optional
        Train low-rank changes of the backbone's linear layers too, of this rank; needs pictures,
        which are then run in every epoch. Default: the backbone stays as it is.
    concept_names : sequence of str, optional
        The concepts' texts. Default: "concept 0", "concept 1", ...
    class_weight : {None, "balanced"}
        Weights of the classes in the cross-entropy.
    max_epochs, batch_size : int
        Epochs, and rows a step. (There is no early stop: the temperature falls until the end.)
    lr : float
        Adam's.
    random_state : int
        Fixes the start, the noise and the order of rows.

    References
    ----------
    Semenov et al. (2024), "Sparse concept bottleneck models: Gumbel tricks in contrastive
    learning". Here the first layer starts at the identity, and the contrastive pairs are those
    that the backbone finds most alike.
    """

    network_: SparseNetwork

    def __init__(
        self,
        backbone: Backbone | None = None,
        *,
        concept_embeddings: Any = None,
        sparsity: str = "gumbel",
        strength: float | None = None,
        similarity_weight: float = 0.0,
        tau_start: float = 1.0,
        tau_end: float = 0.1,
        hard: bool = True,
        scale: float = 100.0,
        lora_rank: int | None = None,
        concept_names: Sequence[str] | None = None,
        class_weight: str | None = None,
        max_epochs: int = 50,
        batch_size: int = 128,
        lr: float = 1e-3,
        random_state: int = 0,
    ) -> None:
        self.backbone = backbone
        self.concept_embeddings = concept_embeddings
        self.sparsity = sparsity
        self.strength = strength
        self.similarity_weight = similarity_weight
        self.tau_start = tau_start
        self.tau_end = tau_end
        self.hard = hard
        self.scale = scale
        self.lora_rank = lora_rank
        self.concept_names = concept_names
        self.class_weight = class_weight
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.lr = lr
        self.random_state = random_state

    def _network(self, n_features: int, n_concepts: int, n_classes: int) -> SparseNetwork:
        network = SparseNetwork(n_features, n_concepts, n_classes, self.scale)
        if self.lora_rank is not None:
            if self.backbone is None:
                raise ValueError("lora_rank adapts a backbone, but there is none: give backbone=")
            generator = torch.Generator().manual_seed(self.random_state)
            network.adapters = LowRankAdapters(self.backbone.model, self.lora_rank, generator)
        return network

    def _options(self) -> dict[str, Any]:
        return {k: v for k, v in super()._options().items() if k != "concept_embeddings"}

    def _fit(self, data: TrainingData) -> SparseNetwork:
        self._check()
        e = data.features.shape[1]
        texts = check_shape(self.concept_embeddings, "concept_embeddings", "k e", e=e)
        self.concept_names_ = self._names(len(texts))
        network = self._network(e, len(texts), data.n_classes).to(data.features)
        network.texts.copy_(normalize(texts.to(data.features), dim=1))
        weights = data.class_weights(self.class_weight)
        embeddings = self._embeddings(network)
        own_loss = self._own_loss(network, self.max_epochs * math.ceil(len(data) / self.batch_size))

        def loss(batch: TrainingData) -> Tensor:
            scores = network.scores(embeddings(batch))
            outputs = network.bottleneck(scores)
            classes = cross_entropy(network.head(outputs), batch.y, weights)
            return classes + own_loss(outputs, scores)

        self._train(network, loss, data)
        return network

    def _check(self) -> None:
        if self.concept_embeddings is None:
            raise ValueError("give concept_embeddings=, embeddings (k, e) of the concepts' texts")
        check_one_of(self.sparsity, "sparsity", tuple(SPARSITIES))

    def _own_loss(self, network: SparseNetwork, n_steps: int) -> Callable[[Tensor, Tensor], Tensor]:
        """The first layer's loss, of its outputs and its inputs, called once a step."""
        strength = SPARSITIES[self.sparsity] if self.strength is None else self.strength
        generator = torch.Generator().manual_seed(self.random_state)
        taus = iter(geometric(self.tau_start, self.tau_end, n_steps))

        def loss(outputs: Tensor, scores: Tensor) -> Tensor:
            if self.sparsity == "gumbel":
                value = gumbel_loss(outputs, next(taus), generator, hard=self.hard)
            elif self.sparsity == "contrastive":
                value = contrastive_loss(outputs, scores)
            else:
                value = l1_loss(network.bottleneck.weight)
            value = strength * value
            if self.similarity_weight:
                value = value + self.similarity_weight * similarity_loss(outputs, scores)
            return value

        return loss

    def _embeddings(self, network: SparseNetwork) -> Callable[[TrainingData], Tensor]:
        """What gives a batch's embeddings; with adapters they change from step to step."""
        if network.adapters is None or self.backbone is None:
            return lambda batch: batch.features
        adapted = AdaptedBackbone(self.backbone, network.adapters)

        def embeddings(batch: TrainingData) -> Tensor:
            if batch.pictures is None:
                raise ValueError("lora_rank trains the backbone: give pictures, not embeddings")
            pictures = torch.stack([batch.pictures[i] for i in batch.rows.tolist()])
            return adapted.activations(pictures).mean(1)

        return embeddings

    def _learn(self, network: Any, *learnt: Any) -> None:
        super()._learn(network, *learnt)
        if network.adapters is not None and self.backbone is not None:
            self.backbone_ = AdaptedBackbone(self.backbone, network.adapters)


def geometric(start: float, end: float, n: int) -> list[float]:
    """As many numbers from `start` to `end` as said, each the same multiple of the last."""
    return [start * (end / start) ** (i / max(1, n - 1)) for i in range(n)]
