"""Printing what the benchmarks find: means over seeds with their 95 % intervals, and goals."""

import re
from collections.abc import Iterable, Sequence

import torch

from conceptlens.metrics import Estimate


def over_seeds(values: Iterable[float]) -> Estimate:
    return Estimate(torch.tensor(list(values), dtype=torch.float64))


def cell(value: object) -> str:
    """An estimate as its mean and the half width of its 95 % interval; a float in 3 digits."""
    if isinstance(value, Estimate):
        low, high = value.interval()
        return f"{value.mean:.2f} ± {(high - low) / 2:.2f}"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table whose columns are as wide as they need."""
    lines = [list(columns), *([cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print(f"\n{title}")
    for i, line in enumerate(lines):
        print(
            "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        )
        if i == 0:
            print("  ".join("-" * width for width in widths))


# A line for `run.py`: what, what was measured and what was to be reached, and whether it was.
GOAL = re.compile(r"^goal \| (.+?) \| (.+?) \| (.+?) \| (met|missed)$", re.MULTILINE)


def goal(what: str, measured: float, wanted: float, unit: str = "×", *, most: bool = False) -> None:
    """Print a figure beside the least that it should be, or the most."""
    met = measured <= wanted if most else measured >= wanted
    sign = "≤" if most else "≥"
    figure = f"{measured}" if isinstance(measured, int) else f"{measured:.3g}"
    cells = (what, f"{figure}{unit}", f"{sign} {wanted:g}{unit}", "met" if met else "missed")
    print(f"goal | {' | '.join(cells)}", flush=True)
