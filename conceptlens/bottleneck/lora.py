"""Low-rank adapters: a frozen network's linear layers, changed a little and elsewhere."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..backbone import Backbone
from ..cutting import frozen


class LowRankAdapters(nn.Module):
    """For each linear layer a change U D of its weight, which runs of the trunk may add to it.

    The network itself is never changed. D starts at random and U at zero, so that training begins
    at the frozen network.

    Parameters
    ----------
    model : nn.Module
        A network with linear layers or attention.
    rank : int
        Of each change.
    generator : torch.Generator
        Draws the start, on the CPU.

    References
    ----------
    Hu et al. (2022), "LoRA: Low-rank adaptation of large language models".
    """

    def __init__(self, model: nn.Module, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}")
        weights = _weights(model)
        if not weights:
            raise ValueError(
                f"{type(model).__name__} has no linear layers to adapt: leave rank out"
            )
        self.names = list(weights)
        self.down, self.up = nn.ParameterList(), nn.ParameterList()
        for weight in weights.values():
            n_out, n_in = weight.shape
            start = torch.randn(rank, n_in, generator=generator) / math.sqrt(n_in)
            self.down.append(start.to(weight))
            self.up.append(torch.zeros(n_out, rank).to(weight))

    def changed(self, model: nn.Module) -> dict[str, Tensor]:
        """The weights of `model` with the adapters added, by name."""
        weights = _weights(model)
        if list(weights) != self.names:
            raise ValueError("the backbone has other linear layers than the adapters were made for")
        parts = zip(weights.items(), self.up, self.down, strict=True)
        return {name: weight + up @ down for (name, weight), up, down in parts}


class AdaptedBackbone(Backbone):
    """A backbone whose activations are those with adapters; gradients flow to the adapters."""

    def __init__(self, backbone: Backbone, adapters: LowRankAdapters) -> None:
        super().__init__(
            backbone.model,
            backbone.layer,
            backbone.transform,
            backbone.class_names,
            output=backbone.output,
            autocast=backbone.autocast,
        )
        self.adapters = adapters
        self._cut = backbone._cut  # where it was made already

    def activations(self, x: Tensor) -> Tensor:
        """Run the trunk with the adapters: ``(B, 3, H, W)`` → ``(B, P, C)``."""
        super().activations(x[:1].detach())  # checks x, and the cut without the adapters
        trunk, x = _Trunk(self), x.to(self.device)
        with (
            frozen(self.model),
            torch.autocast(x.device.type, self.autocast, enabled=self.autocast is not None),
        ):
            changed = self.adapters.changed(self.model)
            return functional_call(trunk, {f"model.{n}": w for n, w in changed.items()}, (x,))


class _Trunk(nn.Module):
    """The trunk as a module, whose weights can be given with a call."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.model = backbone.model
        self.trunk = backbone.trunk

    def forward(self, x: Tensor) -> Tensor:
        return self.trunk(x)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """The weight matrices of linear layers and of attention's three inputs, by name."""
    found: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        own = "weight" if isinstance(module, nn.Linear) else "in_proj_weight"
        if isinstance(module, (nn.Linear, nn.MultiheadAttention)):
            weight = getattr(module, own)
            if weight is not None:
                found[f"{name}.{own}" if name else own] = weight
    return found
