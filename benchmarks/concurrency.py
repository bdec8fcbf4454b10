"""Eight processes that build the same store at once, while two read it, many times over.

In some rounds the first is killed. After each there must be one sealed store, equal
to the last bit to one built alone; without a kill each picture must have been computed once by one
process; a reader must have seen a whole store or none.

Run with ``python benchmarks/concurrency.py --rounds 100``; it fails where a promise does not hold.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")

import torch
from tables import show
from torch import Tensor, nn

from conceptlens import ActivationStore, Backbone, StoreError

N, BUILDERS, READERS, KILLED_EVERY = 24, 8, 2, 4


class Counting(nn.Sequential):
    """A network that notes how many pictures went through it."""

    seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return super().forward(x)


def build(folder: Path) -> int:
    """Build the store; return the number of pictures that were computed for it."""
    torch.manual_seed(0)
    model = Counting(
        nn.Conv2d(3, 6, 2, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)
    )
    x = torch.rand(N, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    bb = Backbone(model, "1")
    bb(x[:2])
    model.seen = 0
    ActivationStore.build(bb, x, folder, 4, shard_bytes=1)
    return model.seen


def read(folder: Path) -> int:
    """Open the store until it is there, then check all of it; 0 if it was whole."""
    for _ in range(600):
        try:
            store = ActivationStore.open(folder)
        except StoreError:
            time.sleep(0.01)
            continue
        store.verify()
        return int(len(store[:]) != N)
    return 1


def forked(action: Callable[[Path], int], folder: Path) -> int:
    """Run it in a child, whose exit status is what it returns; 255 for an error."""
    pid = os.fork()
    if pid == 0:
        status = 255
        try:
            status = action(folder)
        finally:
            os._exit(status)
    return pid


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != ".lock"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)  # a forked child cannot use its parent's threads
    chance, kills, faults = (
        random.Random(0),
        0,
        {"errors": 0, "other bytes": 0, "computed twice": 0},
    )
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        once = build(Path(name, "alone"))
        right = files(Path(name, "alone"))
        for i in range(options.rounds):
            folder = Path(name, str(i))
            builders = [forked(build, folder)]
            if i % KILLED_EVERY == 0:
                time.sleep(chance.uniform(0, 0.05))
                os.kill(builders[0], signal.SIGKILL)
            builders += [forked(build, folder) for _ in range(BUILDERS - 1)]
            readers = [forked(read, folder) for _ in range(READERS)]
            ends = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in builders]
            seen = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in readers]
            killed = ends.count(-signal.SIGKILL)
            kills += killed
            faults["errors"] += sum(end not in (*range(once + 1), -signal.SIGKILL) for end in ends)
            faults["errors"] += sum(seen)
            faults["other bytes"] += files(folder) != right
            faults["computed twice"] += not killed and sorted(ends) != [0] * (BUILDERS - 1) + [once]
    show(
        f"{BUILDERS} builders and {READERS} readers of one store",
        ("rounds", "of them a builder killed", *faults, "seconds"),
        [[options.rounds, kills, *faults.values(), f"{time.monotonic() - start:.0f}"]],
    )
    return int(any(faults.values()))


if __name__ == "__main__":
    sys.exit(main())
