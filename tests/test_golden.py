"""Files that earlier versions wrote stay readable and give the same numbers.

``python tests/test_golden.py`` writes those of this version; each release keeps its own. What was
written is never written again: a format that changes keeps a reader for the old one.
"""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "faults"))

import artefacts

import conceptlens
from conceptlens import NMF, ActivationStore, Explanation, SparseAutoencoder
from conceptlens.bottleneck import PosthocCBM

GOLDEN = Path(__file__).parent / "golden"


def numbers(folder):
    """Some numbers of each file, as plain lists."""
    store = ActivationStore.open(folder / "store")
    store.verify()
    explanation = Explanation.load(folder / "explanation")
    sae, nmf = SparseAutoencoder.load(folder / "autoencoder"), NMF.load(folder / "nmf")
    cbm = PosthocCBM.load(folder / "bottleneck")
    rows = artefacts.rows()
    return {
        "store": [*store[1:3].flatten().tolist()[::7], float(store[:].sum())],
        "importance": explanation.importance.values.tolist(),
        "components": explanation.components.flatten().tolist(),
        "maps": [float(explanation.concept_maps.sum()), float(explanation.pictures.float().mean())],
        "subconcepts": explanation.subconcepts[1].components.flatten().tolist(),
        "autoencoder": sae.transform(rows)[:3].flatten().tolist(),
        "nmf": nmf.transform(rows)[:3].flatten().tolist(),
        "bottleneck": cbm.predict_proba(rows)[:3].flatten().tolist(),
        "concepts": cbm.predict_concepts(rows)[:3].flatten().tolist(),
    }


def write(folder):
    artefacts.build(folder / "store")
    (folder / "store" / ".lock").unlink()
    artefacts.explanation().save(folder / "explanation")
    artefacts.autoencoder().save(folder / "autoencoder")
    NMF(3).fit(artefacts.rows()).save(folder / "nmf")
    artefacts.bottleneck().save(folder / "bottleneck")
    (folder / "numbers.json").write_text(json.dumps(numbers(folder), indent=1) + "\n")


@pytest.mark.parametrize("version", sorted(path.name for path in GOLDEN.iterdir()))
def test_files_of_each_version_give_the_same_numbers(version):
    expected = json.loads((GOLDEN / version / "numbers.json").read_text())
    found = numbers(GOLDEN / version)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(
            torch.tensor(found[name]), torch.tensor(values), rtol=1e-4, atol=1e-5
        )


def test_this_version_has_its_files():
    assert (GOLDEN / conceptlens.__version__).is_dir()


if __name__ == "__main__":
    write(GOLDEN / conceptlens.__version__)
