"""Correcting the concepts of a bottleneck model one after another, in the order of a policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..metrics.checks import check_one_of, check_shape
from ..metrics.faithfulness import Curve
from .base import Bottleneck
from .data import as_labels, check_concepts


@dataclass(frozen=True, eq=False)
class InterventionCurve:
    """What a bottleneck model gets right as more of its concepts are corrected.

    Attributes
    ----------
    class_accuracy, concept_accuracy, overall_accuracy : Curve
        Against the number of corrected groups, a row each: whether the class is right, the share
        of labelled concepts that are, and whether all of them are.
    policy : str
        In which order they were corrected.
    """

    class_accuracy: Curve
    concept_accuracy: Curve
    overall_accuracy: Curve
    policy: str

    def __repr__(self) -> str:
        return f"Interventions, {self.policy}: area of class accuracy {self.class_accuracy.areas}"


Order = Callable[[Bottleneck, Tensor, Tensor, torch.Generator], Tensor]


def _random(cbm: Bottleneck, codes: Tensor, values: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(codes.shape, generator=generator).to(codes)


def _uncertainty(
    cbm: Bottleneck, codes: Tensor, values: Tensor, generator: torch.Generator
) -> Tensor:
    """The entropy of a binary concept."""
    p = values.clamp(0, 1)
    return torch.special.entr(p) + torch.special.entr(1 - p)


def _contribution(
    cbm: Bottleneck, codes: Tensor, values: Tensor, generator: torch.Generator
) -> Tensor:
    """Code times gradient of the predicted class's logit, by size."""
    with torch.enable_grad():
        leaf = codes.detach().clone().requires_grad_()
        best = cbm.network_.classify(leaf).amax(1).sum()
        (gradient,) = torch.autograd.grad(best, leaf)
    return (leaf.detach() * gradient).abs()


def _cooperative(
    cbm: Bottleneck, codes: Tensor, values: Tensor, generator: torch.Generator
) -> Tensor:
    """Uncertainty plus the expected change of the predicted class's probability."""
    now = cbm.network_.classify(codes).softmax(1)
    best, p = now.argmax(1, keepdim=True), values.clamp(0, 1)
    change = torch.zeros_like(codes)
    for concept in range(codes.shape[1]):
        mask = torch.zeros_like(codes, dtype=torch.bool)
        mask[:, concept] = True
        for state, chance in ((0.0, 1 - p[:, concept]), (1.0, p[:, concept])):
            fixed = cbm.codes_with(codes, torch.full_like(codes, state), mask)
            then = cbm.network_.classify(fixed).softmax(1)
            change[:, concept] += chance * (then - now).gather(1, best)[:, 0].abs()
    return _uncertainty(cbm, codes, values, generator) + change


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
        Fitted. Corrections go through its `codes_with`, so that they propagate where it lets them.
    x, y, concepts : as in `Bottleneck.fit`
        Rows with true classes and binary concepts; a missing (NaN) concept is not corrected and
        not judged.
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
    codes, values = cbm.network_.concepts(features), cbm._concept_values(features)
    truth = check_concepts(concepts, codes)
    n, k = check_shape(codes, "codes", "n k").shape
    if truth.shape[1] != k or not ((truth == 0) | (truth == 1) | truth.isnan()).all():
        raise ValueError(f"concepts must be binary (0, 1 or NaN) of shape ({n}, {k})")
    labels = as_labels(y)
    if labels.shape != (n,):
        raise ValueError(f"y must have shape ({n},), got {labels.shape}")
    right_class = torch.as_tensor(cbm.classes_ == labels[:, None]).to(codes.device)
    member = _membership(cbm, groups, k).to(codes)  # (m, k)
    generator = torch.Generator().manual_seed(seed)
    scores = POLICIES[policy](cbm, codes, values, generator) @ member.T / member.sum(1)
    rank = scores.argsort(1, descending=True).argsort(1)  # (n, m)
    known = ~truth.isnan()
    parts: list[Tensor] = []
    for corrected in range(len(member) + 1):
        mask = ((rank < corrected).to(codes) @ member > 0) & known
        now = cbm.codes_with(codes, truth, mask)
        best = cbm.network_.logits(features, now).argmax(1, keepdim=True)
        # Codes need not be in the labels' units: uncorrected predictions keep theirs.
        moved = torch.where(now == codes, values, now)
        right = (torch.where(mask, truth, moved) > 0.5) == (truth > 0.5)
        share = (right & known).double().sum(1) / known.sum(1)
        every = (right | ~known).all(1).double()
        parts.append(torch.stack([right_class.gather(1, best)[:, 0].double(), share, every]))
    curves = torch.stack(parts, -1).cpu()  # (3, n, m + 1)
    units = ("class accuracy", "concept accuracy", "overall concept accuracy")
    made = [Curve(c, policy, unit) for c, unit in zip(curves, units, strict=True)]
    return InterventionCurve(made[0], made[1], made[2], policy)


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
