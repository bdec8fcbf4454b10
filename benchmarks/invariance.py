"""What must not matter does not, and what must matter does.

Batches: the largest difference that batches of 1, 7 and 64 make to what all pictures at once give,
as a share of the largest number. Workers, processes, interruptions and hash seeds: stores and
explanations are compared to the last bit. Keys: a change of what a store's numbers depend on gives
another key; another place, process or hash seed the same.

Run with ``python benchmarks/invariance.py``; it fails where a promise does not hold.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("TQDM_DISABLE", "1")

import torch
from PIL import Image
from tables import goal, show
from torch import Tensor, nn

from conceptlens import (
    CRAFT,
    NMF,
    ActivationStore,
    Backbone,
    DictionaryModel,
    SparseAutoencoder,
    attribute,
    concept_maps,
    sobol,
)

N, BATCHES, TOLERANCE = 70, (1, 7, 64), 1e-5
KEY = Path(__file__).with_name("invariance.py")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 24, 3, 2, 1), nn.ReLU(),
        nn.Conv2d(24, 32, 3, 2, 1), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(32, 5),
    )  # fmt: skip


def pictures() -> Tensor:
    return torch.rand(N, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def build(folder: Path, batch_size: int = 8, model: nn.Module | None = None, **changes: Any) -> Any:
    layer, transform = changes.pop("layer", "3"), changes.pop("transform", None)
    bb = Backbone(model or network(), layer, transform)
    images = changes.pop("images", pictures())
    return ActivationStore.build(bb, images, folder, batch_size, shard_bytes=1, **changes)


# -- batches ---------------------------------------------------------------------------------------


def of_batches(folder: Path) -> list[list[object]]:
    """For each computation the difference that each batch size makes."""
    bb, x = Backbone(network(), "3"), pictures()
    cm = DictionaryModel(bb, NMF(6).fit(bb.activations(x).flatten(0, 1)))
    codes = cm.encode(x)

    def maps(batch: int) -> Tensor:
        return concept_maps(cm, x[:20], "implicit", batch_size=batch)

    computations: dict[str, Callable[[int], Tensor]] = {
        "stores": lambda b: build(folder / str(b), b)[:],
        "codes": lambda b: torch.cat([cm.encode(part) for part in x.split(b)]),
        "Sobol indices": lambda b: sobol(cm, codes[:20], 1, batch_size=b).per_image,
        "integrated gradients": lambda b: attribute(cm, codes, 1, batch_size=b).per_image,
        "concept maps": maps,
    }
    rows: list[list[object]] = []
    for name, compute in computations.items():
        whole = compute(10**6 if name != "stores" else N)
        size = float(whole.abs().max())
        rows.append([name, *(float((compute(b) - whole).abs().max()) / size for b in BATCHES)])
    return rows


# -- workers, processes, interruptions -------------------------------------------------------------


def files(folder: Path) -> dict[str, bytes]:
    found = sorted(folder.iterdir())
    return {file.name: file.read_bytes() for file in found if file.name != ".lock"}


def resumed(folder: Path, *lost: str) -> dict[str, bytes]:
    """A store that lost its manifest and some shards, finished."""
    build(folder)
    for file in [folder / "manifest.json", *(folder.glob("activations-*"))]:
        if file.name == "manifest.json" or file.name.split("-")[1].startswith(lost):
            file.unlink()
    build(folder)
    return files(folder)


def equal_to_the_bit(folder: Path) -> list[list[object]]:
    build(folder / "whole")
    whole = files(folder / "whole")
    rows: list[list[object]] = []
    for workers in (1, 2, 4):
        build(folder / f"workers {workers}", num_workers=workers)
        rows.append([f"store, {workers} workers", whole == files(folder / f"workers {workers}")])
    rows.append(["store, resumed", whole == resumed(folder / "resumed", "000000008", "000000048")])
    (folder / "photos").mkdir()
    for i, x in enumerate(pictures()):
        pixels = (x.movedim(0, -1) * 255).byte().numpy()
        Image.fromarray(pixels).save(folder / "photos" / f"{i:02}.png")

    def explain() -> Any:
        craft = CRAFT(Backbone(network(), "3"), 4, 16, n_designs=16)
        return craft.explain(folder / "photos", predicted_only=False)

    first = explain()
    rows.append(["explanation, again", first.reproduce(
        CRAFT(Backbone(network(), "3"), 4, 16, n_designs=16), folder / "photos"
    ).exact])  # fmt: skip
    store = ActivationStore.open(folder / "whole")
    rows.append(["autoencoder, 50 steps, killed, 50 more", *_resumed_training(store, folder)])
    rows.append(["store and key, other process and hash seed", whole == other_process(folder)])
    return rows


def _resumed_training(store: ActivationStore, folder: Path) -> list[bool]:
    class Stop(Exception):
        pass

    def stop(sae: SparseAutoencoder) -> dict[str, float]:
        if len(sae.history_) == 2:
            raise Stop
        return {}

    def make() -> SparseAutoencoder:
        return SparseAutoencoder(32, sparsity=4, n_epochs=4, batch_size=180)  # 25 steps an epoch

    whole = make().fit(store)
    try:
        make().fit(store, checkpoint=folder / "checkpoint", monitor=stop)
    except Stop:
        pass
    again = make().fit(store, checkpoint=folder / "checkpoint")
    return [torch.equal(whole.components_, again.components_)]


def other_process(folder: Path) -> dict[str, bytes]:
    """The files of a store that a process with another hash seed builds elsewhere."""
    place = folder / "elsewhere"
    code = f"import invariance, pathlib; invariance.build(pathlib.Path({str(place)!r}))"
    environment = os.environ | {"PYTHONHASHSEED": "12345"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=KEY.parent)
    return files(place)


# -- keys ------------------------------------------------------------------------------------------


def doubled(x: Any) -> Tensor:
    return 2 * torch.ones(3, 32, 32)


def of_keys(folder: Path) -> list[list[object]]:
    """Whether a store is refused or has another key after each change."""
    other = network()
    with torch.no_grad():
        other[0].weight[0, 0, 0, 0] += 1e-3
    swapped = pictures()
    swapped[[0, 1]] = swapped[[1, 0]]
    one = pictures()
    one[3, 0, 0, 0] += 1e-3
    changes: dict[str, dict[str, Any]] = {
        "one weight": {"model": other}, "layer": {"layer": "1"}, "one pixel": {"images": one},
        "transform": {"transform": doubled}, "two pictures swapped": {"images": swapped},
        "a picture less": {"images": pictures()[1:]}, "dtype": {"dtype": torch.float16},
        "batch size": {"batch_size": 7},
    }  # fmt: skip
    key = json.dumps(build(folder / "first").key, sort_keys=True)
    rows: list[list[object]] = []
    for i, (what, change) in enumerate(changes.items()):
        found = json.dumps(build(folder / f"change {i}", **change).key, sort_keys=True)
        try:
            build(folder / "first", **change)
            refused = False
        except ValueError:
            refused = True
        rows.append([what, found != key and refused])
    with mock.patch("conceptlens.manifest.FORMAT", 2):
        try:
            ActivationStore.open(folder / "first")
            rows.append(["format of the files", False])
        except ValueError:
            rows.append(["format of the files", True])
    same = json.dumps(build(folder / "second").key, sort_keys=True) == key
    return [*rows, ["nothing, another folder: the same key", same]]


def main() -> int:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = ("batches", "bits", "keys")
        for part in parts:
            (folder / part).mkdir()
        batches = of_batches(folder / "batches")
        bits, keys = equal_to_the_bit(folder / "bits"), of_keys(folder / "keys")
    head = ("largest relative difference", *(f"batches of {b}" for b in BATCHES))
    show("Batches", head, [[row[0], *(f"{d:.1e}" for d in row[1:])] for row in batches])
    show("Equal to the last bit", ("what", "equal"), bits)
    show("Keys of stores", ("changed", "noticed"), keys)
    worst = max(float(d) for row in batches for d in row[1:])  # type: ignore[arg-type]
    broken = sum(not row[1] for row in bits + keys)
    print()
    goal("largest difference between batches", worst, TOLERANCE, "", most=True)
    goal("what is not equal, or not noticed", broken, 0, "", most=True)
    return int(worst > TOLERANCE or broken > 0)


if __name__ == "__main__":
    sys.exit(main())
