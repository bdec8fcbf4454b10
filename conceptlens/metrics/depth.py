"""Where in a network, and when in its training, concepts can be read off by a linear probe."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..backbone import Backbone
from ..images import Pictures
from ..progress import bar
from .checks import check_binary, check_one_of, check_shape
from .probe import probe_scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRICS = ("auc", "accuracy")
CHANCE = 0.5  # of both


@dataclass(frozen=True, eq=False)
class Emergence:
    """How well each concept is read at successive stages, and at which it is there.

    Attributes
    ----------
    scores : Tensor
        ``(S, m)``: of the probe of each concept at each stage, on rows it was not fitted on;
        0.5 is chance, 1 perfect.
    stages : list of str
        The S layers or checkpoints, in order.
    concept_names : list of str
        The m concepts.
    share : float
        A concept is there once its score has come this share of the way from chance to 1.
    metric : str
        "auc" or "accuracy".
    kind : str
        What the stages are.
    """

    scores: Tensor
    stages: list[str]
    concept_names: list[str]
    share: float
    metric: str
    kind: str = "stage"

    @property
    def first(self) -> Tensor:
        """The index ``(m,)`` of the first stage where each concept is there; S where it never is.

        It counts from when it stays: a score that falls below again was not there yet.
        """
        reached = self.scores >= CHANCE + self.share * (1 - CHANCE)
        return len(self.stages) - reached.flip(0).int().cumprod(0).sum(0)

    @property
    def order(self) -> list[str]:
        """The concepts from the first to the last to be there; of equals, the better read first."""
        first, mean = self.first.tolist(), self.scores.mean(0).tolist()
        ranks = sorted(range(len(first)), key=lambda j: (first[j], -mean[j]))
        return [self.concept_names[j] for j in ranks]

    def table(self) -> str:
        """One line a concept, in `order`: the first stage, and the score at each."""
        first = dict(zip(self.concept_names, self.first.tolist(), strict=True))
        columns = dict(zip(self.concept_names, self.scores.T.tolist(), strict=True))
        stages = [*self.stages, "never"]
        lines = [["concept", f"first {self.kind}", *self.stages]]
        lines += [
            [name, stages[first[name]], *(f"{s:.2f}" for s in columns[name])] for name in self.order
        ]
        widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )

    def plot(self) -> Figure:
        """Draw the score of each concept over the stages, a dot where it is there."""
        from matplotlib.figure import Figure

        from ..plots import colour

        figure = Figure(figsize=(max(5.0, 0.45 * len(self.stages) + 3), 3.4), layout="constrained")
        ax = figure.subplots()
        places = range(len(self.stages))
        threshold = CHANCE + self.share * (1 - CHANCE)
        ax.axhline(threshold, color="0.75", linewidth=1)
        for j, name in enumerate(self.concept_names):
            line = self.scores[:, j].tolist()
            ax.plot(places, line, color=colour(j), label=name)
            if (first := int(self.first[j])) < len(line):
                ax.plot([first], [line[first]], "o", color=colour(j))
        ax.set_xticks(list(places), self.stages)
        if max(map(len, self.stages)) > 3:
            ax.tick_params("x", rotation=60)
        ax.set_xlabel(self.kind)
        ax.set_ylabel("AUC" if self.metric == "auc" else "balanced accuracy")
        ax.set_ylim(min(0.45, float(self.scores.min())), 1.02)
        ax.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside right upper", frameon=False)
        return figure

    def __repr__(self) -> str:
        stages = [*self.stages, "never"]
        found = dict(zip(self.concept_names, self.first.tolist(), strict=True))
        listed = ", ".join(f"{name}: {stages[found[name]]}" for name in self.order)
        return f"Emergence(first {self.kind} with {self.share:.0%} of {self.metric} — {listed})"


def emergence(
    features: Mapping[str, Any] | Iterable[tuple[str, Any]],
    concepts: Any,
    *,
    concept_names: Sequence[str] | None = None,
    share: float = 0.9,
    metric: str = "auc",
    kind: str = "stage",
    seed: int = 0,
) -> Emergence:
    """Fit a logistic probe of each concept at each stage on half of the rows, judge it on the rest.

    Parameters
    ----------
    features : mapping or iterable of pairs
        The features ``(n, C)`` of the same n pictures at each stage, by its name; C may differ.
    concepts : Tensor
        ``(n, m)`` of 0 and 1.
    concept_names : sequence of str, optional
        Default: "concept 0", "concept 1", ...
    share : float
        A concept is there once its score has come this share of the way from chance to 1.
    metric : {"auc", "accuracy"}
        Area under the ROC curve, or accuracy balanced between present and absent.
    kind : str
        What the stages are called.
    seed : int
        Fixes the halves, which are the same at each stage.

    Raises
    ------
    ValueError
        For shapes that do not match, or a concept that is the same in all rows of a half.
    """
    labels = check_binary(concepts, "concepts", "n m").cpu().numpy()
    n, m = labels.shape
    names = [f"concept {j}" for j in range(m)] if concept_names is None else list(concept_names)
    if len(names) != m:
        raise ValueError(f"{len(names)} concept_names for {m} concepts")
    if not 0 < share <= 1:
        raise ValueError(f"share must lie between 0 and 1, got {share}")
    check_one_of(metric, "metric", METRICS)
    train, test = np.array_split(np.random.default_rng(seed).permutation(n), 2)
    known = labels[test]
    if constant := [names[j] for j in np.flatnonzero(known.all(0) | ~known.any(0))]:
        raise ValueError(f"{constant} are the same in all {len(test)} rows that judge the probes")
    stages: list[str] = []
    scores: list[list[float]] = []
    for stage, given in features.items() if isinstance(features, Mapping) else features:
        x = check_shape(given, f"the features of {stage}", "n C", n=n)
        found = probe_scores(x.detach().double().cpu().numpy(), labels, train, test)
        stages.append(str(stage))
        scores.append([_score(known[:, j], found[:, j], metric) for j in range(m)])
    if not stages:
        raise ValueError("there are no stages: features is empty")
    values = torch.tensor(scores, dtype=torch.float64)
    return Emergence(values, stages, names, share, metric, kind)


def concept_depth(
    bb: Backbone,
    images: Any,
    concepts: Any,
    *,
    layers: Sequence[str] | None = None,
    concept_names: Sequence[str] | None = None,
    share: float = 0.9,
    metric: str = "auc",
    batch_size: int = 64,
    seed: int = 0,
) -> Emergence:
    """At which layer each concept can be read off linearly, from one pass over the pictures.

    Features are the activations averaged over positions.

    Parameters
    ----------
    bb : Backbone
        The classifier; where it is cut does not matter.
    images : folder, list, Dataset, DataLoader or Tensor
        n pictures, as `Pictures` takes them.
    concepts : Tensor
        ``(n, m)`` of 0 and 1.
    layers : sequence of str, optional
        In the order of the network. Default: all that ``bb.layers()`` lists.
    batch_size : int
        Pictures a forward pass.
    concept_names, share, metric, seed
        As `emergence` takes them.

    References
    ----------
    Jin et al., "Exploring Concept Depth", COLING 2025, for language models.
    """
    pictures = Pictures.of(images, bb.transform)
    if layers is None:
        # One batch first: the layers are those of pictures of this size.
        bb.activations(next(pictures.batches(1))[1])
        layers = [info.name for info in bb.layers()]
    kept, features = _features(bb, pictures, layers, batch_size)
    return emergence(
        features, _rows_of(concepts, kept, len(pictures)), concept_names=concept_names, share=share,
        metric=metric, kind="layer", seed=seed,
    )  # fmt: skip


def concept_dynamics(
    bb: Backbone,
    checkpoints: Mapping[Any, Any] | Iterable[tuple[Any, Any]],
    images: Any,
    concepts: Any,
    *,
    concept_names: Sequence[str] | None = None,
    share: float = 0.9,
    metric: str = "auc",
    batch_size: int = 64,
    seed: int = 0,
) -> Emergence:
    """At which checkpoint of the training each concept can be read off at the backbone's layer.

    Parameters
    ----------
    bb : Backbone
        The classifier, cut at the layer that is read. It is left as it is.
    checkpoints : mapping or iterable of pairs
        A name or number, and the weights then: a ``state_dict`` of the classifier, or a model of
        its kind. A generator that reads one file after the other keeps memory low.
    images, concepts, concept_names, share, metric, batch_size, seed
        As `concept_depth` takes them.

    References
    ----------
    Park et al., "Emergence of Hidden Capabilities: Exploring Learning Dynamics in Concept Space",
    NeurIPS 2024.
    """
    pictures = Pictures.of(images, bb.transform)
    pairs = checkpoints.items() if isinstance(checkpoints, Mapping) else checkpoints
    copied = copy.deepcopy(bb.model)
    stages: dict[str, Tensor] = {}
    kept: list[int] = []
    for name, state in pairs:
        copied.load_state_dict(state.state_dict() if isinstance(state, nn.Module) else state)
        then = Backbone(
            copied, bb.layer, bb.transform, output=bb.output, autocast=bb.autocast
        )  # cut anew: whether the cut is right may depend on the weights
        kept, features = _features(then, pictures, [bb.layer], batch_size)
        stages[str(name)] = features[bb.layer]
    if not stages:
        raise ValueError("there are no checkpoints")
    return emergence(
        stages, _rows_of(concepts, kept, len(pictures)), concept_names=concept_names, share=share,
        metric=metric, kind="checkpoint", seed=seed,
    )  # fmt: skip


def _features(
    bb: Backbone, pictures: Pictures, layers: Sequence[str], batch_size: int
) -> tuple[list[int], dict[str, Tensor]]:
    """The readable pictures and their activations ``(n, C)`` at each layer, mean over positions."""
    kept: list[int] = []
    parts: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    with torch.no_grad(), bar("features", len(pictures), "pictures") as progress:
        for indices, x in pictures.batches(batch_size):
            for layer, a in bb.activations_at(x, layers).items():
                parts[layer].append(a.mean(1))
            kept += indices
            progress.update(len(indices))
    return kept, {layer: torch.cat(rows) for layer, rows in parts.items()}


def _rows_of(concepts: Any, kept: list[int], n: int) -> Tensor:
    return check_shape(concepts, "concepts", "n m", n=n)[kept]


def _score(labels: np.ndarray, scores: np.ndarray, metric: str) -> float:
    from sklearn.metrics import balanced_accuracy_score, roc_auc_score

    if metric == "auc":
        return float(roc_auc_score(labels, scores))
    return float(balanced_accuracy_score(labels, scores > 0))
