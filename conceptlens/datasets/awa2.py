"""Animals with Attributes 2: 50 animals whose classes have 85 attributes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..images import Transform
from .base import ConceptDataset, chosen, require_folder
from .tables import Table, read_matrix, read_table


class AwA2(ConceptDataset):
    """Animals with Attributes 2: 37 322 pictures, 50 classes, 85 attributes of the classes.

    Every picture has the binary attributes of its class, also those one cannot see in it.

    Parameters
    ----------
    root : str or Path
        The folder ``Animals_with_Attributes2`` with JPEGImages/, classes.txt and predicates.txt.
    split : {"train", "test", "all"}
        The 40 classes of trainclasses.txt or the 10 others of testclasses.txt, on which zero-shot
        learning is tested. Labels count all 50 classes in any case.
    transform : callable, optional
        Turns a PIL picture into a tensor; without it items hold the picture's path.

    Raises
    ------
    DatasetError
        If a file or a class's pictures are missing, or a file is malformed.

    References
    ----------
    Xian et al., "Zero-Shot Learning - A Comprehensive Evaluation of the Good, the Bad and the
    Ugly", IEEE TPAMI 41 (2019).
    """

    def __init__(
        self, root: str | Path, split: str = "train", transform: Transform | None = None
    ) -> None:
        root = require_folder(root, "Animals_with_Attributes2")
        classes, predicates = (
            read_table(root / f"{kind}.txt", {"id": int, "name": str}, unique=["id"])
            for kind in ("classes", "predicates")
        )
        shape = len(classes), len(predicates)
        binary = read_matrix(root / "predicate-matrix-binary.txt", *shape)
        strengths = read_matrix(root / "predicate-matrix-continuous.txt", *shape)
        parts = {part: _listed(root / f"{part}classes.txt", classes) for part in ("train", "test")}
        names, labels = [], []
        for label in chosen(split, parts):
            found = _pictures(root / "JPEGImages", classes, label)
            names += found
            labels += [label] * len(found)
        super().__init__(
            root / "JPEGImages",
            names,
            np.array(labels),
            binary[labels],
            class_names=classes["name"],
            concept_names=predicates["name"],
            split=split,
            transform=transform,
            class_concepts=np.where(strengths < 0, np.nan, strengths / 100),  # -1 is missing
        )


def _listed(path: Path, classes: Table) -> np.ndarray:
    """Which classes the file names, a mask ``(n_classes,)``."""
    table = read_table(path, {"name": str}, unique=["name"])
    mask = np.zeros(len(classes), dtype=bool)
    mask[table.locate("name", classes, "name")] = True
    return mask


def _pictures(folder: Path, classes: Table, label: int) -> list[str]:
    name = classes["name"][label]
    found = sorted(path.name for path in (folder / name).glob("*.jpg"))
    if not found:
        raise classes.error(label, f"there are no pictures {folder / name}/*.jpg")
    return [f"{name}/{file}" for file in found]
