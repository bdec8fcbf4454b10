"""From a bottleneck model, and rows to judge it by, to one self-contained HTML page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from ..bottleneck.base import Bottleneck, Network
from ..bottleneck.data import TrainingData, is_binary
from ..bottleneck.interventions import intervention_curve
from ..images import denormalise
from ..local import AGAINST, FOR, logit_parts, waterfall_of
from ..metrics.bottleneck import (
    class_accuracy,
    completeness,
    concept_accuracy,
    concept_auc,
    effective_concepts,
    overall_concept_accuracy,
    reliability,
)
from ..metrics.result import Estimate
from .page import GREY, data_uri, fall_rows, figure_uri, fill

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What fits on the page: concepts and classes of the weights, rows of a table, decisions, steps.
N_WEIGHTS, N_CLASSES, N_LISTED, N_DECISIONS, N_STEPS = 30, 20, 30, 4, 5
POLICIES = ("random", "uncertainty")
FOLDS = 5


@dataclass(frozen=True, eq=False)
class _Judged:
    """A model and what it makes of the rows.

    That is features ``(n, C)``, codes and values ``(n, k)``, logits, and as of `logit_parts` the
    parts ``(n, k + 3)`` of the predicted class's. Concept labels are None where none is binary.
    """

    cbm: Bottleneck
    data: TrainingData
    concepts: Tensor | None
    features: Tensor
    codes: Tensor
    values: Tensor
    logits: Tensor
    parts: Tensor

    @property
    def y(self) -> Tensor:
        return self.data.y.to(self.logits.device)


@torch.no_grad()
def render_bottleneck(cbm: Bottleneck, data: TrainingData) -> str:
    """Return the page as HTML; every name in it is escaped."""
    judged = _judge(cbm, data)
    weights = _weights(cbm, judged.codes)
    figures = _reliability(judged)
    return fill(
        "bottleneck.html",
        model=type(cbm).__name__,
        lead=_lead(judged),
        n_concepts=len(cbm.concept_names),
        n_classes=len(cbm.classes_),
        measures=_measures(judged, weights),
        weights=figure_uri(_heatmap(cbm, weights * judged.codes.std(0, correction=0))),
        beside=not _sees_only_codes(cbm),
        curves=_curves(judged),
        reliability=figure_uri(figures),
        concepts=_concepts(judged),
        n_listed=N_LISTED,
        decisions=_decisions(judged),
        options={name: value for name, value in cbm._options().items() if _is_plain(value)},
    )


def _judge(cbm: Bottleneck, data: TrainingData) -> _Judged:
    features = cbm._features(data.features)
    codes, logits = cbm.network_.concepts(features), cbm._logits(features)
    concepts = data.concepts
    if concepts is not None:
        concepts = concepts.to(codes).masked_fill(~is_binary(concepts).to(codes.device), torch.nan)
        concepts = None if concepts.isnan().all() else concepts
    best = logits.argmax(1)
    parts = torch.zeros(len(codes), codes.shape[1] + 3, dtype=torch.float64)
    for index in best.unique().tolist():
        rows = best == index
        parts[rows.cpu()] = logit_parts(cbm, codes[rows, None], logits[rows], index)
    values = cbm._concept_values(features)
    return _Judged(cbm, data, concepts, features, codes, values, logits, parts)


def _sees_only_codes(cbm: Bottleneck) -> bool:
    return type(cbm.network_).logits is Network.logits


def _lead(judged: _Judged) -> str:
    """What it was judged on, and what of the page is left out, and why."""
    held_out = judged.data is judged.cbm.held_out_
    right = float((judged.logits.argmax(1) == judged.y).double().mean())
    where = "held out when it was fitted" if held_out else "given to judge it"
    lead = f"It gets the class of {100 * right:.1f} % of {len(judged.data)} rows {where} right."
    if judged.data.concepts is None:
        return f"{lead} There are no concept labels, so only classes are judged."
    if judged.concepts is None:
        return f"{lead} No concept's labels are 0 and 1, so only classes are judged."
    left = int((~is_binary(judged.data.concepts)).sum())
    return f"{lead} {left} concepts that are not binary are not judged." if left else lead


# -- figures -----------------------------------------------------------------------------------


def _measures(judged: _Judged, weights: Tensor) -> list[tuple[str, str, str]]:
    """Name, value and meaning of each measure."""
    y, logits = judged.y, judged.logits
    right = class_accuracy(logits, y)
    rows = [("class accuracy", _shown(right), "share of rows whose class is right")]
    confidence, best = logits.softmax(1).max(1)
    error = reliability(confidence, best == y).error
    meaning = "mean distance of the predicted class's probability and the share that is right"
    rows.append(("class calibration error", f"{error:.3f}", meaning))
    if judged.concepts is not None:
        rows += _concept_measures(judged, judged.concepts, right)
    complete = _completeness(judged)
    if complete is not None:
        meaning = (
            "what a linear probe of the codes gets right above the most frequent class, as a share "
            "of what one of the features gets right; both cross-validated on these rows"
        )
        rows.append(("completeness", f"{complete:.3f}", meaning))
    count = float(weights.count_nonzero()) / len(weights)
    rows.append(("concepts read by a class", f"{count:.1f}", f"of {weights.shape[1]}, on average"))
    used = effective_concepts(judged.parts[:, 1:-2])
    meaning = "they hold 95 % of what all concepts add to the predicted class's logit, by size"
    rows.append(("concepts of a decision", _shown(used, 1), meaning))
    return rows


def _concept_measures(
    judged: _Judged, concepts: Tensor, right: Estimate
) -> list[tuple[str, str, str]]:
    values, known = judged.values, ~concepts.isnan()
    rounded = (values > 0.5).to(values)
    hard = class_accuracy(judged.cbm._corrected(judged.features, rounded)[1], judged.y)
    p = values[known].clamp(0, 1)
    return [
        (
            "concept accuracy",
            _shown(concept_accuracy(values, concepts)),
            "share of a row's labelled concepts that are right",
        ),
        (
            "overall concept accuracy",
            _shown(overall_concept_accuracy(values, concepts)),
            "share of rows whose labelled concepts are all right",
        ),
        (
            "concept AUC",
            _shown(concept_auc(values, concepts)),
            "area under the ROC curve, mean over concepts",
        ),
        (
            "concept calibration error",
            f"{reliability(p, concepts[known] == 1).error:.3f}",
            "mean distance of a concept's probability and the share that has it",
        ),
        (
            "leakage",
            _shown(Estimate(right.values - hard.values)),
            "class accuracy lost where each concept is rounded to absent or present",
        ),
    ]


def _completeness(judged: _Judged) -> float | None:
    """None where a class has too few rows, or the features tell nothing of it."""
    y = judged.y.cpu().numpy()
    counts = torch.bincount(judged.y)
    folds = min(FOLDS, int(counts[counts > 0].min()))
    if folds < 2 or (counts > 0).sum() < 2:
        return None
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    of_codes, of_features = (
        float(cross_val_score(probe, rows.double().cpu().numpy(), y, cv=folds).mean())
        for rows in (judged.codes, judged.features)
    )
    chance = float(counts.max()) / len(y)
    return completeness(of_codes, of_features, chance) if of_features > chance else None


def _weights(cbm: Bottleneck, codes: Tensor) -> Tensor:
    """How logits rise with codes, mean over rows ``(n_classes, k)``: a linear head's weights."""
    codes = codes.detach().requires_grad_()
    with torch.enable_grad():
        means = cbm.network_.classify(codes).mean(0)
        slopes = [torch.autograd.grad(m, codes, retain_graph=True)[0].sum(0) for m in means]
    return torch.stack(slopes)


def _heatmap(cbm: Bottleneck, weights: Tensor) -> Figure:
    """The largest weights ``(n_classes, k)``, concepts down and classes across."""
    from matplotlib.figure import Figure

    sizes = weights.abs()
    concepts = sizes.amax(0).topk(min(N_WEIGHTS, sizes.shape[1])).indices.sort().values
    classes = sizes.amax(1).topk(min(N_CLASSES, len(sizes))).indices.sort().values
    shown = weights[classes][:, concepts].T.cpu().numpy()
    width, height = 2.6 + 0.45 * shown.shape[1], 1.2 + 0.24 * shown.shape[0]
    figure = Figure(figsize=(max(width, 4.5), height), layout="constrained")
    ax = figure.subplots()
    limit = float(abs(shown).max()) or 1.0
    image = ax.imshow(shown, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    names = [_short(cbm.concept_names[i]) for i in concepts.tolist()]
    ax.set_yticks(range(len(names)), names, fontsize=8, parse_math=False)
    names = [_short(cbm.class_names[i]) for i in classes.tolist()]
    ax.set_xticks(range(len(names)), names, fontsize=8, rotation=90, parse_math=False)
    figure.colorbar(image, ax=ax, label="logit per standard deviation")
    return figure


def _curves(judged: _Judged) -> list[dict[str, str]]:
    """One figure a policy."""
    if judged.concepts is None:
        return []
    cbm, shown = judged.cbm, []
    y = cbm.classes_[judged.data.y.cpu().numpy()]
    for policy in POLICIES:
        curve = intervention_curve(cbm, judged.features, y, judged.concepts, policy=policy)
        start, end = (float(curve.class_accuracy.mean[i]) for i in (0, -1))
        alt = f"Class accuracy goes from {start:.2f} to {end:.2f} as concepts are corrected"
        shown.append({"uri": figure_uri(curve.plot()), "alt": f"{alt} in {policy} order"})
    return shown


def _reliability(judged: _Judged) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 4), layout="constrained")
    ax = figure.subplots()
    confidence, best = judged.logits.softmax(1).max(1)
    reliability(confidence, best == judged.y).plot(ax, "class,")
    if judged.concepts is not None:
        known = ~judged.concepts.isnan()
        values = judged.values[known].clamp(0, 1)
        reliability(values, judged.concepts[known] == 1).plot(ax, "concepts,")
    return figure


def _concepts(judged: _Judged) -> list[dict[str, Any]]:
    """The binary concepts, those that are found worst first."""
    if judged.concepts is None:
        return []
    areas = concept_auc(judged.values, judged.concepts).values
    labels, right = judged.concepts, (judged.values > 0.5) == (judged.concepts > 0.5)
    known = ~labels.isnan()
    order = [i for i in areas.nan_to_num(2).argsort().tolist() if known[:, i].any()]
    return [
        {
            "name": judged.cbm.concept_names[i],
            "share": float(labels[known[:, i], i].mean()),
            "accuracy": float(right[known[:, i], i].double().mean()),
            "auc": float(areas[i]),
        }
        for i in order[:N_LISTED]
    ]


# -- decisions ---------------------------------------------------------------------------------


def _decisions(judged: _Judged) -> list[dict[str, Any]]:
    """The surest of the right and of the wrong decisions, each with what concepts added."""
    cbm, data = judged.cbm, judged.data
    confidence, best = judged.logits.softmax(1).max(1)
    right = best == judged.y
    chosen = [*_surest(confidence, best, right), *_surest(confidence, best, ~right)]
    return [
        {
            "row": int(data.rows[i]),
            "predicted": cbm.class_names[int(best[i])],
            "true": cbm.class_names[int(judged.y[i])],
            "right": bool(right[i]),
            "confidence": float(confidence[i]),
            "picture": _picture(judged, i),
            "fall": _fall(judged, i, cbm.class_names[int(best[i])]),
        }
        for i in chosen
    ]


def _surest(confidence: Tensor, best: Tensor, among: Tensor) -> list[int]:
    """Rows of different predicted classes as far as there are, the surest first."""
    order = confidence.masked_fill(~among, -1).argsort(descending=True, stable=True)
    rows = order[: int(among.sum())].tolist()
    first = {int(best[i]): i for i in reversed(rows)}
    return sorted(rows, key=lambda i: first[int(best[i])] != i)[:N_DECISIONS]


def _fall(judged: _Judged, i: int, target: str) -> list[dict[str, Any]]:
    """The largest steps of a waterfall, the other concepts in one."""
    labels = judged.concepts
    names = [
        name if labels is None or labels[i, k].isnan() else f"{name} ({_labelled(labels[i, k])})"
        for k, name in enumerate(judged.cbm.concept_names)
    ]
    fall = waterfall_of(judged.parts[i], target, names)
    of_concepts = [(name, height) for name, height, k in fall.steps if k is not None]
    steps = [(n, h, FOR if h > 0 else AGAINST) for n, h in of_concepts[:N_STEPS]]
    others = of_concepts[N_STEPS:]
    if others:
        steps.append(("other concepts", sum(h for _, h in others), GREY))
    steps += [(name, height, GREY) for name, height, k in fall.steps if k is None]
    return fall_rows(fall, steps)


def _labelled(label: Tensor) -> str:
    return "present" if label > 0.5 else "absent"


def _picture(judged: _Judged, i: int) -> str | None:
    pictures, backbone = judged.data.pictures, judged.cbm.backbone_
    if pictures is None or backbone is None:
        return None
    x = pictures[int(judged.data.rows[i])]
    return data_uri(denormalise(x[None].float().cpu(), backbone.transform)[0])


def _shown(estimate: Estimate, digits: int = 3) -> str:
    if not len(estimate.defined):
        return "–"
    error = f" ± {estimate.stderr:.{digits}f}" if len(estimate.defined) > 1 else ""
    return f"{estimate.mean:.{digits}f}{error}"


def _short(name: str) -> str:
    return name if len(name) <= 32 else f"{name[:31]}…"


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))
