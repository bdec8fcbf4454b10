"""Peers whose requirements clash with ours get a virtual environment of their own.

It sees the project's packages too, so that torch is neither downloaded nor stored twice.
"""

import os
import site
import subprocess
import sys
import venv
from pathlib import Path

FOLDER = Path(__file__).parent / ".peers"
# Overcomplete 0.3.0 uses plt.cm.get_cmap, which matplotlib 3.9 no longer has.
OVERCOMPLETE = ("overcomplete==0.3.0", "matplotlib==3.8.4", "einops", "opencv-python-headless")


def run_beside(name: str, requirements: tuple[str, ...]) -> None:
    """Go on with the running script inside the environment `name`, made if it is missing."""
    if Path(sys.prefix) == FOLDER / name:
        return
    python = python_of(name, requirements)
    root = str(Path(__file__).parent.parent)
    environment = os.environ | {"PYTHONPATH": root}
    os.execve(python, [str(python), *sys.argv], environment)


def python_of(name: str, requirements: tuple[str, ...]) -> Path:
    """Return the interpreter of the environment `name`, made if it is missing."""
    home = FOLDER / name
    python = home / "bin" / "python"
    if not (home / "ready").exists():
        venv.create(home, clear=True, with_pip=True)
        command = [python, "-m", "pip", "install", "--quiet", "--no-deps", *requirements]
        subprocess.run(command, check=True)
        (lib,) = (home / "lib").glob("python*/site-packages")
        (lib / "project.pth").write_text("\n".join(site.getsitepackages()))
        (home / "ready").touch()
    return python
