"""From a model's description on the command line to a `Backbone`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .backbone import Backbone
from .torchscript import load_torchscript

FORMS = """\
MODEL is one of
  torchvision:NAME             e.g. torchvision:resnet50, with its default weights
  timm:NAME                    e.g. timm:convnext_tiny.fb_in1k
  open_clip:NAME/WEIGHTS       zero-shot, e.g. open_clip:ViT-B-32/openai (needs --classes);
                               WEIGHTS may be a local file
  efficientnet-lite0           the demo's network, from the packages of conceptlens[demo]
  path/to/file.py:FUNCTION     FUNCTION() returns a torch.nn.Module or a conceptlens.Backbone
  path/to/file.pt2             a torch.export program with a dynamic batch size
  path/to/file.pt              a traced TorchScript file; its layers are its operators"""


def load_backbone(
    model: str,
    layer: str | None = None,
    *,
    classes: Sequence[str] | None = None,
    device: str | None = None,
    autocast: torch.dtype | None = None,
) -> Backbone:
    """Make the backbone that `model` describes.

    Parameters
    ----------
    model : str
        One of the forms that the command line's help lists.
    layer : str, optional
        The layer to cut at.
    classes : sequence of str, optional
        Names of the classes, where the model brings none.
    device : str, optional
        Where to move the model.
    autocast : torch.dtype, optional
        What to compute in.

    Raises
    ------
    ValueError
        If the description has no such form, the file gives no model, or there is no such device.
    """
    if device is not None:
        _check_device(device)
    kind, _, name = model.partition(":")
    if kind == "torchvision":
        bb = Backbone.from_torchvision(name)
    elif kind == "timm":
        bb = Backbone.from_timm(name)
    elif kind == "open_clip":
        if not classes:
            raise ValueError("an open_clip model is a zero-shot classifier: name its --classes")
        architecture, _, weights = name.partition("/")
        bb = Backbone.from_open_clip(architecture, weights or None, classes=classes)
    elif model == "efficientnet-lite0":
        from .demo import demo_backbone

        bb = demo_backbone()
    else:
        bb = _from_file(model)
    return bb.replace(layer=layer, class_names=classes, device=device, autocast=autocast)


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either, of many lines
        why = str(error).partition("\n")[0]
        raise ValueError(
            f"device {device!r} cannot be used here ({why}): name another, such as 'cpu'"
        ) from error


def _from_file(model: str) -> Backbone:
    stem, _, function = model.partition(".py:")
    path = Path(stem + ".py" if function else model)
    if not path.is_file():
        raise ValueError(f"no model {model!r}: there is no file {str(path)!r}.\n{FORMS}")
    if function:
        made = _call(path, function)
    elif path.suffix == ".pt2":
        made = torch.export.unflatten(torch.export.load(path))
    else:
        made = load_torchscript(path)
    if isinstance(made, Backbone):
        return made
    if not isinstance(made, nn.Module):
        raise ValueError(f"{model} gave a {type(made).__name__}, not a torch.nn.Module or Backbone")
    from torchvision.models import ResNet18_Weights

    return Backbone(made, transform=ResNet18_Weights.DEFAULT.transforms())


def _call(path: Path, function: str) -> Any:
    spec = spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{str(path)!r} cannot be imported as Python")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, function, None)):
        defined = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise ValueError(f"{str(path)!r} has no function {function!r}; it has {defined}")
    return getattr(module, function)()
