"""Correcting the concepts of a bottleneck model one after another, in the order of a policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..metrics.checks import check_one_of
from ..metrics.faithfulness import Curve
from .base import Bottleneck
from .data import as_labels, check_concepts, is_binary

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class InterventionCurve:
    """What a bottleneck model gets right as more of its concepts are corrected.

    Attributes
    ----------
    class_accuracy, concept_accuracy, overall_accuracy : Curve
        Against the number of corrected groups, a row each: whether the class is right, and of rows
        with concept labels the share of these that is, and whether all of them are.
    policy : str
        In which order they were corrected.
    """

    class_accuracy: Curve
    concept_accuracy: Curve
    overall_accuracy: Curve
    policy: str

    def plot(self) -> Figure:
        """Draw the three means with their 95 % bands."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4.5, 3.2), layout="constrained")
        ax = figure.subplots()
        for curve in (self.class_accuracy, self.concept_accuracy, self.overall_accuracy):
            curve.plot(ax)
        ax.set_title(f"{self.policy} order", fontsize="medium")
        ax.set_xlabel("concepts corrected, or groups of them")
        ax.set_ylabel("share right")
        ax.set_ylim(top=1.02)
        return figure

    def __repr__(self) -> str:
        return f"Interventions, {self.policy}: area of class accuracy {self.class_accuracy.areas}"


Order = Callable[[Bottleneck, Tensor, Tensor, torch.Generator], Tensor]


def _random(
    cbm: Bottleneck, features: Tensor, values: Tensor, generator: torch.Generator
) -> Tensor:
    return torch.rand(values.shape, generator=generator).to(values)


def _uncertainty(
    cbm: Bottleneck, features: Tensor, values: Tensor, generator: torch.Generator
) -> Tensor:
    """The entropy of a binary concept."""
    p = values.clamp(0, 1)
    return torch.special.entr(p) + torch.special.entr(1 - p)


def _contribution(
    cbm: Bottleneck, features: Tensor, values: Tensor, generator: torch.Generator
) -> Tensor:
    """Code times gradient of the highest logit that the concepts alone give, by size."""
    codes = cbm.network_.concepts(features).detach().requires_grad_()
    with torch.enable_grad():
        best = cbm.network_.classify(codes).amax(1).sum()
        (gradient,) = torch.autograd.grad(best, codes)
    return (codes.detach() * gradient).abs()


def _cooperative(
    cbm: Bottleneck, features: Tensor, values: Tensor, generator: torch.Generator
) -> Tensor:
    """Uncertainty plus the expected change of the predicted class's probability."""
    now = cbm._logits(features).softmax(1)
    best, p = now.argmax(1, keepdim=True), values.clamp(0, 1)
    change = torch.zeros_like(values)
    for concept in range(values.shape[1]):
        for state, chance in ((0.0, 1 - p[:, concept]), (1.0, p[:, concept])):
            fixed = torch.full_like(values, torch.nan)
            fixed[:, concept] = state
            then = cbm._corrected(features, fixed)[1].softmax(1)
            change[:, concept] += chance * (then - now).gather(1, best)[:, 0].abs()
    return _uncertainty(cbm, features, values, generator) + change


# The scores (n, k) of each policy; the highest is corrected first.
POLICIES: dict[str, Order] = {
    "random": _random,
    "uncertainty": _uncertainty,
    "contribution": _contribution,
    "cooperative": _cooperative,
}


@torch.no_grad()
def intervention_curve(
    cbm: Bottleneck,
    x: Any,
    y: Any,
    concepts: Any,
    *,
    policy: str = "random",
    groups: Sequence[Sequence[int | str]] | None = None,
    seed: int = 0,
) -> InterventionCurve:
    """Correct more and more concepts of each row and follow what becomes right.

    Parameters
    ----------
    cbm : Bottleneck
        Fitted. Corrections are those of its `intervene`, so that they propagate where it lets
        them.
    x, y, concepts : as in `Bottleneck.fit`
        Rows with true classes and binary concepts, the model having learnt such; a concept is
        predicted where its value exceeds ½. A missing one (NaN) is not corrected and not judged.
    policy : {"random", "uncertainty", "contribution", "cooperative"}
        The order, chosen for each row from the uncorrected prediction.
    groups : sequence of sequences of int or str, optional
        Concepts that are corrected together, each in one group. Default: each by itself. A
        group's score is its concepts' mean.
    seed : int
        Of the random order.

    References
    ----------
    Koh et al., "Concept bottleneck models", ICML 2020. Shin et al., "A closer look at the
    intervention procedure of concept bottleneck models", ICML 2023. Chauhan et al., "Interactive
    concept bottleneck models", AAAI 2023 (cooperative).
    """
    check_one_of(policy, "policy", tuple(POLICIES))
    features = cbm._features(x)
    values = cbm._concept_values(features)
    n, k = values.shape
    truth = check_concepts(concepts, values)
    if truth.shape[1] != k or not is_binary(truth).all():
        raise ValueError(f"concepts must be binary (0, 1 or NaN) of shape ({n}, {k})")
    known = ~truth.isnan()
    if not known.any():
        raise ValueError("concepts are all NaN: there is nothing to correct")
    labels = as_labels(y)
    if labels.shape != (n,):
        raise ValueError(f"y must have shape ({n},), got {labels.shape}")
    right_class = torch.as_tensor(cbm.classes_ == labels[:, None]).to(values.device)
    member = _membership(cbm, groups, k).to(values)  # (m, k)
    generator = torch.Generator().manual_seed(seed)
    scores = POLICIES[policy](cbm, features, values, generator) @ member.T / member.sum(1)
    rank = scores.argsort(1, descending=True).argsort(1)  # (n, m)
    parts: list[Tensor] = []
    for corrected in range(len(member) + 1):
        mask = (rank < corrected).to(values) @ member > 0
        now, logits = cbm._corrected(features, truth.masked_fill(~mask, torch.nan))
        best = logits.argmax(1, keepdim=True)
        right = (now > 0.5) == (truth > 0.5)
        share = (right & known).double().sum(1) / known.sum(1)
        every = (right | ~known).all(1).double()
        parts.append(torch.stack([right_class.gather(1, best)[:, 0].double(), share, every]))
    of_class, of_concepts, of_all = torch.stack(parts, -1).cpu()  # each (n, m + 1)
    labelled = known.any(1).cpu()
    return InterventionCurve(
        Curve(of_class, "class", "share right"),
        Curve(of_concepts[labelled], "concepts", "share right"),
        Curve(of_all[labelled], "all concepts", "share right"),
        policy,
    )


def _membership(cbm: Bottleneck, groups: Sequence[Sequence[int | str]] | None, k: int) -> Tensor:
    """Which concepts each group holds, ``(m, k)`` of 0 and 1."""
    if groups is None:
        return torch.eye(k)
    member = torch.zeros(len(groups), k)
    for row, group in zip(member, groups, strict=True):
        row[[cbm.concept_index(concept) for concept in group]] = 1
    if not (member.sum(0) == 1).all():
        raise ValueError(f"each of the {k} concepts must be in one group, got {groups}")
    return member
