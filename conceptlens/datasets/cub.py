"""CUB-200-2011: birds with 312 attributes and 15 parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..images import Transform
from .base import (
    ConceptDataset,
    Places,
    chosen,
    groups_of,
    require_folder,
    require_pictures,
)
from .tables import Table, first_of, read_matrix, read_table

# Which parts a question is about, by the word it begins with; size, shape and primary colour are
# the whole bird's.
PARTS_OF = {
    "back": ("back",),
    "belly": ("belly",),
    "bill": ("beak",),
    "breast": ("breast",),
    "crown": ("crown",),
    "eye": ("left_eye", "right_eye"),
    "forehead": ("forehead",),
    "head": ("crown", "forehead", "nape"),
    "leg": ("left_leg", "right_leg"),
    "nape": ("nape",),
    "tail": ("tail",),
    "throat": ("throat",),
    "under": ("tail",),
    "underparts": ("belly", "breast", "throat"),
    "upper": ("tail",),
    "upperparts": ("back", "nape", "left_wing", "right_wing"),
    "wing": ("left_wing", "right_wing"),
}


class CUB(ConceptDataset):
    """Caltech-UCSD Birds: 11 788 pictures, 200 species, 312 attributes in 28 groups, 15 parts.

    A concept is present where the annotator of this very picture said so, however sure he was:
    `certainty` tells. To drop what he could not see, for example,
    ``concepts.masked_fill(dataset.certainty == 1, nan)``.

    Parameters
    ----------
    root : str or Path
        The folder ``CUB_200_2011`` with images.txt and images/. attributes.txt may also lie beside
        it, where the archive puts it.
    split : {"train", "test", "all"}
        As train_test_split.txt says.
    transform : callable, optional
        Turns a PIL picture into a tensor; without it items hold the picture's path.

    Attributes
    ----------
    certainty : Tensor
        ``(n, 312)``, int8: 1 not visible, 2 guessing, 3 probably, 4 definitely; 0 without a label.
    part_names : list of str
        Names of the 15 parts, in the order of the points of `places`.
    concept_parts : Tensor
        ``(312, 15)``, bool: the parts that an attribute is about.

    Raises
    ------
    DatasetError
        If a file is missing or malformed. Known flaws of the original (a needless column in the
        attributes of pictures 2275 and 9364) are read over.

    References
    ----------
    Wah et al. (2011), "The Caltech-UCSD Birds-200-2011 Dataset".
    """

    def __init__(
        self, root: str | Path, split: str = "train", transform: Transform | None = None
    ) -> None:
        root = require_folder(root, "CUB_200_2011")
        images = _names(root / "images.txt")
        classes = _names(root / "classes.txt")
        attributes = _names(
            first_of(root, "attributes/attributes.txt", "attributes.txt", "../attributes.txt")
        )
        parts = _names(root / "parts" / "parts.txt")
        rows = chosen(split, _split(root / "train_test_split.txt", images))
        present, certainty = _labels(
            root / "attributes" / "image_attribute_labels.txt", images, attributes
        )
        strengths = read_matrix(
            root / "attributes" / "class_attribute_labels_continuous.txt",
            len(classes),
            len(attributes),
        )
        points = _points(root / "parts" / "part_locs.txt", images, parts)
        boxes = _boxes(root / "bounding_boxes.txt", images)
        require_pictures(images, "name", rows, root / "images")
        super().__init__(
            root / "images",
            images["name"][rows],
            _classes(root / "image_class_labels.txt", images, classes)[rows],
            present[rows],
            class_names=[name.split(".", 1)[-1] for name in classes["name"]],
            concept_names=attributes["name"],
            split=split,
            transform=transform,
            class_concepts=strengths / 100,
            groups=groups_of(attributes["name"]),
        )
        self.certainty = torch.from_numpy(certainty[rows])
        self.part_names: list[str] = parts["name"].tolist()
        self.concept_parts = _concept_parts(self.concept_names, self.part_names)
        self._points = torch.as_tensor(points[rows], dtype=torch.float32)
        self._boxes = torch.as_tensor(boxes[rows], dtype=torch.float32)

    def places(self, i: int) -> Places:
        """The parts' points ``(15, 3)`` and the bird's box of picture `i`."""
        return Places(points=self._points[i], box=self._boxes[i])


def _names(path: Path) -> Table:
    return read_table(path, {"id": int, "name": str}, unique=["id"])


def _split(path: Path, images: Table) -> dict[str, np.ndarray]:
    table = read_table(path, {"image": int, "train": int}, unique=["image"])
    table.require_values("train", [0, 1])
    train = table["train"][images.match("id", table, "image")] == 1
    return {"train": train, "test": ~train}


def _classes(path: Path, images: Table, classes: Table) -> np.ndarray:
    table = read_table(path, {"image": int, "class": int}, unique=["image"])
    return table.locate("class", classes)[images.match("id", table, "image")]


def _labels(path: Path, images: Table, attributes: Table) -> tuple[np.ndarray, np.ndarray]:
    """Whether an attribute is present, NaN unknown, and how certain that is, each ``(n, m)``."""
    columns = {"image": int, "attribute": int, "present": int, "certainty": int, "time": None}
    table = read_table(path, columns, unique=["image", "attribute"], spare=1)
    table.require_values("present", [0, 1])
    table.require_values("certainty", [1, 2, 3, 4])
    at = table.locate("image", images), table.locate("attribute", attributes)
    present = np.full((len(images), len(attributes)), np.nan, np.float32)
    certainty = np.zeros(present.shape, np.int8)
    present[at], certainty[at] = table["present"], table["certainty"]
    return present, certainty


def _points(path: Path, images: Table, parts: Table) -> np.ndarray:
    """Points ``(n, parts, 3)``: x, y, visible; zeros where the file says nothing."""
    columns = {"image": int, "part": int, "x": float, "y": float, "visible": int}
    table = read_table(path, columns, unique=["image", "part"])
    table.require_values("visible", [0, 1])
    points = np.zeros((len(images), len(parts), 3))
    at = table.locate("image", images), table.locate("part", parts)
    points[at] = np.stack([table[c] for c in ("x", "y", "visible")], axis=1)
    return points


def _boxes(path: Path, images: Table) -> np.ndarray:
    """Boxes ``(n, 4)``: left, top, right, bottom."""
    columns = {"image": int, "x": float, "y": float, "width": float, "height": float}
    table = read_table(path, columns, unique=["image"])
    x, y, width, height = (table[c] for c in ("x", "y", "width", "height"))
    boxes = np.stack([x, y, x + width, y + height], axis=1)
    return boxes[images.match("id", table, "image")]


def _concept_parts(concept_names: Sequence[str], part_names: Sequence[str]) -> Tensor:
    about = torch.zeros(len(concept_names), len(part_names), dtype=torch.bool)
    for j, name in enumerate(concept_names):
        word = name.removeprefix("has_").split("::")[0].split("_")[0]
        for part in PARTS_OF.get(word, ()):
            if part in part_names:
                about[j, part_names.index(part)] = True
    return about
