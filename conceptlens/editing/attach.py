"""Putting an edit into a network, and taking it out again."""

import copy
from typing import Any, Tuple  # noqa: UP035 - TorchScript reads hooks with Tuple only

import torch
from torch import Tensor, nn

from ..backbone import Backbone
from ..cutting import only_tensor, replace_tensor

NAME = "edits"


class Edits(nn.Sequential):
    """The edits at one layer, run in the order in which they were attached."""


class ChannelsFirst(nn.Module):
    """Applies an edit of ``(..., C)`` to maps ``(B, C, h, w)``."""

    def __init__(self, edit: nn.Module) -> None:
        super().__init__()
        self.edit = edit

    def forward(self, output: Tensor) -> Tensor:
        """Edit maps ``(B, C, h, w)``; other outputs have their channels last already."""
        if output.dim() != 4:
            return self.edit(output)
        return self.edit(output.movedim(1, 3)).movedim(3, 1)


def attach(model: nn.Module | Backbone, layer: str, edit: nn.Module) -> nn.Module:
    """Return a copy of a network in which what `layer` returns is edited.

    The copy is an ordinary module: it runs, trains, is saved, exported and scripted as the model
    is. Its ``state_dict`` has the model's keys and, below ``<layer>.edits``, those of the edit.
    The model itself is left alone; no weights are shared.

    Parameters
    ----------
    model : nn.Module or Backbone
        The network. Outputs with 4 dimensions are taken as ``(B, C, h, w)``; for a layer that
        returns ``(B, h, w, C)`` give the Backbone, which knows.
    layer : str
        As in ``model.named_modules()``. Edits of one layer add up, later ones run last.
    edit : nn.Module
        Maps activations ``(..., C)`` to as many: what `erase` returns, or your own.

    Raises
    ------
    ValueError
        If there is no such layer, or it is a list or dict of modules that its parent runs.
    """
    if not isinstance(edit, nn.Module):
        raise TypeError(f"edit must be an nn.Module on (..., C), got {type(edit).__name__}")
    channels_last = isinstance(model, Backbone) and _is_channels_last(model, layer)
    network = model.model if isinstance(model, Backbone) else model
    edited = copy.deepcopy(Backbone(network, layer).model)  # which checks both
    target = edited.get_submodule(layer)
    runs_children = type(target).forward is nn.Sequential.forward
    if isinstance(target, nn.Sequential | nn.ModuleList | nn.ModuleDict) and not runs_children:
        raise ValueError(
            f"layer {layer!r} is a {type(target).__name__}, which may run whatever is put into "
            "it: attach to a layer inside or after it"
        )
    if not isinstance(getattr(target, NAME, None), Edits):
        if hasattr(target, NAME):
            raise ValueError(f"layer {layer!r} has something called {NAME!r} of its own")
        target.add_module(NAME, Edits())
        if not runs_children:
            target.register_forward_hook(_edit_output)
    edit = copy.deepcopy(edit).train(target.training)
    getattr(target, NAME).append(edit if channels_last else ChannelsFirst(edit))
    return edited


def detach(edited: nn.Module) -> nn.Module:
    """Return a copy of a network without the edits that `attach` put into it."""
    bare = copy.deepcopy(edited)
    for module in list(bare.modules()):
        if isinstance(getattr(module, NAME, None), Edits):
            delattr(module, NAME)
            for key, hook in list(module._forward_hooks.items()):
                if hook is _edit_output:
                    del module._forward_hooks[key]
    return bare


def _edit_output(self: Any, input: Tuple[Tensor], output: Tensor) -> Tensor:  # noqa: A002, UP006, RUF100
    """The forward hook of a layer with edits, in words that TorchScript understands."""
    if isinstance(output, Tensor):
        return self.edits(output)
    return _edit_structure(self.edits, output)


@torch.jit.unused
def _edit_structure(edits: nn.Module, output: Any) -> Any:
    tensor = only_tensor(output)
    if tensor is None:
        raise ValueError("the layer does not return exactly one tensor, so it cannot be edited")
    return replace_tensor(output, edits(tensor))


def _is_channels_last(bb: Backbone, layer: str) -> bool:
    infos = [info for info in bb.layers() if info.name == layer]
    return bool(infos and infos[0].layout and infos[0].layout.kind == "channels_last")
