"""Whether explaining more pictures takes more memory, how its time grows, and what jobs save.

The pictures are JPEG files of 32 × 32 pixels, 100 a class, so that more pictures are more classes,
as with ImageNet. The network is random convolutions and the class whose prototype's average is
nearest: it gives each picture to its class and needs no training.

1. ``growth``: peak memory and seconds with 1000, 4000 and 16 000 pictures, each in a process of its
   own: `CRAFT.explain` of one class, given the folder of all, and the command
   ``conceptlens explain --all-classes``. "MiB added" is counted from when one class was explained.
2. ``jobs``: `explain_classes` with one process of one thread, one of all, and a process a core.
3. ``again``: its second run when nothing changed, and when the pictures of one class did.

Run with ``python benchmarks/growth.py [growth] [jobs] [again]``; ``--quick`` takes fewer pictures.
"""

import argparse
import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tables import goal, show
from torch import nn
from torchvision.transforms import ToTensor

from conceptlens import CRAFT, Backbone, explain_classes
from conceptlens.cli import main

AMOUNTS = [1000, 4000, 16000]
QUICK = [200, 400, 800]
A_CLASS = 100  # pictures
CLASSES = AMOUNTS[-1] // A_CLASS
SIDE, PATCH, CONCEPTS, BATCH = 32, 16, 5, 32
CHANNELS = 256  # so that 1000 pictures fill a file of a store


def prototypes() -> np.ndarray:
    """What the pictures of each class are without their noise, ``(CLASSES, SIDE, SIDE, 3)``."""
    coarse = np.random.default_rng(0).integers(0, 256, (CLASSES, 4, 4, 3), dtype=np.uint8)
    return coarse.repeat(SIDE // 4, 1).repeat(SIDE // 4, 2)


def network() -> Backbone:
    """Random convolutions, and the class whose prototype's average is nearest."""
    generator = torch.Generator().manual_seed(0)
    convolution, linear = nn.Conv2d(3, CHANNELS, 4, 4), nn.Linear(CHANNELS, CLASSES)
    with torch.no_grad():
        convolution.weight.copy_(torch.randn(CHANNELS, 3, 4, 4, generator=generator) / 7)
        convolution.bias.zero_()
        pictures = torch.tensor(prototypes()).movedim(3, 1) / 255
        means = convolution(pictures).relu().mean((2, 3))
        linear.weight.copy_(20 * means)
        linear.bias.copy_(-10 * means.square().sum(1))
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return Backbone(nn.Sequential(convolution, nn.ReLU(), *pool, linear), "1", ToTensor())


def method() -> CRAFT:
    return CRAFT(network(), CONCEPTS, PATCH, batch_size=BATCH)


def draw(folder: Path, n: int, seed: int = 0) -> Path:
    """A folder of n pictures, those of a class after each other."""
    folder.mkdir(parents=True)
    rng, patterns = np.random.default_rng(seed), prototypes()
    for i in range(n):
        noisy = patterns[i // A_CLASS] + rng.normal(0, 12, (SIDE, SIDE, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{i:06}.jpg")
    return folder


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


# -- memory and time -----------------------------------------------------------------------------


def one_class(pictures: Path, out: Path) -> None:
    method().explain(pictures, 0).save(out)


def all_classes(pictures: Path, out: Path) -> None:
    command = ["explain", f"{__file__}:network", str(pictures), "--all-classes", "--out", str(out)]
    options = {"--concepts": CONCEPTS, "--patch-size": PATCH, "--batch-size": BATCH}
    with contextlib.redirect_stdout(io.StringIO()):
        status = main([*command, *(str(word) for option in options.items() for word in option)])
    if status:
        raise RuntimeError(f"the command ended with {status}")


WAYS = {"CRAFT.explain": one_class, "explain --all-classes": all_classes}


def alone(way: str, pictures: Path, first: Path, out: Path) -> None:
    """Print the seconds of an explanation, the MiB that it adds to the peak, and the peak."""

    def peak() -> float:
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024

    WAYS[way](first, out / "first")
    before = peak()
    took = seconds(lambda: WAYS[way](pictures, out / "all"))
    print(took, peak() - before, peak())


def show_growth(folder: Path, amounts: list[int]) -> None:
    first = draw(folder / "first", A_CLASS)
    every = draw(folder / "every", amounts[-1])
    files = sorted(every.iterdir())
    # Freed blocks go back to the system at once, so that the peak is what was held together.
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    for way in WAYS:
        rows = []
        for n in amounts:
            pictures = folder / f"{n}"
            pictures.mkdir(exist_ok=True)
            for file in files[:n]:
                (pictures / file.name).unlink(missing_ok=True)
                (pictures / file.name).hardlink_to(file)
            out = folder / f"{way} {n}"
            command = [sys.executable, __file__, "--alone", way, pictures, first, out]
            run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env)
            rows.append([n, *map(float, run.stdout.split())])
            shutil.rmtree(out)
        show(
            f"{way}, {A_CLASS} pictures a class, each in its own process",
            ["pictures", "seconds", "MiB added", "peak MiB"],
            [[n, f"{took:.2f}", f"{added:.1f}", f"{peak:.0f}"] for n, took, added, peak in rows],
        )
        n, took, _, peaks = zip(*rows, strict=True)
        print(f"a picture more adds {(peaks[-1] - peaks[0]) * 1024 / (n[-1] - n[0]):.2f} KiB\n")
        exponent = float(np.polyfit(np.log(n), np.log(took), 1)[0])
        goal(f"exponent of the time of {way}, in pictures", exponent, 1.05, "", most=True)
        ratio = peaks[-1] / peaks[0]
        goal(f"peak memory of {way}, {n[-1]} over {n[0]} pictures", ratio, 1.1, most=True)


# -- many classes ----------------------------------------------------------------------------------


def show_jobs(folder: Path, amounts: list[int]) -> None:
    """Seconds of the explanations alone: the stores are filled before."""
    n, cores = amounts[1], torch.get_num_threads()
    pictures = draw(folder / "pictures", n)
    craft = method()
    ways = [("1 process, 1 thread", 1, 1), (f"1 process, {cores} threads", 1, cores),
            (f"{cores} processes, 1 thread each", cores, cores)]  # fmt: skip
    explain_classes(craft, pictures, folder / "stores", 0)
    warm = draw(folder / "warm", 2 * A_CLASS)
    explain_classes(craft, warm, folder / "warm out", jobs=cores)  # workers are started
    times = []
    for name, jobs, threads in ways:
        torch.set_num_threads(threads)
        out = shutil.copytree(folder / "stores", folder / name)
        times.append(seconds(lambda out=out, j=jobs: explain_classes(craft, pictures, out, jobs=j)))
        shutil.rmtree(out)
    show(
        f"explain_classes, {n // A_CLASS} classes of {A_CLASS} pictures, stores filled, "
        "workers started",
        ["processes", "seconds", "of one thread's", "share of ideal"],
        [
            [name, f"{took:.2f}", f"{times[0] / took:.2f}×", f"{times[0] / took / cores:.0%}"]
            for (name, *_), took in zip(ways, times, strict=True)
        ],
    )


def show_again(folder: Path, amounts: list[int]) -> None:
    n = amounts[1]
    pictures = draw(folder / "pictures", n)
    craft = method()

    def run() -> float:
        return seconds(lambda: explain_classes(craft, pictures, folder / "out"))

    rows = [("first", run()), ("nothing changed", run())]
    for file in draw(folder / "changed", A_CLASS, seed=1).iterdir():
        shutil.move(file, pictures / file.name)
    rows.append(("one class's pictures changed", run()))
    show(
        f"explain_classes again, {n // A_CLASS} classes of {A_CLASS} pictures",
        ["run", "seconds", "of the first"],
        [[name, f"{took:.2f}", f"{took / rows[0][1]:.1%}"] for name, took in rows],
    )


PARTS = {"growth": show_growth, "jobs": show_jobs, "again": show_again}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}: all")
    parser.add_argument("--quick", action="store_true", help="a twentieth of the pictures")
    parser.add_argument("--alone", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        way, *paths = options.alone
        alone(way, *map(Path, paths))
        raise SystemExit
    for part in options.parts or PARTS:
        with tempfile.TemporaryDirectory() as name:
            PARTS[part](Path(name), QUICK if options.quick else AMOUNTS)
