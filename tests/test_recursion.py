"""The recursion: concepts of a concept, on a network whose layers are known by hand."""

import pytest
import torch
from torch import nn

from conceptlens import CRAFT, NMF, Backbone, Explanation
from conceptlens.recursion import decompose


class Warm(nn.Module):
    """Early channels are red, green, blue; late ones 2·red + green (warm) and blue (cold)."""

    def __init__(self):
        super().__init__()
        self.colours = nn.Sequential(nn.AvgPool2d(4), nn.ReLU())
        self.temperature = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.AvgPool2d(2), nn.ReLU())
        mix = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        self.temperature[0].weight.data = mix[:, :, None, None]
        self.fc = nn.Linear(2, 2, bias=False)
        self.fc.weight.data = torch.tensor([[1.0, 0.2], [0.0, 0.0]])

    def forward(self, x):
        return self.fc(self.temperature(self.colours(x)).mean((2, 3)))


def pictures(n=24, size=64):
    """Each quarter of a picture is red, green, blue or black, in an order of its own."""
    generator = torch.Generator().manual_seed(0)
    x, half = torch.zeros(n, 3, size, size), size // 2
    for picture in x:
        for colour, quarter in enumerate(torch.randperm(4, generator=generator)[:3]):
            top, left = half * (quarter // 2), half * (quarter % 2)
            picture[colour, top : top + half, left : left + half] = 1.0
    return x


@pytest.fixture(scope="module")
def explanation():
    bb = Backbone(Warm(), "temperature", class_names=["warm", "other"])
    nmf = NMF(2, tol=1e-8, max_iter=3000)
    return CRAFT(bb, 2, patch_size=16, extractor=nmf).explain(pictures(), "warm")


def colours_of(part):
    return [int(part.components[c.index].argmax()) for c in part.concepts]


def test_a_mixed_concept_is_split_into_its_colours(explanation):
    """Warm is 2·red + green; strong crops hold red, and green where a crop lies on a border."""
    warm = int(explanation.components[:, 0].argmax())
    tree = decompose(explanation, "colours", warm, n_concepts=2)
    part = tree.subconcepts[warm]
    assert part.target == f"concept {warm}"
    assert part.provenance["layer"] == "colours"
    assert part.components.shape == (2, 3)
    assert colours_of(part)[0] == 0
    assert float(part.importance.values.sum()) == pytest.approx(1, abs=1e-6)


def test_score_of_a_sub_concept_is_the_concepts_code():
    """With one concept, the code of the mean activations is the mean of the codes."""
    bb = Backbone(Warm(), "temperature", class_names=["warm", "other"])
    x = torch.zeros(20, 3, 64, 64)
    x[:, 0, :, :32], x[:, 1, :, 32:] = 1.0, 1.0
    nmf = NMF(1, tol=1e-8, max_iter=3000)
    explanation = CRAFT(bb, 1, patch_size=64, extractor=nmf).explain(x, "warm")
    part = decompose(explanation, "colours", 0, n_concepts=1).subconcepts[0]
    assert float(part.importance.values[0]) == pytest.approx(1, abs=1e-6)
    logits = part.model.classify(part.model.encode(x))
    expected = explanation.model.encode(x).mean(1)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_default_is_the_widest_concept_and_layers_go_deeper(explanation):
    tree = decompose(explanation, ["temperature.0", "colours"], n_concepts=1)
    ((index, part),) = tree.subconcepts.items()
    (deep,) = part.subconcepts.values()
    assert tree.concepts == explanation.concepts
    assert part.target == f"concept {index}"
    assert deep.provenance["layer"] == "colours"
    assert repr(tree).count("Explanation of") == 3
    assert not explanation.subconcepts


def test_tree_is_saved_loaded_and_shown(explanation, tmp_path):
    tree = decompose(explanation, "colours", 0, n_concepts=1)
    tree.save(tmp_path)
    again = Explanation.load(tmp_path)
    assert repr(again) == repr(tree)
    assert torch.equal(again.subconcepts[0].components, tree.subconcepts[0].components)
    page = tree.to_html(tmp_path / "report.html").read_text()
    assert "What concept 0 is made of" in page
    assert again.to_html(tmp_path / "again.html").read_text() == page
    with pytest.raises(ValueError, match="loaded"):
        decompose(again, "colours")


@pytest.mark.parametrize(
    ("layers", "concept", "options", "words"),
    [
        ("colours", 2, {}, "unknown concept 2"),
        ("colours", "warm", {}, "unknown concept 'warm'"),
        ("colour", 0, {}, "no layer 'model.colour'"),
        ("fc", 0, {}, "'model.fc' is never called"),
        ("colours", 0, {"n_concepts": 1000}, "crops show 'concept 0'"),
    ],
)
def test_bad_input(explanation, layers, concept, options, words):
    with pytest.raises(ValueError, match=words):
        decompose(explanation, layers, concept, **options)
