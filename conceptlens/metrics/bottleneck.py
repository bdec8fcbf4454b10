"""Concept bottleneck models: accuracy, calibration, leakage, and concepts per decision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .checks import check_binary, check_shape
from .recovery import aucs
from .result import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def class_accuracy(scores: Any, y: Any) -> Estimate:
    """Whether the class of the highest score ``(n, n_classes)`` is the true one ``(n,)``."""
    scores = check_shape(scores, "scores", "n n_classes").detach()
    y = check_shape(y, "y", "n", n=len(scores)).to(scores.device)
    return Estimate((scores.argmax(1) == y).double().cpu())


def concept_accuracy(probabilities: Any, concepts: Any, threshold: float = 0.5) -> Estimate:
    """Of each row's labelled concepts, the share predicted right.

    Parameters
    ----------
    probabilities : Tensor
        ``(n, k)``; a concept is predicted where it exceeds `threshold`.
    concepts : Tensor
        ``(n, k)`` of 0 and 1, NaN where a label is missing. A row without labels is left out.
    threshold : float
        From which probability on.
    """
    right, known = _right(probabilities, concepts, threshold)
    return Estimate((right & known).double().sum(1) / known.sum(1))


def overall_concept_accuracy(probabilities: Any, concepts: Any, threshold: float = 0.5) -> Estimate:
    """Whether all labelled concepts of a row are predicted right; as in `concept_accuracy`."""
    right, known = _right(probabilities, concepts, threshold)
    return Estimate(torch.where(known.any(1), (right | ~known).all(1).double(), torch.nan))


def concept_auc(scores: Any, concepts: Any) -> Estimate:
    """Area under the ROC curve of each concept ``(k,)``, over the rows that label it.

    Parameters
    ----------
    scores : Tensor
        ``(n, k)``, higher where a concept is more likely.
    concepts : Tensor
        ``(n, k)`` of 0 and 1, NaN where a label is missing. A concept whose labels are all alike
        is left out.
    """
    scores = check_shape(scores, "scores", "n k").detach().cpu()
    truth, known = _labels(concepts, *scores.shape)
    found = [
        aucs(s[rows, None], c[rows, None])[0, 0] if rows.any() else torch.tensor(torch.nan)
        for s, c, rows in zip(scores.T, truth.T, known.T, strict=True)
    ]
    return Estimate(torch.stack(found))


@dataclass(frozen=True, eq=False)
class Reliability:
    """Confidence beside the share that is right, in bins of confidence; empty bins left out.

    Attributes
    ----------
    confidence, right : Tensor
        ``(b,)``: means of each bin's rows.
    counts : Tensor
        ``(b,)``: how many they are.
    """

    confidence: Tensor
    right: Tensor
    counts: Tensor

    @property
    def error(self) -> float:
        """Expected calibration error: mean distance of the two, each bin counting by its rows."""
        distance = (self.confidence - self.right).abs()
        return float((distance * self.counts).sum() / self.counts.sum())

    def plot(self, ax: Axes | None = None, label: str = "") -> Any:
        """Draw the bins beside the diagonal, larger dots for more rows; returns the axes."""
        from matplotlib.figure import Figure

        if ax is None:
            ax = Figure(figsize=(4, 3.6), layout="constrained").subplots()
        ax.plot([0, 1], [0, 1], color="0.7", linewidth=0.8, zorder=0)
        (line,) = ax.plot(
            self.confidence, self.right, label=f"{label} error {self.error:.3f}".strip()
        )
        sizes = 10 + 90 * self.counts / self.counts.max()
        ax.scatter(self.confidence, self.right, sizes, color=line.get_color(), alpha=0.6)
        ax.set_xlabel("confidence")
        ax.set_ylabel("share right")
        ax.legend(frameon=False)
        return ax

    def __repr__(self) -> str:
        return f"Reliability({len(self.counts)} bins, calibration error {self.error:.3f})"


def reliability(confidence: Any, right: Any, bins: int = 15) -> Reliability:
    """Sort rows by confidence into bins of equal width and count what is right.

    Parameters
    ----------
    confidence : Tensor
        ``(n,)`` from 0 to 1: of the predicted class, or the probability of a concept.
    right : Tensor
        ``(n,)`` of 0 and 1: whether the class is right, or the concept present.
    bins : int
        From 0 to 1.

    References
    ----------
    Guo et al., "On calibration of modern neural networks", ICML 2017.
    """
    confidence = check_shape(confidence, "confidence", "n").detach().double().cpu()
    right = check_binary(right, "right", "n", n=len(confidence)).cpu().double()
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    if float(confidence.min()) < 0 or float(confidence.max()) > 1:
        raise ValueError(
            f"confidence must lie between 0 and 1, got {float(confidence.min()):.3g} to "
            f"{float(confidence.max()):.3g}: give probabilities, not logits"
        )
    places = (confidence * bins).long().clamp(max=bins - 1)
    counts = torch.bincount(places, minlength=bins)
    means = [torch.bincount(places, v, minlength=bins) / counts for v in (confidence, right)]
    used = counts > 0
    return Reliability(means[0][used], means[1][used], counts[used])


def calibration_error(confidence: Any, right: Any, bins: int = 15) -> float:
    """Expected calibration error; the parameters are those of `reliability`."""
    return reliability(confidence, right, bins).error


def leakage(network: Any, codes: Any, y: Any, threshold: float = 0.5) -> Estimate:
    """What soft concepts tell of the class beside whether each concept is there.

    Parameters
    ----------
    network : Network
        Only ``classify``, codes ``(n, k)`` → logits, is used.
    codes : Tensor
        Probabilities ``(n, k)``.
    y : Tensor
        Class indices ``(n,)``.
    threshold : float
        Codes above it are rounded to 1, others to 0.

    Returns
    -------
    Estimate
        The rows' accuracy with codes as they are, less that with codes rounded. It is paired: its
        standard error is that of the difference.

    References
    ----------
    Mahinpei et al., "Promises and pitfalls of black-box concept learning models", 2021.
    """
    codes = check_shape(codes, "codes", "n k")
    with torch.no_grad():
        soft = class_accuracy(network.classify(codes), y)
        hard = class_accuracy(network.classify((codes > threshold).to(codes)), y)
    return Estimate(soft.values - hard.values)


def completeness(accuracy: float, full_accuracy: float, chance: float) -> float:
    """The share of a full model's accuracy above chance that concepts alone reach.

    References
    ----------
    Yeh et al., "On completeness-aware concept-based explanations in deep neural networks",
    NeurIPS 2020.
    """
    if not full_accuracy > chance:
        raise ValueError(
            f"full_accuracy must exceed chance, got {full_accuracy} and {chance}: a model that "
            "is no better leaves nothing to be complete for"
        )
    return (accuracy - chance) / (full_accuracy - chance)


def effective_concepts(contributions: Any, share: float = 0.95) -> Estimate:
    """How many concepts hold `share` of the contributions ``(n, k)``, by size, of each decision.

    A row whose contributions are all zero needs none.
    """
    sizes = check_shape(contributions, "contributions", "n k").detach().double().cpu().abs()
    if not 0 < share <= 1:
        raise ValueError(f"share must lie between 0 and 1, got {share}")
    held = sizes.sort(1, descending=True).values.cumsum(1)
    # What earlier concepts hold already decides; rounding must not ask for one more.
    before = torch.cat([torch.zeros_like(held[:, :1]), held[:, :-1]], 1)
    return Estimate((before < share * held[:, -1:] * (1 - 1e-12)).double().sum(1))


def _right(probabilities: Any, concepts: Any, threshold: float) -> tuple[Tensor, Tensor]:
    """Which concepts are predicted right, and which are labelled, both ``(n, k)``."""
    probabilities = check_shape(probabilities, "probabilities", "n k").detach().cpu()
    truth, known = _labels(concepts, *probabilities.shape)
    return (probabilities > threshold) == truth, known


def _labels(concepts: Any, n: int, k: int) -> tuple[Tensor, Tensor]:
    """Which concepts are there, and which are labelled, both ``(n, k)``."""
    labels = torch.as_tensor(concepts).detach().cpu()
    truth = check_binary(labels.nan_to_num(0), "concepts", "n k", n=n, k=k)
    return truth, ~labels.isnan()
