"""Explanation: saved whole, loaded equal, shown as figures and as a page that is safe."""

import json
import re
import sys
from base64 import b64decode
from dataclasses import replace
from html import escape
from io import BytesIO
from types import SimpleNamespace

import pytest
import torch
from matplotlib.text import Text
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from conceptlens import Concept, Crop, Explanation, Importance
from conceptlens.explore import page
from conceptlens.naming import Names
from conceptlens.plots import concept_gallery, importance_bars, overlay, overlays
from conceptlens.sealing import seal, unseal

HOSTILE = "<script>alert('x')</script>"


@pytest.fixture
def explanation():
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor([0.1, 0.6, 0.3])
    importance = Importance(
        values=values,
        stderr=values / 10,
        per_image=torch.rand(4, 3, generator=generator),
        method="Sobol total, N = 32",
        target=HOSTILE,
        concept_names=["fur", HOSTILE, "eye"],
    )
    concepts = [
        Concept(i, importance.concept_names[i], float(values[i]), float(values[i]) / 10,
                [Crop(j, (8, 4, 24, 20), 1.5 - j / 10) for j in range(4)])
        for i in importance.order
    ]  # fmt: skip
    return Explanation(
        target=HOSTILE,
        importance=importance,
        concepts=concepts,
        pictures=torch.randint(0, 256, (4, 3, 32, 48), generator=generator, dtype=torch.uint8),
        picture_names=["a.png", "../b.png", HOSTILE, "d.png"],
        concept_maps=torch.rand(4, 3, 4, 6, generator=generator),
        components=torch.rand(3, 10, generator=generator),
        scores=torch.tensor([0.9, 0.8, 0.7, 0.6]),
        logit_parts=torch.randn(4, 6, generator=generator, dtype=torch.float64),
        metrics={"prediction agreement": 1.0},
        provenance={"seed": 0, "layer": HOSTILE},
    )


def test_loaded_is_what_was_saved(explanation, tmp_path):
    explanation.save(tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("kept")
    explanation.save(tmp_path / "out")
    loaded = Explanation.load(tmp_path / "out")
    for name in ("target", "concepts", "picture_names", "metrics", "provenance"):
        assert getattr(loaded, name) == getattr(explanation, name)
    for name in ("pictures", "concept_maps", "components", "scores", "logit_parts"):
        assert torch.equal(getattr(loaded, name), getattr(explanation, name))
    assert torch.equal(loaded.importance.per_image, explanation.importance.per_image)
    assert repr(loaded) == repr(explanation)
    assert (tmp_path / "out" / "notes.txt").exists()
    with pytest.raises(ValueError, match="model="):
        loaded.maps(torch.rand(1, 3, 32, 48))


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("explanation.json", lambda b: b[: len(b) // 2]),
        ("explanation.json", lambda b: b"[]"),
        ("explanation.json", lambda b: b.replace(b'"format": 1', b'"format": 9')),
        ("explanation.json", lambda b: json.dumps({**json.loads(b), "concepts": [3]}).encode()),
        ("explanation.json", None),
        ("tensors.safetensors", lambda b: b[: len(b) // 2]),
        ("tensors.safetensors", None),
        ("pictures/00002.png", lambda b: b[:50]),
        ("pictures/00002.png", None),
    ],
)
def test_damage_is_named(explanation, tmp_path, file, change):
    explanation.save(tmp_path)
    path = tmp_path / file
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=path.name):
        Explanation.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r | {"concepts": []}, r"numbers \[\], expected each of the 3 once"),
        (lambda r: r | {"concepts": r["concepts"][:1]}, "expected each of the 3 once"),
        (lambda r: r | {"concepts": r["concepts"][:1] * 3}, "expected each of the 3 once"),
        (lambda r: r | {"metrics": {"a": None}}, "not an explanation of this version"),
        (lambda r: r | {"metrics": ["a"]}, "not an explanation of this version"),
    ],
)
def test_a_record_that_was_made_up_is_refused(explanation, tmp_path, change, words):
    path = explanation.save(tmp_path) / "explanation.json"
    path.write_bytes(seal(change(unseal(path))))
    with pytest.raises(ValueError, match=words):
        Explanation.load(tmp_path)


OUR_SCRIPTS = ['<script type="application/json" id="maps">', "<script>"]


def test_report_is_one_safe_file(explanation, tmp_path):
    text = explanation.to_html(tmp_path / "deep" / "report.html").read_text()
    assert re.findall("<script[^>]*>", text) == OUR_SCRIPTS
    assert "&lt;script&gt;" in text
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)
    assert text.count("<img") == len(re.findall(r'<img [^>]*alt="[^"]+"', text))
    assert "0.600&nbsp;±&nbsp;0.060" in text
    assert "<script" not in explanation._repr_html_()


def test_figures(explanation, tmp_path):
    for i, figure in enumerate(
        [explanation.plot(), concept_gallery(explanation), overlays(explanation),
         importance_bars(explanation)]
    ):  # fmt: skip
        figure.savefig(tmp_path / f"{i}.png")
        assert (tmp_path / f"{i}.png").stat().st_size > 5000


def test_overlay_paints_where_the_map_is_strong():
    picture = torch.full((3, 8, 8), 128, dtype=torch.uint8)
    maps = torch.zeros(2, 8, 8)
    maps[0, :4], maps[1, 4:, 4:] = 1.0, 1.0
    painted = overlay(picture, maps, ["#ff0000", "#0000ff"])
    assert (painted[0, :4] > 200).all()
    assert (painted[2, 4:, 4:] > 200).all()
    assert (painted[:, 4:, :4] == 128).all()


def test_pixels_of_a_crop(explanation):
    crop = explanation.concepts[0].crops[2]
    assert torch.equal(explanation.pixels(crop), explanation.pictures[2, :, 4:20, 8:24])


def test_waterfall_of_a_loaded_explanation_sums(explanation, tmp_path):
    loaded = Explanation.load(explanation.save(tmp_path))
    fall = loaded.waterfall(2)
    assert fall.logit == pytest.approx(float(explanation.logit_parts[2].sum()), abs=1e-12)
    assert fall.target == HOSTILE
    text = loaded.to_html(tmp_path / "report.html").read_text()
    assert text.count("Its logit, concept by concept") == 4
    assert f"{fall.logit:+.2f}</td>" in text
    without = replace(explanation, logit_parts=None)
    assert Explanation.load(without.save(tmp_path / "b")).logit_parts is None
    with pytest.raises(ValueError, match="explain again"):
        without.waterfall(0)


def test_report_shows_the_cluster_graph_where_pictures_are_enough(explanation, tmp_path):
    assert 'id="ways"' not in explanation.to_html(tmp_path / "few.html").read_text()
    per_image = torch.eye(3)[:2].repeat_interleave(8, 0)
    many = replace(
        explanation,
        importance=replace(explanation.importance, per_image=per_image),
        pictures=explanation.pictures.repeat(4, 1, 1, 1),
    )
    text = many.to_html(tmp_path / "many.html").read_text()
    assert 'id="ways"' in text
    assert re.findall("<script[^>]*>", text) == OUR_SCRIPTS
    assert text.count("8 pictures</li>") == 2


def test_names_flow_into_plots_report_and_files(explanation, tmp_path):
    explanation = replace(explanation, model=SimpleNamespace(concept_names=["a", "b", "c"]))
    words = ["whisker", "eye", "whisker"]
    candidates = [[(w, 0.5), (HOSTILE, 0.25)] for w in words]
    names = Names(words, torch.tensor([0.5, 0.25, 0.125]), candidates, "hand")
    named = explanation.named(names)
    assert named.importance.concept_names == named.model.concept_names == names.labels
    assert explanation.model.concept_names == ["a", "b", "c"]
    assert [c.name for c in named.concepts] == ["eye", "whisker (2)", "whisker (0)"]
    assert [c.confidence for c in named.concepts] == [0.25, 0.125, 0.5]
    loaded = Explanation.load(named.save(tmp_path / "out"))
    assert loaded.concepts == named.concepts
    assert loaded.provenance["names"] == "hand"
    page = loaded.to_html(tmp_path / "report.html").read_text()
    assert "whisker (2)" in page
    assert "confidence 0.50; it might also be &lt;script&gt;" in page
    assert HOSTILE not in page
    assert "whisker (2)" in str([t.get_text() for t in named.plot().findobj(Text)])
    with pytest.raises(ValueError, match="2 names for 3 concepts"):
        explanation.named(Names(["a", "b"], torch.rand(2), [[], []], "hand"))


# -- in notebooks ----------------------------------------------------------------------------


def test_explore_shows_what_its_menus_choose(explanation):
    view = explanation.explore()
    menus, shown = view.children
    concept, picture = menus.children
    assert concept.options[0][0] == f"1. {explanation.concepts[0].name}"
    assert [name for name, _ in picture.options] == explanation.picture_names
    pages = {shown.value}
    for concept.value, picture.value in ((1, 0), (1, 3), (2, 2)):
        chosen = explanation.concepts[concept.value]
        assert escape(chosen.name) in shown.value
        assert f"{chosen.importance:.3f} ± {chosen.stderr:.3f}" in shown.value
        assert escape(explanation.picture_names[picture.value]) in shown.value
        assert f"{explanation.importance.per_image[picture.value, chosen.index]:.3f}" in shown.value
        assert len(re.findall(r'<img [^>]*src="data:image/jpeg[^>]* alt="', shown.value)) == 5
        assert "<script" not in shown.value
        pages.add(shown.value)
    assert len(pages) == 4


def test_explore_paints_where_the_concept_is(explanation):
    left, right = explanation.concept_maps.clone(), explanation.concept_maps.clone()
    left[..., 3:], right[..., :3] = 0, 0
    images = []
    for maps in (left, right):
        html = page(replace(explanation, concept_maps=maps), 0, 1)
        data = re.search(r"data:image/jpeg;base64,([^\"]+)", html)[1]
        images.append(pil_to_tensor(Image.open(BytesIO(b64decode(data)))).float())
    # The picture is greyed and the concept at rank 0 is blue: blue above red where it is.
    blue = [(image[2] - image[0]).split(24, dim=1) for image in images]
    assert blue[0][0].mean() > 20 > blue[0][1][:, 8:].mean()
    assert blue[1][1].mean() > 20 > blue[1][0][:, :-8].mean()


def test_explore_without_ipywidgets_says_what_to_install(explanation, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(ImportError, match=r"conceptlens\[notebook\]"):
        explanation.explore()
