"""The report of a bottleneck model: what it says, of every model, and that names are escaped."""

import re

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError

from conceptlens import Backbone
from conceptlens.bottleneck import (
    BOTTLENECKS,
    ConceptBottleneck,
    DiscoverThenNameCBM,
    PosthocCBM,
    SparseCBM,
)
from conceptlens.bottleneck.data import TrainingData
from conceptlens.report.bottleneck import _judge, _weights

HOSTILE = "<script>alert('$x')</script>"
NAMES = np.array(["a", "b"])


def rows(n=200, seed=0):
    """Features that show three concepts noisily, the class that they decide, and they."""
    generator = torch.Generator().manual_seed(seed)
    concepts = (torch.rand(n, 3, generator=generator) < 0.5).float()
    mix = torch.randn(3, 6, generator=torch.Generator().manual_seed(9))
    x = concepts @ mix + 0.6 * torch.randn(n, 6, generator=generator)
    return x, NAMES[(concepts.sum(1) > 1.5).long()], concepts


def measure(page, name):
    """The value of a measure in the page's table."""
    return re.search(rf"{name}</th><td class=\"number\">([^<]*)</td>", page).group(1)


def check_alone(page):
    """That the page holds no script and refers to nothing outside it."""
    assert "<script" not in page
    assert "<link" not in page
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(s.startswith(("data:image/", "#")) for s in sources)
    assert not re.search(r"url\(|@import|https?:", page)
    anchors = {s[1:] for s in sources if s.startswith("#")}
    assert anchors <= set(re.findall(r'id="([^"]*)"', page))


UNLABELLED = [
    name
    for name, make in BOTTLENECKS.items()
    if isinstance(make(0), (SparseCBM, DiscoverThenNameCBM))
]


@pytest.mark.parametrize("name", UNLABELLED)
def test_models_of_texts_or_discovered_concepts_report_on_classes_alone(name, tmp_path):
    x, y, _ = rows()
    x = torch.cat([x, x.flip(1)], 1)  # as many features as the recipes have texts
    model = BOTTLENECKS[name](0).fit(x, y)
    page = model.report(tmp_path / "cbm.html", x, y).read_text(encoding="utf-8")
    check_alone(page)
    assert measure(page, "class accuracy").startswith(f"{model.score(x, y):.3f} ±")
    assert ">concept accuracy" not in page


@pytest.mark.parametrize("name", [name for name in BOTTLENECKS if name not in UNLABELLED])
def test_every_model_reports_on_the_rows_it_kept_back(name, tmp_path):
    x, y, concepts = rows()
    model = BOTTLENECKS[name](0).fit(x, y, concepts=concepts)
    path = model.report(tmp_path / "out" / "cbm.html")
    assert path == tmp_path / "out" / "cbm.html"
    page = path.read_text(encoding="utf-8")
    check_alone(page)
    held = model.held_out_
    truth = held.concepts
    assert truth.shape[1] == len(model.concept_names)
    right = (model.predict_concepts(held.features) > 0.5) == (truth > 0.5)
    score = model.score(held.features, NAMES[held.y])
    assert measure(page, "class accuracy").startswith(f"{score:.3f} ±")
    assert measure(page, ">concept accuracy").startswith(f"{float(right.double().mean()):.3f}")
    for words in ("overall concept accuracy", "leakage", "concepts of a decision", "completeness"):
        assert measure(page, words)
    for words in ("What corrections do", "How well each concept is found", model.concept_names[0]):
        assert words in page


def test_hostile_names_are_escaped(tmp_path):
    x, y, concepts = rows()
    labels = np.where(y == "a", HOSTILE, "b")
    model = ConceptBottleneck(max_epochs=3, concept_names=[HOSTILE, "$\\frac{", "{{ x }}"])
    page = model.fit(x, labels, concepts=concepts).report(tmp_path / "p.html").read_text()
    check_alone(page)
    assert "&lt;script&gt;" in page
    assert "{{ x }}" in page


def test_without_concept_labels_classes_alone_are_judged(tmp_path):
    x, y, concepts = rows()
    model = PosthocCBM(concept_vectors=torch.eye(6)[:4], penalty=1e-3).fit(x, y)
    page = model.report(tmp_path / "p.html").read_text()
    assert "There are no concept labels" in page
    assert not re.search("leakage|What corrections do|concept accuracy|concepts,", page)
    assert measure(page, "class accuracy")
    levels = ConceptBottleneck(max_epochs=3).fit(x, y, concepts=x[:, :2])
    assert "labels are 0 and 1" in levels.report(tmp_path / "p.html").read_text()
    mixed = torch.cat([concepts, x[:, :1]], 1)
    levels = ConceptBottleneck(max_epochs=3).fit(x, y, concepts=mixed)
    page = levels.report(tmp_path / "p.html").read_text()
    assert "1 concepts that are not binary are not judged" in page
    assert measure(page, "leakage")


def test_reads_weights_and_leakage_off_a_known_model(tmp_path):
    x, y, concepts = rows(400)
    model = ConceptBottleneck(training="independent", max_epochs=40).fit(x, y, concepts=concepts)
    head = model.network_.to_classes
    head.weight[:, 1] = 0
    data = TrainingData(x, torch.from_numpy((y == "b").astype(int)), concepts, torch.arange(400), 2)
    judged = _judge(model, data)
    torch.testing.assert_close(_weights(model, judged.codes), head.weight)
    codes, best = judged.codes, judged.logits.argmax(1)
    torch.testing.assert_close(judged.parts[:, 1:-2].float(), codes * head.weight[best])
    page = model.report(tmp_path / "p.html", x, y, concepts).read_text()
    assert measure(page, "concepts read by a class") == "2.0"
    hard = (head((codes > 0.5).float()).argmax(1) == data.y).double().mean()
    soft = (best == data.y).double().mean()
    assert measure(page, "leakage").startswith(f"{float(soft - hard):.3f} ±")
    assert "of 400 rows given to judge it" in page


def test_pictures_of_decisions(tmp_path):
    _, y, concepts = rows(60)
    colours = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    images = (0.3 + 0.5 * concepts @ colours)[:, :, None, None].expand(-1, -1, 8, 8)
    generator = torch.Generator().manual_seed(0)
    images = (images + 0.1 * torch.randn(images.shape, generator=generator)).clamp(0, 1)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 1), torch.nn.Flatten(), torch.nn.Linear(384, 2)
    )
    model = ConceptBottleneck(Backbone(network, "0"), max_epochs=30)
    page = model.fit(images, y, concepts=concepts).report(tmp_path / "p.html").read_text()
    assert page.count('<img class="small" src="data:image/jpeg') == page.count("<article")
    page = model.report(tmp_path / "p.html", images[:20], y[:20]).read_text()
    assert '<img class="small"' in page


def test_a_class_that_is_too_rare_has_no_completeness(tmp_path):
    x, y, concepts = rows()
    model = ConceptBottleneck(max_epochs=5).fit(x, y, concepts=concepts)
    only = np.flatnonzero(y == "a")[:20]
    page = model.report(tmp_path / "p.html", x[only], y[only], concepts[only] * 0).read_text()
    assert "completeness" not in page
    assert "nan" not in page


def test_bad_input(tmp_path):
    x, y, concepts = rows()
    path = tmp_path / "p.html"
    model = ConceptBottleneck(max_epochs=2)
    with pytest.raises(NotFittedError):
        model.report(path)
    model.fit(x, y, concepts=concepts)
    with pytest.raises(ValueError, match=r"y must hold one of \['a', 'b'\] .* \['a', 'c'\]"):
        model.report(path, x[:2], ["a", "c"])
    with pytest.raises(ValueError, match="y must hold one of"):
        model.report(path, x)
    with pytest.raises(ValueError, match="must have 3 columns, got 2"):
        model.report(path, x, y, concepts[:, :2])
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="no rows were held out, or they were not saved"):
        ConceptBottleneck.load(tmp_path / "model").report(path)
    assert not path.exists()
