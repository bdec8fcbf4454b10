"""How long each tutorial takes from top to bottom, its own assertions included.

Run with ``python benchmarks/tutorials.py``; needs nbclient.
"""

import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from tables import goal, show

LIMIT = 60


def seconds(path: Path) -> float:
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        NotebookClient(
            notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": folder}}
        ).execute()
    return time.perf_counter() - start


def main() -> int:
    folder = Path(__file__).parent.parent / "tutorials"
    rows = [[path.stem, seconds(path)] for path in sorted(folder.glob("*.ipynb"))]
    show("Tutorials", ("tutorial", "seconds"), [[name, f"{taken:.0f}"] for name, taken in rows])
    print()
    slowest = max(taken for _, taken in rows)
    goal("the slowest tutorial", slowest, LIMIT, " s", most=True)
    return int(slowest > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
