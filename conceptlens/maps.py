"""Concept activation maps: where in the picture a concept is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from . import attribution
from .attribution import Attribution, gradients_by
from .backbone import Backbone
from .batching import in_batches
from .checks import check_finite, check_seed, check_tensor
from .model import ConceptModel, DictionaryModel

MapMethod = Callable[..., Tensor]


def concept_maps(
    cm: ConceptModel,
    x: Tensor,
    method: str = "interpolate",
    *,
    batch_size: int = 16,
    seed: int = 0,
) -> Tensor:
    """Map each concept over each picture.

    Parameters
    ----------
    cm : ConceptModel
        The classifier in concept space.
    x : Tensor
        Preprocessed pictures ``(B, 3, H, W)``.
    method : str
        One of `MAPS`:

        - "interpolate" (≥ 0 where codes are): the codes of the positions on the grid, enlarged;
          "coam" for bottleneck models, whose codes have no positions.
        - "coam" (signed): the activations' products with the concept's vector, enlarged.
        - "grad_cam" (≥ 0): the channels weighted by how they raise the concept's presence.
        - "saliency", "smoothgrad" (≥ 0), "gradient_x_input", "integrated_gradients",
          "occlusion", "rise" (signed; positive where a pixel raises the concept's presence):
          attribution of the concept's presence, its mean code over the grid, to pixels. For the
          gradients nonnegative factorisations are differentiated implicitly.
        - "implicit" (signed): "integrated_gradients", blurred: of the methods by gradients the
          one that finds planted concepts best (``benchmarks/explain_truth.py``).
    batch_size : int
        The most pictures mapped at once.
    seed : int
        Fixes what "smoothgrad" and "rise" draw.

    Returns
    -------
    Tensor
        ``(B, k, H, W)`` on the device of `x`.

    Raises
    ------
    ValueError
        For an unknown method; for "interpolate", "coam" and "grad_cam" if the model's positions
        have no places in the picture; for gradients if none flow through the extractor.
    TypeError
        For "coam" if the model has no vectors, for "grad_cam" if it is no `DictionaryModel`.

    References
    ----------
    Fel et al., "CRAFT: Concept Recursive Activation FacTorization for Explainability", CVPR 2023.

    Examples
    --------
    >>> from torch import nn
    >>> from conceptlens import NMF, Backbone, DictionaryModel
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(512, 5))
    >>> bb, x = Backbone(model, "1"), torch.rand(6, 3, 32, 32)
    >>> cm = DictionaryModel(bb, NMF(3).fit(bb.activations(x).flatten(0, 1)))
    >>> tuple(concept_maps(cm, x).shape)
    (6, 3, 32, 32)
    """
    if method not in MAPS:
        raise ValueError(f"method must be one of {', '.join(map(repr, MAPS))}, got {method!r}")
    check_pictures(cm, x)
    check_seed(seed)

    def block(pictures: Tensor) -> Tensor:
        return MAPS[method](cm, pictures, seed=seed).to(x.device)

    with torch.no_grad():
        return in_batches(block, x, batch_size)


def interpolate(cm: ConceptModel, x: Tensor, *, seed: int = 0) -> Tensor:
    """Enlarge the codes of the positions, or the products with a bottleneck's directions."""
    if isinstance(getattr(cm, "directions", None), Tensor):
        return coam(*_vectors(cm, "interpolate"), x)
    return upsample(codes_on_grid(cm, cm.encode(x)), _size(x))


def coam(backbone: Backbone, vectors: Tensor, x: Tensor) -> Tensor:
    """Map vectors over pictures: Σ_c v_kc A_c(h, w) of the activations A at the cut, enlarged.

    Parameters
    ----------
    backbone : Backbone
        Cut at a layer with a grid, most often the last one.
    vectors : Tensor
        ``(k, C)``: rows of a dictionary, concept activation vectors, weights of a probe.
    x : Tensor
        Preprocessed pictures ``(B, 3, H, W)``.

    Returns
    -------
    Tensor
        ``(B, k, H, W)``, signed.

    References
    ----------
    Aysel et al., "Concept-Based Explainable AI: Metrics and Benchmarks", 2025 (concept activation
    mapping).
    """
    check_tensor(vectors, "vectors", "k, C")
    check_finite(vectors, "vectors")
    a = backbone.activations(x)
    if vectors.ndim != 2 or vectors.shape[1] != a.shape[2]:
        raise ValueError(
            f"vectors must have shape (k, {a.shape[2]}), a channel of layer {backbone.layer!r} "
            f"each, got {tuple(vectors.shape)}"
        )
    return upsample(codes_on_grid(backbone, a @ vectors.to(a).T), _size(x))


def grad_cam(cm: ConceptModel, x: Tensor, *, seed: int = 0) -> Tensor:
    """Weigh the channels at the cut by the mean gradient of each concept's presence, cut at 0.

    References
    ----------
    Selvaraju et al., "Grad-CAM: visual explanations from deep networks via gradient-based
    localization", ICCV 2017.
    """
    dictionary = _dictionary_model(cm, "grad_cam")
    a = dictionary.backbone.activations(x).detach().requires_grad_()
    with torch.enable_grad():
        codes = dictionary.extractor.transform(a.flatten(0, 1)).unflatten(0, a.shape[:2])
        scores = codes[:, cm.n_prefix :].mean(1)
    gradients = gradients_by(a, scores)[:, :, cm.n_prefix :]  # (B, k, P, C)
    maps = torch.einsum("bkc,bpc->bpk", gradients.mean(2), a.detach())
    return upsample(codes_on_grid(cm, maps.clamp(min=0)), _size(x))


def presence(cm: ConceptModel, x: Tensor) -> Tensor:
    """How present each concept is in each picture: its mean code over the grid, ``(B, k)``."""
    return cm.encode(x)[:, cm.n_prefix :].mean(1)


def _of_presence(attribute: Attribution) -> MapMethod:
    """The map method that attributes the concepts' presence to pixels."""
    return lambda cm, x, seed=0: attribute(partial(presence, cm), x, seed)


MAPS: dict[str, MapMethod] = {
    "interpolate": interpolate,
    "implicit": _of_presence(attribution.smooth_integrated_gradients),
    "coam": lambda cm, x, seed=0: coam(*_vectors(cm, "coam"), x),
    "grad_cam": grad_cam,
    "saliency": _of_presence(attribution.saliency),
    "gradient_x_input": _of_presence(attribution.gradient_x_input),
    "integrated_gradients": _of_presence(attribution.integrated_gradients),
    "smoothgrad": _of_presence(attribution.smoothgrad),
    "occlusion": _of_presence(attribution.occlusion),
    "rise": _of_presence(attribution.rise),
}


def codes_on_grid(cm: ConceptModel | Backbone, codes: Tensor) -> Tensor:
    """Lay codes ``(B, P, k)`` out on the grid as ``(B, k, h, w)``, without prefix tokens."""
    if cm.grid == (1, 1):
        raise ValueError(
            "the codes have one position a picture, so there is nothing to map: cut the backbone "
            "at an earlier layer, one whose grid is larger than 1×1"
        )
    return codes[:, cm.n_prefix :].transpose(1, 2).unflatten(2, cm.grid)


def check_pictures(cm: ConceptModel, x: Tensor) -> None:
    """Raise unless `cm` is a model in concept space and `x` are pictures ``(B, 3, H, W)``."""
    if not hasattr(cm, "encode"):
        raise TypeError(f"cm must be a ConceptModel, with encode, got {type(cm).__name__}")
    check_tensor(x, "pictures", "B, 3, H, W")
    check_finite(x, "pictures")


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Interpolate ``(B, k, h, w)`` to ``(B, k, *size)`` without leaving the range of the values."""
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    large = torch.nn.functional.interpolate(maps, size, mode="bicubic", align_corners=False)
    return torch.minimum(torch.maximum(large, low), high)


def _size(x: Tensor) -> tuple[int, int]:
    return x.shape[-2], x.shape[-1]


def _vectors(cm: ConceptModel, method: str) -> tuple[Backbone, Tensor]:
    """The backbone, and the vectors ``(k, C)`` at its cut that the concepts are."""
    directions, backbone = getattr(cm, "directions", None), getattr(cm, "backbone_", None)
    if isinstance(directions, Tensor):
        if backbone is None:
            raise ValueError(
                f"method {method!r} needs the activations at the cut, and this "
                f"{type(cm).__name__} was made without a backbone: give it one"
            )
        return backbone, directions
    dictionary = _dictionary_model(cm, method)
    return dictionary.backbone, dictionary.extractor.components_


def _dictionary_model(cm: ConceptModel, method: str) -> DictionaryModel:
    if isinstance(cm, DictionaryModel):
        return cm
    raise TypeError(
        f"method {method!r} reads the activations at the cut and needs a DictionaryModel, got "
        f"{type(cm).__name__}: take 'interpolate' or a method on pixels"
    )
