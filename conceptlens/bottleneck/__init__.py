"""Concept bottleneck models: `BOTTLENECKS` lists them by name, each made from a random_state."""

from __future__ import annotations

from collections.abc import Callable

from .base import Bottleneck
from .concept_bottleneck import ConceptBottleneck
from .discover import DiscoverThenNameCBM
from .energy import EnergyCBM
from .label_free import LabelFreeCBM
from .matrix_search import concept_matrix_search, search_by_text
from .posthoc import PosthocCBM
from .sparse import SparseCBM

__all__ = [
    "BOTTLENECKS",
    "Bottleneck",
    "ConceptBottleneck",
    "DiscoverThenNameCBM",
    "EnergyCBM",
    "LabelFreeCBM",
    "PosthocCBM",
    "SparseCBM",
    "concept_matrix_search",
    "search_by_text",
]

# Recipes for some hundred rows of some dozen features.
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
}
