"""A fitted bottleneck model as a folder: model.safetensors and config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from ..backbone import Backbone
from ..extraction.sae.checkpoint import is_history
from ..files import write_atomically
from ..sealing import FORMAT, check_tensors, digest, load_config, pack, unpack

if TYPE_CHECKING:
    from .base import Bottleneck

Model = TypeVar("Model", bound="Bottleneck")
CONFIG, WEIGHTS = "config.json", "model.safetensors"


def save(model: Bottleneck, folder: Path) -> None:
    """Write the two files, each whole or absent."""
    config = {
        "format": FORMAT,
        "class": type(model).__name__,
        "options": model._options(),
        "classes": model.classes_.tolist(),
        "concept_names": model.concept_names,
        "n_features": model.n_features_in_,
        "history": model.history_,
    }
    try:
        text = json.dumps(config, indent=1)
    except TypeError as error:
        raise TypeError(
            f"this {type(model).__name__} cannot be saved: options and classes must be numbers, "
            f"strings or lists of them ({error})"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / WEIGHTS, pack(model.network_.state_dict(), {"config": config}))
    write_atomically(folder / CONFIG, text.encode())


def load(cls: type[Model], folder: Path, backbone: Backbone | None) -> Model:
    """Read a folder that `save` wrote, trusting nothing in it."""
    path = folder / CONFIG
    config = load_config(path)
    if config.get("class") != cls.__name__:
        raise ValueError(
            f"{path} holds a {config.get('class')}, not a {cls.__name__}: load it with that"
        )
    tensors, record = unpack(folder / WEIGHTS)
    if digest(record.get("config")) != digest(config):
        raise ValueError(f"{path} is not the one that {folder / WEIGHTS} was saved with")
    try:
        model = cls(backbone, **config["options"])
        names, classes = list(map(str, config["concept_names"])), np.asarray(config["classes"])
        n_features = int(config["n_features"])
        if classes.ndim != 1 or classes.dtype.kind not in "biuU" or not is_history(config):
            raise ValueError("its classes or history are not those of a model")
        if n_features < 1 or not names:
            raise ValueError("it has no features or no concepts")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    model.backbone_ = backbone
    network = model._network(n_features, len(names), len(classes))
    path = folder / WEIGHTS
    floating = [t.dtype for t in tensors.values() if t.is_floating_point()]
    network = network.to(floating[0]) if floating else network
    check_tensors(path, tensors, network.state_dict())
    network.load_state_dict(tensors)
    model._learn(network, classes, names, n_features, config["history"])
    return model
