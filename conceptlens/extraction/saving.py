"""A fitted dictionary as a folder: model.safetensors, config.json and README.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from .._version import __version__
from ..files import write_atomically
from ..sealing import FORMAT, digest, load_config, pack, unpack
from .base import Savable

Kind = TypeVar("Kind", bound=Savable)
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"

TEXT = """---
library_name: conceptlens
tags: [dictionary-learning, interpretability]
---

# {kind}

{k} concepts of activations with {c} channels, learnt by conceptlens {version}.

| option | value |
| --- | --- |
{options}

| figure | value |
| --- | --- |
{figures}

```python
from conceptlens.extraction import load

dictionary = load("this folder")
codes = dictionary.transform(activations)  # (n, {c}) -> (n, {k})
```

The activations must be those of the network, layer and preprocessing that it was fitted on.
"""


def save(extractor: Savable, folder: Path) -> None:
    """Write the three files, each whole or absent."""
    options, (tensors, record) = extractor._options(), extractor._learnt()
    kind = type(extractor).__name__
    config = {
        "format": FORMAT, "version": __version__, "class": kind, "options": options, **record,
    }  # fmt: skip
    try:
        text = json.dumps(config, indent=1)
    except TypeError as error:
        raise TypeError(f"this {kind} cannot be saved, its options are no JSON: {error}") from error
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / WEIGHTS, pack(tensors, {"config": config}))
    k, c = extractor.components_.shape
    figures = {name: value for name, value in record.items() if isinstance(value, (int, float))}
    figures |= record.get("history", [{}])[-1]
    card = TEXT.format(
        kind=kind, k=k, c=c, version=__version__, options=_table(options), figures=_table(figures)
    )
    write_atomically(folder / CARD, card.encode())
    write_atomically(folder / CONFIG, text.encode())


def load(kind: type[Kind], folder: Path) -> Kind:
    """Read a folder that `save` wrote, trusting nothing in it."""
    config = load_config(folder / CONFIG)
    if kind_in(config) != kind.__name__:
        raise ValueError(
            f"{folder / CONFIG} holds {kind_in(config)}, not {kind.__name__}: "
            "conceptlens.extraction.load reads any"
        )
    tensors, record = unpack(folder / WEIGHTS)
    if digest(record.get("config")) != digest(config):
        raise ValueError(f"{folder / WEIGHTS} belongs to another {CONFIG} than the one beside it")
    try:
        extractor = kind._made_from(config["options"])
        extractor._relearn(tensors, config)
    except (
        ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError
    ) as error:  # fmt: skip
        raise ValueError(f"{folder / CONFIG} or {WEIGHTS} is damaged: {error}") from error
    return extractor


def kind_in(config: dict[str, Any]) -> str:
    """The name of the class that was saved; only autoencoders were, before it was written."""
    return str(config.get("class", "SparseAutoencoder"))


def _table(entries: dict[str, Any]) -> str:
    return "\n".join(f"| {name} | {value!r} |" for name, value in entries.items())
