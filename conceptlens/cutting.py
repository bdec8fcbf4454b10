"""Cutting a network in two at a named layer.

The trunk is the model itself, stopped as soon as the layer has answered. The head is built by the
first of three mechanisms that works: the captured graph after the cut, timm's ``forward_head``,
or the model run again with everything before the cut replaced by placeholders.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

Head = Callable[[Tensor], Any]


class CannotBuildError(Exception):
    """A mechanism does not apply to this model and layer."""


class _Reached(BaseException):
    """Stops a forward pass at the cut; no ``except Exception`` of a model catches it."""


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Hold `model` in eval mode with its parameters out of autograd; restore both at the end."""
    training = [m for m in model.modules() if m.training]
    trainable = [p for p in model.parameters() if p.requires_grad]
    try:
        for module in training:
            module.training = False
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for module in training:
            module.training = True
        for parameter in trainable:
            parameter.requires_grad_(True)


def only_tensor(output: Any) -> Tensor | None:
    """The tensor of a module's output that holds exactly one, else None."""
    tensors = [leaf for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor)]
    return tensors[0] if len(tensors) == 1 else None


def replace_tensor(output: Any, tensor: Tensor) -> Any:
    """`output` with its only tensor replaced."""
    leaves, spec = tree_flatten(output)
    return tree_unflatten([tensor if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec)


@dataclass
class Recording:
    """What one forward pass did up to the last call of the layer.

    Attributes
    ----------
    output : object
        What the layer returned in its last call, its tensors as `meta` tensors.
    n_calls : int
        How often the layer was called; the cut is at the last call.
    before : dict
        For each module called before the cut by the model's own code or by a module that holds
        the layer, its outputs in order, the tensors as `meta` tensors.
    batch, input_shape : int, tuple
        The batch size and the shape of one picture.
    """

    output: Any
    n_calls: int
    batch: int
    input_shape: tuple[int, ...]
    before: dict[nn.Module, list[Any]] = field(default_factory=dict)


def record(model: nn.Module, layer: str, x: Tensor) -> Recording | None:
    """Run `model` once and record the calls before the last call of `layer`.

    Returns None when the layer is never called.
    """
    target = model.get_submodule(layer)
    inside = [m for m in model.modules() if m not in _holders(model, layer)]
    calls: list[tuple[nn.Module, Any]] = []
    depth = 0

    def enter(*_: Any) -> None:
        nonlocal depth
        depth += 1

    def leave(module: nn.Module, _: Any, output: Any) -> None:
        nonlocal depth
        depth -= 1
        if depth == 0 or module is target:
            calls.append((module, tree_map(_to_meta, output)))

    handles = [m.register_forward_pre_hook(enter) for m in inside]
    handles += [m.register_forward_hook(leave) for m in inside]
    try:
        model(x)
    finally:
        for handle in handles:
            handle.remove()
    positions = [i for i, (module, _) in enumerate(calls) if module is target]
    if not positions:
        return None
    recording = Recording(calls[positions[-1]][1], len(positions), len(x), tuple(x.shape[1:]))
    for module, output in calls[: positions[-1]]:
        recording.before.setdefault(module, []).append(output)
    return recording


def run_trunk(model: nn.Module, layer: str, n_calls: int, x: Tensor) -> Any:
    """Run `model` up to the `n_calls`-th call of `layer` and return that call's output."""
    return run_trunks(model, {layer: n_calls}, x)[layer]


def run_trunks(model: nn.Module, calls: Mapping[str, int], x: Tensor) -> dict[str, Any]:
    """Run `model` once and return the output of each layer at its given call.

    It stops at the last of these calls.
    """
    counts = dict.fromkeys(calls, 0)
    outputs: dict[str, Any] = {}

    def watch(layer: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            counts[layer] += 1
            if counts[layer] != calls[layer]:
                return
            if len(outputs) < len(calls) - 1:  # what follows may work in place
                outputs[layer] = tree_map(_copy, output)
            else:
                outputs[layer] = output
                raise _Reached(outputs)

        return hook

    handles = [model.get_submodule(layer).register_forward_hook(watch(layer)) for layer in calls]
    try:
        model(x)
    except _Reached as reached:
        if reached.args[0] is not outputs:  # a cut further up, in a model that holds this one
            raise
        return {layer: outputs[layer] for layer in calls}
    finally:
        for handle in handles:
            handle.remove()
    layer = next(layer for layer in calls if layer not in outputs)
    raise ValueError(
        f"layer {layer!r} was called {counts[layer]} times for this batch and {calls[layer]} times "
        "when the backbone was first used: a model whose path depends on the picture cannot be cut "
        "there"
    )


def graph_head(model: nn.Module, layer: str, recording: Recording) -> Head:
    """Build the head from the part of the model's graph that follows the cut.

    Only the forward methods of the modules that hold the layer are traced; all others are
    opaque, so that control flow inside them does no harm.
    """

    class Tracer(fx.Tracer):
        def is_leaf_module(self, _module: nn.Module, name: str) -> bool:
            return not layer.startswith(name + ".")

    _, *others = inspect.signature(model.forward).parameters.values()
    defaults = {p.name: p.default for p in others if p.default is not p.empty}
    root = object.__new__(type(model))  # shares all that the model holds; tracing adds constants
    root.__dict__.update(model.__dict__)
    try:
        graph = Tracer().trace(root, concrete_args=defaults)
    except Exception as error:
        raise CannotBuildError(f"the graph could not be captured: {error}") from error
    target = model.get_submodule(layer)
    cuts = [
        n
        for n in graph.nodes
        if n.op == "call_module" and model.get_submodule(str(n.target)) is target
    ]
    if len(cuts) != recording.n_calls:
        raise CannotBuildError("the captured graph calls the layer another number of times")
    # Run as it is: the code that a GraphModule makes of it is never freed.
    after = fx.Interpreter(root, graph=_graph_after(graph, cuts[-1]))

    def head(activations: Tensor) -> Any:
        # Models often read the batch size off their input; it gets one without memory.
        x = activations.new_zeros(()).expand(len(activations), *recording.input_shape)
        run = copy.copy(after).run  # a run keeps its values on the object, and threads share it
        return run(replace_tensor(recording.output, activations), x)

    return head


def _graph_after(graph: fx.Graph, cut: fx.Node) -> fx.Graph:
    """The part of `graph` between `cut` and the output, a function of activations and input.

    The input may be read for its shape; no module may be run on anything but what follows `cut`.
    """
    following = {cut}
    for node in graph.nodes:
        if following.intersection(node.all_input_nodes):
            following.add(node)
    output = next(n for n in graph.nodes if n.op == "output")
    needed, frontier = {output}, [output]
    while frontier:
        for node in frontier.pop().all_input_nodes:
            if node is cut or node in needed:
                continue
            if node.op == "call_module" and node not in following:
                raise CannotBuildError(f"{node.target!r} is on another path to the output")
            needed.add(node)
            frontier.append(node)
    after = fx.Graph()
    copies = {cut: after.placeholder("activations")}
    first, *others = [n for n in graph.nodes if n.op == "placeholder"]
    if needed.intersection(others):
        raise CannotBuildError("the head needs more than the pictures")
    copies[first] = after.placeholder("x")
    for node in graph.nodes:
        if node in needed and node not in copies:
            copies[node] = after.node_copy(node, lambda n: copies[n])
    return after


def forward_head(model: nn.Module, layer: str, recording: Recording) -> Head:
    """Take timm's ``forward_head``, right where `layer` is the end of ``forward_features``."""
    rest: Any = getattr(model, "forward_head", None)
    if not callable(rest):
        raise CannotBuildError("the model has no forward_head")
    return lambda activations: rest(replace_tensor(recording.output, activations))


def substitution_head(model: nn.Module, layer: str, recording: Recording) -> Head:
    """Run the whole model again, with all that lies before the cut replaced by placeholders."""
    target = model.get_submodule(layer)

    def head(activations: Tensor) -> Any:
        batch = len(activations) * recording.batch // _rows(recording.output)
        scripts = {
            module: [_placeholders(output, batch, recording, activations) for output in outputs]
            for module, outputs in recording.before.items()
        }
        scripts.setdefault(target, []).append(replace_tensor(recording.output, activations))
        x = activations.new_zeros(batch, *recording.input_shape)
        with _scripted(scripts):
            return model(x)

    return head


MECHANISMS: dict[str, Callable[[nn.Module, str, Recording], Head]] = {
    "graph": graph_head,
    "forward_head": forward_head,
    "substitution": substitution_head,
}


def _holders(model: nn.Module, layer: str) -> set[nn.Module]:
    """The modules that hold `layer`, the model included."""
    names = layer.split(".")
    return {model.get_submodule(".".join(names[:i])) for i in range(len(names))}


def _to_meta(leaf: Any) -> Any:
    return leaf.detach().to("meta") if isinstance(leaf, Tensor) else leaf


def _copy(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _rows(output: Any) -> int:
    tensor = only_tensor(output)
    return 0 if tensor is None else len(tensor)


def _placeholders(output: Any, batch: int, recording: Recording, like: Tensor) -> Any:
    """Zeros of the recorded shapes, for a batch of another size.

    Where windows are folded into the first dimension it is a multiple of the batch size.
    """

    def zeros(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        shape = list(leaf.shape)
        if shape and shape[0] % recording.batch == 0:
            shape[0] = shape[0] // recording.batch * batch
        return torch.zeros(shape, dtype=leaf.dtype, device=like.device)

    return tree_map(zeros, output)


@contextmanager
def _scripted(scripts: dict[nn.Module, list[Any]]) -> Iterator[None]:
    """Let each module answer its first calls with the given outputs, then by itself again."""

    def play(module: nn.Module, outputs: list[Any]) -> Callable[..., Any]:
        answers, original = list(reversed(outputs)), module.forward
        return lambda *args, **kwargs: answers.pop() if answers else original(*args, **kwargs)

    own = {m: m.__dict__.get("forward") for m in scripts}
    try:
        for module, outputs in scripts.items():
            module.__dict__["forward"] = play(module, outputs)
        yield
    finally:
        for module, forward in own.items():
            if forward is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = forward
