"""What every extractor offers, and the checks that they share."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_array
from torch import Tensor

from ..checks import check_finite, check_path, check_tensor

Rows = TypeVar("Rows", Tensor, np.ndarray)
Kind = TypeVar("Kind", bound="Savable")


class Extractor(Protocol):
    """A dictionary of concepts: rows of activations ``(n, C)`` ↔ codes ``(n, k)``.

    Attributes
    ----------
    components_ : Tensor
        The dictionary ``(k, C)``, once fitted.
    """

    @property
    def requires_nonnegative(self) -> bool:
        """Whether it refuses activations below zero."""

    components_: Any

    def fit(self, a: Any) -> Any:
        """Learn the dictionary from rows ``(n, C)`` or from an `ActivationStore`."""

    def fit_transform(self, a: Any) -> Any:
        """Learn the dictionary and return the codes ``(n, k)``."""

    def transform(self, a: Any) -> Any:
        """Return the codes ``(n, k)`` of rows ``(n, C)``."""

    def inverse_transform(self, u: Any) -> Any:
        """Return the rows ``(n, C)`` that codes ``(n, k)`` stand for."""


class Savable(BaseEstimator):
    """An extractor that a folder can keep: what it was told, and what it learnt."""

    components_: Any

    def save(self, folder: str | Path) -> None:
        """Write weights (safetensors), options and figures (JSON) and a card (README.md)."""
        from . import saving

        check_fitted(self)
        saving.save(self, check_path(folder))

    @classmethod
    def load(cls: type[Kind], folder: str | Path) -> Kind:
        """Read what `save` wrote; `conceptlens.extraction.load` reads any extractor.

        Raises
        ------
        ValueError
            If a file is missing, damaged or not what `save` writes.
        """
        from . import saving

        return saving.load(cls, check_path(folder))

    def _options(self) -> dict[str, Any]:
        """What `_made_from` takes, as JSON can say it."""
        return self.get_params()  # type: ignore[no-any-return]

    @classmethod
    def _made_from(cls: type[Kind], options: dict[str, Any]) -> Kind:
        if options.keys() != cls().get_params().keys():
            raise ValueError(f"its options are not those of {cls.__name__}")
        return cls(**options)

    def _learnt(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What `fit` learnt: tensors, and figures as JSON can say them."""
        raise NotImplementedError

    def _relearn(self, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        """Take what `_learnt` gave; refuse what it cannot have given by ValueError."""
        raise NotImplementedError


class SklearnExtractor(TransformerMixin, Savable):
    """An extractor as scikit-learn knows it: parameters, clones, tags."""

    requires_nonnegative = False

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = self.requires_nonnegative
        return tags


def check_rows(a: Any, name: str = "a") -> Tensor:
    """Return `a` as a finite floating-point tensor ``(n, C)`` with n, C ≥ 1.

    What is no tensor must be what scikit-learn takes: an array, a data frame, lists.
    """
    if a is None or type(a) in (str, dict):  # scipy has dicts that are sparse arrays
        raise TypeError(f"{name} must be rows (n, C), got {type(a).__name__}")
    if not isinstance(a, Tensor):
        a = check_array(a, dtype=(np.float64, np.float32), input_name=name)
        with warnings.catch_warnings():  # rows are never written to
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            a = torch.as_tensor(a)
    rows: Tensor = a
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"{name} must have shape (n, C) with n, C ≥ 1, got {tuple(rows.shape)}")
    if not rows.is_floating_point():
        raise TypeError(f"{name} must hold floating-point numbers, got {rows.dtype}")
    if rows.dtype in (torch.float16, torch.bfloat16):
        rows = rows.float()
    check_finite(rows, name)
    return rows


def check_fitted(extractor: Any) -> None:
    """Raise NotFittedError, a ValueError, before `fit`."""
    if not hasattr(extractor, "components_"):
        name = type(getattr(extractor, "estimator", extractor)).__name__
        raise NotFittedError(f"this {name} is not fitted yet: call fit first")


def check_transform(extractor: Any, a: Any) -> Tensor:
    """Return `a` as `check_rows` does, with as many channels as the fitted `extractor` has."""
    check_fitted(extractor)
    rows = check_rows(a)
    if rows.shape[1] != extractor.n_features_in_:
        raise ValueError(
            f"rows have {rows.shape[1]} channels, the dictionary has {extractor.n_features_in_}"
        )
    return rows


def check_codes(extractor: Any, u: Any) -> Tensor:
    """Return `u` as codes ``(n, k)`` of the fitted `extractor`.

    Decoding is in the inner loop of every importance, so the numbers are not looked at: what holds
    NaN is decoded to NaN.
    """
    check_fitted(extractor)
    codes = torch.from_numpy(u) if isinstance(u, np.ndarray) else u
    check_tensor(codes, "codes", f"n, k = {len(extractor.components_)}")
    if codes.shape[1] != len(extractor.components_):
        raise ValueError(
            f"codes have shape {tuple(codes.shape)}, expected (n, {len(extractor.components_)})"
        )
    return codes


def like(result: Tensor, given: Any) -> Any:
    """`result` as what the caller gave: an array for an array, a tensor for a tensor."""
    return result.numpy() if isinstance(given, np.ndarray) else result
