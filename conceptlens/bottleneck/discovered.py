"""Figures of discovered concepts: the same thing in every task, and those that go together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..metrics.checks import check_shape

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def task_figure(
    codes: Mapping[str, Tensor],
    pictures: Mapping[str, Any],
    concepts: Sequence[int],
    concept_names: Sequence[str],
    *,
    n_pictures: int = 4,
) -> Figure:
    """Show each concept's strongest pictures in every task, side by side.

    A concept that is not bound to a task shows the same thing in each.

    Parameters
    ----------
    codes : mapping of str to Tensor
        For each task or data set the codes ``(n, k)`` of its pictures, by one autoencoder.
    pictures : mapping of str to sequence of Tensor
        For each the pictures, ``(3, H, W)`` in [0, 1].
    concepts : sequence of int
        Which to show, a row each.
    concept_names : sequence of str
        k names.
    n_pictures : int
        How many for each task.

    Raises
    ------
    ValueError
        If tasks differ between the two mappings, or sizes do not fit.
    """
    from matplotlib.figure import Figure

    if codes.keys() != pictures.keys():
        raise ValueError(f"codes are of {list(codes)}, pictures of {list(pictures)}")
    k = len(concept_names)
    rows = {task: check_shape(u, f"codes of {task!r}", "n k", k=k) for task, u in codes.items()}
    for task, u in rows.items():
        if len(u) != len(pictures[task]):
            raise ValueError(f"{task!r} has {len(u)} codes for {len(pictures[task])} pictures")
    width, height = 1.5 + 0.9 * n_pictures * len(rows), 0.4 + 0.95 * len(concepts)
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(len(concepts), 1 + n_pictures * len(rows), squeeze=False)
    for ax in grid.flat:
        ax.set_axis_off()
    for line, j in zip(grid, concepts, strict=True):
        line[0].text(1, 0.5, concept_names[j], ha="right", va="center", fontsize=9)
        for t, (task, u) in enumerate(rows.items()):
            strongest = u[:, j].argsort(descending=True, stable=True)[:n_pictures].tolist()
            for i, ax in zip(strongest, line[1 + t * n_pictures :], strict=False):
                if u[i, j] > 0:  # where a concept is never on it has no pictures
                    ax.imshow(pictures[task][i].movedim(0, -1).clamp(0, 1).numpy(force=True))
            grid[0][1 + t * n_pictures].set_title(task, fontsize=9, loc="left")
    return figure


def meta_clusters(directions: Tensor, alive: Tensor, n_clusters: int) -> Tensor:
    """Group concepts whose directions lie near one another, by average linkage of their cosines.

    Parameters
    ----------
    directions : Tensor
        ``(k, C)``, as the autoencoder's ``components_``.
    alive : Tensor
        ``(k,)`` bool: concepts that are ever on; the others are in no cluster.
    n_clusters : int
        At most as many as concepts alive.

    Returns
    -------
    Tensor
        ``(k,)`` int64 on the CPU: the cluster of each concept, -1 for none.
    """
    from scipy.cluster.hierarchy import fcluster, linkage

    directions = check_shape(directions, "directions", "k C")
    alive = check_shape(alive, "alive", "k", k=len(directions)).bool().cpu()
    if not 1 <= n_clusters <= int(alive.sum()):
        raise ValueError(f"n_clusters must be 1 to {int(alive.sum())}, got {n_clusters}")
    clusters = torch.full((len(directions),), -1)
    if int(alive.sum()) == 1:
        clusters[alive] = 0
        return clusters
    unit = normalize(directions.detach().cpu()[alive].double(), dim=1)
    tree = linkage(unit.numpy(), "average", metric="cosine")
    clusters[alive] = torch.from_numpy(fcluster(tree, n_clusters, "maxclust")).long() - 1
    return clusters


def meta_cluster_figure(
    codes: Tensor,
    classes: Tensor,
    clusters: Tensor,
    concept_names: Sequence[str],
    class_names: Sequence[str],
    *,
    n_named: int = 3,
) -> Figure:
    """Draw how strongly each meta-cluster is on in each class, as a heat map.

    Parameters
    ----------
    codes : Tensor
        ``(n, k)``.
    classes : Tensor
        ``(n,)``, indices of classes.
    clusters : Tensor
        ``(k,)``, as `meta_clusters` returns.
    concept_names, class_names : sequence of str
        Names; a cluster is called by its `n_named` strongest concepts.
    """
    from matplotlib.figure import Figure

    strength, labels = cluster_strengths(codes, classes, clusters, concept_names, n_named=n_named)
    n_clusters, n_classes = strength.shape
    size = (3.2 + 0.5 * n_classes, 1.0 + 0.32 * n_clusters)
    figure = Figure(figsize=size, layout="constrained")
    ax = figure.subplots()
    image = ax.imshow(strength.numpy(), aspect="auto", cmap="Blues", vmin=0)
    ax.set_yticks(range(n_clusters), labels, fontsize=8)
    ax.set_xticks(range(n_classes), list(class_names), rotation=45, ha="right", fontsize=8)
    figure.colorbar(image, ax=ax, label="mean activation")
    return figure


def cluster_strengths(
    codes: Tensor,
    classes: Tensor,
    clusters: Tensor,
    concept_names: Sequence[str],
    *,
    n_named: int = 3,
) -> tuple[Tensor, list[str]]:
    """The summed mean codes of each cluster in each class ``(clusters, n_classes)``, and names."""
    codes = check_shape(codes, "codes", "n k").detach().double().cpu()
    classes = check_shape(classes, "classes", "n", n=len(codes)).cpu()
    clusters = check_shape(clusters, "clusters", "k", k=codes.shape[1]).cpu()
    n_classes = int(classes.max()) + 1
    means = torch.stack([codes[classes == y].mean(0) for y in range(n_classes)], 1)  # (k, classes)
    strength, names = [], []
    for cluster in range(int(clusters.max()) + 1):
        members = (clusters == cluster).nonzero().flatten()
        strength.append(means[members].sum(0))
        strongest = members[codes[:, members].mean(0).argsort(descending=True, stable=True)]
        words = dict.fromkeys(concept_names[j] for j in strongest.tolist())  # a name only once
        names.append(", ".join(list(words)[:n_named]))
    return torch.stack(strength), names
