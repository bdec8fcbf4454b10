"""From an `Explanation` to one self-contained HTML page."""

from __future__ import annotations

import base64
import hashlib
import io
import math
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor

from ..clusters import MIN_PICTURES, cluster_graph
from ..plots import colour, drawable, grid_maps, overlay, scaled_maps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..explanation import Explanation
    from ..local import Waterfall

N_CROPS = 8
N_PICTURES = 8
# More than four colours in one picture cannot be told apart.
N_PAINTED = 4
GREY = "#8a8a8f"
# Side in pixels: a page of a thousand classes has some thousands of them.
THUMBNAIL = 72

MEANING = {
    "crop reconstruction error": "share of the crops' activations that the concepts miss",
    "picture reconstruction error": "share of the whole pictures' activations that they miss",
    "prediction agreement": "share of pictures that keep their class when rebuilt from concepts",
    "mean logit difference": "mean change of the class's logit when rebuilt from concepts",
    "C-Deletion": "mean logit as concepts are removed, the most important first; low is faithful",
    "C-Insertion": "mean logit as concepts are put in, the most important first; high is faithful",
    "C-µFidelity": "correlation of importance with what removal does, from −1 to 1",
}


def render(explanation: Explanation) -> str:
    """Return the report as HTML; every name in it is escaped."""
    return fill(
        "report.html",
        explanation=explanation,
        lead=_lead(explanation),
        concepts=_concepts(explanation),
        pictures=_pictures(explanation),
        painted=_legend(explanation),
        ways=_ways(explanation),
        maps=_maps(explanation),
        metrics=[(n, v, MEANING.get(n, "")) for n, v in explanation.metrics.items()],
    )


def fill(template: str, script_file: str = "report.js", **values: Any) -> str:
    """Fill in one of this folder's templates; what is filled in is escaped."""
    folder = files("conceptlens.report")
    style, script = ((folder / f).read_text(encoding="utf-8") for f in ("report.css", script_file))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        _environment()
        .get_template(template)
        .render(style=style, script=script, script_hash=f"sha256-{digest}", **values)
    )


@cache
def _environment() -> Any:
    """The templates, each compiled once."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("conceptlens", "report"), autoescape=True, undefined=StrictUndefined
    )


def data_uri(picture: Tensor) -> str:
    """A uint8 picture ``(3, H, W)`` as a JPEG inside a URI."""
    buffer = io.BytesIO()
    Image.fromarray(picture.movedim(0, -1).numpy()).save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def thumbnail_uri(picture: Tensor) -> str:
    """A uint8 picture ``(3, H, W)`` as a JPEG of at most two kilobytes or so inside a URI."""
    image = Image.fromarray(picture.movedim(0, -1).numpy())
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=60, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def figure_uri(figure: Figure) -> str:
    """A matplotlib figure as a PNG inside a URI; dollars in names begin no formula."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
        text.set_text(drawable(text.get_text()))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _lead(explanation: Explanation) -> str:
    first = explanation.concepts[0]
    total = sum(c.importance for c in explanation.concepts) or 1.0
    running, needed = 0.0, 0
    for concept in explanation.concepts:
        if running >= 0.8 * total:
            break
        running, needed = running + concept.importance, needed + 1
    plural = "concepts carries" if needed == 1 else "concepts carry"
    return (
        f"In {len(explanation.pictures)} pictures the network says “{explanation.target}” most of "
        f"all because of {first.name}: importance {first.importance:.2f} ± {first.stderr:.2f}. "
        f"{needed} of {len(explanation.concepts)} {plural} 80 % of the importance."
    )


def _concepts(explanation: Explanation, within: str = "") -> list[dict[str, Any]]:
    """One card a concept; bars are in percent of the longest, whiskers included.

    A card's sub-concepts are cards of their own, whose ids begin with the card's.
    """
    ends = [c.importance + c.stderr for c in explanation.concepts]
    unit = 100 / max([*ends, 1e-12])
    leading = explanation.importance.per_image.argmax(1)
    return [
        {
            "name": concept.name,
            "id": f"{within}concept-{concept.index}",
            "colour": colour(rank),
            "confidence": concept.confidence,
            "others": concept.candidates[1:],
            "importance": concept.importance,
            "stderr": concept.stderr,
            "bar": max(0.0, concept.importance) * unit,
            "low": max(0.0, concept.importance - concept.stderr) * unit,
            "span": min(2 * concept.stderr, concept.importance + concept.stderr) * unit,
            "leads": int((leading == concept.index).sum()),
            "crops": [
                {
                    "uri": data_uri(explanation.pixels(crop)),
                    "alt": f"Crop of {explanation.picture_names[crop.picture]}, "
                    f"strength {crop.score:.2f}",
                }
                for crop in concept.crops[:N_CROPS]
            ],
            "part": part,
            "parts": _concepts(part, f"{within}concept-{concept.index}-") if part else [],
        }
        for rank, concept in enumerate(explanation.concepts)
        for part in [explanation.subconcepts.get(concept.index)]
    ]


def _legend(explanation: Explanation) -> list[dict[str, str]]:
    shown = explanation.concepts[:N_PAINTED]
    return [{"name": c.name, "colour": colour(rank)} for rank, c in enumerate(shown)]


def _pictures(explanation: Explanation) -> list[dict[str, Any]]:
    """The pictures the network is surest of, with its main concepts painted on them."""
    shown = explanation.concepts[:N_PAINTED]
    chosen = [c.index for c in shown]
    colours = [colour(rank) for rank in range(len(shown))]
    cards = []
    for i in _shown(explanation):
        values = explanation.importance.per_image[i, chosen]
        name = explanation.picture_names[i]
        painted = overlay(explanation.pictures[i], scaled_maps(explanation, chosen, i), colours)
        main = shown[int(values.argmax())].name
        cards.append(
            {
                "name": name,
                "score": float(explanation.scores[i]),
                "uri": data_uri(explanation.pictures[i]),
                "painted": data_uri(painted),
                "waterfall": _waterfall(explanation, i),
                "alt": f"{name} with its main concepts painted on it, {main} foremost",
                "parts": [
                    {"name": c.name, "colour": k, "value": v}
                    for c, k, v in zip(shown, colours, values.tolist(), strict=True)
                ],
            }
        )
    return cards


def _shown(explanation: Explanation) -> list[int]:
    """The pictures on the page."""
    return explanation.scores.argsort(descending=True)[:N_PICTURES].tolist()


def _maps(explanation: Explanation) -> dict[str, Any]:
    """What the page's script paints: each picture's concepts on the grid, as bytes in base64."""
    chosen = [concept.index for concept in explanation.concepts]
    strengths = grid_maps(explanation, chosen)[_shown(explanation)].clamp(0, 1)
    grid = list(explanation.concept_maps.shape[2:])
    return {
        "grid": grid if math.prod(grid) > 1 else None,
        "colours": [colour(rank) for rank in range(len(chosen))],
        "maps": [[_bytes(concept) for concept in maps] for maps in strengths],
    }


def _bytes(strength: Tensor) -> str:
    return base64.b64encode((255 * strength).round().byte().cpu().numpy().tobytes()).decode()


def _waterfall(explanation: Explanation, picture: int) -> list[dict[str, Any]]:
    if explanation.logit_parts is None:
        return []
    fall = explanation.waterfall(picture)
    ranks = {concept.index: rank for rank, concept in enumerate(explanation.concepts)}
    steps = [
        (name, height, GREY if concept is None else colour(ranks[concept]))
        for name, height, concept in fall.steps
    ]
    return fall_rows(fall, steps)


def fall_rows(fall: Waterfall, steps: list[tuple[str, float, str]]) -> list[dict[str, Any]]:
    """The rows of a waterfall; left ends and widths are in percent of the track.

    Steps are names, heights and colours.
    """
    level = fall.base
    rows = [("base, without concepts", 0.0, level, GREY)]
    for name, height, tint in steps:
        rows.append((name, level, height, tint))
        level += height
    rows.append((f"logit of {fall.target}", 0.0, fall.logit, GREY))
    ends = [end for _, start, height, _ in rows for end in (start, start + height)]
    low, unit = min(ends), 100 / max(max(ends) - min(ends), 1e-12)
    return [
        {
            "name": name,
            "value": height,
            "left": (min(start, start + height) - low) * unit,
            "width": abs(height) * unit,
            "colour": tint,
        }
        for name, start, height, tint in rows
    ]


def _ways(explanation: Explanation) -> dict[str, Any] | None:
    """The strategic cluster graph, where there are pictures enough."""
    if len(explanation.pictures) < MIN_PICTURES:
        return None
    graph = cluster_graph(explanation.importance)
    clusters = list(zip(graph.names, graph.sizes, strict=True))
    listed = "; ".join(f"{name} in {size} pictures" for name, size in clusters)
    return {
        "uri": figure_uri(graph.plot().figure),
        "alt": f"Pictures of {graph.target} as dots, grouped by their main concepts: {listed}",
        "clusters": clusters,
    }
