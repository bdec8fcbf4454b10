"""The papers' protocol, exercised on a small stand-in of the data's and the checkpoint's layout."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("open_clip")
pytest.importorskip("conceptlens.datasets.tiny_clip")

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """``train/`` and ``val/`` with a folder a class, a CLIP that learnt nothing, and texts."""
    from open_clip.model import CLIP
    from torchvision.transforms.functional import to_pil_image

    from conceptlens.datasets import PlantedConcepts
    from conceptlens.datasets.tiny_clip import TinyCLIP, config

    root = tmp_path_factory.mktemp("papers")
    data = PlantedConcepts(150, 40, seed=0)
    for i, (image, label, *_) in enumerate(data):
        folder = root / "data" / ("val" if i % 3 == 0 else "train") / data.class_names[label]
        folder.mkdir(parents=True, exist_ok=True)
        to_pil_image(image).save(folder / f"{i}.png")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        name = TinyCLIP(CLIP(**config(40)).eval(), 40).save(root / "clip")
    (root / "concepts.txt").write_text("\n".join([*data.concept_names, ""]))
    return root, name


def test_a_folder_of_pictures_and_a_checkpoint_make_the_whole_table(
    stand_in, tmp_path, capsys, monkeypatch
):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    import clip_papers

    root, name = stand_in
    arguments = ["imagenet", str(root / "data"), "--clip", name, "--cache", str(tmp_path / "cache")]
    arguments += ["--concepts", str(root / "concepts.txt"), "--epochs", "2", "--sae-epochs", "3"]
    arguments += ["--vocabulary", str(root / "concepts.txt"), "--device", "cpu"]
    clip_papers.main(arguments)
    table = capsys.readouterr().out
    assert "100 pictures to learn from, 50 to test on, 3 classes, 8 concept texts" in table
    rows = {line.split("  ")[0]: line.split("  ")[-1].strip() for line in table.splitlines()}
    for model, published in clip_papers.PUBLISHED.items():
        assert rows[model] == f"{published[2]:.4g}"
    assert "discover then name" in rows
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == ["train", "val"]


def test_readers_know_the_layouts(stand_in, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import clip_papers

    images, labels, names = clip_papers.pictures("places365", stand_in[0] / "data", False)
    assert len(images) == len(labels) == 50
    assert names == ["circus", "garden", "harbour"]
    assert sorted(set(labels.tolist())) == [0, 1, 2]
