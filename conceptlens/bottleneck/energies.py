"""The network of the energy-based bottleneck: three energies and the losses that shape them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, normalize, relu

from .base import Network
from .energy_inference import Energies, centred, infer

# The negatives of the global loss: these shares of the rows, and of their concepts, are flipped.
ROWS_FLIPPED, CONCEPTS_FLIPPED = 0.2, 0.2
# They are drawn so often for each row: p(c, y) is learnt from few flips, too noisily from one draw.
DRAWS = 10


class EnergyNetwork(Network):
    """Energies of picture and class, picture and concepts, concepts and class.

    Classes and the two states of each concept are unit vectors e of `hidden` entries. A projection
    p meets a vector as ReLU(p + p ⊙ e), and a linear layer turns that into an energy.

    Parameters
    ----------
    n_features, n_concepts, n_classes : int
        C, k and the number of classes.
    hidden : int
        Size of the vectors and projections.
    dropout : float
        On the projected features, while training.
    concept_weight, global_weight : float
        Weights of two of the energies in their sum, and of their losses; the class's is 1.
    """

    def __init__(
        self,
        n_features: int,
        n_concepts: int,
        n_classes: int,
        *,
        hidden: int,
        dropout: float,
        concept_weight: float,
        global_weight: float,
    ) -> None:
        super().__init__()
        self.concept_weight, self.global_weight = concept_weight, global_weight
        self.dropout = nn.Dropout(dropout)
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("scale", torch.ones(n_features))
        self.class_vectors = nn.Parameter(torch.randn(n_classes, hidden))
        self.concept_vectors = nn.Parameter(torch.randn(n_concepts, 2, hidden))
        self.class_projection = nn.Linear(n_features, hidden)
        self.concept_projection = nn.Linear(n_features, hidden)
        self.global_projection = nn.Linear(n_concepts * hidden, hidden)
        self.class_head = nn.Linear(hidden, 1)
        self.concept_head = nn.Linear(hidden, 1)
        self.global_head = nn.Linear(hidden, 1)

    def standardise(self, features: Tensor) -> None:
        """Take mean and scale of features from those of training ``(n, C)``."""
        scale, self.mean = torch.std_mean(features, 0, correction=0)
        self.scale = torch.where(scale > 0, scale, 1)

    def _standard(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.scale

    # -- the three energies -------------------------------------------------------------------

    def class_energy(self, features: Tensor) -> Tensor:
        """E(x, y) of features ``(n, C)``: ``(n, n_classes)``."""
        p = self.dropout(self.class_projection(self._standard(features)))
        return _meet(p, self.class_vectors, self.class_head)

    def concept_energy(self, features: Tensor) -> Tensor:
        """E(x, c_k) of features ``(n, C)``: ``(n, k, 2)``, absent and present."""
        p = self.dropout(self.concept_projection(self._standard(features)))
        energy = _meet(p, self.concept_vectors.flatten(0, 1), self.concept_head)
        return energy.unflatten(1, (-1, 2))

    def global_energy(self, concepts: Tensor) -> Tensor:
        """E(c, y) of concepts ``(..., k)`` in [0, 1]: ``(..., n_classes)``.

        A concept between absent and present has the mean of its two vectors, so weighted.
        """
        absent, present = normalize(self.concept_vectors, dim=2).unbind(1)  # (k, hidden)
        weight = self.global_projection.weight.unflatten(1, absent.shape)  # (hidden, k, hidden)
        # The projection of the chosen vectors is affine in the concepts.
        none = torch.einsum("hkj,kj->h", weight, absent) + self.global_projection.bias
        change = torch.einsum("hkj,kj->kh", weight, present - absent)
        return _meet(none + concepts @ change, self.class_vectors, self.global_head)

    # -- as every bottleneck's network --------------------------------------------------------

    def concepts(self, features: Tensor) -> Tensor:
        """What the picture alone says of each concept: probabilities ``(n, k)``."""
        return self.concept_energy(features).neg().softmax(2)[..., 1]

    def classify(self, codes: Tensor) -> Tensor:
        """What the concepts alone say of the class: logits ``(n, n_classes)``."""
        return centred(-self.global_weight * self.global_energy(codes))

    def logits(self, features: Tensor, codes: Tensor) -> Tensor:
        """The class's logits at the minimum of the joint energy, codes saying what concepts do."""
        return infer(self.evidence(codes, self.class_energy(features)))[1]

    def evidence(self, codes: Tensor, of_class: Tensor | None = None) -> Energies:
        """The joint energy where codes ``(n, k)`` are what the pictures say of the concepts.

        Without the class's energy ``(n, n_classes)`` pictures say nothing of the class itself.
        """
        if of_class is None:
            of_class = codes.new_zeros(len(codes), len(self.class_vectors))
        eps = torch.finfo(codes.dtype).eps
        p = torch.stack([1 - codes, codes], 2).clamp(min=eps)
        return Energies(of_class, -self.concept_weight * p.log(), self._of_both)

    def joint(self, features: Tensor) -> Energies:
        """The weighted sum of the three energies, for pictures of features ``(n, C)``."""
        of_concepts = self.concept_weight * self.concept_energy(features)
        return Energies(self.class_energy(features), of_concepts, self._of_both)

    def _of_both(self, concepts: Tensor) -> Tensor:
        return self.global_weight * self.global_energy(concepts)

    # -- training ----------------------------------------------------------------------------

    def loss(self, features: Tensor, labels: Tensor, concepts: Tensor, flips: Tensor) -> Tensor:
        """The sum of the three losses, weighted, a mean over rows.

        Each is −log of a Boltzmann distribution. That of concepts and class is normalised over
        the classes of the true concepts and, where some are flipped, of the flipped ones. As
        flips are as likely back as forth, its minimum is where e^−E ∝ p(c, y).

        Parameters
        ----------
        features : Tensor
            ``(n, C)``.
        labels : Tensor
            ``(n,)`` int64.
        concepts : Tensor
            ``(n, k)`` of 0, 1, or NaN where not known: these add nothing to the loss of concepts,
            and are what the network thinks in the loss of concepts and class.
        flips : Tensor
            ``(n, draws, k)`` bool, of `draw_flips`.
        """
        known = ~concepts.isnan()
        logits = -self.concept_energy(features)  # (n, k, 2)
        filled = torch.where(known, concepts, logits.detach().argmax(2).to(concepts))
        of_concepts = cross_entropy(logits.movedim(2, 1), filled.long(), reduction="none")
        return (
            cross_entropy(-self.class_energy(features), labels)
            + self.concept_weight * (of_concepts * known).sum(1).mean()
            + self.global_weight * self._global_loss(labels, filled, flips)
        )

    def _global_loss(self, labels: Tensor, concepts: Tensor, flips: Tensor) -> Tensor:
        true = concepts[:, None]  # (n, 1, k)
        logits = -self.global_energy(torch.cat([true, torch.where(flips, 1 - true, true)], 1))
        of_true = logits[:, :1].expand(-1, flips.shape[1], -1)
        of_flipped = logits[:, 1:].masked_fill(~flips.any(2, keepdim=True), -torch.inf)
        candidates = torch.cat([of_true, of_flipped], 2)  # (n, draws, 2 n_classes)
        return cross_entropy(candidates.flatten(0, 1), labels.repeat_interleave(flips.shape[1]))


def draw_flips(n: int, k: int, generator: torch.Generator) -> Tensor:
    """Which concepts the negatives have flipped: ``(n, DRAWS, k)`` bool."""
    rows = torch.rand(n, DRAWS, 1, generator=generator) < ROWS_FLIPPED
    return rows & (torch.rand(n, DRAWS, k, generator=generator) < CONCEPTS_FLIPPED)


def _meet(projection: Tensor, vectors: Tensor, head: nn.Linear) -> Tensor:
    """Energies ``(..., m)`` of projections ``(..., hidden)`` with m vectors ``(m, hidden)``.

    As no entry of a unit vector e is below −1, ReLU(p + p ⊙ e) = ReLU(p) ⊙ (1 + e), and all
    m vectors are met in one product of matrices.
    """
    return linear(relu(projection) * head.weight[0], 1 + normalize(vectors, dim=1)) + head.bias
