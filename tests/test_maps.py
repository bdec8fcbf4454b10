"""Pixel-level concept maps: against captum, closed forms, and a network seen through by hand."""

import pytest
import torch
from torch import nn

from conceptlens import attribution
from conceptlens.backbone import Backbone
from conceptlens.extraction.nmf import NMF
from conceptlens.maps import MAPS, coam, concept_maps, presence
from conceptlens.model import DictionaryModel

NEED_NO_GRADIENT = {"interpolate", "coam", "occlusion", "rise"}
NONNEGATIVE = {"interpolate", "coam", "grad_cam", "saliency", "smoothgrad"}  # on a model with V ≥ 0


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3),
    )  # fmt: skip


def pictures(n=4, size=24, seed=1):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model():
    bb = Backbone(net().double(), "5")
    x = pictures(30, seed=0).double()
    return DictionaryModel(bb, NMF(4, random_state=0).fit(bb.activations(x).flatten(0, 1)))


@pytest.fixture(scope="module")
def colours():
    """The trunk averages 4 × 4 pixels; concept j is colour j, its code the colour's mean."""
    bb = Backbone(
        nn.Sequential(nn.AvgPool2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), "1"
    )
    nmf = NMF(3, random_state=0)
    nmf.components_, nmf.n_features_in_ = torch.eye(3), 3
    return DictionaryModel(bb, nmf)


# -- every method --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", MAPS)
def test_every_method_keeps_the_contract(model, method):
    x = pictures().double()
    modes = [m.training for m in model.backbone.model.modules()]
    state = torch.random.get_rng_state()
    maps = concept_maps(model, x, method)
    assert maps.shape == (4, 4, 24, 24)
    assert maps.dtype == x.dtype
    assert not maps.requires_grad
    assert torch.isfinite(maps).all()
    assert maps.any()
    if method in NONNEGATIVE:
        assert maps.min() >= 0
    assert [m.training for m in model.backbone.model.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not x.requires_grad
    assert all(p.grad is None and p.requires_grad for p in model.backbone.model.parameters())


@pytest.mark.parametrize("method", MAPS)
def test_maps_do_not_depend_on_batches_and_repeat(model, method):
    x = pictures(3).double()
    whole = concept_maps(model, x, method, seed=3)
    assert torch.equal(concept_maps(model, x, method, seed=3), whole)
    apart = concept_maps(model, x, method, seed=3, batch_size=1)
    torch.testing.assert_close(apart, whole, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("method", ["smoothgrad", "rise"])
def test_another_seed_is_another_draw(model, method):
    x = pictures(1).double()
    assert not torch.equal(concept_maps(model, x, method), concept_maps(model, x, method, seed=1))


# Presence is linear in the pixels here, so its gradient alone is the same everywhere.
@pytest.mark.parametrize("method", sorted(set(MAPS) - {"saliency", "smoothgrad"}))
def test_every_method_finds_the_coloured_square(colours, method):
    x = torch.full((2, 3, 24, 24), 0.02)
    places = torch.zeros(2, 3, 24, 24, dtype=torch.bool)
    for picture in range(2):
        for colour in range(3):
            top, left = 8 * ((picture + colour) % 3), 8 * colour
            x[picture, colour, top : top + 8, left : left + 8] = 1.0
            places[picture, colour, top : top + 8, left : left + 8] = True
    peaks = concept_maps(colours, x, method).flatten(2).argmax(2)
    assert places.flatten(2).gather(2, peaks[..., None]).all()


@pytest.mark.parametrize("method", sorted(set(MAPS) - NEED_NO_GRADIENT))
def test_an_extractor_without_gradients_is_named(model, method):
    class Outside(NMF):
        def transform(self, a):
            return super().transform(a.detach())

    outside = Outside(4)
    outside.components_, outside.n_features_in_ = model.extractor.components_, 12
    cm = DictionaryModel(model.backbone, outside)
    with pytest.raises(ValueError, match="'occlusion'"):
        concept_maps(cm, pictures().double(), method)


def test_unknown_method_and_models_without_activations(model):
    class Bottleneck:
        grid, n_prefix = (6, 6), 0
        encode = model.encode

    with pytest.raises(ValueError, match=r"'implicit'.*got 'implict'"):
        concept_maps(model, pictures(), "implict")
    for method in ("coam", "grad_cam"):
        with pytest.raises(TypeError, match="needs a DictionaryModel, got Bottleneck"):
            concept_maps(Bottleneck(), pictures().double(), method)
    assert concept_maps(Bottleneck(), pictures().double(), "saliency").shape == (4, 4, 24, 24)


# -- one method ----------------------------------------------------------------------------------


def test_gradient_methods_equal_captum(model):
    from captum import attr

    x = pictures(2).double()

    def score(x):
        return presence(model, x)

    for k in range(4):
        with torch.enable_grad():
            gradient = attr.Saliency(score).attribute(x.clone(), target=k, abs=False)
            times_input = attr.InputXGradient(score).attribute(x.clone(), target=k).sum(1)
            integrated = attr.IntegratedGradients(score).attribute(
                x, x.mean((2, 3), keepdim=True).expand_as(x), target=k,
                n_steps=attribution.N_STEPS, method="riemann_middle",
            )  # fmt: skip
        found = concept_maps(model, x, "saliency")[:, k]
        torch.testing.assert_close(found, gradient.abs().amax(1))
        torch.testing.assert_close(concept_maps(model, x, "gradient_x_input")[:, k], times_input)
        found = concept_maps(model, x, "integrated_gradients")[:, k]
        torch.testing.assert_close(found, integrated.sum(1))


def test_gradients_are_those_of_finite_differences(model):
    x = pictures(1).double()
    gradients = attribution._gradients(lambda x: presence(model, x), x)[0]
    step = 1e-6
    for index in [(0, 3, 5), (1, 12, 12), (2, 20, 7)]:
        shift = torch.zeros_like(x)
        shift[(0, *index)] = step
        expected = (presence(model, x + shift) - presence(model, x - shift))[0] / (2 * step)
        torch.testing.assert_close(gradients[(slice(None), *index)], expected, rtol=1e-5, atol=1e-9)


def test_integrated_gradients_of_presence_are_complete(model):
    x = pictures().double()
    maps = concept_maps(model, x, "integrated_gradients")
    blank = x.mean((2, 3), keepdim=True).expand_as(x)
    expected = presence(model, x) - presence(model, blank)
    torch.testing.assert_close(maps.sum((2, 3)), expected, rtol=0.02, atol=0.02)


def test_implicit_maps_are_integrated_gradients_blurred_by_scipy(model):
    from scipy.ndimage import gaussian_filter1d

    x = pictures(1).double()
    expected = concept_maps(model, x, "integrated_gradients").numpy()
    for axis in (2, 3):
        sigma = attribution.SMOOTHING * 24
        expected = gaussian_filter1d(
            expected, sigma, axis, mode="constant", radius=round(3 * sigma)
        )
    torch.testing.assert_close(concept_maps(model, x, "implicit"), torch.from_numpy(expected))


def test_occlusion_of_a_linear_score_by_brute_force():
    weights = torch.randn(2, 12, 10, generator=torch.Generator().manual_seed(0)).double()

    def score(x):
        return torch.einsum("bchw,khw->bk", x, weights)

    x = pictures(3, seed=2)[:, :, :12, :10].double()
    deviation = (x - x.mean((2, 3), keepdim=True)).sum(1)
    total, count = torch.zeros(3, 2, 12, 10).double(), torch.zeros(12, 10).double()
    for top in range(12):
        for left in range(10):  # side 1, stride 1: a seventh of 10 rounds to 1
            part = deviation[:, None, top, left] * weights[None, :, top, left]
            total[:, :, top, left] += part
            count[top, left] += 1
    torch.testing.assert_close(attribution.occlusion(score, x), total / count)


def test_rise_of_a_score_that_reads_one_place():
    def score(x):
        return x[:, :, 15:21, 27:33].mean((1, 2, 3))[:, None]

    x = torch.zeros(1, 3, 48, 48)
    x[:, :, 12:24, 24:36] = 1.0
    row, column = divmod(int(attribution.rise(score, x)[0, 0].argmax()), 48)
    assert 12 <= row < 24
    assert 24 <= column < 36


def test_coam_is_the_product_with_the_activations(model):
    x = pictures(2).double()
    vectors = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    maps = coam(model.backbone, vectors, x)
    a = model.backbone.activations(x).unflatten(1, (6, 6))
    products = torch.einsum("bhwc,kc->bkhw", a, vectors.double())
    low = products.amin((2, 3)), products.amax((2, 3))
    assert maps.shape == (2, 5, 24, 24)
    assert (maps.amin((2, 3)) >= low[0] - 1e-9).all()
    assert (maps.amax((2, 3)) <= low[1] + 1e-9).all()
    small = torch.nn.functional.avg_pool2d(maps, 4)
    assert torch.corrcoef(torch.stack([small.flatten(), products.flatten()]))[0, 1] > 0.97
    with pytest.raises(ValueError, match=r"vectors must have shape \(k, 12\)"):
        coam(model.backbone, vectors[:, :7], x)


def test_codes_are_the_layers_gradient_times_input(model):
    """NNLS is linear on a support, so attributing it to activations gives back the codes."""
    a = model.backbone.activations(pictures(2).double()).flatten(0, 1).requires_grad_()
    codes = model.extractor.transform(a)
    gradients = [torch.autograd.grad(c.sum(), a, retain_graph=True)[0] for c in codes.T]
    found = torch.stack([(g * a).sum(1) for g in gradients], 1)
    torch.testing.assert_close(found, codes, rtol=1e-6, atol=1e-8)


def test_maps_of_positions_need_places_and_maps_of_pixels_do_not():
    bb = Backbone(net(), "7")
    x = pictures(30)
    a = bb.activations(x).flatten(0, 1)
    cm = DictionaryModel(bb, NMF(2, random_state=0).fit(a))
    for method in ("interpolate", "coam", "grad_cam"):
        with pytest.raises(ValueError, match="one position a picture"):
            concept_maps(cm, x, method)
    assert concept_maps(cm, x[:2], "gradient_x_input").any()
