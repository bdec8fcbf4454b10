"""The smallest change of codes that makes the classifier decide otherwise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..importance.score import ClassScore, PassesNoGradients
from ..metrics.checks import check_one_of
from ..model import ConceptModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NORMS = ("l1", "l2")
# Without a target, so many of the classes next in line are tried.
CANDIDATES = 5
MAX_STEPS = 50
BISECTIONS = 30
# The new class shall win by so much of the first margin; rounding would undo an exact tie.
OVERSHOOT = 1e-3


@dataclass(frozen=True, eq=False)
class Counterfactual:
    """For n pictures, the nearest codes that get another class.

    Attributes
    ----------
    codes : Tensor
        ``(n, P, k)``; the picture's own where none was found.
    change : Tensor
        What was added to the picture's codes, ``(n, P, k)``.
    distance : Tensor
        Its norm, ``(n,)``; infinite where none was found.
    before, after : Tensor
        The predicted classes, ``(n,)``.
    norm : str
        "l1" or "l2".
    concept_names : list of str
        One name a concept.
    class_names : list of str or None
        One name a class.
    """

    codes: Tensor
    change: Tensor
    distance: Tensor
    before: Tensor
    after: Tensor
    norm: str
    concept_names: list[str]
    class_names: list[str] | None

    @property
    def found(self) -> Tensor:
        """Which pictures have one, ``(n,)`` bool."""
        return self.distance.isfinite()

    @property
    def per_concept(self) -> Tensor:
        """The change of each concept, summed over positions, ``(n, k)``."""
        return self.change.sum(1)

    def plot(self, picture: int = 0) -> Figure:
        """Draw the change of each concept that one picture needs, largest on top."""
        from matplotlib.figure import Figure

        change = self.per_concept[picture]
        order = change.abs().argsort(descending=True, stable=True).tolist()
        figure = Figure(figsize=(6, 1.2 + 0.3 * len(order)), layout="constrained")
        ax = figure.subplots()
        ax.barh(
            [self.concept_names[i] for i in order],
            [float(change[i]) for i in order],
            color=["#0072B2" if change[i] > 0 else "#D55E00" for i in order],
        )
        ax.axvline(0, color="0.7", linewidth=0.8)
        ax.invert_yaxis()
        ax.set_xlabel("change of the code, summed over positions")
        ax.set_title(self._decision(picture), fontsize=10)
        return figure

    def _decision(self, i: int) -> str:
        old, new = int(self.before[i]), int(self.after[i])
        if self.class_names is None:
            return f"class {old} → class {new}"
        return f"{self.class_names[old]} → {self.class_names[new]}"

    def __repr__(self) -> str:
        n, found = len(self.found), int(self.found.sum())
        lines = [f"Counterfactual codes for {found} of {n} pictures, {self.norm}"]
        if found:
            lines[0] += f", median distance {float(self.distance[self.found].median()):.3g}"
            mean = self.per_concept[self.found].mean(0)
            for i in mean.abs().argsort(descending=True, stable=True)[:5].tolist():
                lines.append(f"  {self.concept_names[i]}: {float(mean[i]):+.3g} on average")
        return "\n".join(lines)


def counterfactual(
    cm: ConceptModel,
    codes: Tensor,
    target: int | str | None = None,
    *,
    norm: str = "l2",
    batch_size: int = 256,
) -> Counterfactual:
    """Find the smallest change of each picture's codes that flips the prediction.

    The logits are replaced by their tangents at the current codes, the nearest codes that flip
    these are found exactly, and the tangents are taken anew there. Where the head is affine the
    first step is the answer; elsewhere it is a local one, shortened along its way back.

    Parameters
    ----------
    cm : ConceptModel
        Its ``classify`` must pass gradients.
    codes : Tensor
        Of n pictures, ``(n, P, k)``. Where none is negative, none becomes negative.
    target : int or str, optional
        The class that pictures shall get. Default: the nearest of the five next in line.
    norm : {"l1", "l2"}
        How a change is measured, over all positions and concepts: "l1" changes few codes.
    batch_size : int
        The most pictures worked on at once.

    References
    ----------
    Moosavi-Dezfooli et al., "DeepFool: a simple and accurate method to fool deep neural networks",
    CVPR 2016 (the tangents; here of codes, with bounds and back to the start).
    """
    check_one_of(norm, "norm", NORMS)
    score = ClassScore.of(cm, codes, 0 if target is None else target, batch_size)
    lower = 0.0 if bool((score.codes >= 0).all()) else -math.inf
    parts = [
        _nearest(score, rows, None if target is None else score.index, norm, lower)
        for rows in score.codes.split(batch_size)
    ]
    new, distance, before, after = (torch.cat(group) for group in zip(*parts, strict=True))
    return Counterfactual(
        new,
        new - score.codes,
        distance,
        before,
        after,
        norm,
        score.concept_names,
        getattr(cm, "class_names", None),
    )


def _nearest(
    score: ClassScore, codes: Tensor, target: int | None, norm: str, lower: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The nearest codes of each picture, their distances, and the classes before and after."""
    with torch.no_grad():
        score(codes)  # checks that the class exists
        logits = score.cm.classify(codes)
    before = logits.argmax(1)
    if target is None:
        order = logits.argsort(dim=1, descending=True, stable=True)[:, 1 : CANDIDATES + 1]
    else:
        order = torch.full((len(codes), 1), target, device=codes.device)
    best, shortest = codes.clone(), torch.full((len(codes),), math.inf).to(codes)
    for goal in order.T:
        found = _towards(score.cm, codes, goal, None if target is not None else before, norm, lower)
        with torch.no_grad():
            after = score.cm.classify(found).argmax(1)
        flips = (after != before) if target is None else (after == target)
        distance = torch.where(flips, _norm(found - codes, norm), math.inf)
        closer = distance < shortest
        best[closer], shortest[closer] = found[closer], distance[closer]
    with torch.no_grad():
        return best, shortest, before, score.cm.classify(best).argmax(1)


def _towards(
    cm: ConceptModel, codes: Tensor, goal: Tensor, rival: Tensor | None, norm: str, lower: float
) -> Tensor:
    """Codes where class `goal` ``(n,)`` beats `rival`, or all others; the last if none are met."""
    solve = _nearest_l1 if norm == "l1" else _nearest_l2
    at, spare, last = codes, None, None
    for _ in range(MAX_STEPS):
        margin, slope, rivals = _margin(cm, at, goal, rival)
        spare = OVERSHOOT * margin.abs() if spare is None else spare
        short = margin < spare / 2
        if not short.any():
            break
        # Where the rival is another than before, going back to the start would lose to the last.
        same = torch.ones_like(short) if last is None else rivals == last
        origin = torch.where(same[:, None, None], codes, at)
        need = spare - margin - (slope * (origin - at)).flatten(1).sum(1)
        step = solve(slope.flatten(1), need, (origin - lower).flatten(1)).view_as(codes)
        at = torch.where(short[:, None, None], origin + step, at)
        last = rivals
    return _shortened(cm, codes, at, goal, rival)


def _shortened(
    cm: ConceptModel, codes: Tensor, end: Tensor, goal: Tensor, rival: Tensor | None
) -> Tensor:
    """The first point on the way from `codes` to `end` from which the goal leads to the end."""
    low, high = torch.zeros(len(codes)).to(codes), torch.ones(len(codes)).to(codes)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        with torch.no_grad():
            leads = _lead(cm.classify(codes + middle[:, None, None] * (end - codes)), goal, rival)
        flips = leads[0] > 0
        low, high = torch.where(flips, low, middle), torch.where(flips, middle, high)
    return codes + high[:, None, None] * (end - codes)


def _lead(logits: Tensor, goal: Tensor, rival: Tensor | None) -> tuple[Tensor, Tensor]:
    """By how much class `goal` leads the rival or its strongest one ``(n,)``, and who that is."""
    if rival is None:
        rival = logits.scatter(1, goal[:, None], -math.inf).argmax(1)
    both = logits.gather(1, torch.stack([goal, rival], 1))
    return both[:, 0] - both[:, 1], rival


def _margin(
    cm: ConceptModel, codes: Tensor, goal: Tensor, rival: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The lead, its gradient ``(n, P, k)`` and the rivals."""
    codes = codes.detach().requires_grad_()
    with torch.enable_grad():
        logits = cm.classify(codes)
        if not logits.requires_grad:
            raise PassesNoGradients("the model's classify passes no gradients to the codes")
        lead, rival = _lead(logits, goal, rival)
        (slope,) = torch.autograd.grad(lead.sum(), codes)
    return lead.detach(), slope, rival


def _nearest_l2(g: Tensor, need: Tensor, room: Tensor) -> Tensor:
    """Minimise ‖d‖₂ where g · d ≥ need and d ≥ −room, each row by itself: d = max(λ g, −room).

    The gain g · d rises in λ and its slope falls, so Newton's method from 0 approaches from below
    and ends after as many steps as bounds are met.
    """
    factor = torch.zeros_like(need)
    for _ in range(g.shape[1] + 1):
        free = factor[:, None] * g > -room
        gain = (g * torch.maximum(factor[:, None] * g, -room)).sum(1)
        slope = (g**2 * free).sum(1)
        step = torch.where(slope > 0, (need - gain) / slope.clamp(min=1e-30), 0.0).clamp(min=0)
        if bool((step <= 1e-7 * factor).all()):
            break
        factor = factor + step
    return torch.maximum(factor[:, None] * g, -room)


def _nearest_l1(g: Tensor, need: Tensor, room: Tensor) -> Tensor:
    """Minimise ‖d‖₁ under the same conditions: the steepest codes first, each as far as it goes."""
    steepness, order = g.abs().sort(dim=1, descending=True, stable=True)
    gain = torch.where(g > 0, math.inf, torch.where(g < 0, -g * room, 0.0)).gather(1, order)
    before = torch.nn.functional.pad(gain.cumsum(1)[:, :-1], (1, 0))
    used = torch.minimum((need[:, None] - before).clamp(min=0), gain)
    size = used / steepness.clamp(min=1e-30)
    return torch.zeros_like(g).scatter(1, order, size) * g.sign()


def _norm(change: Tensor, norm: str) -> Any:
    return torch.linalg.vector_norm(change.flatten(1), ord=1 if norm == "l1" else 2, dim=1)
