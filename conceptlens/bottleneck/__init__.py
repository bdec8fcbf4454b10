"""Concept bottleneck models: `BOTTLENECKS` lists them by name, each made from a random_state."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..extraction.sae import SparseAutoencoder
from .base import Bottleneck
from .concept_bottleneck import ConceptBottleneck
from .discover import DiscoverThenNameCBM
from .energy import EnergyCBM
from .interventions import POLICIES, InterventionCurve, intervention_curve
from .label_free import LabelFreeCBM
from .matrix_search import concept_matrix_search, search_by_text
from .posthoc import PosthocCBM
from .sparse import SparseCBM

__all__ = [
    "BOTTLENECKS",
    "POLICIES",
    "Bottleneck",
    "ConceptBottleneck",
    "DiscoverThenNameCBM",
    "EnergyCBM",
    "InterventionCurve",
    "LabelFreeCBM",
    "PosthocCBM",
    "SparseCBM",
    "concept_matrix_search",
    "intervention_curve",
    "search_by_text",
]


def _sparse(sparsity: str, seed: int) -> SparseCBM:
    """A bottleneck whose twelve texts are the features' own axes."""
    return SparseCBM(
        concept_embeddings=torch.eye(12), sparsity=sparsity, max_epochs=60, lr=1e-2,
        random_state=seed,
    )  # fmt: skip


# Recipes for some hundred rows of some dozen features; the sparse ones for a dozen just.
BOTTLENECKS: dict[str, Callable[[int], Bottleneck]] = {
    "joint": lambda seed: ConceptBottleneck(random_state=seed, max_epochs=60),
    "sequential": lambda seed: ConceptBottleneck(
        training="sequential", random_state=seed, max_epochs=60
    ),
    "independent": lambda seed: ConceptBottleneck(
        training="independent", random_state=seed, max_epochs=60
    ),
    "posthoc": lambda seed: PosthocCBM(penalty=1e-3, random_state=seed),
    "hybrid": lambda seed: PosthocCBM(hybrid=True, penalty=1e-3, random_state=seed),
    "label-free": lambda seed: LabelFreeCBM(penalty=1e-3, max_epochs=60, random_state=seed),
    "energy": lambda seed: EnergyCBM(random_state=seed, max_epochs=60),
    "sparse gumbel": lambda seed: _sparse("gumbel", seed),
    "sparse l1": lambda seed: _sparse("l1", seed),
    "sparse contrastive": lambda seed: _sparse("contrastive", seed),
    "discover then name": lambda seed: DiscoverThenNameCBM(
        sae=SparseAutoencoder(
            24, "relu", n_epochs=30, batch_size=64, learning_rate=3e-3, random_state=seed
        ),
        n_lambdas=5,
        random_state=seed,
    ),
}
