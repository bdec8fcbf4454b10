"""The strategic cluster graph: the different ways in which a network recognises one class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .importance.result import Importance

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MIN_PICTURES = 12
MAX_CLUSTERS = 6
# Below this silhouette clusters are not apart, and the pictures count as one.
MIN_SILHOUETTE = 0.25
# Fewer pictures are no strategy.
MIN_SIZE = 3
# A cluster is called by the concepts that carry at least this share of its importance, two at most.
NAMING_SHARE = 0.2


@dataclass(frozen=True, eq=False)
class ClusterGraph:
    """Pictures of a class, grouped by which concepts matter in them.

    Attributes
    ----------
    points : Tensor
        ``(n, 2)``: the pictures' importance vectors, embedded in the plane.
    clusters : Tensor
        ``(n,)`` int64: the cluster of each picture, the largest first.
    names : list of str
        Each cluster's main concepts, with their share of its importance.
    edges : list of tuple of int
        From each cluster to the nearest one, by the distance of their mean importance.
    embedding : str
        "UMAP", "t-SNE" or "PCA".
    target : str
        The class.
    """

    points: Tensor
    clusters: Tensor
    names: list[str]
    edges: list[tuple[int, int]]
    embedding: str
    target: str

    @property
    def sizes(self) -> list[int]:
        """Number of pictures in each cluster."""
        return [int(size) for size in self.clusters.bincount(minlength=len(self.names))]

    def plot(self, ax: Axes | None = None) -> Any:
        """Draw the pictures as dots and the clusters as nodes of a graph; returns the axes."""
        from matplotlib.figure import Figure

        from .plots import colour

        if ax is None:
            ax = Figure(figsize=(7, 4.5), layout="constrained").subplots()
        centres = torch.stack([self.points[self.clusters == j].mean(0) for j in range(len(self))])
        for i, j in self.edges:
            ax.plot(*centres[[i, j]].T.tolist(), color="0.6", linewidth=1.5, zorder=1)
        for j, (name, size) in enumerate(zip(self.names, self.sizes, strict=True)):
            x, y = self.points[self.clusters == j].T.tolist()
            label = f"{j + 1}: {name} ({size})"
            ax.scatter(x, y, s=18, color=colour(j), alpha=0.6, linewidth=0, label=label)
            centre = tuple(centres[j].tolist())
            node = {"boxstyle": "circle", "facecolor": "white", "edgecolor": colour(j)}
            ax.annotate(str(j + 1), centre, ha="center", va="center", fontsize=9, bbox=node)
        ax.legend(loc="upper left", bbox_to_anchor=(0, -0.02), frameon=False, fontsize=9)
        ax.set_xticks([])
        ax.set_yticks([])
        ax.margins(0.15)
        ax.set_title(f"Ways to “{self.target}” ({self.embedding} of the concepts' importance)")
        return ax

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        pairs = zip(self.names, self.sizes, strict=True)
        rows = (f"  {name}: {size} pictures" for name, size in pairs)
        return "\n".join([f"{len(self)} ways to {self.target!r}", *rows])


def cluster_graph(
    importance: Importance, *, n_clusters: int | None = None, seed: int = 0
) -> ClusterGraph:
    """Group a class's pictures by which concepts matter in them.

    Each picture's importance, scaled so that absolute values sum to 1, is a point; k-means groups
    the points, and the plane they are shown in is UMAP's if umap-learn is installed, else
    t-SNE's, or that of the two principal components where pictures are few.

    Parameters
    ----------
    importance : Importance
        Its ``per_image`` ``(n, k)`` is read.
    n_clusters : int, optional
        Default: the number up to 6 whose silhouette is largest, each of 3 pictures or more, or 1
        where that is below 0.25.
    seed : int
        Fixes grouping and embedding.

    Raises
    ------
    ValueError
        For fewer than 12 pictures, or a number of clusters that they cannot form.
    """
    vectors = importance.per_image.detach().double().cpu()
    n = len(vectors)
    if n < MIN_PICTURES:
        raise ValueError(f"a cluster graph needs {MIN_PICTURES} pictures or more, got {n}")
    if n_clusters is not None and not 1 <= n_clusters <= n:
        raise ValueError(f"n_clusters must be from 1 to {n}, got {n_clusters}")
    vectors = vectors / vectors.abs().sum(1, keepdim=True).clamp(min=1e-12)
    clusters = _largest_first(_group(vectors.numpy(), n_clusters, seed))
    centres = torch.stack([vectors[clusters == j].mean(0) for j in range(int(clusters.max()) + 1)])
    points, embedding = _embed(vectors.numpy(), seed)
    return ClusterGraph(
        points=torch.from_numpy(points).double(),
        clusters=clusters,
        names=[_name(centre, importance.concept_names) for centre in centres],
        edges=_nearest(centres),
        embedding=embedding,
        target=importance.target,
    )


def _group(vectors: np.ndarray, n_clusters: int | None, seed: int) -> Tensor:
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    def k_means(k: int) -> np.ndarray:
        return KMeans(k, n_init=10, random_state=seed).fit_predict(vectors)

    if n_clusters is not None:
        return torch.from_numpy(k_means(n_clusters)).long()
    best, labels = MIN_SILHOUETTE, np.zeros(len(vectors), dtype=int)
    most = min(MAX_CLUSTERS, len(vectors) // 4, len(np.unique(vectors.round(9), axis=0)))
    for k in range(2, most + 1):
        found = k_means(k)
        score = silhouette_score(vectors, found)
        if score > best and np.bincount(found).min() >= MIN_SIZE:
            best, labels = score, found
    return torch.from_numpy(labels).long()


def _largest_first(labels: Tensor) -> Tensor:
    order = labels.bincount().argsort(descending=True, stable=True)
    return order.argsort()[labels]


def _embed(vectors: np.ndarray, seed: int) -> tuple[np.ndarray, str]:
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if vectors.shape[1] == 1 or np.ptp(vectors, 0).max() < 1e-9:  # there is no plane
        return np.pad(vectors[:, :1], ((0, 0), (0, 1))), "PCA"
    try:
        from umap import UMAP  # type: ignore[import-not-found]
    except ImportError:
        if len(vectors) < 30:
            return PCA(2).fit_transform(vectors), "PCA"
        perplexity = min(30.0, (len(vectors) - 1) / 3)
        tsne = TSNE(2, perplexity=perplexity, init="pca", random_state=seed)
        return tsne.fit_transform(vectors), "t-SNE"
    return UMAP(random_state=seed, n_jobs=1).fit_transform(vectors), "UMAP"


def _name(centre: Tensor, concept_names: list[str]) -> str:
    share = centre.abs() / centre.abs().sum().clamp(min=1e-12)
    main = share.argsort(descending=True)[:2].tolist()
    chosen = [i for rank, i in enumerate(main) if rank == 0 or share[i] >= NAMING_SHARE]
    return " + ".join(f"{concept_names[i]} {100 * share[i]:.0f} %" for i in chosen)


def _nearest(centres: Tensor) -> list[tuple[int, int]]:
    """Each cluster with the nearest other, every pair once."""
    if len(centres) == 1:
        return []
    distance = torch.cdist(centres, centres)
    distance.fill_diagonal_(torch.inf)
    return sorted({(min(i, j), max(i, j)) for i, j in enumerate(distance.argmin(1).tolist())})
