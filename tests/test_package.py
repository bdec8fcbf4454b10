"""The package as a whole: its public names, its cheap import, its rules about data files."""

import re
import subprocess
import sys
from pathlib import Path

import conceptlens as cl

ROOT = Path(__file__).parent.parent
PUBLIC = {
    "ActivationStore", "Backbone", "CAVs", "CRAFT", "ClassIndex", "ClusterGraph", "Comparison",
    "Concept", "ConceptModel", "ConvexNMF", "Crop", "DictionaryModel", "Explanation", "Importance",
    "NMF", "NotCuttableError", "Pictures", "SemiNMF", "SparseAutoencoder", "StoreError", "TCAV",
    "UnreadableImageError", "Waterfall", "__version__", "attribute", "bottleneck", "cluster_graph",
    "coam", "compare", "concept_maps", "contrastive_maps", "datasets", "decompose", "distributed",
    "editing", "explain_classes", "fit_cavs", "loss_recovered", "metrics", "naming", "sobol",
    "tcav", "waterfall",
}  # fmt: skip


def test_public_names_are_these_and_all_exist():
    assert set(cl.__all__) == PUBLIC
    assert all(getattr(cl, name) is not None for name in PUBLIC)


def test_import_brings_no_heavy_library():
    """Each of these costs more than the 0.3 s that importing conceptlens may add to torch's."""
    heavy = ["matplotlib", "torchvision", "timm", "open_clip", "captum", "sklearn", "scipy.stats"]
    code = (
        "import torch, sys; before = set(sys.modules); import conceptlens\n"
        f"print([m for m in {heavy} if m in sys.modules and m not in before])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


def test_nothing_is_unpickled():
    forbidden = re.compile(r"torch\.load|pickle|allow_pickle|\beval\(")
    for path in (ROOT / "conceptlens").rglob("*.py"):
        for line in path.read_text().splitlines():
            if forbidden.search(line) and ".eval()" not in line:
                raise AssertionError(f"{path}: {line}")


def test_readme_commands_are_what_ci_runs():
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    assert len(re.findall("python -m pytest", readme)) == 1
    assert "python -m pytest' README.md" in ci
