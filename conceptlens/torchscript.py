"""TorchScript files as networks with layers.

A saved TorchScript module is one list of operators: the borders of its layers are lost. So each
operator becomes a layer, named after itself and numbered, for example ``relu_4``.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

SEQUENCES = ("prim::ListConstruct", "prim::TupleConstruct")


def load_torchscript(path: str | Path) -> fx.GraphModule:
    """Load a TorchScript file as a network whose layers are its operators.

    Raises
    ------
    ValueError
        If the file is no TorchScript or holds control flow, which has no fixed order of layers.
    """
    try:
        module = torch.jit.load(path, map_location="cpu").eval()
    except RuntimeError as error:
        raise ValueError(
            f"{path} is not a TorchScript file: {str(error).splitlines()[0]}"
        ) from error
    graph = torch.jit.freeze(module).graph
    return _Translator(path).translate(graph)


class _Translator:
    """Rebuilds a frozen TorchScript graph as an fx graph, operator by operator."""

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.values: dict[str, Any] = {}
        self.counts: Counter[str] = Counter()

    def translate(self, graph: Any) -> fx.GraphModule:
        _, x = graph.inputs()
        self.values[x.debugName()] = self.graph.placeholder("x")
        for node in graph.nodes():
            self._add(node)
        self.graph.output(*(self.values[o.debugName()] for o in graph.outputs()))
        return fx.GraphModule(self.root, self.graph)

    def _add(self, node: Any) -> None:
        kind: str = node.kind()
        constant = kind == "prim::Constant"
        if not constant and kind not in SEQUENCES and kind.startswith("prim::"):
            raise ValueError(
                f"{self.path} holds control flow ({kind}), which cannot be cut: write the model "
                "with torch.jit.trace, or with torch.export.save as a .pt2 file"
            )
        arguments = [self.values[i.debugName()] for i in node.inputs()]
        (output,) = node.outputs()
        if constant:
            value = self._constant(output.toIValue())
        elif kind in SEQUENCES:
            value = arguments
        else:
            value = self._call(node, arguments, returns_tensor=str(output.type()) == "Tensor")
        self.values[output.debugName()] = value

    def _call(self, node: Any, arguments: list[Any], returns_tensor: bool) -> fx.Node:
        namespace, name = node.kind().split("::")
        schema = torch._C.parse_schema(node.schema())
        operator = getattr(getattr(torch.ops, namespace), name)
        named = {
            declared.name: value
            for declared, value in zip(schema.arguments, arguments, strict=True)
            if declared.kwarg_only
        }
        plain = arguments[: len(arguments) - len(named)]
        overload = getattr(operator, schema.overload_name or "default")
        called = self.graph.call_function(overload, tuple(plain), named)
        if not returns_tensor:
            return called
        return self.graph.call_module(self._layer(name.strip("_")), (called,))

    def _constant(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        name = f"constant_{self._number('constant')}"
        self.root.register_buffer(name, value.detach())
        return self.graph.get_attr(name)

    def _layer(self, operator: str) -> str:
        name = f"{operator}_{self._number(operator)}"
        self.root.add_module(name, nn.Identity())
        return name

    def _number(self, kind: str) -> int:
        self.counts[kind] += 1
        return self.counts[kind] - 1
