"""Concept matrix search: classes by the concepts that pictures and class names share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.nn.functional import normalize

from ..backbone import Backbone
from ..metrics.checks import check_shape
from .data import features_of

TextEncoder = Callable[[list[str]], Tensor]


def concept_matrix_search(similarities: Tensor, class_similarities: Tensor) -> Tensor:
    """Compare how pictures and how class names resemble the concepts; nothing is learnt.

    Parameters
    ----------
    similarities : Tensor
        V ``(n, k)``: cosines of n pictures with k concept texts.
    class_similarities : Tensor
        T ``(n_classes, k)``: cosines of the class names with the same concept texts.

    Returns
    -------
    Tensor
        ``(n, n_classes)``, in [-1, 1]: the cosine of each centred row of V with each of T, that is
        their correlation; 0 for a row that is constant. The prediction is ``argmax(1)``.

    Raises
    ------
    ValueError
        If the shapes do not fit or values are not finite.

    References
    ----------
    Semenov et al. (2024), "Sparse concept bottleneck models: Gumbel tricks in contrastive
    learning".
    """
    v = check_shape(similarities, "similarities", "n k")
    t = check_shape(class_similarities, "class_similarities", "n_classes k", k=v.shape[1])
    return _centred(v) @ _centred(t.to(v)).T


def search_by_text(
    x: Any,
    class_names: Sequence[str],
    concept_names: Sequence[str],
    text_encoder: TextEncoder,
    backbone: Backbone | None = None,
) -> Tensor:
    """Run `concept_matrix_search` on pictures, with texts for the classes and the concepts.

    Parameters
    ----------
    x : Tensor, array, ActivationStore, folder, list or Dataset
        Embeddings ``(n, e)``, or what `backbone`, cut where it returns embeddings, turns into them.
    class_names, concept_names : sequence of str
        n_classes and k texts.
    text_encoder : callable
        Turns a list of m texts into ``(m, e)``, in the space of the embeddings.
    backbone : Backbone, optional
        Needed for pictures.

    Returns
    -------
    Tensor
        ``(n, n_classes)``, as `concept_matrix_search`.
    """
    embeddings = features_of(x, backbone)
    concepts, classes = text_encoder(list(concept_names)), text_encoder(list(class_names))
    return concept_matrix_search(cosines(embeddings, concepts), cosines(classes, concepts))


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """The cosines ``(n, m)`` of the rows of ``(n, e)`` with those of ``(m, e)``."""
    a = check_shape(a, "embeddings", "n e")
    b = check_shape(b, "text embeddings", "m e", e=a.shape[1])
    return normalize(a, dim=1) @ normalize(b.to(a), dim=1).T


def _centred(rows: Tensor) -> Tensor:
    return normalize(rows - rows.mean(1, keepdim=True), dim=1)
