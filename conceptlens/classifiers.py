"""Classifiers from torchvision, timm and open_clip, each with its transform and class names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .text import TextEncoder

FROM_FILE = "load the model yourself from a local file and give it to Backbone(model, ...)"
OPEN_CLIP_HELP = (
    "download the checkpoint where there is one and give its path as pretrained= (or, for a "
    "folder with open_clip_config.json and weights, 'local-dir:FOLDER' as the name)"
)


@dataclass(frozen=True)
class Classifier:
    """A network with what is needed to feed it pictures and to read its logits."""

    model: nn.Module
    transform: Callable[[Any], Tensor]
    class_names: Sequence[str] | None

    def as_arguments(self, layer: str | None) -> tuple[Any, ...]:
        """The first arguments of `Backbone`."""
        # Convolutions are quicker so, on CPUs by a third to two thirds (benchmarks/extraction.py).
        model = self.model.to(memory_format=torch.channels_last)
        return model, layer, self.transform, self.class_names


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
    clip, transform, tokenizer = load_open_clip(name, pretrained)
    return zero_shot(clip, transform, TextEncoder.of_clip(clip, tokenizer), classes, templates)


def load_open_clip(name: str, pretrained: str | None) -> tuple[Any, Any, Any]:
    """Load an open_clip model, in eval mode, with its transform and its tokenizer."""
    open_clip = _import("open_clip", "open_clip_torch")
    remote = name.startswith("hf-hub:")
    if name.startswith("local-dir:"):
        _check_folder(Path(name.removeprefix("local-dir:")))
    elif not remote:
        _check_name(name, open_clip.list_models(), "open_clip")
        tags = open_clip.list_pretrained_tags_by_model(name)
        remote = pretrained in tags
        if pretrained is not None and not remote and not Path(pretrained).is_file():
            raise ValueError(
                f"pretrained={pretrained!r} is neither a file nor weights that open_clip knows for "
                f"{name}: give the path of a checkpoint, or one of {tags}"
            )

    def load() -> tuple[Any, Any, Any]:
        clip, _, transform = open_clip.create_model_and_transforms(name, pretrained=pretrained)
        return clip.eval(), transform, open_clip.get_tokenizer(name)

    if remote:
        return _reachable(load, f"{name}, {pretrained}" if pretrained else name, OPEN_CLIP_HELP)
    try:
        return load()
    except Exception as error:  # a file of another kind breaks in any way
        where = name if pretrained is None else pretrained
        raise ValueError(f"{where!r} holds no weights that fit {name!r}: {error}") from error


def zero_shot(
    clip: Any,
    transform: Any,
    encode_text: TextEncoder,
    classes: Sequence[str],
    templates: Sequence[str],
) -> Classifier:
    """Make a classifier of a CLIP's image tower and of what its text tower makes of the classes.

    A class is the mean of its prompts' embeddings, made unit length.
    """
    if isinstance(classes, str) or not classes or len({*classes}) < len(classes):
        raise ValueError(f"classes must be a list of different names, got {classes!r}")
    if isinstance(templates, str) or not templates or any("{}" not in t for t in templates):
        raise ValueError(
            f"templates must be a list of texts with {{}} where the class goes, got {templates!r}"
        )
    prompts = [template.format(label) for label in classes for template in templates]
    rows = encode_text(prompts).unflatten(0, (len(classes), len(templates))).mean(1)
    weights = nn.functional.normalize(rows, dim=1).to(clip.logit_scale.device)
    model = ZeroShotClassifier(clip.visual, weights, clip.logit_scale.exp().item())
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
    if not isinstance(name, str):
        raise TypeError(f"the name of a model must be a string, got {name!r}")
    if name not in known:
        near = get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"; near names: {', '.join(map(repr, near))}" if near else ""
        raise ValueError(f"{library} has no model {name!r}{hint}")


def _import(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} is not installed: pip install {package}") from error


def _reachable(make: Callable[[], Any], name: str, instead: str = FROM_FILE) -> Any:
    """Call `make`, turning every kind of failed download into one clear error."""
    try:
        return make()
    except (OSError, RuntimeError) as error:
        raise ConnectionError(
            f"the weights of {name!r} could not be fetched ({error}): check the network, or "
            f"{instead}"
        ) from error


def _check_folder(folder: Path) -> None:
    """Raise unless `folder` is what open_clip's "local-dir:" names stand for."""
    if not (folder / "open_clip_config.json").is_file():
        raise ValueError(f"{str(folder)!r} holds no open_clip model: no open_clip_config.json")
    if not any(file.suffix in (".safetensors", ".bin", ".pt", ".pth") for file in folder.iterdir()):
        raise ValueError(f"{str(folder)!r} holds no weights: a .safetensors, .bin or .pt file")
