"""`Backbone`: any image classifier, cut at a layer into a trunk and a head."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from html import escape
from typing import Any

import torch
from torch import Tensor, nn

from .allocation import keep_freed_memory
from .checks import check_finite, check_names, check_tensor
from .cutting import (
    MECHANISMS,
    CannotBuildError,
    Head,
    Recording,
    frozen,
    only_tensor,
    record,
    run_trunk,
    run_trunks,
)
from .layout import Layout
from .survey import LayerInfo, LayerList, survey

DEFAULT_INPUT = (3, 224, 224)
OutputSelector = str | int | Callable[[Any], Tensor]


class NotCuttableError(ValueError):
    """The layer cannot be cut: what follows it does not determine the logits."""


@dataclass(frozen=True)
class _Cut:
    """What is learnt about a layer the first time it is used."""

    layer: str
    recording: Recording
    layout: Layout
    mechanism: str
    head: Head


class Backbone:
    """A classifier f = head ∘ activations, cut at a named layer.

    Parameters
    ----------
    model : nn.Module
        Any classifier of pictures. It is left as it was: hooks, train/eval mode,
        ``requires_grad`` and gradients are restored after each call.
    layer : str, optional
        Name of the layer to cut at, as in ``model.named_modules()``; `layers` lists those that
        can be cut. Default: the last one whose places in the picture the head still reads.
    transform : callable, optional
        Turns a PIL picture into the model's input ``(3, H, W)``.
    class_names : sequence of str, optional
        Names of the logits, so that a class can be given by name.
    device : torch.device or str, optional
        Where to move the model. Default: it stays where it is.
    output : str, int or callable, optional
        Picks the logits where the model returns a dict, a tuple or an object.
    autocast : torch.dtype, optional
        Runs trunk and head in this dtype with ``torch.autocast``; results are float32.

    Notes
    -----
    Before the layer is first used, ``head(activations(x))`` is compared with ``model(x)`` on one
    batch, and a difference raises `NotCuttableError` with its size. The size of the pictures is
    fixed from then on. A model whose convolutions are ``channels_last``, as they are in those that
    the constructors make, is given pictures likewise. Gradients flow where the input requires
    them, otherwise none are recorded.

    On a CPU with glibc, the process keeps up to 1 GiB of freed memory from then on, since fetching
    it from the system for each batch took more time than small networks themselves
    (``benchmarks/extraction.py``). If ``MALLOC_TRIM_THRESHOLD_``, ``MALLOC_MMAP_THRESHOLD_`` or
    ``GLIBC_TUNABLES`` is set, that holds instead.

    Examples
    --------
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(512, 5))
    >>> bb = Backbone(model, "1")
    >>> x = torch.rand(2, 3, 32, 32)
    >>> a = bb.activations(x)
    >>> tuple(a.shape), bb.grid
    ((2, 64, 8), (8, 8))
    >>> torch.allclose(bb.head(a), model(x), atol=1e-5)
    True
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str | None = None,
        transform: Callable[[Any], Tensor] | None = None,
        class_names: Sequence[str] | None = None,
        device: torch.device | str | None = None,
        *,
        output: OutputSelector | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
        model = getattr(model, "_orig_mod", model)  # hooks do not fire inside compiled modules
        if layer is not None:
            _check_layer(model, layer)
        if autocast is not None and not isinstance(autocast, torch.dtype):
            raise TypeError(f"autocast must be a torch.dtype, got {autocast!r}")
        if transform is not None and not callable(transform):
            raise TypeError(f"transform must be a function of a picture, got {transform!r}")
        self.model = model if device is None else model.to(device)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.transform = transform
        self.class_names = None if class_names is None else check_names(class_names, "class_names")
        self.output = output
        self.autocast = autocast
        self._layer = layer
        self._cut: _Cut | None = None
        self._others: dict[str, Backbone] = {}  # the same model, cut elsewhere

    # -- constructors ---------------------------------------------------------------------

    @classmethod
    def from_torchvision(
        cls, name: str, layer: str | None = None, weights: str | None = "DEFAULT"
    ) -> Backbone:
        """Cut torchvision's model `name`, with its own transform and class names."""
        from .classifiers import torchvision_classifier

        return cls(*torchvision_classifier(name, weights).as_arguments(layer))

    @classmethod
    def from_timm(cls, name: str, layer: str | None = None, pretrained: bool = True) -> Backbone:
        """Cut timm's model `name`, with the transform its weights were trained with."""
        from .classifiers import timm_classifier

        return cls(*timm_classifier(name, pretrained).as_arguments(layer))

    @classmethod
    def from_open_clip(
        cls,
        name: str,
        pretrained: str | None,
        layer: str | None = None,
        *,
        classes: Sequence[str],
        templates: Sequence[str] = ("a photo of a {}.",),
    ) -> Backbone:
        """Cut the image tower of open_clip's model `name`, as a zero-shot classifier.

        The logits are the scaled cosines between the picture and the mean embedding of each
        class name put into the `templates`. Embeddings of texts are kept on disk.

        Parameters
        ----------
        name : str
            One of ``open_clip.list_models()``, or "local-dir:FOLDER" with the folder's
            ``open_clip_config.json`` and weights, or "hf-hub:OWNER/MODEL".
        pretrained : str or None
            Weights that open_clip knows for `name`, or the path of a checkpoint. None leaves the
            model untrained (for the last two forms of `name`: takes theirs).
        layer : str, optional
            As of `Backbone`; "visual" is the whole image tower.
        classes, templates : sequence of str
            Names, and sentences with {} where the name goes.

        Raises
        ------
        ValueError
            If there is no such model, checkpoint or folder, or the weights do not fit.
        ConnectionError
            If the weights cannot be fetched.

        References
        ----------
        Radford et al., "Learning transferable visual models from natural language supervision",
        ICML 2021.
        """
        from .classifiers import open_clip_classifier

        classifier = open_clip_classifier(name, pretrained, classes, templates)
        return cls(*classifier.as_arguments(layer))

    # -- what it knows --------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are now."""
        tensor = next(self.model.parameters(), None)
        tensor = next(self.model.buffers(), None) if tensor is None else tensor
        return torch.device("cpu") if tensor is None else tensor.device

    @property
    def layer(self) -> str:
        """Name of the layer it is cut at."""
        return self._layer if self._layer is not None else self._ready().layer

    @property
    def grid(self) -> tuple[int, int]:
        """``(h, w)``: the places of the picture that the positions stand for."""
        return self._ready().layout.grid

    @property
    def n_prefix(self) -> int:
        """How many positions before the grid's have no place (class and register tokens)."""
        return self._ready().layout.n_prefix

    @property
    def mechanism(self) -> str:
        """How the head is computed: "graph", "forward_head" or "substitution"."""
        return self._ready().mechanism

    def layers(self) -> LayerList:
        """List the layers that can be cut, with shapes, signs and costs as seen on a probe."""
        return LayerList(info for info in self._survey() if info.cuttable)

    def replace(
        self,
        *,
        layer: str | None = None,
        class_names: Sequence[str] | None = None,
        device: torch.device | str | None = None,
        autocast: torch.dtype | None = None,
    ) -> Backbone:
        """Return a backbone of the same model with other settings; None keeps the present one."""
        return Backbone(
            self.model,
            self._layer if layer is None else layer,
            self.transform,
            self.class_names if class_names is None else class_names,
            device,
            output=self.output,
            autocast=self.autocast if autocast is None else autocast,
        )

    def class_index(self, target: int | str) -> int:
        """Return the index of the class `target`, given by index or by name."""
        return class_index(target, self.class_names)

    def fingerprint(self) -> str:
        """SHA-256 of the weights, the structure, the layer and the computing dtype."""
        digest = hashlib.sha256()
        structure = re.sub(r"0x[0-9a-f]+", "", repr(self.model))
        digest.update(f"{structure}|{self.layer}|{self.autocast}".encode())
        for name, tensor in self.model.state_dict().items():
            digest.update(f"{name}|{getattr(tensor, 'dtype', '')}".encode())
            digest.update(_bytes_of(tensor))
        return digest.hexdigest()

    def __repr__(self) -> str:
        name = type(self.model).__name__
        if self._cut is None:
            return f"Backbone({name}, layer={self._layer!r}, not used yet)"
        cut = self._cut
        classes = f", {len(self.class_names)} classes" if self.class_names else ""
        return (
            f"Backbone({name}, layer={cut.layer!r}, P={cut.layout.positions} (grid "
            f"{cut.layout.grid[0]}×{cut.layout.grid[1]}), C={cut.layout.channels}{classes}, "
            f"head by {cut.mechanism}, on {self.device})"
        )

    def _repr_html_(self) -> str:
        cut = self._cut
        facts: dict[str, object] = {
            "model": type(self.model).__name__,
            "layer": self._layer if cut is None else cut.layer,
        }
        if cut is not None:
            facts["grid"] = f"{cut.layout.grid[0]} × {cut.layout.grid[1]}"
            facts |= {"channels": cut.layout.channels, "head by": cut.mechanism}
        facts["classes"] = "unnamed" if self.class_names is None else len(self.class_names)
        facts["device"] = self.device
        rows = (f"<tr><th>{name}</th><td>{escape(str(f))}</td></tr>" for name, f in facts.items())
        return f"<table><caption>Backbone</caption>{''.join(rows)}</table>"

    # -- what it does ---------------------------------------------------------------------

    def activations(self, x: Tensor) -> Tensor:
        """Run the trunk.

        Parameters
        ----------
        x : Tensor
            Preprocessed pictures ``(B, 3, H, W)``; moved to the model's device.

        Returns
        -------
        Tensor
            ``(B, P, C)``; of P positions the first `n_prefix` are class and register tokens.
        """
        x = self._input(x)
        with self._running(x):
            return self.trunk(x)

    def activations_at(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Run the trunks of several layers in one forward pass.

        Parameters
        ----------
        x : Tensor
            As `activations` takes it.
        layers : sequence of str
            Names of layers that can be cut, wherever this backbone itself is cut.

        Returns
        -------
        dict of str to Tensor
            For each of `layers` the ``(B, P, C)`` that `activations` of a backbone cut there
            returns.
        """
        if not check_names(layers, "layers"):
            raise ValueError("layers must name at least one layer, got none")
        for layer in layers:
            if layer not in self._others:
                self._others[layer] = self.replace(layer=layer)
        others = {layer: self._others[layer] for layer in layers}
        for other in others.values():
            x = other._input(x)
        cuts = {layer: other._ready() for layer, other in others.items()}
        with self._running(x):
            calls = {layer: cut.recording.n_calls for layer, cut in cuts.items()}
            outputs = run_trunks(self.model, calls, x)
            return {
                layer: self._result(cut.layout.to_positions(_the_tensor(outputs[layer])))
                for layer, cut in cuts.items()
            }

    def trunk(self, x: Tensor) -> Tensor:
        """Run the trunk as `activations` does, in whatever state the model and autograd are.

        For modules that are built on a cut network and may themselves be cut further up.
        """
        cut = self._ready()
        output = run_trunk(self.model, cut.layer, cut.recording.n_calls, x)
        return self._result(cut.layout.to_positions(_the_tensor(output)))

    def head(self, a: Tensor) -> Tensor:
        """Run only what lies after the cut: ``(B, P, C)`` → logits ``(B, n_classes)``."""
        cut = self._ready()
        expected = (cut.layout.positions, cut.layout.channels)
        check_tensor(a, "activations", "B, P, C")
        if a.ndim != 3 or tuple(a.shape[1:]) != expected:
            raise ValueError(
                f"activations of shape {tuple(a.shape)}: layer {cut.layer!r} has (B, P, C) = "
                f"(B, {expected[0]}, {expected[1]})"
            )
        a = a.to(self.device)
        with self._running(a):
            return self._result(self._logits(cut.head(cut.layout.from_positions(a))))

    def __call__(self, x: Tensor) -> Tensor:
        """Compute the logits ``(B, n_classes)`` through the cut."""
        return self.head(self.activations(x))

    # -- how ------------------------------------------------------------------------------

    def _input(self, x: Tensor) -> Tensor:
        """Check pictures, move them to the model, and cut the model on first use."""
        x = _check_pictures(x)
        x = x.to(self.device, memory_format=_memory_format(self.model), non_blocking=x.is_pinned())
        expected = self._ready(x).recording.input_shape
        if tuple(x.shape[1:]) != expected:
            raise ValueError(
                f"pictures of shape {tuple(x.shape[1:])} given to a backbone that was first used "
                f"with {expected}: resize them or make another Backbone"
            )
        return x

    @contextmanager
    def _running(self, x: Tensor) -> Iterator[None]:
        """The state the model runs in: eval, parameters frozen, gradients only if `x` asks."""
        grad = torch.is_grad_enabled() and x.requires_grad
        cast = torch.autocast(x.device.type, self.autocast, enabled=self.autocast is not None)
        with frozen(self.model), torch.set_grad_enabled(grad), cast:
            yield

    def _result(self, tensor: Tensor) -> Tensor:
        return tensor if self.autocast is None else tensor.float()

    def _logits(self, output: Any) -> Tensor:
        """The logits ``(B, n_classes)`` in what the model returned."""
        if callable(self.output):
            output = self.output(output)
        elif isinstance(self.output, str) and not isinstance(output, Mapping):
            output = getattr(output, self.output)
        elif self.output is not None:
            output = output[self.output]
        if not isinstance(output, Tensor):
            raise TypeError(
                f"the model returned a {type(output).__name__}, not a tensor of logits: say which "
                "part is the logits with output= (a key, an index or a function)"
            )
        if output.ndim != 2:
            raise ValueError(
                f"the logits have shape {tuple(output.shape)}, expected (B, n_classes): pick or "
                "reshape them with output= (a key, an index or a function)"
            )
        return output

    def _ready(self, x: Tensor | None = None) -> _Cut:
        """Make the cut on first use, on up to two of the given pictures or on a probe."""
        if self._cut is None:
            probe = self._probe() if x is None else x[:2].detach()
            with self._running(probe):
                layer = self._default_layer(probe) if self._layer is None else self._layer
                self._cut = self._make_cut(layer, probe)
        return self._cut

    def _make_cut(self, layer: str, x: Tensor) -> _Cut:
        recording = record(self.model, layer, x)
        if recording is None:
            raise NotCuttableError(
                f"layer {layer!r} is never called by the model{self._nearest(layer, x)}"
            )
        tensor = only_tensor(recording.output)
        size = (x.shape[-2], x.shape[-1])
        shape = () if tensor is None else tuple(tensor.shape[1:])
        layout = Layout.infer(shape, size, getattr(self.model, "num_prefix_tokens", None))
        if tensor is None or layout is None:
            raise NotCuttableError(
                f"layer {layer!r} does not return one tensor of vectors, tokens or a map of "
                f"features{self._nearest(layer, x)}"
            )
        logits = self._logits(self.model(x)).detach()
        if not torch.isfinite(logits).all():
            raise ValueError(f"the model returns NaN or infinite logits{_bad_weights(self.model)}")
        activations = _the_tensor(run_trunk(self.model, layer, recording.n_calls, x))
        failures = []
        for name, build in MECHANISMS.items():
            try:
                head = build(self.model, layer, recording)
                difference = float((self._logits(head(activations)) - logits).abs().max())
            except CannotBuildError as error:
                failures.append(f"{name}: {error}")
            except Exception as error:  # a mechanism that does not fit breaks in any way
                failures.append(f"{name}: {type(error).__name__}: {error}")
            else:
                if difference <= _tolerance(logits, self.autocast):
                    return _Cut(layer, recording, layout, name, head)
                failures.append(f"{name}: logits differ by {difference:.3g}")
        raise NotCuttableError(
            f"layer {layer!r} cannot be cut: what follows it does not give the model's logits "
            f"(largest logit {float(logits.abs().max()):.3g}; {'; '.join(failures)})"
            f"{self._nearest(layer, x)}"
        )

    def _default_layer(self, x: Tensor) -> str:
        """The last layer with places in the picture that the head reads, of equals the outermost.

        The patch tokens that a vision transformer's last block returns, for one, are read by
        nothing, so maps of concepts cut there would be without effect.
        """
        spatial = [
            info
            for info in self._survey(x)
            if info.cuttable and info.layout is not None and info.layout.grid != (1, 1)
        ]
        for info in reversed(spatial):
            if self._reads_grid(self._make_cut(info.name, x), x):
                return info.name
        raise NotCuttableError(
            "the logits do not depend on the places of any layer that can be cut: name one of "
            f"{[info.name for info in self._survey(x) if info.cuttable]} with layer="
        )

    def _reads_grid(self, cut: _Cut, x: Tensor) -> bool:
        """Whether the logits change when the activations on the grid are reversed in sign."""
        output = _the_tensor(run_trunk(self.model, cut.layer, cut.recording.n_calls, x))
        a = cut.layout.to_positions(output).clone()
        before = self._logits(cut.head(cut.layout.from_positions(a)))
        a[:, cut.layout.n_prefix :] *= -1
        return not torch.equal(before, self._logits(cut.head(cut.layout.from_positions(a))))

    def _nearest(self, layer: str, x: Tensor) -> str:
        """The end of an error: the layers nearest to `layer` that can be cut."""
        infos = self._survey(x)
        names = [info.name for info in infos]
        here = names.index(layer) if layer in names else len(names)
        near = sorted(
            (i for i, info in enumerate(infos) if info.cuttable and info.name != layer),
            key=lambda i: abs(i - here),
        )
        suggestions = ", ".join(repr(names[i]) for i in sorted(near[:3]))
        return f"; the nearest layers that can be cut are {suggestions}" if near else ""

    def _survey(self, x: Tensor | None = None) -> list[LayerInfo]:
        x = self._probe() if x is None else x
        with self._running(x):
            prefix = getattr(self.model, "num_prefix_tokens", None)
            return survey(self.model, x, self._logits, prefix)

    def _probe(self) -> Tensor:
        """Two pictures of noise, of the size that was last used or that the transform gives."""
        shape: tuple[int, ...] = DEFAULT_INPUT
        if self._cut is not None:
            shape = self._cut.recording.input_shape
        elif self.transform is not None:
            shape = _output_shape(self.transform)
        generator = torch.Generator().manual_seed(0)
        return torch.randn(2, *shape, generator=generator).to(self.device)


def class_index(target: int | str, class_names: Sequence[str] | None) -> int:
    """Return the index of the class `target`, given by index or by one of `class_names`.

    Raises
    ------
    ValueError
        For a name that no or several classes have; the message suggests near names.
    TypeError
        For what is neither an index nor a name.
    """
    if isinstance(target, bool) or not isinstance(target, (int, str)):
        raise TypeError(f"a class must be given by its index or name, got {target!r}")
    if isinstance(target, int):
        if target < 0 or (class_names is not None and target >= len(class_names)):
            size = "unknown number of" if class_names is None else len(class_names)
            raise ValueError(f"class {target} does not exist: there are {size} classes")
        return target
    if class_names is None:
        raise ValueError(
            f"class {target!r} was given by name, but the backbone has no class_names: give them "
            "to Backbone(class_names=...) or give the class's index"
        )
    found = [i for i, name in enumerate(class_names) if name == target]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"class {target!r} is ambiguous: the classes {found} have this name")
    near = get_close_matches(target, class_names, n=3, cutoff=0.5)
    near += [n for n in class_names if target.lower() in n.lower() and n not in near][:3]
    hint = f"; near names: {', '.join(map(repr, near))}" if near else ""
    raise ValueError(f"unknown class {target!r}{hint}")


def _check_layer(model: nn.Module, layer: str) -> None:
    names = [name for name, _ in model.named_modules() if name]
    if not isinstance(layer, str):
        raise TypeError(f"layer must be the name of a layer, got {layer!r}")
    if layer not in names:
        near = get_close_matches(layer, names, n=3, cutoff=0.4) or names[-3:]
        raise ValueError(
            f"the model has no layer {layer!r}; near names: {', '.join(map(repr, near))}. "
            "Backbone(model).layers() lists all that can be cut"
        )


def _check_pictures(x: Tensor) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"pictures must be a tensor (B, 3, H, W), got {type(x).__name__}")
    if x.ndim != 4 or 0 in x.shape or not x.is_floating_point():
        raise ValueError(
            f"pictures must be a float tensor (B, 3, H, W), none of them 0, got {x.dtype} "
            f"{tuple(x.shape)}"
        )
    check_finite(x, "pictures")
    return x


def _memory_format(model: nn.Module) -> torch.memory_format:
    """How the model's convolutions are laid out, which its input should match."""
    last = torch.channels_last
    convolutions = (p for p in model.parameters() if p.ndim == 4)
    turned = any(p.is_contiguous(memory_format=last) > p.is_contiguous() for p in convolutions)
    return last if turned else torch.preserve_format


def _the_tensor(output: Any) -> Tensor:
    tensor = only_tensor(output)
    if tensor is None:
        raise ValueError("the layer returned another structure than when it was first used")
    return tensor


def _tolerance(logits: Tensor, autocast: torch.dtype | None) -> float:
    """The difference that rounding explains: √ε of the largest logit, ε of the computing dtype."""
    dtype = logits.dtype if autocast is None else autocast
    return float(torch.finfo(dtype).eps ** 0.5 * max(float(logits.abs().max()), 1e-6))


def _bad_weights(model: nn.Module) -> str:
    bad = [n for n, p in model.named_parameters() if not torch.isfinite(p).all()]
    if not bad:
        return " for these pictures"
    return f": its weights {', '.join(map(repr, bad[:3]))} hold NaN or infinite values"


def _output_shape(transform: Callable[[Any], Tensor]) -> tuple[int, ...]:
    from PIL import Image

    return tuple(transform(Image.new("RGB", (320, 320), (127, 127, 127))).shape)


def _bytes_of(tensor: Any) -> bytes:
    if not isinstance(tensor, Tensor):
        return repr(tensor).encode()
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()
