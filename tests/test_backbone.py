"""Backbone: the cut gives the model's own logits and leaves nothing behind."""

import copy
import re

import pytest
import torch
import torchvision
from torch import nn

from conceptlens import Backbone, NotCuttableError
from conceptlens.layout import Layout
from conceptlens.torchscript import load_torchscript

CUTS = {
    "resnet18": ["layer1", "layer3.0", "layer4"],
    "resnet50": ["maxpool", "layer2.3.relu", "layer4"],
    "vgg16_bn": ["features.12", "features.33", "classifier.4"],
    "densenet121": ["features.denseblock1", "features.transition3", "features"],
    "mobilenet_v3_small": ["features.3", "features.8", "avgpool"],
    "efficientnet_b0": ["features.2", "features.5", "features.8"],
    "convnext_tiny": ["features.1", "features.5.4", "features"],
    "vit_b_16": ["encoder.layers.encoder_layer_2", "encoder.layers.encoder_layer_8", "encoder"],
    "swin_t": ["features.1", "features.5.2", "norm"],
    "timm:vit_tiny_patch16_224": ["blocks.1", "blocks.7", "norm"],
    "timm:resnet10t": ["layer1", "layer3", "layer4"],
    "efficientnet-lite0": ["_blocks.3", "_blocks.10", "_swish"],
}


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name.startswith("timm:"):
        model = pytest.importorskip("timm").create_model(name[5:])
    elif name == "efficientnet-lite0":
        model = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet.from_name(name)
    else:
        model = torchvision.models.get_model(name)
    for p in model.parameters():  # some heads start at zero, which would pass any check
        if p.ndim == 2 and not p.any():
            nn.init.normal_(p, std=0.02)
    return model.eval()


def small_cnn() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 6, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip


class Residual(nn.Module):
    """Two additions around one convolution, so that the inner layers are bypassed."""

    def __init__(self):
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.relu, self.fc = nn.ReLU(), nn.Linear(8, 4)

    def forward(self, x):
        x = self.relu(self.stem(x))
        x = self.relu(x + self.inner(x))
        return self.fc(x.mean((2, 3)))


class Untraceable(Residual):
    """The path depends on the pictures' values, which no tracer follows."""

    def forward(self, x):
        if x.mean() > 1e3:
            return x.new_zeros(len(x), 4)
        return super().forward(x)


class Features(Untraceable):
    """timm's pair of methods around a stem that is called by its parts."""

    def forward_features(self, x):
        return self.relu(self.stem(x))

    def forward_head(self, x):
        return self.fc(self.inner(x).mean((2, 3)))

    def forward(self, x):
        if x.mean() > 1e3:
            return x.new_zeros(len(x), 4)
        return self.forward_head(self.forward_features(x))


def state(model):
    return (
        sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()),
        [m.training for m in model.modules()],
        [(p.requires_grad, p.grad) for p in model.parameters()],
        [sorted(m.__dict__) for m in model.modules()],
        torch.get_rng_state().tolist(),
    )


@pytest.mark.parametrize("name", CUTS)
def test_head_of_activations_is_the_model_and_runs_no_trunk(name):
    model = make(name)
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(x)
    total = modules_run(model, lambda: model(x))
    for layer in CUTS[name]:
        bb = Backbone(model, layer)
        a = bb.activations(x)
        before = modules_run(model, lambda bb=bb, x=x: bb.activations(x))
        after = modules_run(model, lambda bb=bb, a=a: bb.head(a))
        assert a.shape[1] == bb.n_prefix + bb.grid[0] * bb.grid[1]
        torch.testing.assert_close(bb.head(a), expected, rtol=0, atol=1e-5 * expected.abs().max())
        assert {m: before.get(m, 0) + after.get(m, 0) for m in total} == total


def modules_run(model, call):
    """How often the forward of each innermost module really runs."""
    counts = {}

    def counting(module, forward):
        def run(*args, **kwargs):
            counts[module] = counts.get(module, 0) + 1
            return forward(*args, **kwargs)

        return run

    leaves = [m for m in model.modules() if not list(m.children())]
    for module in leaves:
        module.forward = counting(module, module.forward)
    try:
        with torch.no_grad():
            call()
    finally:
        for module in leaves:
            del module.forward
    return counts


@pytest.mark.parametrize(
    ("model", "layer", "mechanism"),
    [(Residual, "relu", "graph"), (Untraceable, "relu", "substitution"),
     (Untraceable, "stem", "substitution"), (Features, "relu", "forward_head")],
)  # fmt: skip
def test_mechanisms(model, layer, mechanism):
    torch.manual_seed(0)
    model, x = model().eval(), torch.randn(5, 3, 16, 16)
    bb = Backbone(model, layer)
    torch.testing.assert_close(bb(x), model(x).detach())
    assert bb.mechanism == mechanism
    assert mechanism in repr(bb)
    # The head must answer for another batch size than the one it was checked with.
    torch.testing.assert_close(bb.head(bb.activations(x)[:1]), model(x[:1]).detach())


@pytest.mark.parametrize("model", [Residual, Untraceable])
def test_bypassed_layer_names_the_nearest_that_can_be_cut(model):
    with pytest.raises(NotCuttableError, match=r"'inner' cannot be cut.*nearest.*'relu'"):
        Backbone(model(), "inner").grid


def test_survey_finds_what_numbers_confirm():
    model = Residual().eval()
    assert [info.name for info in Backbone(model).layers()] == ["stem", "relu", "fc"]
    for name in ("features.denseblock1.denselayer2", "features.denseblock1"):
        bb = Backbone(make("densenet121"), name)
        cuttable = name in [info.name for info in bb.layers()]
        if cuttable:
            assert bb.grid == (56, 56)
        else:
            with pytest.raises(NotCuttableError):
                bb.grid


def test_layers_tell_shape_sign_and_cost():
    layers = {info.name: info for info in Backbone(make("resnet18")).layers()}
    assert layers["layer3"].layout.shape == (256, 14, 14)
    assert layers["layer3"].nonnegative
    assert not layers["conv1"].nonnegative
    assert layers["layer1"].cost_before + layers["layer1"].cost_after == pytest.approx(1)
    assert layers["layer1"].cost_before < layers["layer3"].cost_before


def test_default_layer_is_the_last_whose_places_are_read():
    assert Backbone(make("resnet18")).layer == "layer4"
    bb = Backbone(make("timm:vit_tiny_patch16_224"))
    assert bb.layer == "blocks.10"
    assert (bb.grid, bb.n_prefix) == ((14, 14), 1)


@pytest.mark.parametrize("model", [small_cnn, Residual, Untraceable])
@pytest.mark.parametrize("training", [True, False])
def test_model_is_left_as_it_was(model, training):
    model = model().train(training)
    x = torch.randn(2, 3, 16, 16)
    weights, before = copy.deepcopy(model.state_dict()), state(model)
    bb = Backbone(model, "relu" if isinstance(model, Residual) else "3")
    a = bb.activations(x.requires_grad_())
    bb.head(a).sum().backward()
    bb.layers()
    x.grad = None
    assert state(model) == before
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("model", [Residual, Untraceable])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_model_is_left_as_it_was_after_an_exception(model, error):
    model = model().train()
    bb = Backbone(model, "stem")
    a = bb.activations(torch.randn(2, 3, 16, 16))
    before = state(model)
    original, model.inner.forward = model.inner.forward, lambda _: (_ for _ in ()).throw(error)
    with pytest.raises(error):
        bb.head(a)
    del model.inner.forward
    assert state(model) == before
    assert model.inner.forward == original


def test_gradients_flow_only_where_asked():
    bb, x = Backbone(small_cnn(), "1"), torch.randn(2, 3, 16, 16)
    assert not bb(x).requires_grad
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(bb(x)[:, 0].sum(), x)
    (expected,) = torch.autograd.grad(bb.model(x)[:, 0].sum(), x)
    torch.testing.assert_close(gradient, expected)
    assert all(p.grad is None for p in bb.model.parameters())


@pytest.mark.parametrize(
    ("wrap", "output"),
    [(lambda y: (None, y), 1), (lambda y: {"logits": y}, "logits"),
     (lambda y: {"deep": [y]}, lambda r: r["deep"][0])],
)  # fmt: skip
def test_output_selects_the_logits(wrap, output):
    class Wrapped(Residual):
        def forward(self, x):
            return wrap(super().forward(x))

    model, x = Wrapped().eval(), torch.randn(2, 3, 16, 16)
    with pytest.raises((TypeError, ValueError), match="output="):
        Backbone(model, "relu")(x)
    assert Backbone(model, "relu", output=output)(x).shape == (2, 4)


def test_compiled_model_is_cut():
    model = small_cnn()
    bb = Backbone(torch.compile(model), "1")
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(bb(x), model(x).detach())


def test_exported_program_is_cut():
    model, x = make("resnet18"), torch.randn(2, 3, 64, 64)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    bb = Backbone(torch.export.unflatten(program), "layer3")
    torch.testing.assert_close(bb(x), model(x).detach())
    assert bb.grid == (4, 4)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "densenet121"])
def test_torchscript_is_cut_at_its_operators(name, tmp_path):
    model, x = make(name), torch.randn(3, 3, 64, 64)
    torch.jit.trace(model, x[:1]).save(tmp_path / "net.pt")
    bb = Backbone(load_torchscript(tmp_path / "net.pt"))
    torch.testing.assert_close(bb(x), model(x).detach(), rtol=0, atol=1e-4)
    assert bb.layer.rstrip("0123456789") in ("relu_", "hardswish_")
    assert bb.grid == (2, 2)


def test_fingerprint_follows_content():
    def fresh():
        return small_cnn()

    same = Backbone(fresh(), "1").fingerprint()
    assert same == Backbone(fresh(), "1").fingerprint()
    assert same != Backbone(fresh(), "3").fingerprint()
    changed = fresh()
    changed[0].weight.data[0, 0, 0, 0] += 1e-6
    assert same != Backbone(changed, "1").fingerprint()
    strided = fresh()
    strided[0].stride = (1, 1)
    assert same != Backbone(strided, "1").fingerprint()


def test_autocast_returns_float32_close_to_float32():
    model, x = small_cnn(), torch.randn(2, 3, 16, 16)
    bb = Backbone(model, "1", autocast=torch.bfloat16)
    assert bb.activations(x).dtype == torch.float32
    torch.testing.assert_close(bb(x), model(x).detach(), rtol=0.1, atol=0.05)


def test_runs_where_the_model_is(device):
    bb = Backbone(small_cnn(), "1", device=device)
    a = bb.activations(torch.randn(2, 3, 16, 16))
    assert a.device.type == bb.head(a).device.type == device.type


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m, x: Backbone("resnet18"), TypeError, "nn.Module"),
        (lambda m, x: Backbone(m, "33"), ValueError, "no layer '33'"),
        (lambda m, x: Backbone(make("resnet18"), "layer5"), ValueError, "'layer1'|'layer4'"),
        (lambda m, x: Backbone(m, "1")(x[0]), ValueError, "B, 3, H, W"),
        (lambda m, x: Backbone(m, "1")((x * 255).byte()), ValueError, "float tensor"),
        (lambda m, x: Backbone(m, "1").head(torch.zeros(2, 5, 8)), ValueError, "layer '1' has"),
        (lambda m, x: Backbone(m, "1", class_names=list("abcd")).class_index("e"), ValueError,
         "unknown class 'e'"),
        (lambda m, x: Backbone(m, "1", class_names=["tabby cat"]).class_index("tabby"), ValueError,
         "near names: 'tabby cat'"),
        (lambda m, x: Backbone(m, "1").class_index("e"), ValueError, "class_names"),
        (lambda m, x: Backbone(m, "1", class_names=["a"]).class_index(1), ValueError, "1 classes"),
    ],
)  # fmt: skip
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call(small_cnn(), torch.randn(2, 3, 16, 16))


def test_other_picture_size_is_refused():
    bb = Backbone(small_cnn(), "1")
    bb(torch.randn(2, 3, 16, 16))
    with pytest.raises(ValueError, match=r"\(3, 32, 32\).*\(3, 16, 16\)"):
        bb(torch.randn(2, 3, 32, 32))


def test_nan_weights_are_named():
    model = small_cnn()
    model[2].weight.data[0] = float("nan")
    with pytest.raises(ValueError, match=r"NaN.*'2.weight'"):
        Backbone(model, "1")(torch.randn(2, 3, 16, 16))


@pytest.mark.parametrize(
    ("shape", "picture", "kind", "grid", "prefix"),
    [
        ((512,), (224, 224), "vector", (1, 1), 0),
        ((512, 7, 7), (224, 224), "channels_first", (7, 7), 0),
        ((7, 7, 768), (224, 224), "channels_last", (7, 7), 0),
        ((96, 8, 12), (256, 384), "channels_first", (8, 12), 0),
        ((197, 768), (224, 224), "tokens", (14, 14), 1),
        ((196, 768), (224, 224), "tokens", (14, 14), 0),
        ((201, 768), (224, 224), "tokens", (14, 14), 5),
        ((97, 64), (256, 384), "tokens", (8, 12), 1),
    ],
)
def test_layout(shape, picture, kind, grid, prefix):
    layout = Layout.infer(shape, picture)
    assert (layout.kind, layout.grid, layout.n_prefix) == (kind, grid, prefix)
    output = torch.randn(3, *shape)
    positions = layout.to_positions(output)
    assert positions.shape == (3, layout.positions, layout.channels)
    assert torch.equal(layout.from_positions(positions), output)


def test_several_layers_from_one_pass(device):
    model = torchvision.models.resnet18(weights=None, num_classes=5).to(device)  # works in place
    layers = ["bn1", "layer1", "layer2.0", "avgpool"]
    x = torch.rand(3, 3, 64, 64, device=device)
    bb = Backbone(model, "layer4")
    for layer, a in bb.activations_at(x, layers).items():
        assert torch.equal(a, Backbone(model, layer).activations(x)), layer
    passes = []
    handle = model.conv1.register_forward_hook(lambda *_: passes.append(1))
    assert list(bb.activations_at(x, layers[::-1])) == layers[::-1]
    handle.remove()
    assert len(passes) == 1
    assert not any(m._forward_hooks for m in model.modules())
    with pytest.raises(ValueError, match="no layer 'layer5'"):
        bb.activations_at(x, ["layer5"])


def test_channels_last_models_are_given_pictures_likewise_and_stay_so():
    def weights():
        return [p.stride() for p in model.parameters()]

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    )
    x = torch.rand(2, 3, 16, 16)
    seen = []
    model[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].stride()[1]))
    plain, strides = Backbone(model, "1").activations(x), weights()
    assert set(seen) == {16 * 16}
    assert weights() == strides
    seen.clear()
    model.to(memory_format=torch.channels_last)
    strides = weights()
    torch.testing.assert_close(Backbone(model, "1").activations(x), plain)
    assert set(seen) == {1}
    assert weights() == strides


def test_a_notebook_shows_it_as_a_table_whatever_its_names():
    class_names = ["a", "b"]
    model = torch.nn.Sequential()
    model.add_module("<b>", torch.nn.Conv2d(3, 5, 4, 4))
    model.add_module("rest", torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(20, 2)))
    bb = Backbone(model, "<b>", class_names=class_names)
    assert "channels" not in bb._repr_html_()  # it is not used yet, and stays so
    bb.activations(torch.zeros(1, 3, 8, 8))
    cells = dict(re.findall("<th>(.+?)</th><td>(.+?)</td>", bb._repr_html_()))
    assert cells == {
        "model": "Sequential", "layer": "&lt;b&gt;", "grid": "2 × 2", "channels": "5",
        "head by": bb.mechanism, "classes": "2", "device": "cpu",
    }  # fmt: skip
