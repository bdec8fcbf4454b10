"""From a `ClassIndex` to one self-contained HTML page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import torch
from torch import Tensor

from ..comparison import SHARED
from ..plots import colour
from .page import fill

if TYPE_CHECKING:
    from ..class_index import Card, ClassIndex

# One shared concept: class and rank of the concept there, twice, and the cosine.
Pair = tuple[int, int, int, int, float]


def render_index(index: ClassIndex) -> str:
    """Return the page as HTML; every name in it is escaped."""
    from ..class_index import REPORT_FILE

    cards = sorted(index.cards.values(), key=lambda card: card.name.casefold())
    pairs = shared_pairs([index.components(card.name) for card in cards])
    also: dict[tuple[int, int], list[tuple[float, str]]] = {}
    for a, i, b, j, cosine in pairs:
        also.setdefault((a, i), []).append((cosine, cards[b].name))
        also.setdefault((b, j), []).append((cosine, cards[a].name))
    return fill(
        "index.html",
        script_file="index.js",
        cards=[_card(card, n, REPORT_FILE, also) for n, card in enumerate(cards)],
        pairs=pairs,
        threshold=SHARED,
        failed=index.failed,
        without=index.without_pictures,
        about=index.about,
        pictures=sum(card.pictures for card in cards),
    )


def shared_pairs(components: list[Tensor]) -> list[Pair]:
    """The concepts that two classes share: each the other's nearest, and nearer than `SHARED`.

    Parameters
    ----------
    components : list of Tensor
        Of each class the dictionary's rows ``(k, C)``, of any k.
    """
    n, k = len(components), max(map(len, components), default=0)
    if n < 2:
        return []
    units = torch.zeros(n, k, components[0].shape[1])
    for unit, rows in zip(units, components, strict=True):
        unit[: len(rows)] = torch.nn.functional.normalize(rows.float(), dim=1)
    pairs: list[Pair] = []
    for a in range(n - 1):
        cosines = torch.einsum("ic,bjc->bij", units[a], units[a + 1 :])
        nearest = (cosines == cosines.amax(1, keepdim=True)) & (
            cosines == cosines.amax(2, keepdim=True)
        )
        for b, i, j in (nearest & (cosines >= SHARED)).nonzero().tolist():
            pairs.append((a, i, a + 1 + b, j, round(float(cosines[b, i, j]), 2)))
    return pairs


def _card(
    card: Card, number: int, report: str, also: dict[tuple[int, int], list[tuple[float, str]]]
) -> dict[str, Any]:
    return {
        "card": card,
        "number": number,
        "href": f"{quote(card.folder)}/{report}",
        "concepts": [
            {
                "concept": concept,
                "colour": colour(rank),
                "also": [name for _, name in sorted(also.get((number, rank), []), reverse=True)],
            }
            for rank, concept in enumerate(card.concepts)
        ],
        "search": " ".join([card.name, *(c.name for c in card.concepts)]).casefold(),
    }
