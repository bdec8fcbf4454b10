"""What a store costs to build, how quickly it streams, and whether memory and time stay in bounds.

1. Building against the bare network: a loop of ``model(batch)`` over the same tensors in memory,
   in turn with `ActivationStore.build` of the last convolution's output (pictures hashed, rows
   checked, written and flushed to disk). Networks are cut beforehand; medians over rounds. The
   loop runs in a process of its own, as without a `Backbone`, and once more beside the build, where
   glibc keeps freed memory. What no build can save there is timed alone: the SHA-256 of pictures
   and rows, and one write of the rows with a flush.
2. Streaming shuffled vectors against raw reads of the same files, one after the other into one
   buffer. Both start from a cold page cache: files are flushed and dropped from it
   (``posix_fadvise``) before each. Median of the rounds' ratios.
3. Peak memory and seconds of builds from picture files, each in a process of its own.

Run with ``python benchmarks/store.py [cost] [streaming] [growth]``. Two processes under torchrun
are in ``distributed.py``.
"""

import argparse
import hashlib
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from tables import goal, show
from torch import nn

from conceptlens import ActivationStore, Backbone
from conceptlens.demo import demo_backbone

BATCH = 32
PICTURES = {"EfficientNet-Lite0": 512, "ResNet-50": 256}
ROUNDS = 5
STREAMED = 16384  # pictures of 64 × 512 activations: 2 GiB
STREAM_BATCH = 4096
BUFFER = 2**20  # what reads quickest
AMOUNTS = (1000, 4000, 16000)
SMALL = 32  # pixels
SHARD_BYTES = 2**22  # so that even the fewest pictures fill several


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def pictures(name: str) -> torch.Tensor:
    return torch.randn(PICTURES[name], 3, 224, 224, generator=torch.Generator().manual_seed(0))


def backbones() -> dict[str, Backbone]:
    resnet = torchvision.models.resnet50(weights=None)
    resnet = resnet.eval().to(memory_format=torch.channels_last)
    return {"EfficientNet-Lite0": demo_backbone(), "ResNet-50": Backbone(resnet, "layer4")}


def bare(bb: Backbone, x: torch.Tensor) -> None:
    with torch.inference_mode():
        for batch in x.split(BATCH):
            bb.model(batch)


def bare_alone(name: str) -> float:
    """Seconds of the bare loop in a process whose allocator is left as it is."""
    command = [sys.executable, __file__, "--bare", name]
    env = os.environ | {"GLIBC_TUNABLES": ""}
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=env).stdout)


def hash_and_write(x: torch.Tensor, rows: torch.Tensor, path: Path) -> None:
    for tensor in (x, rows):
        hashlib.sha256(tensor.numpy().data)
    with path.open("wb") as file:
        file.write(rows.numpy().data)
        os.fsync(file.fileno())


def cost(name: str, bb: Backbone, folder: Path) -> list[float]:
    """Pictures; medians of the seconds of both loops, of building, and of what it must do."""
    folder.mkdir(parents=True)
    x = pictures(name)
    rows = torch.cat([bb.activations(batch) for batch in x.split(BATCH)])  # cut, and warm
    times = [
        (
            bare_alone(name),
            seconds(lambda: bare(bb, x)),
            seconds(lambda i=i: ActivationStore.build(bb, x, folder / f"{i}", BATCH)),
            seconds(lambda i=i: hash_and_write(x, rows, folder / f"{i}.bin")),
        )
        for i in range(ROUNDS)
    ]
    return [len(x), *map(statistics.median, zip(*times, strict=True))]


def streaming(folder: Path) -> list[tuple[float, float]]:
    """GiB/s of raw reads and of the stream, round by round in turn."""
    network = nn.Sequential(
        nn.Conv2d(3, 512, 4, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 2)
    )
    x = torch.rand(STREAMED, 3, SMALL, SMALL)
    store = ActivationStore.build(Backbone(network, "1"), x, folder, BATCH)
    files = sorted(folder.glob("activations-*"))
    size = sum(file.stat().st_size for file in files) / 2**30
    buffer = bytearray(BUFFER)

    def cold() -> None:
        for file in files:
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def raw() -> None:
        for file in files:
            with file.open("rb", buffering=0) as opened:
                while opened.readinto(buffer):
                    pass

    def stream() -> None:
        for _ in store.vectors(STREAM_BATCH):
            pass

    def speed(work: Callable[[], None]) -> float:
        cold()
        return size / seconds(work)

    return [(speed(raw), speed(stream)) for _ in range(ROUNDS)]


def build_alone(files: Path, n: int, folder: Path) -> None:
    """Print the seconds of a build from files, and the MiB that it adds to the peak of memory."""

    def peak() -> float:
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024

    bb = Backbone(nn.Sequential(nn.Conv2d(3, 64, 4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten()), "0")
    bb.activations(torch.rand(BATCH, 3, SMALL, SMALL))
    some = sorted(files.iterdir())[:n]
    before = peak()
    took = seconds(lambda: ActivationStore.build(bb, some, folder, BATCH, shard_bytes=SHARD_BYTES))
    print(took, peak() - before, peak())


def growth(folder: Path) -> list[list[float]]:
    """Pictures, seconds, MiB added and peak MiB of builds of more and more pictures."""
    files = folder / "pictures"
    files.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(max(AMOUNTS)):
        pixels = rng.integers(0, 256, (SMALL, SMALL, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(files / f"{i:06}.jpg")
    rows = []
    for n in AMOUNTS:
        command = [sys.executable, __file__, "--alone", files, str(n), folder / f"store {n}"]
        # Freed blocks go back to the system at once, so that the peak is what was held together.
        env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
        run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env)
        rows.append([n, *map(float, run.stdout.split())])
    return rows


def show_cost(folder: Path) -> None:
    found = {name: cost(name, bb, folder / name) for name, bb in backbones().items()}
    show(
        f"Building from tensors in memory, batches of {BATCH}, medians of seconds",
        ["network", "pictures", "bare loop", "it, memory kept", "build", "hash and write alone"],
        [[name, n, *(f"{t:.2f}" for t in times)] for name, (n, *times) in found.items()],
    )
    for name, (_, alone, kept, build, _) in found.items():
        goal(f"building over the bare loop, {name}", build / alone, 1.05, most=True)
        goal(f"the same, freed memory kept in both, {name}", build / kept, 1.05, most=True)


def show_streaming(folder: Path) -> None:
    speeds = streaming(folder)
    show(
        f"Streaming {STREAMED} pictures of 64 × 512 activations, cold page cache",
        ["round", "raw reads, GiB/s", "shuffled vectors, GiB/s", "share"],
        [
            [i, f"{raw:.2f}", f"{stream:.2f}", f"{stream / raw:.2f}"]
            for i, (raw, stream) in enumerate(speeds)
        ],
    )
    share = statistics.median(stream / raw for raw, stream in speeds)
    goal("streaming as a share of raw reads", share, 0.8)


def show_growth(folder: Path) -> None:
    rows = growth(folder)
    show(
        f"Building from JPEG files of {SMALL} × {SMALL} pixels, each in its own process",
        ["pictures", "seconds", "MiB added", "peak MiB"],
        [[n, f"{took:.2f}", f"{added:.1f}", f"{peak:.0f}"] for n, took, added, peak in rows],
    )
    n, took, _, peak = zip(*rows, strict=True)
    exponent = float(np.polyfit(np.log(n), np.log(took), 1)[0])
    goal("exponent of a build's time", exponent, 1.05, "", most=True)
    what = f"peak memory of a build, {n[-1]} over {n[0]} pictures"
    goal(what, peak[-1] / peak[0], 1.1, most=True)


PARTS = {"cost": show_cost, "streaming": show_streaming, "growth": show_growth}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}: all")
    parser.add_argument("--alone", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--bare", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        bb, x = backbones()[options.bare], pictures(options.bare)
        bare(bb, x[:BATCH])  # warm
        print(seconds(lambda: bare(bb, x)))
        raise SystemExit
    if options.alone:
        files, n, folder = options.alone
        build_alone(Path(files), int(n), Path(folder))
        raise SystemExit
    print(
        f"{os.cpu_count()}-core CPU, torch {torch.__version__}, "
        f"Python {platform.python_version()}, {ROUNDS} rounds"
    )
    for part in options.parts or PARTS:
        with tempfile.TemporaryDirectory() as name:
            PARTS[part](Path(name) / "stores")
