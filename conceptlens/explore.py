"""A view of an explanation for notebooks, in which concept and picture are chosen."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from .plots import colour, overlay, scaled_maps
from .report import data_uri

if TYPE_CHECKING:
    from .explanation import Explanation


def explore(explanation: Explanation) -> Any:
    """Return the widget: two menus, and below them what `page` shows of what they choose."""
    try:
        import ipywidgets  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError(
            "explore() needs ipywidgets: pip install 'conceptlens[notebook]'"
        ) from error
    names = [f"{i + 1}. {concept.name}" for i, concept in enumerate(explanation.concepts)]
    concept, picture = (
        ipywidgets.Dropdown(options=[(name, i) for i, name in enumerate(items)], description=what)
        for what, items in (("Concept", names), ("Picture", explanation.picture_names))
    )
    shown = ipywidgets.HTML()

    def show(_: Any = None) -> None:
        shown.value = page(explanation, concept.value, picture.value)

    for menu in (concept, picture):
        menu.observe(show, "value")
    show()
    return ipywidgets.VBox([ipywidgets.HBox([concept, picture]), shown])


def page(explanation: Explanation, rank: int, picture: int) -> str:
    """HTML of the concept at this rank of importance: painted over a picture, and its crops."""
    concept = explanation.concepts[rank]
    name, of_picture = escape(concept.name), escape(explanation.picture_names[picture])
    maps = scaled_maps(explanation, [concept.index], picture)
    painted = overlay(explanation.pictures[picture], maps, [colour(rank)])
    crops = "".join(
        f'<img height="96" src="{data_uri(explanation.pixels(crop))}" '
        f'alt="{name} in {escape(explanation.picture_names[crop.picture])}"> '
        for crop in concept.crops
    )
    return (
        f'<figure><img src="{data_uri(painted)}" alt="where {name} is in {of_picture}">'
        f"<figcaption>{name} in {of_picture}, which the model gives "
        f"{float(explanation.scores[picture]):.0%} for {escape(explanation.target)}</figcaption>"
        f"</figure><p>{name}: importance {concept.importance:.3f} ± {concept.stderr:.3f}, "
        f"{float(explanation.importance.per_image[picture, concept.index]):.3f} in this picture; "
        f"strongest here:</p><p>{crops}</p>"
    )
