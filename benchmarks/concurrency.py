"""Eight processes build the same store at once, and eight parts of one, a hundred times over.

The same: two others read it meanwhile, and in some rounds the first is killed. Parts: the eight are
one group, as torchrun starts it. After each round there must be one sealed store, equal to the last
bit to one built alone; unless one was killed, each picture must have been computed once by one of
the processes; a reader must have seen a whole store or none.

Run with ``python benchmarks/concurrency.py --rounds 100``; it fails where a promise does not hold.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")

import torch
import torch.distributed as dist
from tables import goal, show
from torch import Tensor, nn

from conceptlens import ActivationStore, Backbone, StoreError, distributed

N, BATCH, BUILDERS, READERS, KILLED_EVERY = 48, 4, 8, 2, 4  # a batch a shard, so 12 shards
LIMIT = 60  # seconds after which a process has hung
FAULTS = ("errors", "deadlocks", "other bytes", "computed twice")


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
    ActivationStore.build(bb, x, folder, BATCH, shard_bytes=1)
    return model.seen


def build_part(rank: int, folder: Path) -> int:
    """The same as one of a group of processes."""
    meeting = f"file://{folder}.meeting"
    dist.init_process_group("gloo", meeting, rank=rank, world_size=BUILDERS)
    with distributed.together(LIMIT):
        seen = build(folder)
    dist.destroy_process_group()
    return seen


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
        signal.alarm(LIMIT)
        status = 255
        try:
            status = action(folder)
        finally:
            os._exit(status)
    return pid


def ends(pids: list[int]) -> list[int]:
    """What the children returned, or minus the signal that ended them."""
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != ".lock"}


class Alone:
    """A store built by one process, to which those of many are compared.

    Attributes
    ----------
    seen : int
        How many pictures it computed: all, and those that tell the size of a row.
    """

    def __init__(self, folder: Path) -> None:
        self.seen = build(folder)
        self.files = files(folder)

    def faults(self, folder: Path, built: list[int], computed: int | None) -> Counter[str]:
        """What is wrong with a round in which `computed` pictures should have been."""
        signals = (-signal.SIGKILL, -signal.SIGALRM)
        return Counter({
            "errors": sum(end not in (*range(self.seen + 1), *signals) for end in built),
            "deadlocks": built.count(-signal.SIGALRM),
            "other bytes": files(folder) != self.files,
            "computed twice": computed is not None and sum(built) != computed,
        })  # fmt: skip


def at_once(folder: Path, alone: Alone, killed_after: float | None) -> tuple[int, Counter[str]]:
    """One round of building the same; whether a builder was killed, and the faults."""
    builders = [forked(build, folder)]
    if killed_after is not None:
        time.sleep(killed_after)
        os.kill(builders[0], signal.SIGKILL)
    builders += [forked(build, folder) for _ in range(BUILDERS - 1)]
    readers = [forked(read, folder) for _ in range(READERS)]
    built, seen = ends(builders), ends(readers)
    killed = built.count(-signal.SIGKILL)
    faults = alone.faults(folder, built, None if killed else alone.seen)
    faults["errors"] += sum(end != 0 for end in seen)
    return killed, faults


def in_parts(folder: Path, alone: Alone) -> Counter[str]:
    """One round of building parts; the faults."""
    built = ends([forked(partial(build_part, rank), folder) for rank in range(BUILDERS)])
    return alone.faults(folder, built, N + BUILDERS * (alone.seen - N))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--quick", action="store_true", help="8 rounds")
    options = parser.parse_args()
    n = 8 if options.quick else options.rounds
    torch.set_num_threads(1)  # a forked child cannot use its parent's threads
    chance, kills, same, parts = random.Random(0), 0, Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        alone, start = Alone(Path(name, "alone")), time.monotonic()
        for i in range(n):
            after = None if i % KILLED_EVERY else chance.uniform(0, 0.05)
            killed, faults = at_once(Path(name, f"same {i}"), alone, after)
            kills, same = kills + killed, same + faults
        middle = time.monotonic()
        for i in range(n):
            parts += in_parts(Path(name, f"parts {i}"), alone)
    seconds = f"{middle - start:.0f}", f"{time.monotonic() - middle:.0f}"
    show(
        f"{BUILDERS} builders of one store of {N} pictures",
        ("what they build", "rounds", "of them a builder killed", *FAULTS, "seconds"),
        [
            ["the same", n, kills, *(same[fault] for fault in FAULTS), seconds[0]],
            ["parts of it", n, 0, *(parts[fault] for fault in FAULTS), seconds[1]],
        ],
    )
    print()
    goal("rounds of 8 that build the same", n, 100, "")
    goal("their faults", same.total(), 0, "", most=True)
    goal("rounds of 8 that build parts", n, 100, "")
    goal("faults of these", parts.total(), 0, "", most=True)
    return int(same.total() + parts.total() > 0)


if __name__ == "__main__":
    sys.exit(main())
