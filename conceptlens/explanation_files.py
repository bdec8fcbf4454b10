"""An `Explanation` as a folder: explanation.json, tensors.safetensors and pictures."""

from __future__ import annotations

import hashlib
import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from .crops import Crop
from .explanation import Concept, Explanation
from .files import write_atomically
from .images import read_image, to_bytes
from .importance.result import Importance
from .model import ConceptModel
from .sealing import seal, sha256_of, unseal

FORMAT = 1
RECORD_FILE, TENSOR_FILE = "explanation.json", "tensors.safetensors"
TENSORS = ("concept_maps", "components", "scores")
IMPORTANCE_TENSORS = ("values", "stderr", "per_image")


def save(explanation: Explanation, folder: Path) -> Path:
    """Write the files; see `Explanation.save`."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    (folder / RECORD_FILE).unlink(missing_ok=True)
    sums = {}

    def write(name: str, data: bytes) -> None:
        sums[name] = hashlib.sha256(data).hexdigest()
        write_atomically(folder / name, data)

    for i, picture in enumerate(explanation.pictures):
        write(_picture_file(i), png(picture))
    importance = explanation.importance
    tensors = {name: getattr(explanation, name) for name in TENSORS}
    tensors |= {f"importance.{n}": getattr(importance, n) for n in IMPORTANCE_TENSORS}
    tensors |= {} if explanation.logit_parts is None else {"logit_parts": explanation.logit_parts}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write(TENSOR_FILE, save_tensors(tensors))
    for index, part in explanation.subconcepts.items():
        saved = part.save(folder / _part_name(index)) / RECORD_FILE
        sums[f"{_part_name(index)}/{RECORD_FILE}"] = sha256_of(saved)
    record = {
        "format": FORMAT,
        "target": explanation.target,
        "method": importance.method,
        "concept_names": importance.concept_names,
        "concepts": [asdict(concept) for concept in explanation.concepts],
        "picture_names": explanation.picture_names,
        "metrics": explanation.metrics,
        "provenance": explanation.provenance,
        "subconcepts": sorted(explanation.subconcepts),
        "files": sums,
    }
    write_atomically(folder / RECORD_FILE, seal(record))
    return folder


def load(folder: Path, model: ConceptModel | None = None) -> Explanation:
    """Read what `save` wrote, trusting nothing in it; see `Explanation.load`."""
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
        metrics = {str(name): float(value) for name, value in record["metrics"].items()}
        provenance = dict(record["provenance"])
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
    loaded = Explanation(
        target=target,
        importance=Importance(
            **{n: tensors[f"importance.{n}"] for n in IMPORTANCE_TENSORS},
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
        subconcepts={i: load(folder / _part_name(i)) for i in parts},
        model=model,
    )
    wrong = _inconsistency(loaded)
    if wrong is not None:
        raise ValueError(f"{path} does not fit the files beside it: {wrong}")
    return loaded


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
    wanted = {*TENSORS, *(f"importance.{n}" for n in IMPORTANCE_TENSORS)}
    if tensors.keys() - {"logit_parts"} != wanted:
        raise ValueError(f"{path} holds {sorted(tensors)}, expected {sorted(wanted)}")
    return tensors


def _read_pictures(folder: Path, names: list[str]) -> Tensor:
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
    indices = [concept.index for concept in e.concepts]
    if sorted(indices) != list(range(k)):
        return f"its concepts have the numbers {indices}, expected each of the {k} once"
    for concept in e.concepts:
        for crop in concept.crops:
            left, top, right, bottom = crop.box
            if not (0 <= crop.picture < n and 0 <= left < right <= width
                    and 0 <= top < bottom <= height):  # fmt: skip
                return f"{crop} lies outside the {n} pictures of {height}×{width}"
    return None
