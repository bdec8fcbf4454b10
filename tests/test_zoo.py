"""Small networks learn planted pictures, and are trained once."""

import pytest
import torch

from conceptlens import Backbone
from conceptlens.datasets import Formula, PlantedConcepts, zoo
from conceptlens.datasets.zoo import SmallCNN, SmallViT, accuracy, small_cnn, small_vit


def easy(n=192, **settings):
    return PlantedConcepts(
        n, 32, ["red disc", "blue square"], Formula({"yes": "red disc"}), **settings
    )


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "conceptlens" / "zoo"


def weights(model):
    return torch.cat([value.flatten().double() for value in model.state_dict().values()])


def test_vit_learns_the_default_pictures():
    data = PlantedConcepts(3000)
    assert accuracy(small_vit(data), data.like(600, seed=99)) >= 0.97


@pytest.mark.parametrize("train", [small_cnn, small_vit])
def test_trained_once_then_read(train, cache, monkeypatch):
    first = train(easy())
    assert len(list(cache.glob("*.safetensors"))) == 1
    monkeypatch.setattr(zoo, "_train", lambda *args: pytest.fail("trained again"))
    again = train(easy())
    assert torch.equal(weights(again), weights(first))
    assert not again.training


def test_same_seed_same_network_other_seed_or_data_another(cache):
    first = small_cnn(easy())
    next(cache.glob("*.safetensors")).unlink()
    assert torch.equal(weights(small_cnn(easy())), weights(first))
    for other in (small_cnn(easy(), seed=1), small_cnn(easy(seed=1))):
        assert not torch.equal(weights(other), weights(first))
    assert len(list(cache.glob("*.safetensors"))) == 3


def test_the_rule_is_part_of_the_key():
    concepts = ["red disc", "blue square"]
    keys = {
        zoo.data_key(PlantedConcepts(9, 32, concepts, Formula({"yes": formula}, otherwise)), 0)
        for formula in concepts
        for otherwise in ("no", "other")
    }
    assert len(keys) == 4


def test_broken_files_are_trained_anew(cache):
    first = small_cnn(easy())
    path = next(cache.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:100])
    assert torch.equal(weights(small_cnn(easy())), weights(first))


def test_training_leaves_no_trace_in_the_random_state(cache):
    before = torch.get_rng_state()
    small_cnn(easy(64))
    assert torch.equal(torch.get_rng_state(), before)


def test_cuts_have_the_grids_that_are_said():
    cnn, vit, x = SmallCNN(3).eval(), SmallViT(3, 64).eval(), torch.rand(2, 3, 64, 64)
    for layer in ("features", "features.5"):
        bb = Backbone(cnn, layer)
        assert bb.activations(x).min() >= 0
        assert bb.grid == (16, 16)
    tokens = Backbone(vit, "blocks.1")
    torch.testing.assert_close(tokens(x), vit(x))
    assert (tokens.grid, tokens.n_prefix) == ((8, 8), 1)


def test_a_position_of_the_cnn_sees_17_pixels():
    x = torch.rand(1, 3, 64, 64, requires_grad=True)
    SmallCNN(3).eval().features(x)[0, :, 8, 8].sum().backward()
    seen = x.grad.abs().sum((0, 1)) > 0
    assert (int(seen.any(0).sum()), int(seen.any(1).sum())) == (17, 17)
