"""The tests on the oldest and newest versions of Python and of what the library needs.

For each Python that is named a virtual environment is made, with the lowest versions that
`setup.cfg` allows or the newest there are, and a fast part of the tests is run in it. Each takes
some GB of disk and is kept in the folder, so that a second run installs nothing.

Run with ``python benchmarks/versions.py --python python3.10=oldest --python python3.13=newest``.
"""

import argparse
import configparser
import os
import re
import subprocess
import sys
from pathlib import Path

from tables import goal, show

ROOT = Path(__file__).parent.parent
TESTING = ("hypothesis", "ipywidgets", "pytest", "pytest-timeout", "pytest-xdist")
FAST = (
    "test_backbone", "test_bad_input", "test_explanation", "test_extractors", "test_images",
    "test_maps", "test_nmf", "test_numerics", "test_package", "test_sae", "test_sobol",
    "test_store",
)  # fmt: skip
SHOWN = ("torch", "torchvision", "scikit-learn", "scipy", "numpy")


def requirements(age: str) -> list[str]:
    """What `setup.cfg` requires, at the lowest versions if `age` is "oldest"."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options"]["install_requires"].split()
    return [line.replace(">=", "==") for line in lines] if age == "oldest" else lines


def make(python: str, age: str, folder: Path) -> Path:
    """The interpreter of an environment with these versions."""
    place = folder / f"{Path(python).name} {age}".replace(" ", "-")
    interpreter = place / "bin" / "python"
    if not interpreter.exists():
        subprocess.run([python, "-m", "venv", place], check=True)
    pip = [interpreter, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, *requirements(age), *TESTING], check=True)
    return interpreter


def versions(interpreter: Path) -> list[str]:
    code = (
        "import platform, importlib.metadata as m; "
        f"print(platform.python_version(), *(m.version(n) for n in {SHOWN}))"
    )
    run = subprocess.run([interpreter, "-c", code], check=True, capture_output=True, text=True)
    return run.stdout.split()


def test(interpreter: Path, names: list[str]) -> tuple[str, str]:
    """How the tests ended, and what failed."""
    files = [str(ROOT / "tests" / f"{name}.py") for name in names]
    command = [interpreter, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", *files]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [*command, "--tb=line"], cwd=ROOT, env=env, capture_output=True, text=True, errors="replace"
    )
    last = run.stdout.strip().splitlines()[-1]
    failed = re.findall(r"^(?:FAILED|ERROR) .*$", run.stdout, re.M)
    return re.sub(r"(, \d+ warnings?)? in .*|=", "", last).strip(), "\n".join(failed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--python", action="append", required=True, help="INTERPRETER=oldest|newest"
    )
    parser.add_argument("--folder", type=Path, default=Path("environments"))
    parser.add_argument("--tests", nargs="+", default=list(FAST))
    options = parser.parse_args()
    rows, failures = [], []
    for choice in options.python:
        python, age = choice.rsplit("=", 1)
        interpreter = make(python, age, options.folder.absolute())
        ended, failed = test(interpreter, options.tests)
        rows.append([age, *versions(interpreter), ended])
        failures.append(failed)
    show("Versions", ("", "Python", *SHOWN, "tests"), rows)
    print(*filter(None, failures), sep="\n")
    goal("environments in which a test failed", sum(map(bool, failures)), 0, "", most=True)
    return int(any(failures))


if __name__ == "__main__":
    sys.exit(main())
