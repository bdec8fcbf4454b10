"""Broden: pictures segmented into colours, objects, parts, materials, scenes and textures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..images import Transform
from .base import ConceptDataset, Places, chosen, require_folder, require_pictures
from .tables import Table, read_header, read_table

PICTURE_COLUMNS = ("image", "split", "ih", "iw", "sh", "sw")
UNLABELLED = 0
# An item of a cell of index.csv: a label of the whole picture, or a mask that holds labels.
Annotation = int | Path


class Broden(ConceptDataset):
    """The broadly and densely labelled data set of Network Dissection: 63 305 pictures.

    A concept is a label of label.csv. In a picture it is present where some annotation of the
    picture holds it, and unknown where the picture has no annotation of any of the label's
    categories. The class is the first scene; most pictures have none, -1.

    Labels are read from the masks picture by picture; `concepts` reads those of all pictures once,
    which takes minutes for the whole set.

    Parameters
    ----------
    root : str or Path
        The folder ``broden1_224`` (or 227, 384) with index.csv, label.csv and images/.
    split : {"train", "val", "all"}
        As index.csv says.
    categories : sequence of str, optional
        Which of color, object, part, material, scene and texture to read. Default: all.
    transform : callable, optional
        Turns a PIL picture into a tensor; without it items hold the picture's path.

    Raises
    ------
    DatasetError
        If a file is missing or malformed; a mask's content is seen when it is first read.
    ValueError
        If there is no such category.

    References
    ----------
    Bau et al., "Network Dissection: Quantifying Interpretability of Deep Visual Representations",
    CVPR 2017.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        categories: Sequence[str] | None = None,
        transform: Transform | None = None,
    ) -> None:
        root = require_folder(root, "Broden")
        self._images = root / "images"
        self._index = _read_index(root / "index.csv")
        known = [column for column in self._index.columns if column not in PICTURE_COLUMNS]
        read = list(categories or known)
        if not set(read) <= set(known):
            raise ValueError(f"categories must be of {', '.join(known)}, got {read}")
        labels = _read_labels(root / "label.csv")
        self._numbers = set(labels["number"].tolist())
        categories_of = _categories_of(labels)
        kept = [row for row, of in enumerate(categories_of) if set(of) & set(read)]
        self._concept_of = {int(labels["number"][row]): j for j, row in enumerate(kept)}
        scenes = [row for row, of in enumerate(categories_of) if "scene" in of]
        class_of = {int(labels["number"][row]): label for label, row in enumerate(scenes)}

        parts = {part: self._index["split"] == part for part in ("train", "val")}
        self._rows = chosen(split, parts)
        require_pictures(self._index, "image", self._rows, self._images)
        self._cells = [{c: self._annotations(row, c) for c in read} for row in self._rows]
        super().__init__(
            self._images,
            self._index["image"][self._rows],
            np.array([_first(self._annotations(row, "scene"), class_of) for row in self._rows]),
            self._read_concepts,
            class_names=labels["name"][scenes],
            concept_names=labels["name"][kept],
            split=split,
            transform=transform,
            groups={c: [j for j, row in enumerate(kept) if c in categories_of[row]] for c in read},
        )

    def places(self, i: int) -> Places:
        """Masks ``(m, sh, sw)`` of all concepts in picture `i`, at the segmentation's size.

        In the original that is half the picture's. A label of the whole picture covers all of it.
        """
        masks = torch.zeros(len(self.concept_names), *self._size(i), dtype=torch.bool)
        for j, mask in self._masks(i):
            masks[j] |= mask
        return Places(masks=masks)

    def _read_concepts(self, i: int) -> Tensor:
        concepts = torch.full((len(self.concept_names),), torch.nan)
        for category, cell in self._cells[i].items():
            if cell:
                concepts[self.groups[category]] = 0.0
        concepts[[j for j, _ in self._masks(i)]] = 1.0
        return concepts

    def _masks(self, i: int) -> Iterator[tuple[int, Tensor]]:
        """(concept, mask ``(sh, sw)``) of every label in picture `i`, some more than once."""
        for annotation in chain.from_iterable(self._cells[i].values()):
            if isinstance(annotation, int):
                found = torch.full(self._size(i), annotation)
            else:
                found = self._read_mask(i, annotation)
            for number in found.unique().tolist():
                if number in self._concept_of:
                    yield self._concept_of[number], found == number

    def _read_mask(self, i: int, path: Path) -> Tensor:
        """The label of each pixel ``(sh, sw)``: red + 256 × green."""
        row = self._rows[i]
        try:
            with Image.open(path) as picture:
                pixels = torch.from_numpy(np.array(picture.convert("RGB"))).long()
        except OSError as error:
            raise self._index.error(row, f"the mask {path} cannot be read: {error}") from error
        if tuple(pixels.shape[:2]) != self._size(i):
            (height, width), (sh, sw) = pixels.shape[:2], self._size(i)
            problem = f"the mask {path} is {height}×{width}, expected {sh}×{sw}"
            raise self._index.error(row, problem)
        found = pixels[..., 0] + 256 * pixels[..., 1]
        unknown = set(found.unique().tolist()) - self._numbers - {UNLABELLED}
        if unknown:
            problem = f"the mask {path} holds {min(unknown)}, which is not in label.csv"
            raise self._index.error(row, problem)
        return found

    def _size(self, i: int) -> tuple[int, int]:
        row = self._rows[i]
        return int(self._index["sh"][row]), int(self._index["sw"][row])

    def _annotations(self, row: int, category: str) -> list[Annotation]:
        """What a row of index.csv says on a category: items separated by semicolons."""
        items: list[Annotation] = []
        for text in filter(None, map(str.strip, self._index[category][row].split(";"))):
            item = int(text) if text.isdecimal() else self._images / text
            if isinstance(item, Path) and not item.is_file():
                raise self._index.error(row, f"the mask {item} is missing")
            if isinstance(item, int) and item not in self._numbers | {UNLABELLED}:
                raise self._index.error(row, f"{category} {item} is not in label.csv")
            if item != UNLABELLED:
                items.append(item)
        return items


def _read_index(path: Path) -> Table:
    columns: dict[str, type | None] = dict.fromkeys(read_header(path), str)
    columns |= dict.fromkeys((*PICTURE_COLUMNS, "scene"), str)
    columns |= dict.fromkeys(("ih", "iw", "sh", "sw"), int)
    index = read_table(path, columns, comma=True, unique=["image"])
    index.require_values("split", ["train", "val"])
    return index


def _read_labels(path: Path) -> Table:
    columns = {"number": int, "name": str, "category": str}
    return read_table(path, columns, comma=True, unique=["number"])


def _categories_of(labels: Table) -> list[list[str]]:
    """The categories of each label, from entries as ``material(36);object(3)``."""
    entries, form = labels["category"], re.compile(r"\w+\(\d+\)(;\w+\(\d+\))*")
    labels.require(
        np.array([form.fullmatch(entry) is not None for entry in entries]),
        lambda row: f"category is {str(entries[row])!r}, expected such as 'material(36);object(3)'",
    )
    return [re.findall(r"\w+(?=\()", entry) for entry in entries]


def _first(scenes: Sequence[Annotation], class_of: dict[int, int]) -> int:
    return class_of.get(scenes[0], -1) if scenes and isinstance(scenes[0], int) else -1
