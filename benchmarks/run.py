"""Run the benchmarks, each in a process of its own, and write what they found where it is read.

    python benchmarks/run.py [NAME ...] [--quick] [--table]

Without names all scripts run that need no data set from elsewhere. What a script prints goes to
``results/NAME.txt``; how long it took, how it ended, the figures that it printed beside a goal and
on which machine goes to ``results/summary.json``; the tables of ``README.md`` are made from these.
``--quick`` takes each script's small form where it has one and leaves ``results/`` as it is, with
``--table`` nothing runs and the tables are made anew. Peers whose requirements clash with ours are
installed from PyPI into an environment of their own by the scripts themselves (``peers.py``).
"""

import argparse
import ast
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from tables import GOAL, show

FOLDER = Path(__file__).parent
RESULTS, README = FOLDER / "results", FOLDER / "README.md"
HELPERS = ("networks", "peers", "run", "tables")
# They need what cannot be fetched, or to be told what to do.
ONLY_BY_NAME = {"clip_papers": ["--help"]}
ARGUMENTS = {"unlearning": ["planted"]} | ONLY_BY_NAME
QUICK = {
    "bottlenecks": ["--seeds", "2", "--only", "instance"],
    "clip_bottlenecks": ["--seeds", "0", "1"],
    "depth": ["--seeds", "2"],
    "editing": ["--seeds", "2"],
    "energy": ["--seeds", "2"],
    "fuzz": ["--cases", "2000"],
    "long_run": ["--minutes", "1"],
    "maps": ["--seeds", "2"],
    "naming": ["--seeds", "2", "--only", "planted"],
    "nmf": ["--data", "sparse", "--k", "10", "--rounds", "1"],
    "recovery": ["--seeds", "2"],
    "sae": ["speed"],
    "sparse_head": ["--n", "2000", "--k", "128", "--lam", "0.02"],
    "study_concept_metrics": ["--seeds", "2"],
    "study_meaningful_inputs": ["--seeds", "2"],
    "study_overlooked_factors": ["--seeds", "2"],
    "tiny_clip": ["--seeds", "1"],
}
LIBRARIES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn")

TEXT = """# Benchmarks

Each script proves something that the library claims, and prints it; what they printed last is in
`results/`. This page is written by `python benchmarks/run.py`, never by hand.

```bash
pip install "conceptlens[demo]"
python benchmarks/run.py               # all, for hours; see --help
python benchmarks/run.py nmf sae       # some
python benchmarks/run.py --quick       # the small form of each
python benchmarks/run.py --table       # this page alone, from what is in results/
```

Peers are installed from PyPI, into `benchmarks/.peers` where their requirements clash with ours.

## Figures beside their goals

{goals}

## What each script proves

{scripts}

## When and where they ran

{runs}
"""


def scripts() -> dict[str, str]:
    """Of each script, by name, the first paragraph of what it says of itself."""
    found = {}
    for path in sorted(FOLDER.glob("*.py")):
        if path.stem not in HELPERS:
            text = ast.get_docstring(ast.parse(path.read_text())) or ""
            found[path.stem] = " ".join(text.split("\n\n")[0].split()).replace("``", "`")
    return found


def machine() -> dict[str, str | int | float]:
    """What figures depend on beside the code."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = lines[0].partition(":")[2].strip() if lines else cpu
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cuda = torch.cuda.is_available()
    return {
        "cpu": cpu,
        "cores": os.cpu_count() or 1,
        "memory GiB": round(memory, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
        "device": torch.cuda.get_device_name() if cuda else "cpu",
    }


def figures(text: str) -> list[dict[str, str]]:
    """The lines that `tables.goal` printed."""
    names = ("what", "measured", "goal", "met")
    return [dict(zip(names, found, strict=True)) for found in GOAL.findall(text)]


def run(name: str, quick: bool) -> tuple[str, dict[str, object]]:
    """What a script prints, and the record of its run."""
    script = FOLDER / f"{name}.py"
    arguments = ARGUMENTS.get(name, [])
    if quick:
        small = ["--quick"] if '"--quick"' in script.read_text() else []
        arguments = [*arguments, *QUICK.get(name, small)]
    root = str(FOLDER.parent)
    environment = os.environ | {"PYTHONPATH": root, "TQDM_DISABLE": "1"}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, script, *arguments],
        cwd=root, env=environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return done.stdout, {
        "arguments": arguments,
        "seconds": round(time.perf_counter() - start, 1),
        "exit": done.returncode,
        "date": time.strftime("%Y-%m-%d"),
        "figures": figures(done.stdout),
        "machine": machine(),
    }


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    cells = ([str(cell).replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def page(runs: dict[str, dict]) -> str:
    """README.md, from the scripts, what they printed and the record of runs."""
    goals, listed, ran = [], [], []
    for name, summary in scripts().items():
        result = RESULTS / f"{name}.txt"
        link = f"[results](results/{result.name})" if result.exists() else "not run yet"
        listed.append([f"[{name}]({name}.py)", summary, link])
        for found in figures(result.read_text()) if result.exists() else []:
            goals.append([name, *found.values()])
        if name in runs:
            record = runs[name]
            where = ", ".join(f"{key} {value}" for key, value in record["machine"].items())
            ran.append([name, record["date"], record["seconds"], record["exit"], where])
    return TEXT.format(
        goals=table(["script", "what", "measured", "goal", "met"], goals),
        scripts=table(["script", "question", "answer"], listed),
        runs=table(["script", "date", "seconds", "exit status", "machine"], ran),
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="scripts to run (all)")
    parser.add_argument("--quick", action="store_true", help="small forms, nothing is kept")
    parser.add_argument("--table", action="store_true", help="README.md alone")
    parser.add_argument("--out", type=Path, help="where to write the JSON (results/summary.json)")
    options = parser.parse_args()
    known = scripts()
    if unknown := set(options.names) - known.keys():
        parser.error(f"no script {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    names = [] if options.table else options.names or [n for n in known if n not in ONLY_BY_NAME]
    file = options.out or RESULTS / "summary.json"
    runs = json.loads(file.read_text()) if file.exists() else {}
    failed = 0
    for name in names:
        print(f"{name} ...", flush=True)
        text, record = run(name, options.quick)
        failed += record["exit"] != 0
        runs[name] = record
        print(text, flush=True)
        if not options.quick or options.out:
            file.write_text(json.dumps(dict(sorted(runs.items())), indent=1) + "\n")
        if not options.quick and record["exit"] == 0:
            (RESULTS / f"{name}.txt").write_text(text)
    show(
        "Runs",
        ["script", "seconds", "exit status", "what", "measured", "goal", "met"],
        [
            [name, runs[name]["seconds"], runs[name]["exit"], *(found or [""] * 4)]
            for name in names
            for found in [list(f.values()) for f in runs[name]["figures"]] or [None]
        ],
    )
    if not options.quick:
        README.write_text(page(runs))
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
