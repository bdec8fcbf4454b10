"""Changing codes, attaching edits, counterfactuals: on heads whose answers are known."""

import math

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import nn

from conceptlens import Backbone
from conceptlens.datasets.zoo import SmallCNN, SmallViT
from conceptlens.editing import LowRank, ablate, attach, counterfactual, detach, scale
from conceptlens.editing import set as set_codes

X = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


class Affine:
    """Logits that are affine in the mean code."""

    grid, n_prefix = (1, 3), 0

    def __init__(self, k=4, n_classes=3, dtype=torch.float64):
        generator = torch.Generator().manual_seed(1)
        self.weight = torch.randn(k, n_classes, generator=generator, dtype=dtype)
        self.bias = torch.randn(n_classes, generator=generator, dtype=dtype)
        self.concept_names = ["disc", "square", "star", "ring"][:k]
        self.class_names = ["circus", "garden", "harbour"][:n_classes]

    def classify(self, codes):
        return codes.mean(1) @ self.weight.to(codes.device) + self.bias.to(codes.device)


class Bent(Affine):
    def classify(self, codes):
        return torch.tanh(super().classify(codes)) + 0.2 * super().classify(codes)


def codes(n=12, device="cpu", seed=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, 4, generator=generator, dtype=torch.float64).to(device)


# -- ablate, scale, set ---------------------------------------------------------------------------


def test_effect_is_that_of_the_changed_codes(device):
    cm, u = Affine(), codes(40, device)
    labels = torch.arange(40, device=device) % 3
    effect = scale(cm, u, ["star", 0], 3.0, labels=labels, batch_size=7)
    changed = u.clone()
    changed[:, :, [0, 2]] *= 3
    torch.testing.assert_close(effect.after, cm.classify(changed))
    torch.testing.assert_close(
        effect.change, 2 * u[:, :, [0, 2]].mean((0, 1)) @ cm.weight[[0, 2]].to(device)
    )
    new = cm.classify(changed).argmax(1)
    assert effect.accuracy[1] == float((new == labels).double().mean())
    for c in range(3):
        assert float(effect.rates[1, c]) == float((new[labels == c] == c).double().mean())
    assert effect.flipped == float((new != cm.classify(u).argmax(1)).double().mean())
    assert "scaling star, disc by 3" in repr(effect)
    assert len(effect.plot().axes) == 2


def test_removing_and_setting():
    cm, u = Affine(), codes()
    gone, zero = ablate(cm, u, 1), set_codes(cm, u, "square", 0.0)
    assert torch.equal(gone.after, zero.after)
    values = torch.linspace(0, 1, 12).double()
    own = set_codes(cm, u, "square", values)
    for i in range(12):
        one = set_codes(cm, u[i : i + 1], "square", float(values[i]))
        torch.testing.assert_close(own.after[i : i + 1], one.after)
    assert (gone.rates.sum(1) - 1).abs().max() < 1e-12  # without labels: shares of all pictures


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda cm, u: ablate(cm, u, "disk"), "near names: disc"),
        (lambda cm, u: ablate(cm, u, 9), "concept 9 does not exist: there are 4"),
        (lambda cm, u: ablate(cm, u, []), "at least one"),
        (lambda cm, u: ablate(cm, u[0], 0), r"\(n, P, k\)"),
        (lambda cm, u: ablate(cm, u, 0, labels=torch.zeros(5)), "labels must have shape"),
        (lambda cm, u: ablate(cm, u, 0, labels=torch.full((12,), 3)), "between 0 and 2"),
        (lambda cm, u: set_codes(cm, u, 0, torch.ones(3)), "value must have shape"),
        (lambda cm, u: ablate(cm, u, 0).accuracy, "without labels"),
        (lambda cm, u: counterfactual(cm, u, "zoo"), "unknown class 'zoo'"),
        (lambda cm, u: counterfactual(cm, u, norm="l3"), "norm must be one of"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(Affine(), codes())


# -- counterfactuals ------------------------------------------------------------------------------


def scipys_distance(cm, u, norm):
    """The nearest flip of one picture by SciPy's linear program, or its SLSQP."""
    logits = cm.classify(u[None])[0]
    old, best = int(logits.argmax()), math.inf
    for c in range(len(logits)):
        if c == old:
            continue
        g = ((cm.weight[:, c] - cm.weight[:, old]) / u.shape[0]).repeat(u.shape[0]).numpy()
        need, room = float(logits[old] - logits[c]), u.flatten().numpy()
        if norm == "l1":
            d = len(g)
            found = scipy.optimize.linprog(
                np.ones(2 * d), A_ub=[np.concatenate([-g, g])], b_ub=[-need],
                bounds=[(0, None)] * d + [(0, r) for r in room],
            )  # fmt: skip
            distance = found.fun if found.success else math.inf
        else:
            found = scipy.optimize.minimize(
                lambda d: d @ d, np.zeros(len(g)), jac=lambda d: 2 * d, method="SLSQP",
                bounds=[(-r, None) for r in room], options={"maxiter": 500, "ftol": 1e-10},
                constraints={"type": "ineq", "fun": lambda d, g=g, need=need: g @ d - need},
            )  # fmt: skip
            distance = math.sqrt(found.fun) if found.success else math.inf
        best = min(best, distance)
    return best


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_counterfactuals_of_affine_heads_are_the_nearest(norm):
    cm, u = Affine(), codes()
    found = counterfactual(cm, u, norm=norm, batch_size=5)
    expected = torch.tensor([scipys_distance(cm, row, norm) for row in u]).double()
    torch.testing.assert_close(found.distance, expected, rtol=3e-3, atol=1e-9)
    assert found.found.all()
    assert (found.codes >= 0).all()
    assert torch.equal(cm.classify(found.codes).argmax(1), found.after)
    assert (found.after != found.before).all()
    assert "12 of 12" in repr(found)
    assert found.plot(3).axes[0].get_title() != ""


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("model", [Affine, Bent])
def test_counterfactuals_reach_the_target(norm, model, device):
    cm, u = model(), 3 * codes(30, device)
    found = counterfactual(cm, u, "harbour", norm=norm)
    reached = cm.classify(found.codes).argmax(1) == 2
    assert torch.equal(reached, found.found)
    assert reached.double().mean() > 0.9
    torch.testing.assert_close(found.codes, u + found.change)
    # Just before its end the way is not yet in the class.
    moved = found.found & (found.before != 2)
    short = u + 0.99 * found.change
    assert (cm.classify(short).argmax(1)[moved] != 2).double().mean() > 0.9
    assert (found.distance[found.before == 2] == 0).all()


def test_signed_codes_may_go_below_zero():
    cm, u = Affine(), codes() - 0.5
    found = counterfactual(cm, u)
    logits = cm.classify(u)
    top = logits.argmax(1)
    # Without bounds the distance to a plane is the margin over the gradient's norm.
    slope = (cm.weight[:, :, None] - cm.weight[:, None, :]) / math.sqrt(3)
    lead = logits.gather(1, top[:, None]) - logits
    distance = lead / slope.norm(dim=0)[top].clamp(min=1e-12)
    distance[torch.arange(12), top] = math.inf
    torch.testing.assert_close(found.distance, distance.amin(1), rtol=2e-3, atol=1e-9)


def test_what_cannot_flip_is_said():
    cm = Affine(1, 2)
    cm.weight, cm.bias = -torch.ones(1, 2).double(), torch.tensor([1.0, 0.0]).double()
    found = counterfactual(cm, codes()[:, :, :1])
    assert not found.found.any()
    assert "0 of 12" in repr(found)


def test_no_gradients_no_counterfactual():
    cm = Affine()
    cm.classify = torch.no_grad()(cm.classify)
    with pytest.raises(TypeError, match="passes no gradients"):
        counterfactual(cm, codes())


# -- attach and detach ----------------------------------------------------------------------------


def edit(channels=64, scale=1.0):
    generator = torch.Generator().manual_seed(4)
    return LowRank(
        scale * torch.randn(channels, 2, generator=generator) / 8,
        torch.randn(2, channels, generator=generator),
        torch.randn(channels, generator=generator),
    )


def network(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return (SmallCNN(3) if name == "cnn" else SmallViT(3, 64)).eval()


PLACES = [("cnn", "features"), ("cnn", "features.8"), ("cnn", "features.9"), ("vit", "blocks.1"),
          ("vit", "blocks"), ("vit", "norm"), ("cnn", "pool")]  # fmt: skip


@pytest.mark.parametrize(("name", "layer"), PLACES)
def test_attached_is_the_cut_with_the_edit_between(name, layer, device):
    model, change = network(name).to(device), edit().to(device)
    x = X.to(device)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    edited = attach(model, layer, change)
    bb = Backbone(model, layer)
    with torch.no_grad():
        expected = bb.head(change(bb.activations(x)))
        torch.testing.assert_close(edited(x), expected, rtol=1e-4, atol=1e-5)
        assert (edited(x) - model(x)).abs().max() > 1e-3
        torch.testing.assert_close(detach(edited)(x), model(x))
    assert list(detach(edited).state_dict()) == list(before)
    added = set(edited.state_dict()) - set(before)
    assert {key.rsplit(".", 1)[0] for key in added} == {f"{layer}.edits.0.edit"}
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())
    assert not any(m._forward_hooks for m in detach(edited).modules())


@pytest.mark.parametrize(
    ("name", "layer"), [("cnn", "features"), ("cnn", "pool"), ("vit", "blocks.1")]
)
@pytest.mark.parametrize("way", ["export", "trace", "script"])
def test_edited_networks_leave_python(name, layer, way, tmp_path):
    model = network(name)
    edited = attach(model, layer, edit())
    if way == "export":
        left = torch.export.export(edited, (X,)).module()
    elif way == "trace":
        left = torch.jit.trace(edited, X)
    else:
        try:
            torch.jit.script(model)
        except (RuntimeError, torch.jit.frontend.NotSupportedError):
            pytest.skip("the model itself cannot be scripted")
        torch.jit.script(edited).save(tmp_path / "edited.pt")
        left = torch.jit.load(tmp_path / "edited.pt")
    with torch.no_grad():
        torch.testing.assert_close(left(X), edited(X), rtol=1e-4, atol=1e-5)


def test_state_dict_carries_the_edit():
    model = network("cnn")
    edited, other = attach(model, "pool", edit()), attach(model, "pool", edit(scale=0.0))
    other.load_state_dict(edited.state_dict())
    torch.testing.assert_close(other(X), edited(X))


def test_edits_add_up_in_order_and_over_layers():
    model, first, second = network("cnn"), edit(), edit(scale=0.3)
    for layer in ("features", "features.11"):  # both return the same
        twice = attach(attach(model, "features", first), layer, second)
        bb = Backbone(model, "features")
        order = (first, second) if layer == "features" else (second, first)
        expected = bb.head(order[1](order[0](bb.activations(X))))
        torch.testing.assert_close(twice(X), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(detach(twice)(X), model(X))


def test_edited_networks_can_be_cut_again():
    edited = attach(network("cnn"), "features", edit())
    for layer in ("features", "features.5", "pool"):
        torch.testing.assert_close(Backbone(edited, layer)(X), edited(X), rtol=1e-4, atol=1e-4)


class ChannelsLast(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.swap = nn.Conv2d(3, 8, 8, 8), nn.Identity()

    def forward(self, x):
        return self.swap(self.conv(x).movedim(1, 3)).mean((1, 2))


class Structured(nn.Module):
    """A layer that returns a tuple, as some libraries' blocks do."""

    class Block(nn.Module):
        def forward(self, x):
            return (x.flatten(2).mT, "more")

    def __init__(self):
        super().__init__()
        self.block = self.Block()

    def forward(self, x):
        return self.block(x)[0].mean(1)


def test_other_layouts():
    model, change = ChannelsLast().eval(), edit(8)
    bb = Backbone(model, "swap")
    bb(torch.rand(2, 3, 64, 96))
    bb = Backbone(model, "swap", transform=lambda _: torch.zeros(3, 64, 96))
    x = torch.rand(2, 3, 64, 96)
    torch.testing.assert_close(attach(bb, "swap", change)(x), bb.head(change(bb.activations(x))))
    model, change = Structured(), edit(3)
    torch.testing.assert_close(
        attach(model, "block", change)(X), change(X.flatten(2).mT).mean(1), rtol=1e-4, atol=1e-5
    )


def test_bad_places():
    with pytest.raises(ValueError, match="no layer 'feature'"):
        attach(network("cnn"), "feature", edit())
    with pytest.raises(TypeError, match=r"edit must be an nn.Module"):
        attach(network("cnn"), "features", lambda a: a)
    with pytest.raises(TypeError, match=r"model must be an nn.Module"):
        attach(print, "features", edit())
    listed = nn.Module()
    listed.parts = nn.ModuleList([nn.Linear(2, 2)])
    with pytest.raises(ValueError, match="is a ModuleList"):
        attach(listed, "parts", edit(2))
