"""The benchmarks' runner: it keeps what scripts print, and makes its page from that alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conceptlens import ActivationStore, Backbone

FOLDER = Path(__file__).parent.parent / "benchmarks"
SCRIPT = '''"""Is {name} fast?

More of it.
"""

import sys

from tables import goal

goal("{name} over a|b", {measured}, 2)
goal("{name}, seconds", 1.25, 1, " s", most=True)
print("goal | no such line")
sys.exit({status})
'''


@pytest.fixture
def folder(tmp_path):
    """A folder of benchmarks of two scripts, the second of which fails."""
    for name in ("run.py", "tables.py"):
        (tmp_path / name).write_text((FOLDER / name).read_text())
    (tmp_path / "results").mkdir()
    for name, measured, status in (("first", 3.14159, 0), ("second", 0.5, 3)):
        script = SCRIPT.format(name=name, measured=measured, status=status)
        (tmp_path / f"{name}.py").write_text(script)
    return tmp_path


def run(folder, *arguments):
    command = [sys.executable, folder / "run.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_figures_reach_the_summary_and_the_page(folder):
    done = run(folder)
    assert done.returncode == 1  # the second failed
    summary = json.loads((folder / "results" / "summary.json").read_text())
    assert {name: record["exit"] for name, record in summary.items()} == {"first": 0, "second": 3}
    assert [tuple(f.values()) for f in summary["first"]["figures"]] == [
        ("first over a|b", "3.14×", "≥ 2×", "met"),
        ("first, seconds", "1.25 s", "≤ 1 s", "missed"),
    ]
    assert summary["first"]["machine"]["cores"] >= 1
    assert not (folder / "results" / "second.txt").exists()
    page = (folder / "README.md").read_text()
    assert "| first | first over a\\|b | 3.14× | ≥ 2× | met |" in page
    assert "| [second](second.py) | Is second fast? | not run yet |" in page
    (folder / "results" / "first.txt").write_text("goal | other | 1× | ≥ 2× | missed\n")
    assert run(folder, "--table").returncode == 0
    assert "| first | other | 1× | ≥ 2× | missed |" in (folder / "README.md").read_text()


def test_quick_runs_keep_nothing(folder):
    done = run(folder, "first", "--quick")
    assert done.returncode == 0
    assert "3.14×" in done.stdout
    assert not list((folder / "results").iterdir())
    assert not (folder / "README.md").exists()


def test_unknown_scripts_are_named(folder):
    done = run(folder, "third")
    assert done.returncode == 2
    assert "no script third; there are first, second" in done.stderr


def test_the_sums_of_the_plan_are_those_of_a_store(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    from plan import Job

    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 2, 2), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(96, 2)
    )
    shard = 10 * 96 * 4  # ten pictures, so two batches of four
    job = Job(50, 2, positions=16, channels=6, crops=0, side=8, batch=4, item=4, shard=shard)
    store = ActivationStore.build(
        Backbone(model, "1"), torch.rand(50, 3, 8, 8), tmp_path, job.batch, shard_bytes=shard
    )
    assert store.shape == (50, 16, 6)
    assert len(list(tmp_path.glob("*.safetensors"))) == job.shards == 7
    assert store[0:50].nbytes == job.bytes["positions"] == 19200


def test_every_script_says_what_it_proves():
    for script in FOLDER.glob("*.py"):
        assert script.read_text().startswith('"""'), script
