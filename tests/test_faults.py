"""The quick form of the fault harness: some hundred faults, no wrong answer, nothing blocked."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_faults_are_survived_or_refused():
    run = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "faults.py", "--quick"],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    injected, survived, refused, wrong, unclear, blocked = map(
        int, re.search(r"^all +(.+)$", run.stdout, re.M)[1].split()
    )
    assert injected > 400
    assert survived + refused == injected
    assert wrong == unclear == blocked == 0
