"""Extraction against the network itself, and against the loop that users write by hand.

In memory, ``Backbone.activations`` is timed beside the whole network on the same tensors, in rounds
that take turns; at an earlier layer it stops there and so may be faster than the network. From
files, ``ActivationStore.build``, which also writes the activations to disk, is timed beside a
forward hook on the network as its package loads it, whose outputs are put in a list on the CPU;
that loop runs in a process of its own, where no `Backbone` had glibc keep freed memory.
Processes that read the files are counted with the network on the CPU, which needs the cores
itself, and with none, as they would be by one on a GPU, which leaves them free.
Last, what other ways of running the network give. Only the memory format and the allocator are
chosen by themselves: inference_mode gives nothing, bfloat16 changes the numbers
(``Backbone(autocast=...)`` asks for it), and the hooks that cut a network do not fire inside
compiled modules.

Run with ``python benchmarks/extraction.py``; ``--quick`` takes one round of few pictures.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from tables import goal, show
from torch import Tensor, nn
from torchvision.models import resnet50

from conceptlens import ActivationStore, Backbone
from conceptlens.demo import demo_backbone, demo_pictures
from conceptlens.images import Pictures, read_image

BATCH = 16
LAYERS = {"ResNet-50": ("layer4", "layer2"), "EfficientNet-Lite0": ("_swish", "_blocks.4")}
Ways = dict[str, Callable[[], object]]


def backbone(name: str, layer: str) -> Backbone:
    if name == "ResNet-50":  # weights do not change how long it takes
        return Backbone.from_torchvision("resnet50", layer, weights=None)
    return demo_backbone(layer)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def alone(option: str, *arguments: object) -> float:
    """The seconds that this script prints in a process whose allocator is left as it is."""
    command = [sys.executable, __file__, option, *map(str, arguments)]
    env = os.environ | {"GLIBC_TUNABLES": ""}
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=env).stdout)


def rates(ways: Ways, n: int, rounds: int) -> dict[str, float]:
    """Pictures a second of each way: medians over rounds in which they take turns."""
    took: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, run in ways.items():
            took[way].append(seconds(run))
    return {way: n / statistics.median(seconds) for way, seconds in took.items()}


def whole(model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        for batch in x.split(BATCH):
            model(batch)


def trunk(bb: Backbone, x: Tensor) -> None:
    for batch in x.split(BATCH):
        bb.activations(batch)


def naive(bb: Backbone, model: nn.Module, files: list[Path]) -> Tensor:
    """What is written by hand: a hook, a list, pictures read one after the other."""
    seen, kept = {}, []

    def hook(_module, _args, output):
        seen["output"] = output  # some layers are called twice

    handle = model.get_submodule(bb.layer).register_forward_hook(hook)
    with torch.no_grad():
        for i in range(0, len(files), BATCH):
            model(torch.stack([bb.transform(read_image(f)) for f in files[i : i + BATCH]]))
            kept.append(seen["output"].cpu())
    handle.remove()
    return torch.cat(kept)


def as_loaded(bb: Backbone, name: str) -> nn.Module:
    """The network's twin in the memory format that its package gives it."""
    model = resnet50() if name == "ResNet-50" else demo_backbone().model
    model.load_state_dict(bb.model.state_dict())
    return model.eval().to(memory_format=torch.contiguous_format)


def by_hand(name: str, files: list[Path]) -> float:
    """Seconds of the loop by hand, warm."""
    bb = backbone(name, LAYERS[name][0])
    twin = as_loaded(bb, name)
    naive(bb, twin, files[:BATCH])
    return seconds(lambda: naive(bb, twin, files))


def network_alone(name: str) -> float:
    """Seconds of a batch through the network as its package loads it, warm."""
    twin, x = as_loaded(backbone(name, LAYERS[name][0]), name), torch.rand(BATCH, 3, 224, 224)
    whole(twin, x)
    return seconds(lambda: whole(twin, x))


def from_memory(name: str, x: Tensor, rounds: int) -> float:
    bbs = {layer: backbone(name, layer) for layer in LAYERS[name]}
    for bb in bbs.values():
        bb.activations(x[:BATCH])
    model = next(iter(bbs.values())).model
    ways: Ways = {"the network": lambda: whole(model, x)}
    for layer, bb in bbs.items():
        ways[f"activations at {layer}"] = lambda bb=bb: trunk(bb, x)
    found = rates(ways, len(x), rounds)
    first = found["the network"]
    show(
        f"{name}, {len(x)} pictures in memory, batches of {BATCH}, "
        f"{torch.get_num_threads()} threads",
        ("", "pictures/s", "of the network"),
        [[way, f"{rate:.1f}", f"{rate / first:.0%}"] for way, rate in found.items()],
    )
    return found[f"activations at {LAYERS[name][0]}"] / first


def from_files(name: str, files: list[Path], rounds: int) -> float:
    bb = backbone(name, LAYERS[name][0])
    twin = as_loaded(bb, name)
    folder = files[0].parent
    ((_, x),) = Pictures(files[:2], bb.transform).batches(2)
    expected = naive(bb, twin, files[:2]).flatten(2).mT
    torch.testing.assert_close(bb.activations(x), expected, rtol=1e-3, atol=1e-3)

    def build() -> None:
        with tempfile.TemporaryDirectory() as store:
            ActivationStore.build(bb, folder, store, BATCH)

    took = [(seconds(build), alone("--by-hand", name, folder)) for _ in range(rounds)]
    store, by_hand = (len(files) / statistics.median(column) for column in zip(*took, strict=True))
    show(
        f"{name}, {len(files)} JPEG files of 500 × 375",
        ("", "pictures/s"),
        [
            ["hook and list, by hand", f"{by_hand:.1f}"],
            ["ActivationStore.build", f"{store:.1f}"],
        ],
    )
    return store / by_hand


def workers(name: str, files: list[Path], rounds: int) -> None:
    """What processes that read give, with the network on the same cores and without any."""
    bb, folder = backbone(name, LAYERS[name][0]), files[0].parent
    counts = (0, 1, os.cpu_count() or 1)

    def build(n: int) -> None:
        with tempfile.TemporaryDirectory() as store:
            ActivationStore.build(bb, folder, store, BATCH, num_workers=n)

    def read(n: int) -> None:
        pictures = Pictures(folder, bb.transform)
        pictures.num_workers = n
        for _ in pictures.batches(BATCH):
            pass

    def over(work: Callable[[int], None]) -> list[str]:
        found = rates({str(n): lambda n=n: work(n) for n in counts}, len(files), rounds)
        return [f"{rate:.1f}" for rate in found.values()]

    show(
        f"Processes that read {len(files)} JPEG files, pictures/s",
        ("", *map(str, counts)),
        [[f"a store of {name}, on the same cores", *over(build)], ["reading alone", *over(read)]],
    )


def other_ways(name: str, x: Tensor, rounds: int) -> None:
    bb = backbone(name, LAYERS[name][0])
    model, twin = bb.model, as_loaded(bb, name)
    last = x.to(memory_format=torch.channels_last)
    compiled = torch.compile(model)
    whole(compiled, last)  # it compiles now

    def inference() -> None:
        with torch.inference_mode():
            whole(model, last)

    def bfloat16() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            whole(model, last)

    ways: Ways = {
        "and freed memory kept": lambda: whole(twin, x),
        "and channels_last": lambda: whole(model, last),
        "and inference_mode": inference,
        "and autocast to bfloat16": bfloat16,
        "and torch.compile": lambda: whole(compiled, last),
    }
    first = len(x) / statistics.median(alone("--as-loaded", name) for _ in range(rounds))
    found = {"as its package loads it": first} | rates(ways, len(x), rounds)
    show(
        f"{name}, ways to run the network",
        ("", "pictures/s", "of the first"),
        [[way, f"{rate:.1f}", f"{rate / first:.2f}×"] for way, rate in found.items()],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--by-hand", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--as-loaded", help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.by_hand:
        name, folder = options.by_hand
        print(by_hand(name, sorted(Path(folder).iterdir())))
        return
    if options.as_loaded:
        print(network_alone(options.as_loaded))
        return
    n, rounds = (BATCH, 1) if options.quick else (options.pictures, options.rounds)
    x = torch.rand(n, 3, 224, 224)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{i:04}.jpg" for i in range(n)]
        for file, picture in zip(files, demo_pictures("chelsea", n), strict=True):
            picture.resize((500, 375)).save(file, quality=90)
        share = {name: from_memory(name, x, rounds) for name in LAYERS}
        gain = {name: from_files(name, files, rounds) for name in LAYERS}
        workers("EfficientNet-Lite0", files, rounds)
    for name in LAYERS:
        other_ways(name, x[:BATCH], rounds)
    print()
    for name in LAYERS:
        goal(f"{name}: extraction's share of the network", 100 * share[name], 90, " %")
        goal(f"{name}: from files, over a hook and a list", gain[name], 1.3)


if __name__ == "__main__":
    main()
