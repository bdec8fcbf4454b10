"""`DiscoverThenNameCBM`: concepts that an autoencoder finds, named, and a sparse head on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.base import clone
from torch import Tensor

from ..backbone import Backbone
from ..batching import in_batches
from ..extraction.sae import SparseAutoencoder
from ..extraction.sae.settings import Settings
from ..extraction.sae.training import start
from ..extraction.sae.variants import VARIANTS
from .base import Bottleneck, Network
from .contributions import Coverage, contributions, coverage
from .data import TrainingData
from .sparse_head import SparseHead, fit_sparse_head, sparse_path

if TYPE_CHECKING:
    from ..naming import Names

# Rows encoded at once.
CHUNK = 4096
# The weakest penalty of the path, as a share of the one that leaves no weight.
LEAST = 3e-3


class DiscoveredNetwork(Network):
    """An autoencoder's encoder, and a linear layer without bias from its codes to classes."""

    weight: Tensor

    def __init__(self, settings: Settings, n_features: int, n_classes: int) -> None:
        super().__init__()
        self.settings = settings
        self.variant = VARIANTS[settings.variant]
        self.names = []
        for name, tensor in start(settings, torch.zeros(n_features)).items():
            self.register_buffer(f"sae_{name}", tensor)
            self.names.append(name)
        self.register_buffer("weight", torch.zeros(n_classes, settings.n_components))

    @property
    def sae(self) -> dict[str, Tensor]:
        """The autoencoder's weights by name."""
        return {name: getattr(self, f"sae_{name}") for name in self.names}

    def concepts(self, features: Tensor) -> Tensor:
        """The autoencoder's codes ``(n, k)``."""
        weights, sparsity = self.sae, self.settings.sparsity
        return in_batches(lambda a: self.variant.codes(weights, a, sparsity), features, CHUNK)

    def classify(self, codes: Tensor) -> Tensor:
        """Codes ``(n, k)`` → logits ``(n, n_classes)``."""
        return codes @ self.weight.T

    @property
    def directions(self) -> Tensor:
        """The encoder's rows ``(k, C)``."""
        return self.sae["encoder"]


@dataclass(frozen=True)
class PathPoint:
    """One head of the regularisation path.

    Attributes
    ----------
    lam : float
        The weight of ‖W‖₁.
    nonzeros : float
        Concepts used a class, on average.
    accuracy : float
        On the held-out rows.
    """

    lam: float
    nonzeros: float
    accuracy: float


class DiscoverThenNameCBM(Bottleneck):
    """A bottleneck of the concepts that the backbone has, not of a list made beforehand.

    A sparse autoencoder finds directions in the backbone's features without knowing the task; each
    is named by the words whose embedding lies nearest; a linear head without bias reads the codes,
    with few weights that are not zero.

    Parameters
    ----------
    backbone : Backbone, optional
        What pictures are run through. Names by text need its features in the texts' space: the
        image tower of CLIP, such as ``layer="visual"``. Without one, x is features.
    sae : SparseAutoencoder, optional
        If fitted, it is used as it is, for task after task; else a copy is fitted on the training
        rows. Default: the paper's kind, "relu", with eight times as many concepts as features.
    text_encoder : callable, optional
        Turns a list of m texts into unit rows ``(m, C)``. Without it the concepts have no names.
    vocabulary : sequence of str, optional
        The words to name by. Default: `conceptlens.naming.vocabulary`'s.
    lam : float, optional
        The weight of ‖W‖₁ beside the mean cross-entropy. Default: a path of weights, and the
        sparsest head that is as right on held-out rows as the best, up to one standard error.
    n_lambdas : int
        Heads on the path.
    concept_names : sequence of str, optional
        Names to use as they are.
    class_weight : {None, "balanced"}
        Weights of the classes in the cross-entropy.
    validation_fraction : float
        The share of each class's rows that the head is chosen on.
    random_state : int
        Fixes the held-out rows.

    Attributes
    ----------
    sae_ : SparseAutoencoder
        The fitted autoencoder.
    names_ : Names or None
        Names with their confidence, where there is a text encoder.
    path_ : list of PathPoint
        The heads tried, the sparsest first.

    References
    ----------
    Rao et al. (2024), "Discover-then-name: Task-agnostic concept bottlenecks via automated concept
    discovery".
    """

    network_: DiscoveredNetwork

    def __init__(
        self,
        backbone: Backbone | None = None,
        *,
        sae: Any = None,
        text_encoder: Callable[[list[str]], Tensor] | None = None,
        vocabulary: Sequence[str] | None = None,
        lam: float | None = None,
        n_lambdas: int = 30,
        concept_names: Sequence[str] | None = None,
        class_weight: str | None = None,
        validation_fraction: float = 0.2,
        random_state: int = 0,
    ) -> None:
        self.backbone = backbone
        self.sae = sae
        self.text_encoder = text_encoder
        self.vocabulary = vocabulary
        self.lam = lam
        self.n_lambdas = n_lambdas
        self.concept_names = concept_names
        self.class_weight = class_weight
        self.validation_fraction = validation_fraction
        self.random_state = random_state

    def _options(self) -> dict[str, Any]:
        left_out = ("text_encoder", "vocabulary")  # the names are kept, not how they were found
        options = {k: v for k, v in super()._options().items() if k not in left_out}
        return options | {"sae": self.sae_.get_params()}

    def _network(self, n_features: int, n_concepts: int, n_classes: int) -> DiscoveredNetwork:
        fitted = getattr(self, "sae_", None)
        # Before that is known, in `load`, the autoencoder's options are in its place.
        settings = Settings.of(self.sae if fitted is None else fitted.get_params())
        if settings.n_components != n_concepts:
            raise ValueError(f"{n_concepts} concepts of an autoencoder of {settings.n_components}")
        return DiscoveredNetwork(settings, n_features, n_classes)

    def _learn(self, network: Any, *learnt: Any) -> None:
        super()._learn(network, *learnt)
        if isinstance(self.sae, dict):
            self.sae = self.sae_ = SparseAutoencoder(**self.sae)
            self.sae_._learn(network.sae, [], 0)

    def _fit(self, data: TrainingData) -> DiscoveredNetwork:
        self.sae_ = self._autoencoder(data.features)
        k, c = self.sae_.components_.shape
        self.names_ = self._named()
        self.concept_names_ = None if self.names_ is None else list(self.names_.names)
        network = self._network(c, k, data.n_classes).to(data.features)
        for name, tensor in self.sae_.weights_.items():
            network.sae[name].copy_(tensor)
        with torch.no_grad():
            network.weight.copy_(self._head(network, data).weight)
        return network

    def _autoencoder(self, features: Tensor) -> SparseAutoencoder:
        c = features.shape[1]
        if self.sae is None:
            sae = SparseAutoencoder(8 * c, "relu", random_state=self.random_state)
        elif not hasattr(self.sae, "components_"):
            sae = clone(self.sae)
        elif self.sae.n_features_in_ != c:
            raise ValueError(
                f"the autoencoder was fitted on {self.sae.n_features_in_} channels, the features "
                f"have {c}"
            )
        else:
            return self.sae
        return sae.fit(features)

    def _named(self) -> Names | None:
        if self.text_encoder is None or self._concept_names is not None:
            return None
        from ..naming import by_text, vocabulary

        words = vocabulary() if self.vocabulary is None else list(self.vocabulary)
        return by_text(self.sae_.components_, words, self.text_encoder)

    def _head(self, network: DiscoveredNetwork, data: TrainingData) -> SparseHead:
        if self.lam is None and data.held_out is None:
            raise ValueError("nothing is held out to choose lam on: give lam=, or more rows")
        # Classes that separate leave losses near single precision's rounding.
        rows = (network.concepts(data.features).double(), data.y, data.n_classes)
        kind: Any = {"l1_ratio": 1.0, "intercept": False, "class_weight": self.class_weight}
        if self.lam is None:
            path = sparse_path(*rows, n_lambdas=self.n_lambdas, lam_min_ratio=LEAST, **kind)
        else:
            path = [fit_sparse_head(*rows, lam=self.lam, **kind)]
        if data.held_out is None:
            self.path_ = []
            return path[0]
        codes, y = network.concepts(data.held_out.features).double(), data.held_out.y
        right = [float((head(codes).argmax(1) == y).double().mean()) for head in path]
        self.path_ = [
            PathPoint(head.lam, float(head.nonzeros.double().mean()), accuracy)
            for head, accuracy in zip(path, right, strict=True)
        ]
        best = max(right)
        enough = best - math.sqrt(best * (1 - best) / len(y))
        return next(head for head, a in zip(path, right, strict=True) if a >= enough)

    # -- explanations -------------------------------------------------------------------------

    def contributions(self, x: Any, classes: Any = None) -> Tensor:
        """What each concept adds to a logit: u_j W_yj, ``(n, k)``, which sum to the logit.

        Parameters
        ----------
        x : as in `fit`
            Rows.
        classes : list or array, optional
            One of `classes_` a row, or one for all. Default: the predicted ones.
        """
        codes = self.network_.concepts(self._features(x))
        if classes is None:
            wanted = self.network_.classify(codes).argmax(1)
        else:
            labels = np.broadcast_to(np.asarray(classes), len(codes))
            unknown = sorted(set(labels.tolist()) - set(self.classes_.tolist()))
            if unknown:
                raise ValueError(f"there are no classes {unknown}: they are {self.class_names}")
            wanted = torch.from_numpy(np.searchsorted(self.classes_, labels)).to(codes.device)
        return contributions(codes, self.network_.weight, wanted)

    def top_concepts(self, x: Any, n: int = 5) -> list[list[tuple[str, float]]]:
        """For each row the `n` concepts that speak most for its class, with what each adds."""
        parts = self.contributions(x)
        values, indices = parts.topk(min(n, parts.shape[1]), dim=1)
        return [
            [(self.concept_names[j], v) for j, v in zip(*row, strict=True) if v > 0]
            for row in zip(indices.tolist(), values.tolist(), strict=True)
        ]

    def class_concepts(self, x: Any) -> Tensor:
        """The mean positive contribution of each concept to each class: ``(n_classes, k)``.

        Over the rows that are given to the class; NaN for a class that none is given to.
        """
        codes = self.network_.concepts(self._features(x))
        given = self.network_.classify(codes).argmax(1)
        parts = contributions(codes, self.network_.weight, given).clamp(min=0)
        return torch.stack([parts[given == y].mean(0) for y in range(len(self.classes_))])

    def coverage(self, x: Any, signs: str = "absolute") -> Coverage:
        """How many concepts make up 90, 95 and 99 % of the predicted classes' logits."""
        return coverage(self.contributions(x), signs)
