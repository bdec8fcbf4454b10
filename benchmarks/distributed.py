"""Throughput of one process and of two under torchrun: filling a store and learning from it.

EfficientNet-Lite0 fills a store from the demo's photographs; NMF (a fixed number of iterations) and
a top-k autoencoder learn from it. One process runs on one thread and on two, two processes on one
thread each; clocks start when all have loaded the network and are told to begin. The stores are
compared byte by byte, the dictionaries by the largest difference of an entry, as a share of the
largest entry. With two cores two processes are the most that can gain.

Run with ``python benchmarks/distributed.py``; ``--quick`` takes fewer pictures.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from tables import goal, show

from conceptlens import NMF, ActivationStore, SparseAutoencoder, distributed
from conceptlens.demo import demo_backbone, demo_pictures
from conceptlens.extraction import load

BATCH = 8
SHARD_BYTES = BATCH * 49 * 1280 * 4  # a batch a file, so that any number of processes shares evenly
ITERATIONS, EPOCHS = 30, 2
WAYS = {"1 process, 1 thread": (1, 1), "1 process, 2 threads": (1, 2), "2 processes": (2, 1)}


def work(folder: Path, n: int) -> None:
    """What each process does; the first prints the seconds of each part."""
    warnings.simplefilter("ignore")  # a fit of few iterations has not converged
    bb, pictures = demo_backbone(), demo_pictures("chelsea", n)
    bb.activations(torch.zeros(BATCH, 3, 224, 224))  # cut, and warm
    with distributed.together():
        seconds = {}

        def timed(name, action):
            distributed.barrier()
            start = time.perf_counter()
            result = action()
            distributed.barrier()
            seconds[name] = time.perf_counter() - start
            return result

        store = timed(
            "store",
            lambda: ActivationStore.build(
                bb, pictures, folder / "store", BATCH, shard_bytes=SHARD_BYTES
            ),
        )
        share = distributed.share_of(store)
        nmf = timed("nmf", lambda: NMF(25, tol=0, max_iter=ITERATIONS).fit(share))
        sae = SparseAutoencoder(1024, sparsity=16, n_epochs=EPOCHS)
        timed("sae", lambda: sae.fit(store))
        if distributed.rank() == 0:
            nmf.save(folder / "nmf")
            sae.save(folder / "sae")
            print(json.dumps(seconds))


def run(processes: int, threads: int, folder: Path, n: int) -> dict[str, float]:
    """The seconds of each part, done by so many processes of so many threads."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(torchrun if processes > 1 else []), __file__]
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = os.environ | dict.fromkeys(names, str(threads))
    done = subprocess.run(
        [*command, "--pictures", str(n), "--work", str(folder)],
        env=environment, check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def differences(folder: Path, other: Path) -> list[str]:
    """Whether the stores are equal, and by how much the dictionaries differ."""
    files, others = (
        {f.name: f.read_bytes() for f in (where / "store").iterdir() if f.name != ".lock"}
        for where in (folder, other)
    )
    cells = ["equal bytes" if files == others else "different"]
    for name in ("nmf", "sae"):
        a, b = (load(where / name).components_ for where in (folder, other))
        cells.append(f"{float((a - b).abs().max() / b.abs().max()):.1e}")
    return cells


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=640)
    parser.add_argument("--quick", action="store_true", help="64 pictures")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    n = 64 if options.quick else options.pictures
    if options.work:
        work(options.work, n)
        raise SystemExit
    with tempfile.TemporaryDirectory() as name:
        folders = {way: Path(name) / str(i) for i, way in enumerate(WAYS)}
        took = {way: run(*WAYS[way], folders[way], n) for way in WAYS}
        same = differences(folders["2 processes"], folders["1 process, 1 thread"])
    amounts = {"store": n, "nmf": 49 * n * ITERATIONS, "sae": 49 * n * EPOCHS}
    rates = {way: {part: amounts[part] / s for part, s in took[way].items()} for way in WAYS}
    show(
        f"Throughput with {n} pictures of 49 × 1280 activations on {os.cpu_count()} cores",
        ["", "store, pictures/s", "NMF, rows × iterations/s", "autoencoder, vectors/s"],
        [[way, *(f"{rate:.0f}" for rate in rates[way].values())] for way in WAYS],
    )
    alone, two = rates["1 process, 1 thread"], rates["2 processes"]
    threads = rates["1 process, 2 threads"]
    show(
        "Two processes of a thread each",
        ["against", "store", "NMF", "autoencoder"],
        [
            [way, *(f"{two[part] / rate[part]:.2f}×" for part in amounts)]
            for way, rate in (("1 process, 1 thread", alone), ("1 process, 2 threads", threads))
        ]
        + [["difference of the result", *same]],
    )
    print()
    for part, what in (("store", "filling a store"), ("nmf", "NMF"), ("sae", "autoencoder")):
        goal(f"{what}: 2 processes over 1", two[part] / alone[part], 1.8)
