"""Low-rank adapters, against a network whose weights are changed for good."""

import copy

import pytest
import torch
from torch import nn

from conceptlens import Backbone
from conceptlens.bottleneck.lora import AdaptedBackbone, LowRankAdapters
from conceptlens.datasets.zoo import SmallViT


def generator():
    return torch.Generator().manual_seed(0)


class Attending(nn.Module):
    """torch's own attention, whose input weights are one matrix and no linear layer."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 8, stride=8)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.fc = nn.Linear(16, 3)

    def forward(self, x):
        tokens = self.stem(x).flatten(2).mT
        return self.fc(self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1))


@pytest.fixture(params=["vit", "attention"])
def backbone(request, device):
    torch.manual_seed(0)
    vit = request.param == "vit"
    model = (SmallViT(3, 32) if vit else Attending()).to(device)
    return Backbone(model, "norm" if vit else "attention")


def test_adapters_start_at_the_frozen_network_and_learn_alone(backbone, device):
    x = torch.rand(4, 3, 32, 32, generator=generator()).to(device)
    adapters = LowRankAdapters(backbone.model, 2, generator())
    before, mark = backbone.activations(x), backbone.fingerprint()
    trainable = {name for name, p in backbone.model.named_parameters() if p.requires_grad}
    found = AdaptedBackbone(backbone, adapters).activations(x)
    torch.testing.assert_close(found, before)
    found.square().sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in adapters.up)
    assert all(p.grad is None for p in backbone.model.parameters())
    assert backbone.fingerprint() == mark
    assert {name for name, p in backbone.model.named_parameters() if p.requires_grad} == trainable
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in backbone.model.modules())


def test_adapted_network_is_the_one_with_changed_weights(backbone, device):
    x = torch.rand(4, 3, 32, 32, generator=generator()).to(device)
    adapters = LowRankAdapters(backbone.model, 2, generator())
    changed = copy.deepcopy(backbone.model)
    with torch.no_grad():
        for name, up, down in zip(adapters.names, adapters.up, adapters.down, strict=True):
            up.copy_(torch.randn(up.shape, generator=generator()))
            dict(changed.named_parameters())[name].add_(up @ down)
        truth = Backbone(changed, backbone.layer).activations(x)
        found = AdaptedBackbone(backbone, adapters).activations(x)
    torch.testing.assert_close(found, truth)
    assert (found - backbone.activations(x)).abs().max() > 0.01


def test_refusals():
    with pytest.raises(ValueError, match="Conv2d has no linear layers"):
        LowRankAdapters(nn.Conv2d(3, 3, 1), 2, generator())
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        LowRankAdapters(nn.Linear(3, 3), 0, generator())
    adapters = LowRankAdapters(nn.Linear(3, 3), 1, generator())
    with pytest.raises(ValueError, match="other linear layers"):
        adapters.changed(Attending())
