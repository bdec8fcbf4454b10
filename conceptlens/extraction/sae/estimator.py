"""`SparseAutoencoder`: the estimator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...batching import in_batches
from ...sealing import check_tensors
from ..base import SklearnExtractor, check_codes, check_fitted, check_transform, like
from ..saving import WEIGHTS
from .checkpoint import is_history
from .formulas import Weights
from .settings import Settings
from .training import Training, start
from .variants import VARIANTS
from .vectors import Vectors

# Rows encoded at once.
CHUNK = 4096


class SparseAutoencoder(SklearnExtractor):
    """Learn an overcomplete dictionary with codes of which few are not zero: a ≈ u V + b.

    The codes come from one product with an encoder, so that they cost little for any number of
    rows; training streams from memory or from an `ActivationStore`.

    Parameters
    ----------
    n_components : int
        Number k of concepts, usually several times C.
    variant : {"topk", "batchtopk", "matryoshka", "relu", "gated", "jumprelu"}
        How codes are made sparse. "relu" is DN-CBM's.
    sparsity : float, optional
        For "topk", "batchtopk" and "matryoshka" how many codes of a row are not zero (of the
        average row for the latter two; 32 by default). For the others the weight λ of a penalty
        beside the unexplained share of a row's squared length ‖a‖²: "jumprelu" takes λ for each
        code that is on, so that a concept must explain that share (0.001); "relu" and "gated" take
        λ ‖u‖₁ / ‖a‖ (0.05).
    n_epochs : int
        How often all rows are seen.
    batch_size : int
        Rows a step.
    learning_rate : float
        Adam's, after the warm-up and until it falls to zero in the last fifth.
    random_state : int
        Fixes the start and the order of the rows.

    Attributes
    ----------
    components_ : Tensor
        The dictionary V ``(k, C)``, rows of unit norm.
    intercept_ : Tensor
        b ``(C,)``.
    weights_ : dict of Tensor
        All that is learnt, by name; `components_` and `intercept_` among them.
    history_ : list of dict
        For each epoch R² ("r2"), codes a row that are not zero ("l0"), the fraction of units that
        were never on ("dead"), and what `monitor` gave.
    n_iter_ : int
        Steps done.
    n_features_in_ : int
        Number C of channels.

    References
    ----------
    Bricken et al., "Towards monosemanticity", 2023, and Rao et al., "Discover-then-name", ECCV
    2024 (relu); Gao et al., "Scaling and evaluating sparse autoencoders", 2024 (topk); Bussmann et
    al., "BatchTopK sparse autoencoders", 2024, and "Learning multi-level features with Matryoshka
    sparse autoencoders", 2025; Rajamanoharan et al., "Improving dictionary learning with gated
    sparse autoencoders" and "Jumping ahead", 2024.

    Examples
    --------
    >>> a = torch.rand(500, 16)
    >>> sae = SparseAutoencoder(64, sparsity=4, n_epochs=2).fit(a)
    >>> codes = sae.transform(a)
    >>> tuple(codes.shape), int((codes != 0).sum(1).max())
    ((500, 64), 4)
    """

    def __init__(
        self,
        n_components: int = 4096,
        variant: str = "topk",
        *,
        sparsity: float | None = None,
        n_epochs: int = 20,
        batch_size: int = 1024,
        learning_rate: float = 1e-3,
        random_state: int = 0,
    ) -> None:
        self.n_components = n_components
        self.variant = variant
        self.sparsity = sparsity
        self.n_epochs = n_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.random_state = random_state

    def fit(
        self,
        a: Any,
        y: None = None,
        *,
        checkpoint: str | Path | None = None,
        monitor: Callable[[SparseAutoencoder], dict[str, float]] | None = None,
        device: str | torch.device | None = None,
    ) -> SparseAutoencoder:
        """Learn from rows ``(n, C)``, a tensor or an array, or from an `ActivationStore`.

        Parameters
        ----------
        a : Tensor, array or ActivationStore
            Under `conceptlens.distributed.together` every process gives all of them and takes its
            part of each batch.
        checkpoint : folder, optional
            Kept up to date after each epoch and every minute. If it holds an unfinished fit of the
            same settings and data, that is gone on with, equal to the last bit to one in one go.
        monitor : callable, optional
            Called with this estimator after each epoch; the figures it returns go into `history_`.
        device : str or torch.device, optional
            Where to train. Default: where the rows are; for a store, the CPU.

        Raises
        ------
        ValueError
            If options or rows do not make sense, or the checkpoint is damaged or another fit's.
        FloatingPointError
            If the loss stops being finite.
        """
        vectors = Vectors(a)
        settings = Settings.of(self.get_params())
        training = Training(vectors, settings, torch.device(device or vectors.device))
        if checkpoint is not None:
            training.resume(Path(checkpoint))

        def watch() -> dict[str, float]:
            self._take(training)
            return monitor(self) if monitor is not None else {}

        training.run(None if checkpoint is None else Path(checkpoint), watch if monitor else None)
        self._take(training)
        return self

    def fit_transform(self, a: Any, y: None = None) -> Any:
        """Learn from rows ``(n, C)`` and return their codes ``(n, k)``."""
        return self.fit(a).transform(a)

    def transform(self, a: Any, *, sparse: bool = False) -> Any:
        """Return the codes ``(n, k)`` of rows ``(n, C)``; differentiable unless sparse.

        Parameters
        ----------
        a : Tensor or array
            Rows.
        sparse : bool
            Return a sparse COO tensor, or a SciPy CSR matrix for an array: for k in the thousands
            it takes about k / (2 · L0) times less memory.
        """
        rows = check_transform(self, a)
        if not sparse:
            return like(in_batches(self._encode, rows, CHUNK), a)
        with torch.no_grad():
            parts = [self._encode(part).to_sparse() for part in rows.split(CHUNK)]
        codes = torch.cat(parts).coalesce()
        if not isinstance(a, np.ndarray):
            return codes
        from scipy.sparse import csr_matrix

        return csr_matrix((codes.values().numpy(), codes.indices().numpy()), codes.shape)

    def inverse_transform(self, u: Any) -> Any:
        """Return the rows ``(n, C)`` that codes ``(n, k)`` stand for; differentiable.

        Codes that are sparse are decoded without their zeros.
        """
        check_fitted(self)
        if hasattr(u, "tocsr"):
            return u @ self.components_.cpu().numpy() + self.intercept_.cpu().numpy()
        codes = check_codes(self, u)
        weights = (self.components_, self.intercept_)
        dictionary, intercept = (w.to(codes.device, codes.dtype) for w in weights)
        return like(codes @ dictionary + intercept, u)

    def _learnt(self) -> tuple[Weights, dict[str, Any]]:
        return self.weights_, {"n_iter": self.n_iter_, "history": self.history_}

    def _relearn(self, tensors: Weights, record: dict[str, Any]) -> None:
        shape, intercept = tensors["components"].shape, tensors["intercept"]
        if shape != (self.n_components, *intercept.shape):  # before any of that size are made
            raise ValueError("its components are not those of its options")
        if not isinstance(record["n_iter"], int) or not is_history(record):
            raise ValueError("it lacks n_iter or history")
        expected = start(Settings.of(self.get_params()), intercept)
        check_tensors(Path(WEIGHTS), tensors, expected)
        self._learn(tensors, record["history"], record["n_iter"])

    def _take(self, training: Training) -> None:
        self._learn(training.fitted(), list(training.history), training.number)

    def _learn(self, weights: Weights, history: list[dict[str, float]], n_iter: int) -> None:
        self.weights_ = weights
        self.components_, self.intercept_ = weights["components"], weights["intercept"]
        self.history_, self.n_iter_ = history, n_iter
        self.n_features_in_ = len(self.intercept_)

    def _encode(self, rows: Tensor) -> Tensor:
        weights = {name: w.to(rows) for name, w in self.weights_.items()}
        settings = Settings.of(self.get_params())
        return VARIANTS[settings.variant].codes(weights, rows, settings.sparsity)
