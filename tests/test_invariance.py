"""Batches, workers, processes and interruptions change nothing; what must change a key does."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_what_must_not_matter_does_not():
    run = subprocess.run(
        [sys.executable, "-W", "ignore", ROOT / "benchmarks" / "invariance.py"],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("True") == 17
