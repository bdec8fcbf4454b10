"""Dictionaries of concepts: `EXTRACTORS` lists them by name, each made from (k, random_state)."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from ..checks import check_path
from ..sealing import load_config
from .base import Extractor, Savable
from .convex_nmf import ConvexNMF
from .nmf import NMF
from .sae import SparseAutoencoder
from .saving import CONFIG, kind_in
from .scikit import ScikitExtractor, as_extractor
from .semi_nmf import SemiNMF

__all__ = ["EXTRACTORS", "Extractor", "SparseAutoencoder", "as_extractor", "load"]


def _scikit(module: str, name: str) -> Callable[[int, int], Extractor]:
    def make(k: int, seed: int) -> Extractor:
        estimator = getattr(import_module(f"sklearn.{module}"), name)
        return ScikitExtractor(estimator(k, random_state=seed))

    return make


EXTRACTORS: dict[str, Callable[[int, int], Extractor]] = {
    "nmf": lambda k, seed: NMF(k, random_state=seed),
    "semi-nmf": lambda k, seed: SemiNMF(k, random_state=seed),
    "convex-nmf": lambda k, seed: ConvexNMF(k, random_state=seed),
    "pca": _scikit("decomposition", "PCA"),
    "ica": _scikit("decomposition", "FastICA"),
    "kmeans": _scikit("cluster", "KMeans"),
    "dictionary-learning": _scikit("decomposition", "MiniBatchDictionaryLearning"),
    # A recipe for hundreds of rows and about as many concepts as the other extractors have.
    "sae": lambda k, seed: SparseAutoencoder(
        k, sparsity=max(1, k // 2), n_epochs=200, batch_size=64, random_state=seed
    ),
}

_KINDS: dict[str, type[Savable]] = {
    kind.__name__: kind for kind in (NMF, SemiNMF, ConvexNMF, SparseAutoencoder, ScikitExtractor)
}


def load(folder: str | Path) -> Savable:
    """Read a fitted extractor of any kind that its ``save`` wrote.

    Raises
    ------
    ValueError
        If a file is missing, damaged or not what ``save`` writes.
    """
    path = check_path(folder) / CONFIG
    name = kind_in(load_config(path))
    if name not in _KINDS:
        raise ValueError(f"{path} holds {name!r}, expected one of {', '.join(_KINDS)}")
    return _KINDS[name].load(folder)
