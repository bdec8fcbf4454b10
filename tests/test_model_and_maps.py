"""DictionaryModel and concept_maps on a network whose numbers can be worked out by hand."""

import pytest
import torch
from torch import nn

from conceptlens import NMF, Backbone, ConceptModel, DictionaryModel, concept_maps
from conceptlens.maps import upsample


class Identity(nn.Module):
    """Pooled channels are the logits, so a code's place and worth are those of the pixels."""

    def __init__(self):
        super().__init__()
        self.pool, self.relu = nn.AvgPool2d(4), nn.ReLU()

    def forward(self, x):
        return self.relu(self.pool(x)).mean((2, 3))


@pytest.fixture
def model():
    x = torch.rand(40, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    bb = Backbone(Identity(), "relu", class_names=["red", "green", "blue"])
    nmf = NMF(3, random_state=0, max_iter=2000, tol=1e-7).fit(bb.activations(x).flatten(0, 1))
    return DictionaryModel(bb, nmf)


def test_codes_rebuild_the_logits(model):
    x = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    codes = model.encode(x)
    assert codes.shape == (5, 16, 3)
    assert isinstance(model, ConceptModel)
    torch.testing.assert_close(model.classify(codes), model.backbone(x), rtol=0.02, atol=0.02)


def test_gradients_reach_the_codes(model):
    codes = model.encode(torch.rand(2, 3, 16, 16)).requires_grad_()
    (gradient,) = torch.autograd.grad(model.classify(codes)[:, 1].sum(), codes)
    # The logit is the mean over 16 positions of the green channel of the decoded activations.
    expected = model.extractor.components_[:, 1].expand_as(codes) / 16
    torch.testing.assert_close(gradient, expected)


def test_map_peaks_where_the_colour_is(model):
    x = torch.zeros(1, 3, 16, 16)
    x[0, 0, :4, 12:] = 1.0  # red, top right
    maps = concept_maps(model, x)
    strongest = maps[0].amax((1, 2)).argmax()
    row, column = divmod(int(maps[0, strongest].argmax()), 16)
    assert maps.shape == (1, 3, 16, 16)
    assert row < 4
    assert column >= 12
    assert maps.min() >= 0


def test_upsampling_stays_in_range():
    maps = torch.rand(2, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    large = upsample(maps, (50, 60))
    assert large.shape == (2, 3, 50, 60)
    assert (large.amax((2, 3)) <= maps.amax((2, 3))).all()
    assert (large.amin((2, 3)) >= maps.amin((2, 3))).all()


def test_no_map_without_places():
    bb = Backbone(nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 2)), "2")
    x = torch.rand(30, 3, 4, 4)
    model = DictionaryModel(bb, NMF(2, random_state=0).fit(bb.activations(x).flatten(0, 1)))
    with pytest.raises(ValueError, match="one position a picture"):
        concept_maps(model, x)


def test_wrong_number_of_names(model):
    with pytest.raises(ValueError, match="concept_names must have 3 names, got 2"):
        DictionaryModel(model.backbone, model.extractor, ["a", "b"])
