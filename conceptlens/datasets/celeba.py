"""CelebA: faces with 40 attributes and five landmarks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ..images import Transform
from .base import ConceptDataset, Places, chosen, require_folder, require_pictures
from .tables import DatasetError, Table, first_of, read_header, read_table

SPLITS = {"train": 0, "val": 1, "test": 2}
PARTS = ("lefteye", "righteye", "nose", "leftmouth", "rightmouth")


class CelebA(ConceptDataset):
    """CelebFaces Attributes, aligned and cropped: 202 599 pictures, 40 attributes, 5 landmarks.

    The data set has no classes: one attribute is taken as the class, the others are the concepts.

    Parameters
    ----------
    root : str or Path
        The folder with list_attr_celeba.txt, list_eval_partition.txt,
        list_landmarks_align_celeba.txt and img_align_celeba/, side by side or in the folders Anno,
        Eval and Img of the original.
    split : {"train", "val", "test", "all"}
        As list_eval_partition.txt says.
    target : str
        The attribute that is the class.
    transform : callable, optional
        Turns a PIL picture into a tensor; without it items hold the picture's path.

    Attributes
    ----------
    part_names : list of str
        Names of the landmarks, in the order of the points of `places`.

    Raises
    ------
    DatasetError
        If a file is missing or malformed.
    ValueError
        If there is no attribute `target`.

    References
    ----------
    Liu et al., "Deep Learning Face Attributes in the Wild", ICCV 2015.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        target: str = "Smiling",
        transform: Transform | None = None,
    ) -> None:
        root = require_folder(root, "CelebA")
        attributes = _read(first_of(root, "list_attr_celeba.txt", "Anno/list_attr_celeba.txt"))
        names = [name for name in attributes.columns if name != "image"]
        if target not in names:
            raise ValueError(f"target must be one of {', '.join(names)}, got {target!r}")
        for name in names:
            attributes.require_values(name, [-1, 1])
        rows = chosen(split, _split(root, attributes))
        folder = first_of(root, "img_align_celeba", "Img/img_align_celeba")
        require_pictures(attributes, "image", rows, folder)
        concept_names = [name for name in names if name != target]
        super().__init__(
            folder,
            attributes["image"][rows],
            attributes[target][rows] > 0,
            np.stack([attributes[name][rows] > 0 for name in concept_names], axis=1),
            class_names=[f"not {target}", target],
            concept_names=concept_names,
            split=split,
            transform=transform,
        )
        self.part_names = list(PARTS)
        self._points = torch.as_tensor(_points(root, attributes)[rows], dtype=torch.float32)

    def places(self, i: int) -> Places:
        """The landmarks' points ``(5, 3)`` of picture `i`, all of them visible."""
        return Places(points=self._points[i])


def _read(path: Path) -> Table:
    """A table of whole numbers: how many pictures, the columns' names, then a picture a line."""
    columns = read_header(path, line=2, comma=False)
    kinds: dict[str, type | None] = {"image": str, **dict.fromkeys(columns, int)}
    table = read_table(path, kinds, unique=["image"], skip=2)
    count = read_header(path, comma=False)
    if count != [str(len(table))]:
        raise DatasetError(f"{path}, line 1: {count[0]!r} pictures announced, {len(table)} follow")
    return table


def _split(root: Path, attributes: Table) -> dict[str, np.ndarray]:
    path = first_of(root, "list_eval_partition.txt", "Eval/list_eval_partition.txt")
    table = read_table(path, {"image": str, "part": int}, unique=["image"])
    table.require_values("part", list(SPLITS.values()))
    part = table["part"][attributes.match("image", table, "image")]
    return {name: part == number for name, number in SPLITS.items()}


def _points(root: Path, attributes: Table) -> np.ndarray:
    """Landmarks ``(n, 5, 3)``: x, y, and 1 for visible."""
    name = "list_landmarks_align_celeba.txt"
    table = _read(first_of(root, name, f"Anno/{name}"))
    columns = [f"{part}_{axis}" for part in PARTS for axis in "xy"]
    if list(table.columns)[1:] != columns:
        raise DatasetError(f"{table.path}, line 2: the columns are not {' '.join(columns)}")
    points = np.stack([table[column] for column in columns], axis=1).reshape(-1, len(PARTS), 2)
    points = np.pad(points, ((0, 0), (0, 0), (0, 1)), constant_values=1)
    return points[attributes.match("image", table, "image")]
