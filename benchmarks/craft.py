"""CRAFT from pictures to concepts, importances and maps, against Craft-xai 0.0.3.

Both explain the same 24 pictures with EfficientNet-Lite0, ten concepts and N = 32 design points,
32 crops a batch. Pictures are 217 pixels wide, so that both cut the same 16 crops of 64 pixels: of
224 Craft-xai would leave out the right and lower borders. It is given the network as its package
loads it, and in a second run what a `Backbone` brings: the weights in channels_last order, as
`demo_backbone` lays them, and an allocator that keeps freed memory, which costs some. Ours runs
with the allocator left as it is, too.
`CRAFT.explain` also measures its explanation and finds each picture's parts. Every run is a process
of its own, and the ways take turns; times are medians, from pictures in memory to the result, with
the network loaded; peaks of memory are of the whole process.

Run with ``python benchmarks/craft.py``; it makes an environment for Craft-xai in
``benchmarks/.peers``.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from unittest.mock import MagicMock

import torch
from peers import python_of
from tables import goal, show

from conceptlens import CRAFT
from conceptlens.demo import demo_backbone, demo_pictures
from conceptlens.images import Pictures

K, N, BATCH, PATCH, SIDE = 10, 32, 32, 64, 217
LAYER = "_swish"
PEER, PEER_DEFAULT, PEER_HELPED = "Craft-xai", "Craft-xai, its own batches", "Craft-xai, helped"
LEFT = "conceptlens, resized, allocator left"
OURS = {
    "conceptlens, resized": "resized",
    LEFT: "resized",
    "conceptlens, positions": "positions",
}


def peer(x: torch.Tensor, target: int, batch: int, *, channels_last: bool) -> None:
    """Craft-xai's three calls."""
    model = demo_backbone().model
    if not channels_last:
        model.to(memory_format=torch.contiguous_format)
    sys.path.remove(str(Path(__file__).parent))  # where this script hides the package `craft`
    # Its samplers import TensorFlow and do without; later imports must not find the stand-in.
    sys.modules["tensorflow"] = MagicMock()
    from craft.craft_torch import Craft

    del sys.modules["tensorflow"]

    def head(a: torch.Tensor) -> torch.Tensor:
        return model._fc(model._dropout(model._avg_pooling(a).flatten(1)))

    def trunk(x: torch.Tensor) -> torch.Tensor:
        return model.extract_features(x)

    start = time.perf_counter()
    craft = Craft(trunk, head, K, batch, PATCH, "cpu")
    crops, _, _ = craft.fit(x)
    craft.estimate_importance(x, target, N)
    craft.transform(x)  # the maps
    report(start, len(crops))
    torch.testing.assert_close(head(trunk(x[:1])), model(x[:1]))


def ours(x: torch.Tensor, target: int, crops: str) -> None:
    bb = demo_backbone(LAYER)
    start = time.perf_counter()
    craft = CRAFT(bb, K, PATCH, crops=crops, n_designs=N, batch_size=BATCH)
    explanation = craft.explain(x, target, predicted_only=False)
    report(start, explanation.provenance["crops"])


def report(start: float, crops: int) -> None:
    """Print what the parent reads: seconds since `start`, peak MiB, and the number of crops."""
    seconds = time.perf_counter() - start
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    print(json.dumps([seconds, int(peak[1]) / 1024, crops]))


def work(way: str) -> None:
    warnings.simplefilter("ignore")
    bb = demo_backbone(LAYER)
    ((_, x),) = Pictures(demo_pictures("chelsea", 24), bb.transform).batches(24)
    first = (x.shape[-1] - SIDE) // 2
    x = x[..., first : first + SIDE, first : first + SIDE].contiguous()
    with torch.no_grad():
        target = int(bb.model(x).argmax(1).mode().values)
    if way in OURS:
        ours(x, target, OURS[way])
    else:
        peer(x, target, 64 if way == PEER_DEFAULT else BATCH, channels_last=way == PEER_HELPED)


def run(way: str) -> tuple[float, float, int]:
    """Seconds, peak MiB and crops of `way` in a process of its own."""
    python = sys.executable if way in OURS else python_of("craft", ("Craft-xai==0.0.3",))
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    if way in (PEER, PEER_DEFAULT, LEFT):
        env["GLIBC_TUNABLES"] = ""
    done = subprocess.run(
        [python, __file__, "--work", way], check=True, stdout=subprocess.PIPE, text=True, env=env
    )
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work)
        return
    ways = (PEER, PEER_DEFAULT, PEER_HELPED, *OURS)
    runs = {way: [] for way in ways}
    for _ in range(options.rounds):
        for way in ways:
            runs[way].append(run(way))
    seconds, peak, crops = (
        {way: statistics.median(run[i] for run in runs[way]) for way in ways} for i in range(3)
    )
    show(
        f"CRAFT on 24 pictures, k = {K}, N = {N}, medians of {options.rounds} rounds, "
        f"{torch.get_num_threads()} threads",
        ("", "crops", "seconds", "of Craft-xai's speed", "peak memory, MiB"),
        [
            [way, f"{crops[way]:.0f}", f"{seconds[way]:.1f}",
             f"{seconds[PEER] / seconds[way]:.1f}×", f"{peak[way]:.0f}"]
            for way in ways
        ],
    )  # fmt: skip
    print()
    for way in OURS:
        wanted = 6 if OURS[way] == "positions" else 1.8
        goal(f"{way}: over Craft-xai", seconds[PEER] / seconds[way], wanted)
    for way in OURS:
        goal(f"{way}: memory of Craft-xai's", peak[way] / peak[PEER], 1, most=True)
        goal(f"{way}: memory of {PEER_DEFAULT}'", peak[way] / peak[PEER_DEFAULT], 1, most=True)


if __name__ == "__main__":
    main()
