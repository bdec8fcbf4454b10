"""Dictionaries of concepts: `EXTRACTORS` lists them by name, each made from (k, random_state)."""

from __future__ import annotations

from collections.abc import Callable

from .base import Extractor
from .nmf import NMF
from .semi_nmf import SemiNMF

EXTRACTORS: dict[str, Callable[[int, int], Extractor]] = {
    "nmf": lambda k, seed: NMF(k, random_state=seed),
    "semi-nmf": lambda k, seed: SemiNMF(k, random_state=seed),
}
