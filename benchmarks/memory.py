"""Memory and open files of a job over a store of ten times the memory that it is allowed.

A store is built, read and verified, a dictionary and a sparse autoencoder are learnt from it and
it is encoded by each, every step in a process of its own. What a step needed is the most memory
that its process held beyond what it held with the libraries loaded and used once, and the network
made. Rows are as wide as those of a ResNet-50's last layer, and files small enough for eight of
them to be mixed within the allowance, twice; pictures are drawn when they are read.

Run with ``python benchmarks/memory.py``, on Linux; ``--quick`` takes a smaller store.
"""

import argparse
import multiprocessing
import os
import re
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")

import torch
from tables import goal, show
from torch import Tensor, nn
from torch.utils.data import Dataset

from conceptlens import NMF, ActivationStore, Backbone, SparseAutoencoder

MIB = 2**20
CHANNELS, GRID, CONCEPTS = 2048, 8, 8
PICTURE_BYTES = 4 * CHANNELS * GRID**2  # half a MiB of activations a picture
ALLOWED = 128 * MIB


class Drawn(Dataset[Tensor]):
    """Random pictures ``(3, 32, 32)``, each from its number."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Tensor:
        return torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(i))


def build(folder: Path, n: int) -> None:
    torch.manual_seed(0)
    side = 32 // GRID
    network = nn.Sequential(
        nn.Conv2d(3, CHANNELS, side, side), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(CHANNELS, 2),
    )  # fmt: skip
    ActivationStore.build(
        Backbone(network, "1"), Drawn(n), folder / "store", 4, shard_bytes=ALLOWED // 64
    )


def verify(folder: Path) -> None:
    ActivationStore.open(folder / "store").verify()


def fit_nmf(folder: Path) -> None:
    NMF(CONCEPTS, max_iter=5).fit(ActivationStore.open(folder / "store")).save(folder / "nmf")


def fit_autoencoder(folder: Path) -> None:
    sae = SparseAutoencoder(64, sparsity=CONCEPTS, n_epochs=1, batch_size=1024)
    sae.fit(ActivationStore.open(folder / "store")).save(folder / "sae")


def encode_nmf(folder: Path) -> None:
    NMF.load(folder / "nmf").transform(ActivationStore.open(folder / "store"))


def encode_autoencoder(folder: Path) -> None:
    sae = SparseAutoencoder.load(folder / "sae")
    rows = ActivationStore.open(folder / "store").vectors(1024, shuffle=False)
    torch.cat([sae.transform(batch, sparse=True) for batch in rows])


STEPS: dict[str, Callable[[Path], None]] = {
    "verify the store": verify,
    "fit an NMF": fit_nmf,
    "fit an autoencoder": fit_autoencoder,
    "encode by the NMF": encode_nmf,
    "encode by the autoencoder": encode_autoencoder,
}


def memory(entry: str) -> float:
    """MiB that are held now (VmRSS), or that were at most (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{entry}:\s+(\d+) kB", status)[1]) / 1024


def measured(folder: Path, n: int, name: str) -> tuple[float, float, int, int]:
    """MiB held before a step, MiB that it needed beyond them, open files before and after."""
    warnings.simplefilter("ignore")  # a fit of few iterations has not converged
    with tempfile.TemporaryDirectory() as small:
        build(Path(small), 8)
        for step in STEPS.values():
            step(Path(small))
    before, files = memory("VmRSS"), len(os.listdir("/proc/self/fd"))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    if name == "build the store":
        build(folder, n)
    else:
        STEPS[name](folder)
    return before, memory("VmHWM") - before, files, len(os.listdir("/proc/self/fd"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="thrice the memory allowed, not ten times"
    )
    times = 3 if parser.parse_args().quick else 10
    n = times * ALLOWED // PICTURE_BYTES
    rows, most, leaked = [], 0.0, 0
    # A forked process would begin with its parent's memory. Freed blocks go back to the system at
    # once, so that the peak is what was held together.
    spawn = multiprocessing.get_context("spawn")
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    with tempfile.TemporaryDirectory() as name:
        for step in ("build the store", *STEPS):
            start = time.monotonic()
            with ProcessPoolExecutor(1, spawn) as pool:
                held, needed, *files = pool.submit(measured, Path(name), n, step).result()
            seconds = f"{time.monotonic() - start:.0f}"
            rows.append([step, f"{held:.0f}", f"{needed:.0f}", *files, seconds])
            most, leaked = max(most, needed), max(leaked, files[1] - files[0])
        size = sum(file.stat().st_size for file in Path(name, "store").iterdir()) / MIB
    show(
        f"A store of {size:.0f} MiB, {n} pictures, with {ALLOWED / MIB:.0f} MiB allowed",
        ("step", "MiB before", "MiB needed", "open files before", "after", "seconds"),
        rows,
    )
    print()
    goal("store over the memory allowed", size * MIB / ALLOWED, times)
    goal("most memory that a step needed", most, ALLOWED / MIB, " MiB", most=True)
    goal("open files that a step left", leaked, 0, "", most=True)


if __name__ == "__main__":
    main()
