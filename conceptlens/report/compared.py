"""From a `Comparison` to one self-contained HTML page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..plots import colour
from .page import data_uri, figure_uri, fill

if TYPE_CHECKING:
    from ..comparison import Comparison
    from ..explanation import Concept, Explanation

N_CROPS = 4


def render_comparison(comparison: Comparison) -> str:
    """Return the page as HTML; every name in it is escaped."""
    from ..comparison import shown

    names = list(comparison.explanations)
    rows = [
        (label, [shown(row.get(name, "")) for name in names])
        for label, row in comparison.table.items()
    ]
    return fill(
        "comparison.html",
        targets=comparison.targets,
        names=names,
        figure=figure_uri(comparison.plot()),
        alt=f"Bars of the importance of each concept, a panel each for {', '.join(names)}",
        rows=rows,
        matched=[
            {
                "colour": colour(rank),
                "cells": [_partner(comparison, name, concept.index) for name in names],
            }
            for rank, concept in enumerate(comparison.reference.concepts)
        ],
        unmatched=[(name, _unmatched(comparison, name)) for name in names[1:]],
    )


def _partner(comparison: Comparison, name: str, reference: int) -> dict[str, Any] | None:
    """What explanation `name` has for a concept of the reference."""
    matching = comparison.matchings[name]
    if reference not in matching.partners:
        return None
    explanation = comparison.explanations[name]
    concept = _concept(explanation, matching.partners[reference])
    return {
        "name": concept.name,
        "importance": concept.importance,
        "stderr": concept.stderr,
        "similarity": None
        if explanation is comparison.reference
        else f"{matching.by} {matching.similarity[reference]:.2f}"
        + (", shared" if reference in matching.shared else ""),
        "crops": [
            {
                "uri": data_uri(explanation.pixels(crop)),
                "alt": f"Crop of {explanation.picture_names[crop.picture]}",
            }
            for crop in concept.crops[:N_CROPS]
        ],
    }


def _unmatched(comparison: Comparison, name: str) -> list[Concept]:
    partners = set(comparison.matchings[name].partners.values())
    return [c for c in comparison.explanations[name].concepts if c.index not in partners]


def _concept(explanation: Explanation, index: int) -> Concept:
    return next(concept for concept in explanation.concepts if concept.index == index)
