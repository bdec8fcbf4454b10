"""Derm7pt: skin lesions with the criteria of the seven-point checklist."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..images import Transform
from .base import ConceptDataset, chosen, groups_of, require_folder, require_pictures
from .tables import Table, read_table

CRITERIA = {
    "pigment_network": ("absent", "typical", "atypical"),
    "streaks": ("absent", "regular", "irregular"),
    "pigmentation": (
        "absent",
        "diffuse regular",
        "localized regular",
        "diffuse irregular",
        "localized irregular",
    ),
    "regression_structures": ("absent", "blue areas", "white areas", "combinations"),
    "dots_and_globules": ("absent", "regular", "irregular"),
    "blue_whitish_veil": ("absent", "present"),
    "vascular_structures": (
        "absent",
        "arborizing",
        "comma",
        "hairpin",
        "within regression",
        "wreath",
        "dotted",
        "linear irregular",
    ),
}
# The five classes of the paper, and the diagnoses that each joins.
CLASSES = {
    "basal cell carcinoma": ("basal cell carcinoma",),
    "nevus": (
        "blue nevus",
        "clark nevus",
        "combined nevus",
        "congenital nevus",
        "dermal nevus",
        "recurrent nevus",
        "reed or spitz nevus",
    ),
    "melanoma": (
        "melanoma",
        "melanoma (in situ)",
        "melanoma (less than 0.76 mm)",
        "melanoma (0.76 to 1.5 mm)",
        "melanoma (more than 1.5 mm)",
        "melanoma metastasis",
    ),
    "miscellaneous": (
        "dermatofibroma",
        "lentigo",
        "melanosis",
        "miscellaneous",
        "vascular lesion",
    ),
    "seborrheic keratosis": ("seborrheic keratosis",),
}
FILES = {"train": "train_indexes.csv", "val": "valid_indexes.csv", "test": "test_indexes.csv"}


class Derm7pt(ConceptDataset):
    """Seven-point checklist: 1011 lesions, five classes of diagnoses, seven criteria.

    Each finding of a criterion is a concept, ``pigment_network::atypical``; of a group exactly one
    is present.

    Parameters
    ----------
    root : str or Path
        The folder ``release_v0`` with meta/ and images/.
    split : {"train", "val", "test", "all"}
        As the files meta/..._indexes.csv say.
    modality : {"derm", "clinic"}
        Dermoscopic or clinical pictures.
    transform : callable, optional
        Turns a PIL picture into a tensor; without it items hold the picture's path.

    Attributes
    ----------
    diagnoses : list of str
        The diagnosis of each picture, finer than its class.

    Raises
    ------
    DatasetError
        If a file is missing or malformed.

    References
    ----------
    Kawahara et al., "Seven-Point Checklist and Skin Lesion Classification Using Multitask
    Multimodal Neural Nets", IEEE JBHI 23 (2019).
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        modality: str = "derm",
        transform: Transform | None = None,
    ) -> None:
        if modality not in ("derm", "clinic"):
            raise ValueError(f"modality must be derm or clinic, got {modality!r}")
        root = require_folder(root, "Derm7pt")
        columns = dict.fromkeys(("diagnosis", *CRITERIA, modality), str)
        meta = read_table(root / "meta" / "meta.csv", columns, comma=True)
        class_of = {d: label for label, all_of in enumerate(CLASSES.values()) for d in all_of}
        meta.require_values("diagnosis", list(class_of))
        for criterion, allowed in CRITERIA.items():
            meta.require_values(criterion, allowed)
        rows = chosen(split, {s: _listed(root / "meta" / f, meta) for s, f in FILES.items()})
        require_pictures(meta, modality, rows, root / "images")
        findings = [(criterion, value) for criterion in CRITERIA for value in CRITERIA[criterion]]
        concept_names = [f"{criterion}::{value}" for criterion, value in findings]
        super().__init__(
            root / "images",
            meta[modality][rows],
            np.array([class_of[diagnosis] for diagnosis in meta["diagnosis"][rows]]),
            np.stack([meta[criterion][rows] == value for criterion, value in findings], axis=1),
            class_names=list(CLASSES),
            concept_names=concept_names,
            split=split,
            transform=transform,
            groups=groups_of(concept_names),
        )
        self.diagnoses: list[str] = meta["diagnosis"][rows].tolist()


def _listed(path: Path, meta: Table) -> np.ndarray:
    """Which rows of meta.csv, counted from 0, the file lists: a mask ``(n,)``."""
    table = read_table(path, {"indexes": int}, comma=True, unique=["indexes"])
    indices = table["indexes"]
    table.require(
        (indices >= 0) & (indices < len(meta)),
        lambda row: f"index {indices[row]} is out of range: meta.csv has {len(meta)} rows",
    )
    mask = np.zeros(len(meta), dtype=bool)
    mask[indices] = True
    return mask
