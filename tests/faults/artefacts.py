"""What the library writes: how each is written, and all that a user reads from it."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from conceptlens import (
    NMF,
    ActivationStore,
    Backbone,
    Concept,
    Crop,
    Explanation,
    Importance,
    SparseAutoencoder,
)
from conceptlens.bottleneck import PosthocCBM


@dataclass(frozen=True)
class Artefact:
    """A folder that the library writes.

    `write` makes it, or finishes what is there. `read` returns all there is in it, checked as far
    as the library can, or raises ValueError. `optional` files may be missing: what is read then is
    what a first run finds.
    """

    name: str
    write: Callable[[Path], Any]
    read: Callable[[Path], Any]
    optional: bool = False


def frozen(value: Any) -> Any:
    """`value` as something whose parts are compared to the last bit, NaN with NaN."""
    if isinstance(value, Tensor):
        raw = value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return (str(value.dtype), tuple(value.shape), raw)
    if isinstance(value, np.ndarray):
        return (str(value.dtype), value.shape, value.tobytes())
    if dataclasses.is_dataclass(value):
        return tuple(frozen(getattr(value, f.name)) for f in dataclasses.fields(value))
    if isinstance(value, dict):
        return tuple((key, frozen(item)) for key, item in sorted(value.items()))
    if isinstance(value, (list, tuple)):
        return tuple(map(frozen, value))
    return repr(value)


def rows() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(24, 3, generator=generator) @ torch.rand(3, 6, generator=generator)


# -- stores ----------------------------------------------------------------------------------


def build(folder: Path) -> ActivationStore:
    """Three shards of one batch of four pictures."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 2, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)
    )
    pictures = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return ActivationStore.build(Backbone(model, "1"), pictures, folder, 4, shard_bytes=1)


def read_store(folder: Path) -> Any:
    store = ActivationStore.open(folder)
    store.verify()
    return store[:], store.names, store.key, store.shape


def leave_unfinished(folder: Path) -> None:
    build(folder)
    (folder / "manifest.json").unlink()
    max(folder.glob("activations-*")).unlink()


def finish(folder: Path) -> Any:
    build(folder)
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != ".lock"}


# -- explanations ----------------------------------------------------------------------------


def explanation() -> Explanation:
    generator = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    values = torch.tensor([0.6, 0.3])
    importance = Importance(values, values / 10, rand(3, 2), "Sobol", "cat", ["fur", "eye"])
    concepts = [
        Concept(i, name, float(values[i]), 0.1, [Crop(i, (2, 1, 8, 7), 0.5)])
        for i, name in enumerate(["fur", "eye"])
    ]
    pictures = torch.randint(0, 256, (3, 3, 8, 12), generator=generator, dtype=torch.uint8)
    whole = Explanation(
        target="cat", importance=importance, concepts=concepts, pictures=pictures,
        picture_names=["a.png", "b.png", "c.png"], concept_maps=rand(3, 2, 2, 3),
        components=rand(2, 5), scores=rand(3), metrics={"agreement": 0.9}, provenance={"seed": 0},
        logit_parts=rand(3, 5),
    )  # fmt: skip
    return replace(whole, subconcepts={1: replace(whole, components=rand(2, 4))})


# -- models ----------------------------------------------------------------------------------


@cache
def autoencoder() -> SparseAutoencoder:
    return SparseAutoencoder(8, sparsity=2, n_epochs=2, batch_size=16).fit(rows())


def load_autoencoder(folder: Path) -> Any:
    sae = SparseAutoencoder.load(folder)
    return sae.transform(rows()), sae.weights_, sae.history_, sae.n_iter_, sae.get_params()


@cache
def bottleneck() -> PosthocCBM:
    labels = (rows()[:, :2] > rows()[:, :2].median(0).values).float()
    names = ["a", "b"]
    model = PosthocCBM(concept_names=names, max_epochs=5)
    return model.fit(rows(), ["xy"[i] for i in labels[:, 0].int()], concepts=labels)


def load_bottleneck(folder: Path) -> Any:
    model = PosthocCBM.load(folder)
    learnt = (model.classes_.tolist(), model.concept_names, model.history_)
    return model.predict_proba(rows()), model.predict_concepts(rows()), learnt, model.get_params()


# -- unfinished fits -------------------------------------------------------------------------


class Stop(Exception):
    pass


def fit_autoencoder(folder: Path, monitor: Any = None) -> Any:
    sae = SparseAutoencoder(8, sparsity=2, n_epochs=3, batch_size=16)
    sae.fit(rows(), checkpoint=folder, monitor=monitor)
    return sae.weights_, sae.history_, sae.n_iter_


def stop_autoencoder(folder: Path) -> None:
    def stop(sae: SparseAutoencoder) -> dict[str, float]:
        if len(sae.history_) == 2:
            raise Stop
        return {}

    try:
        fit_autoencoder(folder, stop)
    except Stop:
        pass


def fit_nmf(folder: Path, iterations: int = 20) -> Any:
    nmf = NMF(3, init="random", tol=0, max_iter=iterations)
    nmf.fit(rows(), checkpoint=folder / "nmf.safetensors")
    return nmf.components_, nmf.n_iter_, nmf.reconstruction_err_


def stop_nmf(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    fit_nmf(folder, 10)


ARTEFACTS = (
    Artefact("store", build, read_store),
    Artefact("unfinished store", leave_unfinished, finish, optional=True),
    Artefact("explanation", lambda folder: explanation().save(folder), Explanation.load),
    Artefact("autoencoder", lambda folder: autoencoder().save(folder), load_autoencoder),
    Artefact("bottleneck", lambda folder: bottleneck().save(folder), load_bottleneck),
    Artefact("autoencoder checkpoint", stop_autoencoder, fit_autoencoder, optional=True),
    Artefact("NMF checkpoint", stop_nmf, fit_nmf, optional=True),
)
