"""CRAFT on a network whose concepts are its colours, and on a real one."""

from functools import partial

import pytest
import torch
from torch import nn

from conceptlens import CRAFT, NMF, Backbone, Explanation, SemiNMF
from conceptlens.crops import CropSet
from conceptlens.images import crop_boxes, resize


class Colours(nn.Module):
    """Logit 0 is 3·red + green, blue is not used; logit 1 is a constant."""

    def __init__(self):
        super().__init__()
        self.pool, self.relu, self.fc = nn.AvgPool2d(8), nn.ReLU(), nn.Linear(3, 2)
        self.fc.weight.data = torch.tensor([[3.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
        self.fc.bias.data = torch.tensor([0.0, 0.01])

    def forward(self, x):
        return self.fc(self.relu(self.pool(x)).mean((2, 3)))


def squares(n=16, size=64, seed=0):
    """Each picture: one red, one green and one blue square, in quarters drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.zeros(n, 3, size, size)
    half = size // 2
    for picture in x:
        for colour, quarter in enumerate(torch.randperm(4, generator=generator)[:3]):
            top, left = half * (quarter // 2), half * (quarter % 2)
            picture[colour, top : top + half, left : left + half] = 1.0
    return x


def craft_on(model=None, tol=1e-8, **options):
    bb = Backbone(model or Colours(), "relu", class_names=["colourful", "dull"])
    nmf = NMF(3, random_state=0, max_iter=3000, tol=tol)
    return CRAFT(bb, 3, patch_size=16, extractor=nmf, **options)


@pytest.fixture(scope="module", params=["resized", "positions"])
def crops(request):
    return request.param


@pytest.fixture(scope="module")
def explanation(crops):
    return craft_on(crops=crops).explain(squares(), "colourful")


def test_concepts_are_the_colours_in_order_of_their_weights(explanation):
    colours = [int(explanation.components[c.index].argmax()) for c in explanation.concepts]
    assert colours == [0, 1, 2]


def test_importance_is_the_closed_form(explanation):
    """With an affine head S_T of concept i is β_i² / Σ β_j², and β ∝ 3, 1, 0 here."""
    values = torch.tensor([c.importance for c in explanation.concepts], dtype=torch.float64)
    expected = torch.tensor([0.9, 0.1, 0.0], dtype=torch.float64)
    torch.testing.assert_close(values, expected, rtol=0, atol=0.01)


def test_another_importance_ranks_by_what_it_measures():
    """Without a colour, which fills a quarter, the logit falls by a quarter of its weight."""
    found = craft_on(importance="occlusion").explain(squares(), "colourful")
    values = torch.tensor([c.importance for c in found.concepts])
    torch.testing.assert_close(values, torch.tensor([0.75, 0.25, 0.0]), rtol=0, atol=0.02)
    assert found.provenance["importance"] == "occlusion"
    with pytest.raises(ValueError, match="got 'sobel'"):
        craft_on(importance="sobel")


def test_crops_and_maps_show_the_colour(explanation):
    x = squares()
    for colour, concept in enumerate(explanation.concepts):
        for crop in concept.crops:
            left, top, right, bottom = crop.box
            assert x[crop.picture, colour, top:bottom, left:right].mean() > 0.5
        maps = explanation.maps(x)[:, concept.index]
        peaks = maps.flatten(1).argmax(1)
        assert (x[:, colour].flatten(1).gather(1, peaks[:, None]) == 1).all()


def test_crop_activations_are_those_of_each_crop_alone():
    bb = Backbone(Colours(), "relu")
    craft, x = CRAFT(bb, 3, patch_size=24, batch_size=5), squares(3)
    rows = craft.crop_activations(x, bb.activations(x))
    boxes = crop_boxes((64, 64), 24)
    assert rows.shape == (3, len(boxes), 3)
    for i, (left, top, right, bottom) in enumerate(boxes.tolist()):
        crop = resize(x[1:2, :, top:bottom, left:right], (64, 64))
        torch.testing.assert_close(rows[1, i], bb.activations(crop)[0].mean(0))


def test_pictures_of_other_classes_are_left_out():
    x = squares(6)
    x[::2] = 0  # nothing to see: class 1, by its bias
    craft = CRAFT(Backbone(Colours(), "relu"), 1, patch_size=16, batch_size=2)
    named = craft.explain(x, 0)
    assert named.picture_names == ["picture 1", "picture 3", "picture 5"]
    assert named.provenance["pictures given"] == 6
    assert craft.explain(x[1:]).provenance["target index"] == 0
    assert craft.explain(x[1:]).picture_names == ["picture 0", "picture 2", "picture 4"]


def test_fidelity_and_provenance_are_told(explanation):
    assert explanation.metrics["prediction agreement"] == 1.0
    assert explanation.metrics["crop reconstruction error"] < 0.05
    assert explanation.provenance["pictures used"] == 16
    assert explanation.provenance["layer"] == "relu"


def test_same_seed_same_explanation(explanation, crops):
    again = craft_on(crops=crops).explain(squares(), "colourful")
    assert torch.equal(again.components, explanation.components)
    assert torch.equal(again.importance.per_image, explanation.importance.per_image)


def test_a_saved_explanation_is_reproduced_to_the_last_bit(explanation, crops, tmp_path):
    craft = partial(craft_on, crops=crops)
    loaded = Explanation.load(explanation.save(tmp_path))
    again = loaded.reproduce(craft(), squares())
    assert again.exact, again
    assert again.within(0)
    assert "equal to the last bit" in repr(again)
    assert loaded.reproduce(craft(batch_size=5), squares()).within(1e-4)
    other = Colours()
    other.fc.weight.data[0, 1] = 2.0
    changed = loaded.reproduce(craft(model=other, seed=1), squares())
    assert set(changed.changed) == {"fingerprint", "seed"}
    assert changed.differences["components"] == 0
    assert not changed.within(0.05)
    assert not changed.exact
    assert "seed: 0 then, 1 now" in repr(changed)
    assert loaded.reproduce(craft(), squares(seed=1)).differences["pictures"] == 255
    fewer = loaded.reproduce(craft(), squares(8))
    assert fewer.differences["scores"] == float("inf")
    assert fewer.changed["pictures used"] == (16, 8)


def test_batch_size_does_not_matter(explanation, crops):
    again = craft_on(crops=crops, batch_size=3).explain(squares(), 0)
    torch.testing.assert_close(
        again.importance.values, explanation.importance.values, rtol=0, atol=1e-4
    )


def test_semi_nmf_where_activations_are_signed():
    x = squares()
    bb = Backbone(Colours(), "pool")
    with pytest.raises(ValueError, match=r"'pool' hold negative values.*'relu'.*SemiNMF\(3\)"):
        CRAFT(bb, 3, 16).explain(x - 0.5, 0, predicted_only=False)
    explanation = CRAFT(bb, 3, 16, extractor=SemiNMF(3, random_state=0)).explain(
        x - 0.5, 0, predicted_only=False
    )
    assert isinstance(explanation, Explanation)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"target": "colorful"}, "unknown class 'colorful'; near names: 'colourful'"),
        ({"target": "dull"}, "none of the 16 pictures is given to class 'dull'"),
        ({"target": 2}, "class 2 does not exist"),
    ],
)
def test_bad_target(arguments, words):
    bb = Backbone(Colours(), "relu", class_names=["colourful", "dull"])
    with pytest.raises(ValueError, match=words):
        CRAFT(bb, 3, 16).explain(squares(), **arguments)


@pytest.mark.parametrize("names", [["colourful"], ["colourful", "dull", "grey"]])
def test_names_of_other_classes_are_refused(names):
    bb = Backbone(Colours(), "relu", class_names=names)
    with pytest.raises(ValueError, match=f"class_names must have 2 names, got {len(names)}"):
        CRAFT(bb, 3, 16).explain(squares(), 0)


def test_more_concepts_than_channels_is_refused():
    with pytest.raises(ValueError, match="n_components"):
        CRAFT(Backbone(Colours(), "relu"), 4, 16).explain(squares())


def test_best_crops_do_not_repeat_each_other():
    boxes = torch.tensor([[0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 10], [0, 0, 10, 10]])
    owners = torch.tensor([0, 0, 0, 1])
    codes = torch.tensor([[4.0, 3.0, 0.0, 2.0]]).mT
    best = CropSet(squares(2), boxes, owners, codes, codes).best(0)
    assert [(c.picture, c.box[0], c.score) for c in best] == [(0, 0, 4.0), (1, 0, 2.0)]
