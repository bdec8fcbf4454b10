"""The wheel in a fresh environment with nothing but what it requires.

Builds the wheel, installs it with the core's requirements alone (or into an environment that has
these), checks what is in it and what is not installed, imports it, and measures the import.

Run with ``python benchmarks/install.py``; torch takes some GB. ``--environment FOLDER`` is an
environment with the requirements.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tables import goal, show

ROOT = Path(__file__).parent.parent
EXTRAS = ("timm", "open_clip", "sentence_transformers", "skimage", "hypothesis")
IMPORT = """
import sys, time, torch
start = time.process_time()
import conceptlens
print(time.process_time() - start)
"""
USE = """
import torch
from torch import nn
import conceptlens as cl
for name in cl.__all__:
    getattr(cl, name)
model = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
craft = cl.CRAFT(cl.Backbone(model, "1"), 3, 8, n_designs=8)
print(len(craft.explain(torch.rand(8, 3, 16, 16), predicted_only=False).concepts))
"""  # noqa: E501


def run(interpreter: Path, code: str, folder: str) -> str:
    command = [interpreter, "-W", "ignore", "-c", code]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=folder
    ).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--environment", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = (options.environment or Path(folder, "environment")).absolute()
        if options.environment is None:
            subprocess.run([sys.executable, "-m", "venv", place], check=True)
        interpreter = place / "bin" / "python"
        pip = [interpreter, "-m", "pip", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, "wheel", "--no-deps", "-w", folder, ROOT], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        alone = ["--no-deps", "--force-reinstall"] if options.environment else []
        subprocess.run([*pip, "install", *alone, wheel], check=True)
        names = zipfile.ZipFile(wheel).namelist()
        found = [
            name for name in EXTRAS
            if run(interpreter, f"import importlib.util as u; print(u.find_spec('{name}'))", folder)
            != "None"
        ]  # fmt: skip
        times = sorted(float(run(interpreter, IMPORT, folder)) for _ in range(5))
        concepts = run(interpreter, USE, folder)
    rows: list[list[object]] = [
        ["py.typed in the wheel", "conceptlens/py.typed" in names],
        ["extras installed", ", ".join(found) or "none"],
        ["import beyond torch, ms (median of 5)", f"{1000 * times[2]:.0f}"],
        ["an explanation's concepts", concepts],
    ]
    show("Core only", ("what", "found"), rows)
    goal("import beyond torch", 1000 * times[2], 300, " ms", most=True)
    goal("extras that it needs", len(found), 0, "", most=True)
    return int("conceptlens/py.typed" not in names or bool(found) or concepts != "3")


if __name__ == "__main__":
    sys.exit(main())
