"""`Explanation`: what was found about a class, to look at, save and load."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .checks import check_path
from .crops import Crop, CropSet
from .files import write_atomically
from .importance.result import Importance
from .model import ConceptModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .craft import CRAFT
    from .local import Waterfall
    from .naming.names import Names
    from .reproduction import Reproduction


@dataclass(frozen=True)
class Concept:
    """One concept.

    Attributes
    ----------
    index : int
        Its row in the dictionary.
    name : str
        What it is called.
    importance, stderr : float
        How much it matters for the class, and the standard error of that.
    crops : list of Crop
        Where it is strongest, best first.
    candidates : list of (str, float)
        The words it may be called by, with their scores, best first; see `Explanation.named`.
    confidence : float or None
        How far its name may be trusted.
    """

    index: int
    name: str
    importance: float
    stderr: float
    crops: list[Crop]
    candidates: list[tuple[str, float]] = field(default_factory=list)
    confidence: float | None = None


@dataclass(frozen=True, eq=False)
class Explanation:
    """The concepts that a classifier uses for one class.

    Attributes
    ----------
    target : str
        The class.
    importance : Importance
        How much each concept matters.
    concepts : list of Concept
        Most important first.
    pictures : Tensor
        uint8 ``(n, 3, H, W)``, the pictures explained.
    picture_names : list of str
        One a picture.
    concept_maps : Tensor
        ``(n, k, h, w)``: the concepts' codes on the grid of positions.
    components : Tensor
        The dictionary ``(k, C)``.
    scores : Tensor
        ``(n,)``: the probability of the class that the model gives to each picture.
    metrics : dict
        How faithful the concepts are, by name.
    provenance : dict
        How it was made.
    subconcepts : dict of int to Explanation
        For a concept, by its index, what it is made of at an earlier layer; see `decompose`.
    logit_parts : Tensor or None
        ``(n, k + 3)``: what each picture's logit is the sum of; see `waterfall`.
    model : ConceptModel or None
        The classifier in concept space, for maps of other pictures; not saved.
    crop_set : CropSet or None
        The crops, for `decompose`; not saved.
    """

    target: str
    importance: Importance
    concepts: list[Concept]
    pictures: Tensor
    picture_names: list[str]
    concept_maps: Tensor
    components: Tensor
    scores: Tensor
    metrics: dict[str, float]
    provenance: dict[str, Any]
    subconcepts: dict[int, Explanation] = field(default_factory=dict)
    logit_parts: Tensor | None = None
    model: ConceptModel | None = None
    crop_set: CropSet | None = None

    def named(self, names: Names) -> Explanation:
        """Return the same explanation with its concepts called by `names`.

        Plots, report, waterfalls and saved files then show the names, the report also their
        confidence and runners-up. Concepts that share a name are told apart by their numbers.

        Parameters
        ----------
        names : Names
            One a row of `components`, as the functions of `conceptlens.naming` give.
        """
        k = len(self.importance.concept_names)
        if len(names) != k:
            raise ValueError(f"{len(names)} names for {k} concepts")
        labels = names.labels
        concepts = [
            replace(
                c,
                name=labels[c.index],
                candidates=names.candidates[c.index],
                confidence=float(names.confidence[c.index]),
            )
            for c in self.concepts
        ]
        model = copy(self.model)
        if model is not None:
            model.concept_names = labels
        return replace(
            self,
            concepts=concepts,
            importance=replace(self.importance, concept_names=labels),
            provenance=self.provenance | {"names": names.method},
            model=model,
        )

    def maps(self, x: Tensor, method: str = "interpolate") -> Tensor:
        """Map the concepts over other pictures: ``(B, 3, H, W)`` → ``(B, k, H, W)``.

        `method` is one of `concept_maps`'.
        """
        from .maps import concept_maps

        if self.model is None:
            raise ValueError(
                "a loaded explanation has no network: pass it with Explanation.load(folder, model=)"
            )
        return concept_maps(self.model, x, method)

    def waterfall(self, picture: int) -> Waterfall:
        """Decompose the logit of one of the pictures explained into what each concept adds."""
        from .local import waterfall_of

        if self.logit_parts is None:
            raise ValueError("this explanation holds no logit_parts: explain again")
        return waterfall_of(self.logit_parts[picture], self.target, self.importance.concept_names)

    def reproduce(self, craft: CRAFT, images: Any) -> Reproduction:
        """Explain again and tell what came out otherwise; no sub-concepts.

        Parameters
        ----------
        craft : CRAFT
            Made as for this explanation: what was made otherwise is told by the provenance.
        images : folder, list, Dataset, DataLoader or Tensor
            The pictures that were given then.

        Returns
        -------
        Reproduction
            ``exact`` if provenance and numbers are equal to the last bit, as they are on the same
            machine with the same versions and number of threads; else it names the differences.
        """
        from .reproduction import reproduce

        return reproduce(self, craft, images)

    def pixels(self, crop: Crop) -> Tensor:
        """Return the pixels of a crop, uint8 ``(3, h, w)``."""
        left, top, right, bottom = crop.box
        return self.pictures[crop.picture, :, top:bottom, left:right]

    def plot(self) -> Figure:
        """Draw the one-page summary."""
        from .plots import summary

        return summary(self)

    def explore(self) -> Any:
        """Return a view for notebooks: choose a concept and a picture, see its map and crops.

        Raises
        ------
        ImportError
            Without ipywidgets.
        """
        from .explore import explore

        return explore(self)

    def to_html(self, path: str | Path) -> Path:
        """Write the report, one self-contained HTML file; return its path."""
        from .report import render

        path = check_path(path, "path")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, render(self).encode(errors="replace"))
        return path

    def save(self, folder: str | Path) -> Path:
        """Write ``explanation.json``, ``tensors.safetensors`` and ``pictures/*.png``.

        ``explanation.json`` is removed first and written last, so that a folder that was not
        written to its end does not load.
        """
        from .explanation_files import save

        return save(self, check_path(folder))

    @staticmethod
    def load(folder: str | Path, model: ConceptModel | None = None) -> Explanation:
        """Read what `save` wrote; needs no network.

        Parameters
        ----------
        folder : str or Path
            Where it was saved.
        model : ConceptModel, optional
            The classifier in concept space, for `maps`.

        Raises
        ------
        ValueError
            If the folder holds no whole explanation, or a file of it was changed; the message names
            the file.
        """
        from .explanation_files import load

        return load(check_path(folder), model)

    def __repr__(self) -> str:
        rows = (f"  {c.name}: {c.importance:.3f} ± {c.stderr:.3f}" for c in self.concepts)
        head = (
            f"Explanation of {self.target!r}: {len(self.concepts)} concepts from "
            f"{len(self.pictures)} pictures, importance by {self.importance.method}"
        )
        parts = (repr(part).replace("\n", "\n  ") for part in self.subconcepts.values())
        return "\n".join([head, *rows, *parts])

    def _repr_html_(self) -> str:
        from .report import data_uri

        rows = []
        for concept in self.concepts:
            images = "".join(
                f'<img height="48" alt="" src="{data_uri(self.pixels(crop))}">'
                for crop in concept.crops[:6]
            )
            value = f"{concept.importance:.3f} ± {concept.stderr:.3f}"
            rows.append(
                f"<tr><td>{escape(concept.name)}</td><td>{value}</td><td>{images}</td></tr>"
            )
        return f"<table><caption>{escape(self.target)}</caption>{''.join(rows)}</table>"
