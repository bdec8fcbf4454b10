"""Which layers of a network can be cut, found from one forward pass."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .cutting import only_tensor
from .layout import Layout


@dataclass(frozen=True)
class LayerInfo:
    """One layer as seen on a probe.

    Attributes
    ----------
    name, type : str
        The layer's name in the model and the class of its module.
    layout : Layout or None
        How its output is laid out; None where it is not one tensor of 1 to 3 dimensions.
    nonnegative : bool
        Whether no value below zero was seen.
    cuttable : bool
        Whether everything that reaches the logits passes through this layer.
    cost_before, cost_after : float
        Shares of the network's floating-point operations up to and after the layer.
    """

    name: str
    type: str
    layout: Layout | None
    nonnegative: bool
    cuttable: bool
    cost_before: float
    cost_after: float

    def __str__(self) -> str:
        shape = "×".join(map(str, self.layout.shape)) if self.layout else "?"
        sign = "≥ 0" if self.nonnegative else "signed"
        cost = f"{self.cost_before:4.0%} | {self.cost_after:4.0%}"
        return f"{self.name:<36} {self.type:<20} {shape:<14} {sign:<7} {cost}"


class LayerList(tuple[LayerInfo, ...]):
    """The layers one can cut at, in the order of their last call; prints as a table."""

    _header = f"{'layer':<36} {'type':<20} {'shape':<14} {'sign':<7} cost before | after"

    def __repr__(self) -> str:
        return "\n".join([self._header, *map(str, self)])

    def _repr_html_(self) -> str:
        return f"<pre>{escape(repr(self))}</pre>"


@dataclass
class _Call:
    """The last call of a layer."""

    output: Any
    node: Hashable
    flops: int


def survey(
    model: nn.Module, x: Tensor, logits_of: Any, n_prefix: int | None = None
) -> list[LayerInfo]:
    """Describe every layer that `model` calls on the probe `x` ``(B, 3, H, W)``.

    A layer can be cut when it is on every path of the autograd graph from the input to the
    logits. `model` must be in eval mode with its parameters out of autograd; `logits_of` picks
    the logits from what it returns.
    """
    calls: dict[str, _Call] = {}
    counter = FlopCounterMode(display=False)

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            tensor = only_tensor(output)
            node = None if tensor is None else tensor.grad_fn
            calls.pop(name, None)  # so that the order is that of the last calls
            calls[name] = _Call(_summary(tensor), node, counter.get_total_flops())

        return hook

    x = x.detach().clone().requires_grad_()
    handles = [m.register_forward_hook(watch(n)) for n, m in model.named_modules() if n]
    try:
        with torch.enable_grad(), counter:
            logits = logits_of(model(x))
    finally:
        for handle in handles:
            handle.remove()
    unavoidable = _unavoidable(logits.grad_fn, x)
    total = max(counter.get_total_flops(), 1)
    modules = dict(model.named_modules())
    layers = []
    for name, call in calls.items():
        shape, nonnegative = call.output
        layout = Layout.infer(shape[1:], (x.shape[-2], x.shape[-1]), n_prefix) if shape else None
        layers.append(
            LayerInfo(
                name=name,
                type=type(modules[name]).__name__,
                layout=layout,
                nonnegative=nonnegative,
                cuttable=layout is not None and (unavoidable is None or call.node in unavoidable),
                cost_before=call.flops / total,
                cost_after=1 - call.flops / total,
            )
        )
    return layers


def _summary(tensor: Tensor | None) -> tuple[tuple[int, ...], bool]:
    """Shape (batch first) and sign of a layer's output; an empty shape where it has no batch."""
    if tensor is None or tensor.ndim < 2 or not tensor.is_floating_point():
        return (), False
    return tuple(tensor.shape), bool((tensor >= 0).all())


def _unavoidable(root: Any, x: Tensor) -> set[Hashable] | None:
    """The autograd nodes on every path from `root` back to `x`, None where there is no path.

    A node is on every path when (paths from the root to it) × (paths from it to x) is the
    number of all paths; Python's integers count them exactly.
    """
    if root is None:
        return None
    order = _children_first(root)
    to_x: dict[Any, int] = {}
    for node in order:
        here = int(getattr(node, "variable", None) is x)
        to_x[node] = here + sum(to_x[child] for child in _children(node))
    from_root: dict[Any, int] = dict.fromkeys(order, 0)
    from_root[root] = 1
    for node in reversed(order):
        for child in _children(node):
            from_root[child] += from_root[node]
    if to_x[root] == 0:
        return None
    return {node for node in order if from_root[node] * to_x[node] == to_x[root]}


def _children(node: Any) -> Sequence[Any]:
    return [child for child, _ in node.next_functions if child is not None]


def _children_first(root: Any) -> list[Any]:
    """All nodes below `root`, each after its children."""
    order: list[Any] = []
    seen = {root}
    stack = [(root, iter(_children(root)))]
    while stack:
        node, children = stack[-1]
        child = next(children, None)
        if child is None:
            order.append(node)
            stack.pop()
        elif child not in seen:
            seen.add(child)
            stack.append((child, iter(_children(child))))
    return order
