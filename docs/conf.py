"""Sphinx: ``sphinx-build -W docs docs/_build/html`` from the repository's root."""

import os
import shutil
from pathlib import Path

from sphinx.application import Sphinx

import conceptlens

DOCS = Path(__file__).parent
ROOT = DOCS.parent

project = "conceptlens"
author = "the conceptlens authors"
release = version = conceptlens.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.doctest",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"conceptlens {release}"

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
# CONCEPTLENS_NOTEBOOKS=off builds the pages alone; the tests run the notebooks themselves.
nb_execution_mode = os.environ.get("CONCEPTLENS_NOTEBOOKS", "cache")
nb_execution_timeout = 300
nb_execution_raise_on_error = True

autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": False}
autosummary_generate = True
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
# The library writes names in single backticks, as NumPy's style does.
default_role = "code"


def copy_sources() -> None:
    """Bring the notebooks and what the benchmarks printed below docs/, where Sphinx finds them."""
    tutorials = DOCS / "tutorials"
    tutorials.mkdir(exist_ok=True)
    for notebook in (ROOT / "tutorials").glob("*.ipynb"):
        shutil.copy(notebook, tutorials)
    results = DOCS / "results"
    results.mkdir(exist_ok=True)
    for result in (ROOT / "benchmarks" / "results").iterdir():
        shutil.copy(result, results)
    write_benchmarks(results)


def write_benchmarks(results: Path) -> None:
    """One page of all tables, each below what its script says of itself."""
    lines = ["# Benchmarks", "", "Printed by the scripts in `benchmarks/`, copied unchanged.", ""]
    for table in sorted(results.glob("*.txt")):
        script = ROOT / "benchmarks" / f"{table.stem}.py"
        summary = script.read_text().split('"""')[1].splitlines()[0] if script.exists() else ""
        lines += [f"## {table.stem.replace('_', ' ')}", "", summary, ""]
        lines += [f"```{{literalinclude}} results/{table.name}", ":language: text", "```", ""]
        if (results / f"{table.stem}.png").exists():
            lines += [f"![{table.stem} as a picture](results/{table.stem}.png)", ""]
    (DOCS / "benchmarks.md").write_text("\n".join(lines))


def leave_out(app, what, name, obj, skip, options):
    """Leave out the methods that scikit-learn adds to every estimator for its own plumbing."""
    return skip or name.endswith("_request")


def level_captions(app, page, template, context, doctree):
    """Tell screen readers the level of the headings that captions of lists of pages are."""
    for part in ("body", "furo_navigation_tree"):
        if part in context:
            levelled = context[part].replace('role="heading"', 'role="heading" aria-level="2"')
            context[part] = levelled


def setup(app: Sphinx) -> None:
    """Connect what is above to Sphinx's events."""
    app.connect("autodoc-skip-member", leave_out)
    app.connect("html-page-context", level_captions, priority=900)  # after the theme's


copy_sources()
