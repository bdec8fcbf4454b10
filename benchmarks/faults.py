"""Faults injected into what the library writes: no wrong answer, and nothing that blocks.

Tiny stores, explanations, models and checkpoints are damaged, and the processes that write them
are killed at lines of the code that writes and at random times, or find the disk full or the
folder read-only. After each fault everything is read: the same as without the fault (survived), a
ValueError or OSError that names the file (refused), something else (wrong answer), or any other
error (unclear). Then it is written anew over what is left; where damage was refused, after doing
what the message says.

Run with ``python benchmarks/faults.py``; ``--quick`` is what the tests run.
"""

import argparse
import os
import sys
import tempfile
import warnings
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")
sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "faults"))

import damage
import kills
import torch
from artefacts import ARTEFACTS
from outcome import BLOCKED, COLUMNS, FORBIDDEN, Outcomes
from tables import goal, show


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flips", type=int, default=160, help="bits flipped in each artefact")
    parser.add_argument(
        "--kills", type=int, default=40, help="at lines; of stores four times as many"
    )
    parser.add_argument("--quick", action="store_true", help="some hundred faults")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    flips, n_kills = (24, 4) if options.quick else (options.flips, options.kills)
    warnings.simplefilter("ignore")  # of fits that are cut short
    torch.set_num_threads(1)  # a forked child cannot use its parent's threads
    outcomes = Outcomes()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        for i, artefact in enumerate(ARTEFACTS):
            damage.inject(artefact, Path(folder, f"damage {i}"), outcomes, flips, options.seed + i)
        for i, run in enumerate(kills.RUNS):
            n = n_kills * (1 if options.quick or run.name != "store" else 4)
            kills.inject(run, Path(folder, f"kills {i}"), outcomes, n, options.seed + i)
    report(outcomes)
    return int(bool(outcomes.complaints))


def report(outcomes: Outcomes) -> None:
    def injected(count: dict[str, int]) -> int:
        return sum(count.values()) - count[BLOCKED]

    def table(title: str, head: tuple[str, ...], group: slice) -> None:
        keys = dict.fromkeys(key[group] for key in outcomes.counts)
        sums = {
            key: sum((c for k, c in outcomes.counts.items() if k[group] == key), start=type(c0)())
            for c0 in [next(iter(outcomes.counts.values()))]
            for key in keys
        }
        rows = [[*k, injected(c), *(c[column] for column in COLUMNS)] for k, c in sums.items()]
        total = [
            "all",
            *[""] * (len(head) - 1),
            *(sum(r[i] for r in rows) for i in range(len(head), len(rows[0]))),
        ]
        show(title, (*head, "injected", *COLUMNS), [*rows, total])

    table("By kind of fault", ("fault",), slice(0, 1))
    table("By what was hit", ("files",), slice(1, 2))
    for complaint in outcomes.complaints[:40]:
        print("MUST NOT BE:", complaint)
    bad = sum(c[o] for c in outcomes.counts.values() for o in FORBIDDEN)
    total = sum(injected(count) for count in outcomes.counts.values())
    print()
    goal("faults injected", total, 1000, "")
    goal("wrong answers, unclear errors and runs that were blocked", bad, 0, "", most=True)


if __name__ == "__main__":
    sys.exit(main())
