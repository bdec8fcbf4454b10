"""Concept bottleneck models: `BOTTLENECKS` lists them by name, each made from a random_state."""

from __future__ import annotations

from collections.abc import Callable

from .base import Bottleneck
from .concept_bottleneck import ConceptBottleneck

__all__ = ["BOTTLENECKS", "Bottleneck", "ConceptBottleneck"]

# Recipes for some hundred rows of some dozen features.
BOTTLENECKS: dict[str, Callable[[int], Bottleneck]] = {
    "joint": lambda seed: ConceptBottleneck(random_state=seed, max_epochs=60),
    "sequential": lambda seed: ConceptBottleneck(
        training="sequential", random_state=seed, max_epochs=60
    ),
    "independent": lambda seed: ConceptBottleneck(
        training="independent", random_state=seed, max_epochs=60
    ),
}
