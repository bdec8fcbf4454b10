"""Waterfalls that sum exactly, and contrastive maps, against brute force and networks by hand."""

import pytest
import torch
from torch import nn

from conceptlens.backbone import Backbone
from conceptlens.extraction.nmf import NMF
from conceptlens.local import contrastive_maps, logit_parts, waterfall
from conceptlens.model import DictionaryModel

HOSTILE = "<script>alert('x')</script>"


class Colours(nn.Module):
    """Three logits of the mean colours, after a head that is affine or has a ReLU in it."""

    def __init__(self, affine):
        super().__init__()
        torch.manual_seed(0)
        self.pool, self.relu = nn.AvgPool2d(8), nn.ReLU()
        hidden = nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 3)
        self.head = nn.Linear(3, 3) if affine else nn.Sequential(*hidden)

    def forward(self, x):
        return self.head(self.relu(self.pool(x)).mean((2, 3)))


def model(affine=True, n_concepts=3, channels=None):
    bb = Backbone(Colours(affine), "relu", class_names=["a", HOSTILE, "c"])
    nmf = NMF(n_concepts)
    nmf.components_ = torch.eye(3)[:n_concepts] if channels is None else channels
    nmf.n_features_in_ = 3
    return DictionaryModel(bb, nmf, [f"colour {HOSTILE}", "green", "blue"][:n_concepts])


def picture(seed=0, n=1):
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def test_affine_head_by_hand():
    cm, x = model(), picture()
    fall = waterfall(cm, x[0], "c")
    linear = cm.backbone.model.head
    expected = linear.weight[2] * x[0].mean((1, 2))
    torch.testing.assert_close(fall.contributions, expected.double(), rtol=1e-5, atol=1e-6)
    assert fall.base == pytest.approx(float(linear.bias[2]), abs=1e-6)
    assert fall.unexplained == pytest.approx(0.0, abs=1e-5)
    assert fall.integration_error == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("n_concepts", [2, 3])
def test_the_steps_sum_to_the_models_own_logit(affine, n_concepts):
    """With two colours of three, what the third does is not explained."""
    cm = model(affine, n_concepts)
    for seed in range(5):
        x = picture(seed)
        logits = cm.backbone(x)[0]
        fall = waterfall(cm, x[0])
        assert fall.target == cm.class_names[int(logits.argmax())]
        assert fall.logit == pytest.approx(float(logits.max()), abs=1e-6)
        rebuilt = cm.classify(cm.encode(x))[0, logits.argmax()]
        blank = cm.classify(torch.zeros(1, 16, n_concepts))[0, logits.argmax()]
        assert fall.base == pytest.approx(float(blank), abs=1e-6)
        assert fall.unexplained == pytest.approx(float(logits.max() - rebuilt), abs=1e-6)
        assert abs(fall.integration_error) <= 1e-3 * abs(float(rebuilt - blank)) + 1e-5
        if n_concepts == 3:
            assert abs(fall.unexplained) < 1e-5


def test_contributions_of_a_curved_head_by_a_fine_riemann_sum():
    cm, x = model(affine=False), picture(3)
    codes = cm.encode(x).double()
    head = cm.backbone.model.head.double()
    total = torch.zeros(3, dtype=torch.float64)
    n = 5000
    for step in range(n):
        point = ((step + 0.5) / n * codes).requires_grad_()
        # The decoded activations are the codes, and the head reads their mean.
        (gradient,) = torch.autograd.grad(head(point.mean(1))[0, 1], point)
        total += (gradient * codes).sum((0, 1)) / n
    head.float()
    torch.testing.assert_close(waterfall(cm, x[0], 1).contributions, total, rtol=5e-3, atol=1e-4)


def test_rows_of_many_pictures_are_those_of_one():
    cm, x = model(affine=False, n_concepts=2), picture(1, n=7)
    rows = logit_parts(cm, cm.encode(x), cm.backbone(x), 0, batch_size=3)
    torch.testing.assert_close(rows.sum(1), cm.backbone(x)[:, 0].double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        rows[4, 1:-2], waterfall(cm, x[4], 0).contributions, rtol=1e-3, atol=1e-4
    )


def test_shown_as_text_table_and_figure(tmp_path):
    fall = waterfall(model(n_concepts=2), picture()[0], HOSTILE)
    assert "<script" not in fall._repr_html_()
    assert fall.steps[0][2] == int(fall.contributions.abs().argmax())
    assert "not explained" in repr(fall)
    figure = fall.plot().figure
    figure.savefig(tmp_path / "waterfall.png")
    assert (tmp_path / "waterfall.png").stat().st_size > 5000


def test_more_than_one_picture_is_refused():
    with pytest.raises(ValueError, match=r"one picture, .*\(3, H, W\)"):
        waterfall(model(), picture(n=2))


@pytest.mark.parametrize("method", ["interpolate", "implicit"])
def test_contrastive_maps_sum_to_the_difference_and_lie_where_the_concept_is(method):
    cm = model()
    x = torch.full((1, 3, 32, 32), 0.01)
    x[0, 0, :16, :16] = 1.0  # red, top left
    x[0, 1, 16:, 16:] = 1.0  # green, bottom right
    maps = contrastive_maps(cm, x, "a", "c", method)
    logits = cm.backbone(x)[0] - cm.classify(torch.zeros(1, 16, 3))[0]
    assert float(maps.sum()) == pytest.approx(float(logits[0] - logits[2]), abs=1e-4)
    weights = cm.backbone.model.head.weight[0] - cm.backbone.model.head.weight[2]
    for colour, place in ((0, maps[0, 0, :16, :16]), (1, maps[0, 1, 16:, 16:])):
        assert torch.sign(maps[0, colour].sum()) == torch.sign(weights[colour])
        assert place.sum() / maps[0, colour].sum() > 0.7
    torch.testing.assert_close(contrastive_maps(cm, x, "c", "a", method), -maps)
