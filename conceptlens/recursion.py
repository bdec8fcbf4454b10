"""The recursion of CRAFT: what a concept is made of, seen at an earlier layer.

A concept is a function of the picture like a class is, so it is explained like one: a network whose
"classes" are the concepts is cut at the earlier layer, and CRAFT explains the concept on the
crops in which it is strong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from sklearn.base import clone
from torch import Tensor, nn

from .backbone import Backbone
from .craft import CRAFT
from .crops import CropSet
from .explanation import Explanation
from .images import resize
from .model import DictionaryModel

# Of a concept's crops those from this quantile of its codes on show it.
STRONG = 0.9


class ConceptScores(nn.Module):
    """A network whose logits are the codes ``(B, k)`` of a picture's mean activations."""

    def __init__(self, cm: DictionaryModel) -> None:
        super().__init__()
        self.model = cm.backbone.model
        self.cm = cm
        # The dictionary is part of what the scores depend on, so of the fingerprint.
        self.register_buffer("components", torch.as_tensor(cm.extractor.components_))

    def forward(self, x: Tensor) -> Tensor:
        """Return the codes of pictures ``(B, 3, H, W)``, as CRAFT makes them of crops."""
        return self.cm.extractor.transform(self.cm.backbone.trunk(x)[:, self.cm.n_prefix :].mean(1))


def decompose(
    explanation: Explanation,
    layers: str | Sequence[str],
    concept: int | str | None = None,
    *,
    n_concepts: int = 3,
    n_designs: int = 16,
    batch_size: int = 32,
    seed: int = 0,
) -> Explanation:
    """Split a concept into sub-concepts at an earlier layer.

    The crops in which the concept is strong (codes from the 90th percentile on) are factorised at
    the earlier layer; the importance of a sub-concept is its total Sobol index for the *concept's*
    code. With several layers the widest sub-concept is split at the next one, and so on.

    Parameters
    ----------
    explanation : Explanation
        As `CRAFT.explain` returned it; one that was loaded has no network.
    layers : str or sequence of str
        Where to cut, each earlier than the one before.
    concept : int or str, optional
        Index or name of the concept. Default: the widest, whose strong crops lie farthest apart
        (mean cosine distance of their activations).
    n_concepts : int
        Number of sub-concepts.
    n_designs, batch_size, seed : int
        As `CRAFT` takes them. From an earlier layer on more of the network is run for each design
        point, and there are fewer concepts than in `CRAFT`, so fewer points are the default.

    Returns
    -------
    Explanation
        The same with ``subconcepts`` of the concept added.

    Raises
    ------
    ValueError
        If the explanation was loaded, the concept is unknown, the layer is not earlier, or too few
        crops show the concept.

    References
    ----------
    Fel et al., "CRAFT: Concept Recursive Activation FacTorization for Explainability", CVPR 2023,
    section 3.2.
    """
    cm, crop_set = explanation.model, explanation.crop_set
    if crop_set is None or not isinstance(cm, DictionaryModel):
        raise ValueError(
            "a loaded explanation has no network and no crops to decompose: explain again"
        )
    layer, *deeper = [layers] if isinstance(layers, str) else layers
    index = _widest(crop_set) if concept is None else _index(concept, cm.concept_names)
    strong = _strong(crop_set, index)
    if len(strong) < n_concepts:
        raise ValueError(
            f"only {len(strong)} crops show {cm.concept_names[index]!r}, too few for "
            f"{n_concepts} sub-concepts: give more pictures or fewer n_concepts"
        )
    x = _pictures_of(crop_set, strong)
    scores, bb = ConceptScores(cm), cm.backbone
    craft = CRAFT(
        Backbone(
            scores, _inside(scores, layer), bb.transform, cm.concept_names, autocast=bb.autocast
        ),
        n_concepts,
        patch_size=min(x.shape[-2:]),
        extractor=_alike(cm.extractor, n_concepts),
        n_designs=n_designs,
        batch_size=batch_size,
        seed=seed,
    )
    part = craft.explain(x, index, predicted_only=False)
    part = replace(part, provenance={**part.provenance, "layer": layer})
    if deeper:
        part = decompose(
            part,
            deeper,
            n_concepts=n_concepts,
            n_designs=n_designs,
            batch_size=batch_size,
            seed=seed,
        )
    return replace(explanation, subconcepts={**explanation.subconcepts, index: part})


def _strong(crop_set: CropSet, concept: int) -> Tensor:
    """The numbers of the crops that show the concept."""
    codes = crop_set.codes[:, concept]
    return torch.nonzero((codes >= codes.quantile(STRONG)) & (codes > 0))[:, 0]


def _widest(crop_set: CropSet) -> int:
    """The concept whose strong crops' activations are the least alike."""
    rows = nn.functional.normalize(crop_set.rows, dim=1)
    # The mean cosine of all pairs is the squared length of the mean direction.
    alike = [
        float(rows[strong].mean(0).norm() ** 2) if len(strong := _strong(crop_set, i)) else 1.0
        for i in range(crop_set.codes.shape[1])
    ]
    return alike.index(min(alike))


def _pictures_of(crop_set: CropSet, numbers: Tensor) -> Tensor:
    """The crops with these numbers, at the size of the network's input."""
    x = crop_set.x
    patches = [
        x[int(crop_set.owners[i]), :, top:bottom, left:right][None]
        for i in numbers.tolist()
        for left, top, right, bottom in [crop_set.boxes[i].tolist()]
    ]
    return torch.cat([resize(patch, (x.shape[-2], x.shape[-1])) for patch in patches])


def _index(concept: int | str, names: list[str]) -> int:
    if isinstance(concept, str) and concept in names:
        return names.index(concept)
    if isinstance(concept, int) and 0 <= concept < len(names):
        return concept
    raise ValueError(f"unknown concept {concept!r}: there are {names}")


def _alike(extractor: Any, k: int) -> Any:
    """An unfitted extractor of the same settings with k concepts."""
    sizes = ("n_components", "n_clusters")
    (size,) = (name for name in extractor.get_params() if name.rpartition("__")[2] in sizes)
    return clone(extractor).set_params(**{size: k})


def _inside(scores: ConceptScores, layer: str) -> str:
    """The name of the network's `layer` in modules that earlier decompositions put around it."""
    module: nn.Module = scores
    while isinstance(module, ConceptScores):
        module, layer = module.model, f"model.{layer}"
    return layer
