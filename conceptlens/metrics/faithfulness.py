"""Faithfulness in concept space: C-Deletion, C-Insertion, C-µFidelity, complexity.

An importance is faithful when the score falls as the concepts that it ranks highest are removed.
A removed concept's codes are zero at every position.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..backbone import class_index
from ..batching import in_batches
from ..checks import check_tensor
from ..importance.result import Importance
from .checks import as_numbers, check_one_of, check_shape
from .result import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SCORES = ("logit", "probability", "decision")


@dataclass(frozen=True, eq=False)
class Curve:
    """The class's score as concepts are removed or put in, one after another.

    Attributes
    ----------
    per_image : Tensor
        ``(n, k + 1)`` in float64: the score after 0, 1, …, k concepts.
    name : str
        Such as ``"C-Deletion"``.
    score : str
        What the values are, such as ``"logit"``.
    """

    per_image: Tensor
    name: str
    score: str

    @property
    def mean(self) -> Tensor:
        """Mean over the pictures, ``(k + 1,)``."""
        return self.per_image.mean(0)

    @property
    def areas(self) -> Estimate:
        """The area under each picture's curve, the number of concepts scaled to [0, 1]."""
        steps = self.per_image.shape[1] - 1
        return Estimate(torch.trapezoid(self.per_image, dx=1 / steps, dim=1))

    @property
    def auc(self) -> float:
        """Mean area under the curve, in the unit of the score."""
        return self.areas.mean

    def band(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Student's confidence band of the mean over pictures, two ``(k + 1,)`` tensors."""
        pairs = [Estimate(column).interval(level) for column in self.per_image.T]
        low, high = torch.tensor(pairs, dtype=torch.float64).T
        return low, high

    def plot(self, ax: Axes | None = None) -> Any:
        """Draw the mean with its 95 % band; returns the axes."""
        from matplotlib.figure import Figure

        if ax is None:
            ax = Figure(figsize=(4.5, 3), layout="constrained").subplots()
        counts = range(self.per_image.shape[1])
        ax.plot(counts, self.mean.tolist(), label=f"{self.name}, area {self.auc:.3g}")
        if len(self.per_image) > 1:
            low, high = self.band()
            ax.fill_between(counts, low.tolist(), high.tolist(), alpha=0.25)
        ax.set_xlabel("concepts removed" if self.name == "C-Deletion" else "concepts put in")
        ax.set_ylabel(f"mean {self.score}")
        ax.legend(frameon=False)
        return ax

    def __repr__(self) -> str:
        k = self.per_image.shape[1] - 1
        return f"{self.name} of {k} concepts, {self.score}: area {self.areas}"


def c_deletion(
    cm: Any,
    codes: Tensor,
    target: int | str,
    importance: Importance | Tensor,
    *,
    score: str = "logit",
    batch_size: int = 256,
) -> Curve:
    """Remove concepts from most to least important; the lower the area, the more faithful.

    Parameters
    ----------
    cm : ConceptModel
        Only ``classify`` is used, without gradients.
    codes : Tensor
        ``(n, P, k)``.
    target : int or str
        The class, by index or by one of ``cm.class_names``.
    importance : Importance or Tensor
        One order for all pictures, ``(k,)`` (an `Importance` stands for its ``values``), or one
        a picture, ``(n, k)``, such as ``importance.per_image``. Equal concepts keep their order.
    score : {"logit", "probability", "decision"}
        What is followed; a decision is 1 where the class has the highest logit, else 0.
    batch_size : int
        The most code grids given to ``classify`` at once.

    References
    ----------
    Fel et al., "A holistic approach to unifying automatic concept extraction and concept
    importance estimation", NeurIPS 2023.
    """
    return _curve("C-Deletion", cm, codes, target, importance, score, batch_size)


def c_insertion(
    cm: Any,
    codes: Tensor,
    target: int | str,
    importance: Importance | Tensor,
    *,
    score: str = "logit",
    batch_size: int = 256,
) -> Curve:
    """Put concepts in from most to least important; the higher the area, the more faithful.

    Parameters and reference are those of `c_deletion`.
    """
    return _curve("C-Insertion", cm, codes, target, importance, score, batch_size)


def c_mu_fidelity(
    cm: Any,
    codes: Tensor,
    target: int | str,
    importance: Importance | Tensor,
    *,
    subset_size: int | None = None,
    n_subsets: int = 128,
    correlation: str = "pearson",
    score: str = "logit",
    seed: int = 0,
    batch_size: int = 256,
) -> Estimate:
    """Correlate what subsets of concepts are said to matter with what their removal does.

    In each picture: over random subsets S, the correlation of Σ_{i ∈ S} importanceᵢ with the
    drop of the score when S is removed.

    Parameters
    ----------
    cm, codes, target, importance, score, batch_size
        As in `c_deletion`.
    subset_size : int, optional
        Number of concepts in a subset, from 1 to k − 1. Default: half of them.
    n_subsets : int
        Subsets drawn, the same for all pictures.
    correlation : {"pearson", "spearman"}
        Which one.
    seed : int
        Fixes the subsets.

    Returns
    -------
    Estimate
        One correlation a picture, from −1 to 1; NaN, which leaves the picture out, where all
        drops are equal; 0 where the drops differ and the importances do not.

    References
    ----------
    Bhatt et al., "Evaluating and aggregating feature-based model explanations", IJCAI 2020;
    Fel et al., NeurIPS 2023, in concept space.
    """
    check_one_of(correlation, "correlation", ("pearson", "spearman"))
    codes, values = _check(codes, importance)
    n, _, k = codes.shape
    size = k // 2 if subset_size is None else subset_size
    if not 1 <= size < k:
        raise ValueError(f"subset_size must lie between 1 and k - 1 = {k - 1}, got {size}")
    if n_subsets < 2:
        raise ValueError(f"n_subsets must be at least 2, got {n_subsets}")
    noise = torch.rand(n_subsets, k, generator=torch.Generator().manual_seed(seed))
    inside = noise.argsort(1).argsort(1) < size  # (s, k)
    kept = torch.cat([torch.ones(1, k, dtype=torch.bool), ~inside]).expand(n, -1, -1)
    scores = _masked_scores(cm, codes, target, kept, score, batch_size)
    drops = scores[:, :1] - scores[:, 1:]
    said = values.expand(n, -1) @ inside.double().T
    if correlation == "spearman":
        said, drops = _ranks(said), _ranks(drops)
    return Estimate(_pearson(said, drops))


def complexity(curve: Curve, share: float = 0.8) -> Estimate:
    """How many concepts must be put in to reach `share` of the score that all of them bring.

    Parameters
    ----------
    curve : Curve
        What `c_insertion` returned.
    share : float
        Of the difference between the score with all concepts and with none.

    Returns
    -------
    Estimate
        A number from 1 to k a picture; NaN, which leaves it out, where all concepts together do
        not raise the score.
    """
    if curve.name != "C-Insertion":
        raise ValueError(f"curve must be a C-Insertion, got a {curve.name}")
    if not 0 < share <= 1:
        raise ValueError(f"share must lie in (0, 1], got {share}")
    gain = curve.per_image[:, 1:] - curve.per_image[:, :1]
    whole = gain[:, -1:]
    slack = 1e-6 * whole.abs()  # a concept that changes only the last bits is not needed
    first = (gain >= share * whole - slack).double().argmax(1) + 1.0
    return Estimate(torch.where(whole[:, 0] > 0, first, torch.nan))


def _curve(
    name: str,
    cm: Any,
    codes: Tensor,
    target: int | str,
    importance: Importance | Tensor,
    score: str,
    batch_size: int,
) -> Curve:
    codes, values = _check(codes, importance)
    n, _, k = codes.shape
    order = values.expand(n, -1).argsort(dim=1, descending=True, stable=True)
    reached = order.argsort(1)[:, None] < torch.arange(k + 1)[:, None]  # (n, k + 1, k)
    kept = reached if name == "C-Insertion" else ~reached
    return Curve(_masked_scores(cm, codes, target, kept, score, batch_size), name, score)


def _masked_scores(
    cm: Any, codes: Tensor, target: int | str, kept: Tensor, score: str, batch_size: int
) -> Tensor:
    """The score of each picture with each set of concepts, ``kept: (n, s, k)`` -> ``(n, s)``."""
    check_one_of(score, "score", SCORES)
    index = class_index(target, getattr(cm, "class_names", None))
    n, s, _ = kept.shape

    def block(pairs: Tensor) -> Tensor:
        picture, step = pairs // s, pairs % s
        masks = kept[picture, step].to(codes)[:, None]
        logits: Tensor = cm.classify(codes[picture.to(codes.device)] * masks)
        if index >= logits.shape[1]:
            raise ValueError(f"class {index} does not exist: there are {logits.shape[1]}")
        logits = logits.double()
        if score == "decision":
            return (logits.argmax(1) == index).double().cpu()
        return (logits.softmax(1) if score == "probability" else logits)[:, index].cpu()

    with torch.no_grad():
        return in_batches(block, torch.arange(n * s), batch_size).reshape(n, s)


def _check(codes: Tensor, importance: Importance | Tensor) -> tuple[Tensor, Tensor]:
    """The codes, and the importance as ``(1, k)`` or ``(n, k)`` in float64 on the CPU."""
    check_tensor(codes, "codes", "n, P, k")
    codes = check_shape(codes, "codes", "n P k").detach()
    n, _, k = codes.shape
    values = importance.values if isinstance(importance, Importance) else importance
    values = as_numbers(values, "importance")
    if values.ndim == 1:
        values = check_shape(values, "importance", "k", k=k)[None]
    values = check_shape(values, "importance", "n k", k=k, **({} if len(values) == 1 else {"n": n}))
    return codes, values.detach().double().cpu()


def _ranks(rows: Tensor) -> Tensor:
    from scipy.stats import rankdata

    return torch.from_numpy(rankdata(rows.numpy(), axis=1))


def _pearson(x: Tensor, y: Tensor) -> Tensor:
    """Correlation row by row; NaN where y is constant, else 0 where x is."""
    x, y = (v - v.mean(1, keepdim=True) for v in (x, y))
    x_size, y_size = x.norm(dim=1), y.norm(dim=1)
    product = (x * y).sum(1) / (x_size * y_size).clamp(min=1e-300)
    return torch.where(y_size > 0, product, torch.nan)
