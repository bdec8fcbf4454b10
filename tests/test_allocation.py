"""Freed memory is kept for the next batch, unless the environment says how to allocate."""

import os
import platform
import subprocess
import sys

import pytest

# Pages that the system had to give during one more pass of a network, of some 130 MiB of features.
CODE = """
import resource, torch
from torch import nn
from conceptlens import Backbone

model = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1), nn.ReLU(), nn.AvgPool2d(256), nn.Flatten())
bb, x = Backbone(model, "1"), torch.rand(16, 3, 256, 256)
bb.activations(x)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
bb.activations(x)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(**settings):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-W", "ignore", "-c", CODE]
    run = subprocess.run(command, env=env | settings, capture_output=True, text=True, check=True)
    return int(run.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="sets glibc's allocator")
def test_the_next_batch_takes_what_the_last_one_freed():
    assert faults() * 10 < faults(MALLOC_TRIM_THRESHOLD_="131072")
