"""`EnergyCBM`: concepts and class that agree, by minimising one energy of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..backbone import Backbone
from .base import Bottleneck
from .data import TrainingData, is_binary
from .energies import EnergyNetwork, draw_flips
from .energy_inference import average, infer
from .energy_joint import JointDistribution


class EnergyCBM(Bottleneck):
    """The energy-based concept bottleneck model, of binary concepts.

    Its joint energy is E(x, y) + λ_c Σ_k E(x, c_k) + λ_g E(c, y): what the picture says of the
    class, what it says of each concept, and how concepts and class go together. Concepts and
    class are predicted as the minimum of their sum, so that corrected concepts move the others
    and the class. Where there are few states (2^k · n_classes up to 16 384) all are tried; else
    the gradient is followed.

    Codes are what the picture alone says of the concepts; `classify` is what concepts alone say
    of the class. `predict` and `predict_concepts` weigh all three; the probabilities they give a
    concept or the class are those where all the rest is as in the minimum.

    Parameters
    ----------
    backbone : Backbone, optional
        What pictures are run through. Without one, x is features.
    hidden : int
        Size of the vectors that stand for classes and concepts (512 for CUB in the paper).
    dropout : float
        On the projected features, while training.
    concept_weight, global_weight : float
        λ_c and λ_g, of the energies and of their losses (1 and 0.01 for CUB in the paper).
    concept_names : sequence of str, optional
        Default: "concept 0", "concept 1", ...
    max_epochs, batch_size : int
        The most epochs, and rows a step.
    lr, weight_decay : float
        AdamW's.
    patience : int, optional
        Stop after so many epochs without a better loss on held-out rows; None never stops.
    validation_fraction : float
        The share of each class's rows that is held out.
    random_state : int
        Fixes the start, the order of rows, which are held out, and samples.

    References
    ----------
    Xu et al., "Energy-Based Concept Bottleneck Models: Unifying Prediction, Concept Intervention,
    and Probabilistic Interpretations", ICLR 2024.
    """

    network_: EnergyNetwork

    def __init__(
        self,
        backbone: Backbone | None = None,
        *,
        hidden: int = 64,
        dropout: float = 0.2,
        concept_weight: float = 1.0,
        global_weight: float = 0.5,
        concept_names: Sequence[str] | None = None,
        max_epochs: int = 200,
        batch_size: int = 64,
        lr: float = 2e-3,
        weight_decay: float = 1e-4,
        patience: int | None = 20,
        validation_fraction: float = 0.2,
        random_state: int = 0,
    ) -> None:
        self.backbone = backbone
        self.hidden = hidden
        self.dropout = dropout
        self.concept_weight = concept_weight
        self.global_weight = global_weight
        self.concept_names = concept_names
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.random_state = random_state

    # -- what concepts and class are, and what they would be ------------------------------------

    def joint(self, x: Any) -> JointDistribution:
        """The distribution p(c, y) of concepts and class, a mean over the pictures.

        Of each picture it is p(c, y | x) ∝ e^−E, exact where there are few states and otherwise
        from Gibbs samples. Every conditional probability comes from it by `given`.

        Parameters
        ----------
        x : as in `fit`
            Pictures to take the mean over; one alone for the distribution given this picture.
        """
        energies = self.network_.joint(self._features(x))
        return JointDistribution(
            *average(energies, self.random_state), self.concept_names, self.class_names
        )

    def codes_with(self, codes: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Correct concepts and let the others follow, from codes alone.

        As `concepts_with`, but of what the picture itself says of the class nothing is known.
        """
        fixed = torch.where(mask, values.to(codes), torch.nan)
        return infer(self.network_.evidence(codes), fixed)[0]

    def _corrected(self, features: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Concepts and class are found anew from the picture and the corrected concepts."""
        wrong = values[(values != 0) & (values != 1) & ~values.isnan()].unique().tolist()
        if wrong:
            raise ValueError(f"corrections must be 0 or 1, got {wrong}")
        return infer(self.network_.joint(features), values)

    def _concept_values(self, features: Tensor) -> Tensor:
        return infer(self.network_.joint(features))[0]

    # -- training -------------------------------------------------------------------------------

    def _network(self, n_features: int, n_concepts: int, n_classes: int) -> EnergyNetwork:
        return EnergyNetwork(
            n_features,
            n_concepts,
            n_classes,
            hidden=self.hidden,
            dropout=self.dropout,
            concept_weight=self.concept_weight,
            global_weight=self.global_weight,
        )

    def _fit(self, data: TrainingData) -> EnergyNetwork:
        labels = data.labelled
        names = self._names(labels.shape[1])
        if not is_binary(labels).all():
            wrong = [name for name, ok in zip(names, is_binary(labels), strict=True) if not ok]
            raise ValueError(f"EnergyCBM takes concepts of 0 and 1, these have others: {wrong}")
        network = self._network(data.features.shape[1], labels.shape[1], data.n_classes)
        network.to(data.features)
        network.standardise(data.features)
        generator = torch.Generator().manual_seed(self.random_state)

        def loss(batch: TrainingData) -> Tensor:
            flips = draw_flips(len(batch), labels.shape[1], generator).to(batch.y.device)
            return network.loss(batch.features, batch.y, batch.labelled, flips)

        self._train(network, loss, data)
        return network
