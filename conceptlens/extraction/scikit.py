"""scikit-learn's own dictionaries (PCA, FastICA, KMeans, ...) as extractors."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from .. import distributed
from ..checks import check_finite
from .base import Extractor, Savable, check_codes, check_rows, check_transform, like

# Those that can be saved: their names in a file say what to import.
SAVABLE = {
    "PCA": "decomposition",
    "FastICA": "decomposition",
    "KMeans": "cluster",
    "MiniBatchDictionaryLearning": "decomposition",
}
# Vectors of a store that an estimator with `partial_fit` is given at once.
BATCH = 4096


class ScikitExtractor(Savable):
    """An estimator of scikit-learn, used as it is, between tensors.

    Codes are what ``transform`` gives or, of a clustering, one-hot rows. Decoding is affine in all
    of them, ``codes @ components_ + offset_``, so it runs in torch and gradients flow through it;
    none flow through ``transform``.

    Parameters
    ----------
    estimator : BaseEstimator
        A decomposition with ``inverse_transform`` or ``components_``, or a clustering with
        ``cluster_centers_``; fitted or not.

    Attributes
    ----------
    components_ : Tensor
        The dictionary ``(k, C)``.
    offset_ : Tensor
        What the zero code stands for, ``(C,)``.
    n_features_in_ : int
        Number C of channels.
    """

    def __init__(self, estimator: Any) -> None:
        self.estimator = estimator
        if hasattr(estimator, "n_features_in_"):
            self._read()

    @property
    def requires_nonnegative(self) -> bool:
        """Whether the estimator refuses activations below zero."""
        tags = getattr(self.estimator, "__sklearn_tags__", None)
        return tags is not None and bool(tags().input_tags.positive_only)

    def fit(self, a: Any, y: None = None) -> ScikitExtractor:
        """Learn from rows ``(n, C)`` or from a store, which is streamed where that is possible."""
        if not hasattr(self.estimator, "fit"):
            raise TypeError(f"estimator must be one of scikit-learn's, got {self.estimator!r}")
        if distributed.world_size() > 1:
            raise ValueError(
                f"{type(self.estimator).__name__} fits in one process: leave "
                "`distributed.together`, or use NMF or SparseAutoencoder"
            )
        if not hasattr(a, "vectors"):
            self.estimator.fit(_array(check_rows(a)))
        elif hasattr(self.estimator, "partial_fit"):
            for rows in a.vectors(BATCH):
                self.estimator.partial_fit(_array(check_rows(rows)))
        else:
            self.estimator.fit(_array(check_rows(torch.cat(list(a.vectors(BATCH))))))
        self._read()
        return self

    def fit_transform(self, a: Any, y: None = None) -> Any:
        """Learn the dictionary and return the codes ``(n, k)``."""
        return self.fit(a).transform(a)

    def transform(self, a: Any) -> Any:
        """Return the codes ``(n, k)`` of rows ``(n, C)``."""
        rows = check_transform(self, a)
        if hasattr(self.estimator, "cluster_centers_"):
            same = rows.to(self.components_.dtype)  # other floats scikit-learn does not compare
            nearest = torch.from_numpy(self.estimator.predict(_array(same))).long()
            codes = torch.nn.functional.one_hot(nearest, len(self.components_))
        else:
            codes = torch.from_numpy(self.estimator.transform(_array(rows)))
        return like(codes.to(rows), a)

    def inverse_transform(self, u: Any) -> Any:
        """Return the rows ``(n, C)`` that codes ``(n, k)`` stand for; differentiable."""
        codes = check_codes(self, u)
        return like(codes @ self.components_.to(codes) + self.offset_.to(codes), u)

    def _options(self) -> dict[str, Any]:
        name = type(self.estimator).__name__
        if name not in SAVABLE:
            raise ValueError(f"{name} cannot be saved, only {', '.join(SAVABLE)} can")
        return {"estimator": name, **self.estimator.get_params()}

    @classmethod
    def _made_from(cls, options: dict[str, Any]) -> ScikitExtractor:
        name = options["estimator"]
        kind = getattr(import_module(f"sklearn.{SAVABLE[name]}"), name)
        return cls(kind(**{n: value for n, value in options.items() if n != "estimator"}))

    def _learnt(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        told, learnt = self.estimator.get_params(), vars(self.estimator).items()
        numbers = {n: x for n, x in learnt if type(x) in (int, float, str) and n not in told}
        arrays = {n: np.array(x) for n, x in learnt if isinstance(x, (np.ndarray, np.generic))}
        tensors = {n: torch.from_numpy(x) for n, x in arrays.items() if x.dtype.kind in "bif"}
        return tensors, {"attributes": numbers}

    def _relearn(self, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        arrays = {name: tensor.numpy()[()] for name, tensor in tensors.items()}
        for name, value in {**arrays, **record["attributes"]}.items():
            if hasattr(self.estimator, name):
                raise ValueError(f"{name} is nothing that a fit learns")
            setattr(self.estimator, name, value)
        self._read()
        check_finite(self.components_, "components_")
        check_finite(self.offset_, "offset_")
        # All that it needs is there, or raises.
        check_finite(self.transform(self.components_), "codes")

    def _read(self) -> None:
        """Read the affine decoder off the fitted estimator."""
        check_is_fitted(self.estimator)
        if hasattr(self.estimator, "cluster_centers_"):
            components = self.estimator.cluster_centers_
            offset = np.zeros(components.shape[1])
        elif hasattr(self.estimator, "inverse_transform"):
            k = self.estimator.transform(np.zeros((1, self.estimator.n_features_in_))).shape[1]
            decoded = self.estimator.inverse_transform(
                np.concatenate([np.zeros((1, k)), np.eye(k)])
            )
            components, offset = decoded[1:] - decoded[0], decoded[0]
        else:
            components = self.estimator.components_
            offset = np.zeros(components.shape[1])
        self.components_ = torch.tensor(components)
        self.offset_ = torch.tensor(offset).to(self.components_)
        self.n_features_in_ = self.components_.shape[1]


def as_extractor(extractor: Any) -> Extractor:
    """Return `extractor`, scikit-learn's estimators wrapped so that they work like ours.

    Raises
    ------
    TypeError
        If it is neither.
    """
    if hasattr(extractor, "requires_nonnegative"):
        return extractor  # type: ignore[no-any-return]
    if hasattr(extractor, "fit") and (
        hasattr(extractor, "transform") or hasattr(extractor, "predict")
    ):
        return ScikitExtractor(extractor)
    raise TypeError(
        f"extractor must have fit, transform and inverse_transform, got {type(extractor).__name__}"
    )


def _array(rows: Tensor) -> np.ndarray:
    return rows.detach().cpu().numpy()
