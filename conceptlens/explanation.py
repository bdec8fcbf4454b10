"""`Explanation`: what was found about a class, to look at, save and load."""

from __future__ import annotations

import hashlib
import io
from copy import copy
from dataclasses import asdict, dataclass, field, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from .files import write_atomically
from .importance.result import Importance
from .model import ConceptModel
from .sealing import seal, sha256_of, unseal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .craft import CRAFT
    from .local import Waterfall
    from .naming.names import Names
    from .reproduction import Reproduction

FORMAT = 1
RECORD_FILE, TENSOR_FILE = "explanation.json", "tensors.safetensors"
TENSORS = ("concept_maps", "components", "scores")


@dataclass(frozen=True)
class Crop:
    """A patch of a picture where a concept is strong.

    Attributes
    ----------
    picture : int
        Index of the picture.
    box : tuple of int
        Left, top, right and bottom in pixels.
    score : float
        The concept's code there.
    """

    picture: int
    box: tuple[int, int, int, int]
    score: float


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
class CropSet:
    """All crops that a dictionary was learnt from.

    Attributes
    ----------
    x : Tensor
        The pictures as the network takes them, ``(n, 3, H, W)``.
    boxes, owners : Tensor
        Of each of the m crops its box ``(m, 4)`` and its picture ``(m,)``.
    rows : Tensor
        Their activations, averaged over the grid, ``(m, C)``.
    codes : Tensor
        Their codes, ``(m, k)``.
    """

    x: Tensor
    boxes: Tensor
    owners: Tensor
    rows: Tensor
    codes: Tensor


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

    def to_html(self, path: str | Path) -> Path:
        """Write the report, one self-contained HTML file; return its path."""
        from .report import render

        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, render(self).encode(errors="replace"))
        return path

    def save(self, folder: str | Path) -> Path:
        """Write ``explanation.json``, ``tensors.safetensors`` and ``pictures/*.png``.

        ``explanation.json`` is removed first and written last, so that a folder that was not
        written to its end does not load.
        """
        folder = Path(folder)
        (folder / "pictures").mkdir(parents=True, exist_ok=True)
        (folder / RECORD_FILE).unlink(missing_ok=True)
        files = {_picture_file(i): png(picture) for i, picture in enumerate(self.pictures)}
        importance = self.importance
        tensors = {name: getattr(self, name) for name in TENSORS}
        tensors |= {f"importance.{n}": getattr(importance, n) for n in _IMPORTANCE_TENSORS}
        tensors |= {} if self.logit_parts is None else {"logit_parts": self.logit_parts}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        files[TENSOR_FILE] = save_tensors(tensors)
        sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        for name, data in files.items():
            write_atomically(folder / name, data)
        for index, part in self.subconcepts.items():
            saved = part.save(folder / _part_name(index)) / RECORD_FILE
            sums[f"{_part_name(index)}/{RECORD_FILE}"] = sha256_of(saved)
        record = {
            "format": FORMAT,
            "target": self.target,
            "method": importance.method,
            "concept_names": importance.concept_names,
            "concepts": [asdict(concept) for concept in self.concepts],
            "picture_names": self.picture_names,
            "metrics": self.metrics,
            "provenance": self.provenance,
            "subconcepts": sorted(self.subconcepts),
            "files": sums,
        }
        write_atomically(folder / RECORD_FILE, seal(record))
        return folder

    @classmethod
    def load(cls, folder: str | Path, model: ConceptModel | None = None) -> Explanation:
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
        folder = Path(folder)
        path = folder / RECORD_FILE
        if not path.is_file():
            raise ValueError(f"{str(folder)!r} holds no explanation: there is no {RECORD_FILE}")
        record = unseal(path)
        try:
            if record["format"] != FORMAT:
                raise ValueError(f"format {record['format']!r}, this version reads {FORMAT}")
            names = [str(name) for name in record["picture_names"]]
            concepts = [_concept(c) for c in record["concepts"]]
            method, target = str(record["method"]), str(record["target"])
            concept_names = [str(name) for name in record["concept_names"]]
            metrics, provenance = dict(record["metrics"]), dict(record["provenance"])
            parts = [int(index) for index in record["subconcepts"]]
            sums = dict(record["files"])
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"{path} is not an explanation of this version: {error!r}") from error
        files = [_picture_file(i) for i in range(len(names))]
        records = [f"{_part_name(i)}/{RECORD_FILE}" for i in parts]
        for name in (*files, TENSOR_FILE, *records):
            if sha256_of(folder / name) != sums.get(name):
                raise ValueError(f"{folder / name} is damaged: its checksum differs")
        tensors = _read_tensors(folder / TENSOR_FILE)
        loaded = cls(
            target=target,
            importance=Importance(
                **{n: tensors[f"importance.{n}"] for n in _IMPORTANCE_TENSORS},
                method=method,
                target=target,
                concept_names=concept_names,
            ),
            concepts=concepts,
            pictures=_read_pictures(folder, files),
            picture_names=names,
            concept_maps=tensors["concept_maps"],
            components=tensors["components"],
            scores=tensors["scores"],
            metrics=metrics,
            provenance=provenance,
            logit_parts=tensors.get("logit_parts"),
            subconcepts={i: cls.load(folder / _part_name(i)) for i in parts},
            model=model,
        )
        wrong = _inconsistency(loaded)
        if wrong is not None:
            raise ValueError(f"{path} does not fit the files beside it: {wrong}")
        return loaded

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


_IMPORTANCE_TENSORS = ("values", "stderr", "per_image")


def png(picture: Tensor) -> bytes:
    """A uint8 picture ``(3, H, W)`` as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(picture.movedim(0, -1).numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def _picture_file(i: int) -> str:
    return f"pictures/{i:05d}.png"


def _part_name(index: int) -> str:
    return f"concept-{index}"


def _concept(record: dict[str, Any]) -> Concept:
    crops = []
    for c in record["crops"]:
        left, top, right, bottom = map(int, c["box"])
        crops.append(Crop(int(c["picture"]), (left, top, right, bottom), float(c["score"])))
    value, stderr = float(record["importance"]), float(record["stderr"])
    words = [(str(word), float(score)) for word, score in record.get("candidates", [])]
    sure = record.get("confidence")
    sure = None if sure is None else float(sure)
    return Concept(int(record["index"]), str(record["name"]), value, stderr, crops, words, sure)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors = load_tensors(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    wanted = {*TENSORS, *(f"importance.{n}" for n in _IMPORTANCE_TENSORS)}
    if tensors.keys() - {"logit_parts"} != wanted:
        raise ValueError(f"{path} holds {sorted(tensors)}, expected {sorted(wanted)}")
    return tensors


def _read_pictures(folder: Path, names: list[str]) -> Tensor:
    from .images import read_image, to_bytes

    pictures = [to_bytes(read_image(folder / name)) for name in names]
    shapes = {picture.shape for picture in pictures}
    if len(shapes) != 1:
        raise ValueError(f"the pictures of {folder} have {len(shapes)} sizes, expected one")
    return torch.stack(pictures)


def _inconsistency(e: Explanation) -> str | None:
    """What in the explanation contradicts itself: its parts come from several files."""
    n, _, height, width = e.pictures.shape
    k = len(e.importance.concept_names)
    shapes = {
        "importance.values": (e.importance.values, (k,)),
        "importance.stderr": (e.importance.stderr, (k,)),
        "importance.per_image": (e.importance.per_image, (n, k)),
        "concept_maps": (e.concept_maps, (n, k, *e.concept_maps.shape[2:])),
        "components": (e.components, (k, *e.components.shape[1:])),
        "scores": (e.scores, (n,)),
    }
    if e.logit_parts is not None:
        shapes["logit_parts"] = (e.logit_parts, (n, k + 3))
    for name, (tensor, shape) in shapes.items():
        if not tensor.is_floating_point() or tuple(tensor.shape) != shape:
            return f"{name} is {tensor.dtype} {tuple(tensor.shape)}, expected floats {shape}"
    if e.concept_maps.ndim != 4 or e.components.ndim != 2:
        return "concept_maps must be (n, k, h, w) and components (k, C)"
    for concept in e.concepts:
        if not 0 <= concept.index < k:
            return f"a concept has number {concept.index} of {k}"
        for crop in concept.crops:
            left, top, right, bottom = crop.box
            if not (0 <= crop.picture < n and 0 <= left < right <= width
                    and 0 <= top < bottom <= height):  # fmt: skip
                return f"{crop} lies outside the {n} pictures of {height}×{width}"
    return None
