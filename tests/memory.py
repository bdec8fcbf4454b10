"""Memory of a fit, measured in a process of its own."""

import os
import subprocess
import sys

import pytest

# ru_maxrss would start from the parent's, and so hide what the child takes.
PEAK = """
import re, sys, torch
from pathlib import Path

torch.set_num_threads(1)  # each has scratch memory of its own

def peak():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) / 1024
"""


def printed_by(code, *arguments):
    """The numbers that `code` prints, which may call `peak()`: the most MiB held so far."""
    if not sys.platform.startswith("linux"):
        pytest.skip("reads the peak from /proc")
    command = [sys.executable, "-W", "ignore", "-c", PEAK + code, *map(str, arguments)]
    # Freed blocks go back to the system at once, so that the peak is what was held together.
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    return [float(number) for number in run.stdout.split()]
