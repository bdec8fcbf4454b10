"""Classifiers from torchvision, timm and open_clip, each with its transform and class names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Classifier:
    """A network with what is needed to feed it pictures and to read its logits."""

    model: nn.Module
    transform: Callable[[Any], Tensor]
    class_names: Sequence[str] | None

    def as_arguments(self, layer: str | None) -> tuple[Any, ...]:
        """The first arguments of `Backbone`."""
        return self.model, layer, self.transform, self.class_names


def torchvision_classifier(name: str, weights: str | None) -> Classifier:
    """Make torchvision's model `name`; ``weights=None`` leaves it untrained."""
    from torchvision.models import get_model, get_model_weights, list_models

    _check_name(name, list_models(), "torchvision")
    members = get_model_weights(name)
    if weights is not None and weights not in members.__members__:
        raise ValueError(
            f"torchvision's {name} has no weights {weights!r}: it has {list(members.__members__)}"
        )
    chosen = members[weights or "DEFAULT"]
    model = _reachable(lambda: get_model(name, weights=weights and chosen), name)
    # Untrained networks keep the transform; names of classes would say what is not so.
    names = chosen.meta["categories"] if weights else None
    return Classifier(model.eval(), chosen.transforms(), names)


def timm_classifier(name: str, pretrained: bool) -> Classifier:
    """Make timm's model `name` with the transform of its weights."""
    timm = _import("timm", "timm")
    _check_name(name.split(".")[0], timm.list_models(), "timm")
    model = _reachable(lambda: timm.create_model(name, pretrained=pretrained), name)
    config = timm.data.resolve_model_data_config(model)
    info = timm.data.ImageNetInfo() if model.num_classes == 1000 else None
    names = info.label_descriptions() if info and pretrained else None
    return Classifier(model.eval(), timm.data.create_transform(**config), names)


def open_clip_classifier(
    name: str, pretrained: str | None, classes: Sequence[str], templates: Sequence[str]
) -> Classifier:
    """Make a zero-shot classifier of open_clip's model `name` and its weights `pretrained`."""
    open_clip = _import("open_clip", "open_clip_torch")
    _check_name(name, open_clip.list_models(), "open_clip")
    clip, _, transform = _reachable(
        lambda: open_clip.create_model_and_transforms(name, pretrained=pretrained), name
    )
    clip.eval()
    tokenizer = open_clip.get_tokenizer(name)
    with torch.no_grad():
        rows = []
        for label in classes:
            texts = tokenizer([template.format(label) for template in templates])
            rows.append(clip.encode_text(texts, normalize=True).mean(0))
        weights = nn.functional.normalize(torch.stack(rows), dim=1)
        model = ZeroShotClassifier(clip.visual, weights, float(clip.logit_scale.exp()))
    return Classifier(model.eval(), transform, list(classes))


class ZeroShotClassifier(nn.Module):
    """An image tower whose logits are scaled cosines with one text embedding a class.

    Parameters
    ----------
    visual : nn.Module
        Maps pictures to embeddings ``(B, e)``.
    text : Tensor
        Normalised embeddings of the classes, ``(n_classes, e)``.
    scale : float
        The temperature CLIP was trained with.
    """

    def __init__(self, visual: nn.Module, text: Tensor, scale: float) -> None:
        super().__init__()
        self.text: Tensor
        self.visual = visual
        self.register_buffer("text", text)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(B, n_classes)`` of pictures ``(B, 3, H, W)``."""
        embeddings = nn.functional.normalize(self.visual(x), dim=1)
        return self.scale * embeddings @ self.text.T


def _check_name(name: str, known: Sequence[str], library: str) -> None:
    if name not in known:
        near = get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"; near names: {', '.join(map(repr, near))}" if near else ""
        raise ValueError(f"{library} has no model {name!r}{hint}")


def _import(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} is not installed: pip install {package}") from error


def _reachable(make: Callable[[], Any], name: str) -> Any:
    """Call `make`, turning every kind of failed download into one clear error."""
    try:
        return make()
    except (OSError, RuntimeError) as error:
        raise ConnectionError(
            f"the weights of {name!r} could not be fetched ({error}): check the network, or load "
            "the model yourself from a local file and give it to Backbone(model, ...)"
        ) from error
