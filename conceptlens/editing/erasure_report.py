"""How well an erasure worked, what it cost, and whether it holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..batching import in_batches
from ..metrics.checks import check_binary, check_shape
from .codes import Concepts, concept_indices

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class ErasureReport:
    """Probes of all concepts before and after an erasure, on rows that they were not fitted on.

    Accuracies are balanced: the mean over rows with and without the concept, 0.5 by chance.

    Attributes
    ----------
    concept_names : list of str
        The m concepts.
    erased : list of int
        Which of them were erased.
    before, after : Tensor
        Accuracy of logistic probes, fitted anew after the edit, ``(m,)``.
    nonlinear : Tensor
        After the edit, of fresh perceptrons with a hidden layer, for the erased concepts only,
        ``(len(erased),)``.
    neighbours : list of int
        For each erased concept the other one whose difference of means is most alike.
    beside : Tensor
        After the edit, accuracy of the logistic probe of each erased concept on rows that bear
        its neighbour, ``(len(erased),)``.
    task_accuracy, task_loss : tuple of float or None
        Accuracy and cross-entropy of the network before and after, on all rows.
    """

    concept_names: list[str]
    erased: list[int]
    before: Tensor
    after: Tensor
    nonlinear: Tensor
    neighbours: list[int]
    beside: Tensor
    task_accuracy: tuple[float, float] | None
    task_loss: tuple[float, float] | None

    @property
    def others(self) -> list[int]:
        """The concepts that were to be kept."""
        return [i for i in range(len(self.before)) if i not in self.erased]

    @property
    def cost(self) -> float:
        """The largest loss of accuracy of another concept's probe; 0 where there is no other."""
        return max([float(self.before[i] - self.after[i]) for i in self.others], default=0.0)

    def plot(self) -> Figure:
        """Draw the accuracy of each concept's probe before and after."""
        from matplotlib.figure import Figure

        m = len(self.before)
        figure = Figure(figsize=(6, 1.2 + 0.35 * m), layout="constrained")
        ax = figure.subplots()
        for i in range(m):
            ax.plot([self.before[i], self.after[i]], [i, i], color="0.8", zorder=0)
        ax.scatter(self.before, range(m), color="0.5", label="before")
        ax.scatter(self.after, range(m), color="#0072B2", label="after")
        ax.scatter(
            self.nonlinear, self.erased, marker="x", color="#D55E00", label="after, nonlinear"
        )
        ax.axvline(0.5, color="0.7", linewidth=0.8)
        names = [
            f"{n} (erased)" * (i in self.erased) or n for i, n in enumerate(self.concept_names)
        ]
        ax.set_yticks(range(m), names)
        ax.invert_yaxis()
        ax.set_xlabel("balanced accuracy of a fresh probe on unseen rows")
        figure.legend(loc="outside upper right", ncols=3, frameon=False)
        return figure

    def __repr__(self) -> str:
        lines = [f"Erasure of {', '.join(self.concept_names[i] for i in self.erased)}"]
        for i, nonlinear, j, beside in zip(
            self.erased, self.nonlinear, self.neighbours, self.beside, strict=True
        ):
            lines.append(
                f"  {self.concept_names[i]}: probe {self.before[i]:.3f} → {self.after[i]:.3f}, "
                f"nonlinear {nonlinear:.3f}, beside {self.concept_names[j]} {beside:.3f}"
            )
        lines.append(f"  other concepts' probes lose at most {self.cost:.3f}")
        if self.task_accuracy is not None and self.task_loss is not None:
            lines.append(
                "  task accuracy {:.3f} → {:.3f}, cross-entropy {:.3f} → {:.3f}".format(
                    *self.task_accuracy, *self.task_loss
                )
            )
        return "\n".join(lines)


def erasure_report(
    edit: nn.Module,
    activations: Any,
    concepts: Any,
    erased: Concepts,
    *,
    concept_names: Sequence[str] | None = None,
    head: Callable[[Tensor], Tensor] | None = None,
    labels: Any = None,
    seed: int = 0,
) -> ErasureReport:
    """Judge an edit: efficacy, specificity, robustness.

    Parameters
    ----------
    edit : nn.Module
        Maps ``(..., C)`` to as many.
    activations : Tensor
        ``(n, C)`` or ``(n, P, C)``, whose mean over positions the probes read; of rows that the
        edit was not made from. Probes are fitted on half of them and judged on the rest.
    concepts : Tensor
        ``(n, m)`` of 0 and 1.
    erased : int, str or sequence of them
        The concepts that the edit erases; at least one other must be left.
    concept_names : sequence of str, optional
        Default: "concept 0", "concept 1", ...
    head : callable, optional
        ``Backbone.head``, for the task's accuracy and cross-entropy.
    labels : Tensor, optional
        The classes ``(n,)``, which go with `head`.
    seed : int
        Fixes the halves and the perceptrons.
    """
    a = torch.as_tensor(activations)
    a = check_shape(a, "activations", "n P C" if a.ndim == 3 else "n C")
    n = len(a)
    z = check_binary(concepts, "concepts", "n m", n=n).cpu()
    default = [f"concept {i}" for i in range(z.shape[1])]
    names = default if concept_names is None else list(concept_names)
    if len(names) != z.shape[1]:
        raise ValueError(f"{len(names)} concept_names for {z.shape[1]} concepts")
    chosen = concept_indices(erased, names)
    if len(chosen) == z.shape[1]:
        raise ValueError("all concepts are erased: give one that is kept, to see the cost")
    if (head is None) != (labels is None):
        raise ValueError("head and labels go together: give both or none")
    with torch.no_grad():
        edited = in_batches(edit, a, 256)
    x, y = ((v.mean(1) if v.ndim == 3 else v).double().cpu() for v in (a, edited))
    halves = np.array_split(np.random.default_rng(seed).permutation(n), 2)
    train, test = (torch.from_numpy(half) for half in halves)
    before = _accuracies(_probe(x, z, train, test), z[test])
    hits = _probe(y, z, train, test)
    nonlinear = _probe(y, z[:, chosen], train, test, seed)
    neighbours = [_neighbour(x, z, i, chosen) for i in chosen]
    beside = [
        _accuracies(hits[z[test, j], i : i + 1], z[test][z[test, j], i : i + 1])
        for i, j in zip(chosen, neighbours, strict=True)
    ]
    task = None if head is None else _task(head, (a, edited), labels)
    return ErasureReport(
        names,
        chosen,
        before,
        _accuracies(hits, z[test]),
        _accuracies(nonlinear, z[test][:, chosen]),
        neighbours,
        torch.cat(beside),
        None if task is None else task[0],
        None if task is None else task[1],
    )


def _probe(
    x: Tensor, z: Tensor, train: Tensor, test: Tensor, perceptron: int | None = None
) -> Tensor:
    """What fresh probes say of the rows `test`, ``(len(test), m)`` bool."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    columns = []
    for labels in z.T:
        if len(labels[train].unique()) < 2:
            raise ValueError("a concept is the same in all rows that its probe is fitted on")
        model: Any = LogisticRegression(max_iter=1000, class_weight="balanced")
        if perceptron is not None:
            model = MLPClassifier(64, early_stopping=True, random_state=perceptron, max_iter=100)
        probe = make_pipeline(StandardScaler(), model).fit(x[train].numpy(), labels[train].numpy())
        columns.append(torch.from_numpy(probe.predict(x[test].numpy())))
    return torch.stack(columns, 1).bool()


def _accuracies(said: Tensor, true: Tensor) -> Tensor:
    """Balanced accuracy of each column."""
    right = (said == true).double()
    return ((right * true).sum(0) / true.sum(0) + (right * ~true).sum(0) / (~true).sum(0)) / 2


def _neighbour(x: Tensor, z: Tensor, i: int, erased: list[int]) -> int:
    """The concept, not erased, whose difference of means is most alike to that of concept i."""
    on, off = z.double(), (~z).double()
    difference = (on.T @ x) / on.sum(0)[:, None] - (off.T @ x) / off.sum(0)[:, None]
    alike = torch.cosine_similarity(difference, difference[i : i + 1]).abs()
    alike[erased] = -1
    return int(alike.argmax())


def _task(
    head: Callable[[Tensor], Tensor], both: tuple[Tensor, Tensor], labels: Any
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Accuracies and cross-entropies before and after."""
    y = check_shape(labels, "labels", "n", n=len(both[0])).long()
    with torch.no_grad():
        logits = [in_batches(head, a, 256).cpu() for a in both]
    accuracy = [float((rows.argmax(1) == y.cpu()).double().mean()) for rows in logits]
    loss = [float(nn.functional.cross_entropy(rows, y.cpu())) for rows in logits]
    return (accuracy[0], accuracy[1]), (loss[0], loss[1])
