"""Explaining again and telling what came out otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .craft import CRAFT
    from .explanation import Explanation


@dataclass(frozen=True)
class Reproduction:
    """How far a second run agrees with an explanation.

    Attributes
    ----------
    changed : dict of str to (object, object)
        What the provenance says otherwise: then and now. Versions, weights, settings, seed.
    differences : dict of str to float
        The largest absolute difference of each part; infinite where shapes differ.
    """

    changed: dict[str, tuple[Any, Any]]
    differences: dict[str, float]

    @property
    def exact(self) -> bool:
        """Whether provenance and every number are equal, to the last bit."""
        return not self.changed and self.within(0.0)

    def within(self, tolerance: float) -> bool:
        """Whether no number differs by more than `tolerance`."""
        return all(difference <= tolerance for difference in self.differences.values())

    def __repr__(self) -> str:
        if self.exact:
            return "Reproduction: equal to the last bit"
        lines = [
            f"  {name}: {then!r} then, {now!r} now" for name, (then, now) in self.changed.items()
        ]
        lines += [f"  {name}: off by {d:.3g}" for name, d in self.differences.items() if not d <= 0]
        return "\n".join(["Reproduction:", *lines])


def reproduce(explanation: Explanation, craft: CRAFT, images: Any) -> Reproduction:
    """Explain the same class again; see `Explanation.reproduce`."""
    then = explanation.provenance
    again = craft.explain(
        images, then["target index"], predicted_only=then.get("predicted only", True)
    )
    now = again.provenance
    names = [name for name in {**then, **now} if name != "names"]  # given to concepts afterwards
    pairs = {
        "pictures": (explanation.pictures, again.pictures),
        "components": (explanation.components, again.components),
        "concept maps": (explanation.concept_maps, again.concept_maps),
        "scores": (explanation.scores, again.scores),
        "importance": (explanation.importance.per_image, again.importance.per_image),
        "standard errors": (explanation.importance.stderr, again.importance.stderr),
        "metrics": tuple(torch.tensor([*e.metrics.values()]) for e in (explanation, again)),
    }
    return Reproduction(
        {n: (then.get(n), now.get(n)) for n in names if then.get(n) != now.get(n)},
        {name: _difference(*pair) for name, pair in pairs.items()},
    )


def _difference(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape:
        return float("inf")
    return float((a.double().cpu() - b.double().cpu()).abs().max()) if a.numel() else 0.0
