"""A fitted autoencoder as a folder: model.safetensors, config.json and README.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from ..._version import __version__
from ...files import write_atomically
from ...sealing import FORMAT, check_tensors, digest, load_config, pack, unpack
from .checkpoint import is_history
from .settings import Settings
from .training import start

if TYPE_CHECKING:
    from .estimator import SparseAutoencoder

CARD = """---
library_name: conceptlens
tags: [sparse-autoencoder, interpretability]
---

# Sparse autoencoder, {variant}

{k} concepts of activations with {c} channels, learnt in {steps} steps by conceptlens {version}.

| option | value |
| --- | --- |
{options}

After the last epoch: R² {r2:.4f}, {l0:.1f} codes a row that are not zero, {dead:.1%} of the units
never on.

```python
import conceptlens as cl

sae = cl.SparseAutoencoder.load("this folder")
codes = sae.transform(activations)  # (n, {c}) -> (n, {k})
```

The activations must be those of the network, layer and preprocessing that it was fitted on.
"""


def save(sae: SparseAutoencoder, folder: Path) -> None:
    """Write the three files, each whole or absent."""
    folder.mkdir(parents=True, exist_ok=True)
    options = sae.get_params()
    record = {"n_iter": sae.n_iter_, "history": sae.history_}
    config = {"format": FORMAT, "version": __version__, "options": options, **record}
    write_atomically(folder / "model.safetensors", pack(sae.weights_, {"config": config}))
    table = "\n".join(f"| {name} | {value!r} |" for name, value in options.items())
    figures = {name: sae.history_[-1][name] for name in ("r2", "l0", "dead")}
    card = CARD.format(
        variant=sae.variant, k=len(sae.components_), c=sae.n_features_in_, steps=sae.n_iter_,
        version=__version__, options=table, **figures,
    )  # fmt: skip
    write_atomically(folder / "README.md", card.encode())
    write_atomically(folder / "config.json", json.dumps(config, indent=1).encode())


def load(cls: type[SparseAutoencoder], folder: Path) -> SparseAutoencoder:
    """Read a folder that `save` wrote, trusting nothing in it."""
    path = folder / "config.json"
    config = load_config(path)
    options = config.get("options")
    if not isinstance(options, dict) or options.keys() != cls().get_params().keys():
        raise ValueError(f"{path} is damaged: its options are not those of a {cls.__name__}")
    try:
        settings = Settings.of(options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(config.get("n_iter"), int) or not is_history(config):
        raise ValueError(f"{path} is damaged: it lacks n_iter or history")
    path = folder / "model.safetensors"
    weights, record = unpack(path)
    if digest(record.get("config")) != digest(config):
        raise ValueError(f"{path} belongs to another config.json than the one beside it")
    intercept = weights.get("intercept")
    if intercept is None or intercept.ndim != 1:
        raise ValueError(f"{path} does not hold the expected tensors: see intercept")
    check_tensors(path, weights, start(settings, intercept))
    sae = cls(**options)
    sae._learn(weights, config["history"], config["n_iter"])
    return sae
