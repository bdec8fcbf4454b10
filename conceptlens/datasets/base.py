"""What the readers of the field's data sets have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..images import Transform, read_image
from ..progress import bar
from .tables import DatasetError, Table


@dataclass(frozen=True)
class Places:
    """Where things are in one picture, in pixels of the file's picture unless said otherwise.

    Attributes
    ----------
    points : Tensor or None
        ``(parts, 3)``: x, y and whether the part is visible, 1 or 0.
    box : Tensor or None
        ``(4,)``: left, top, right, bottom of the object.
    masks : Tensor or None
        ``(m, H, W)`` of bool, one mask a concept.
    """

    points: Tensor | None = None
    box: Tensor | None = None
    masks: Tensor | None = None


class ConceptDataset(Dataset[tuple[Any, int, Tensor]]):
    """Pictures with a class and concept labels each; pictures are read one by one, when asked for.

    An item is (picture, label, concepts ``(m,)``). The picture is its path, which `Pictures` takes,
    or what `transform` makes of it. Data sets that know where things are have ``places(i)``, which
    returns `Places`.

    Attributes
    ----------
    picture_names : list of str
        The pictures' paths relative to the folder.
    paths : list of str
        The pictures' paths.
    labels : Tensor
        ``(n,)``, int64, indices into `class_names`; -1 where a picture has no class.
    class_names, concept_names : list of str
        Names of the classes and of the m concepts.
    class_concepts : Tensor or None
        ``(n_classes, m)``, float32 in [0, 1]: how strongly people associate a concept with a class,
        NaN unknown; None where the data set does not say.
    groups : dict of str to list of int
        Concepts that answer one question, by its name; empty where there are none.
    split : str
        The part of the data set.
    """

    def __init__(
        self,
        folder: Path,
        names: Iterable[str],
        labels: np.ndarray,
        concepts: np.ndarray | Callable[[int], Tensor],
        *,
        class_names: Iterable[str],
        concept_names: Iterable[str],
        split: str,
        transform: Transform | None,
        class_concepts: np.ndarray | None = None,
        groups: Mapping[str, list[int]] | None = None,
    ) -> None:
        self.picture_names = [str(name) for name in names]
        self.paths = [str(folder / name) for name in self.picture_names]
        self.labels = torch.as_tensor(labels, dtype=torch.int64)
        # Where labels must be read picture by picture, the function that does, until all are read.
        self._concepts = concepts if callable(concepts) else _floats(concepts)
        self.class_names = [str(name) for name in class_names]
        self.concept_names = [str(name) for name in concept_names]
        self.class_concepts = None if class_concepts is None else _floats(class_concepts)
        self.groups = dict(groups or {})
        self.split = split
        self.transform = transform

    @property
    def concepts(self) -> Tensor:
        """Concept labels ``(n, m)``, float32: 1 present, 0 absent, NaN unknown."""
        if not isinstance(self._concepts, Tensor):
            concepts = torch.empty(len(self), len(self.concept_names))
            with bar("concepts", len(self), "pictures") as progress:
                for i in range(len(self)):
                    concepts[i] = self._concepts(i)
                    progress.update()
            self._concepts = concepts
        return self._concepts

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Any, int, Tensor]:
        path, known = self.paths[i], self._concepts
        picture = path if self.transform is None else self.transform(read_image(path))
        concepts = known[i] if isinstance(known, Tensor) else known(i)
        return picture, int(self.labels[i]), concepts

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({len(self)} pictures, {len(self.class_names)} classes, "
            f"{len(self.concept_names)} concepts, split={self.split!r})"
        )


def chosen(split: str, parts: Mapping[str, np.ndarray]) -> np.ndarray:
    """The rows of a split, given a mask ``(n,)`` for each; "all" is every row.

    Raises
    ------
    ValueError
        If there is no such split.
    """
    if split == "all":
        return np.arange(len(next(iter(parts.values()))))
    if split not in parts:
        raise ValueError(f"split must be one of {', '.join(parts)} or all, got {split!r}")
    return np.flatnonzero(parts[split])


def groups_of(concept_names: Iterable[str]) -> dict[str, list[int]]:
    """Group concepts called ``question::answer`` by their question."""
    groups: dict[str, list[int]] = {}
    for j, name in enumerate(concept_names):
        groups.setdefault(str(name).split("::")[0], []).append(j)
    return groups


def require_pictures(table: Table, column: str, rows: np.ndarray, folder: Path) -> None:
    """Raise for the first of `rows` whose picture, named in `column`, is missing in `folder`."""
    for row in rows:
        path = folder / table[column][row]
        if not path.is_file():
            raise table.error(row, f"the picture {path} is missing")


def require_folder(root: str | Path, what: str) -> Path:
    """The folder of a data set as a path.

    Raises
    ------
    DatasetError
        If there is no such folder.
    """
    if not Path(root).is_dir():
        raise DatasetError(f"{str(root)!r} is not a folder: give that of {what}")
    return Path(root)


def _floats(array: np.ndarray) -> Tensor:
    return torch.as_tensor(array, dtype=torch.float32)
