"""Depth and dynamics: an easy concept is found earlier and learnt earlier than a hard one."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from conceptlens import Backbone
from conceptlens.datasets import Formula, PlantedConcepts
from conceptlens.datasets.zoo import SmallCNN, SmallViT
from conceptlens.metrics import Emergence, concept_depth, concept_dynamics, emergence
from conceptlens.training import train_epochs

NAMES = ["easy", "hard"]
SIZE = 32


def pictures(n, seed):
    """A frame that is there or not, and a red square or blue cross against a blue or red one.

    The frame is a matter of colour. Whether form and colour agree is their exclusive or: no sum
    of what colour and form say alone tells it.
    """
    rule = Formula({"framed": "yellow border"})
    parts = [
        PlantedConcepts(n // 2, SIZE, ("yellow border", symbols), rule, seed=seed)
        for symbols in ("red square | blue square", "blue cross | red cross")
    ]
    concepts = torch.cat([part.concepts for part in parts])
    return torch.cat([part.images for part in parts]), concepts


RECIPES = {
    "cnn": (lambda: SmallCNN(4), "features", 1200, 8, 1e-2),
    "vit": (lambda: SmallViT(4, SIZE), "blocks.2", 2400, 10, 2e-3),
}


@pytest.fixture(scope="module", params=RECIPES)
def trained(request):
    """A network, its weights at each epoch, and new pictures with their concepts."""
    build, layer, n, n_epochs, lr = RECIPES[request.param]
    torch.manual_seed(0)
    model = build()
    images, concepts = pictures(n, 0)
    labels = concepts.long() @ torch.tensor([2, 1])
    states = {
        epoch: copy.deepcopy(model.state_dict())
        for epoch in train_epochs(model, images, labels, n_epochs=n_epochs, lr=lr)
    }
    return Backbone(model, layer), states, *pictures(600, 1)


def test_the_easy_concept_is_found_in_an_earlier_layer(trained):
    bb, _, images, concepts = trained
    passes = []
    handle = bb.model.register_forward_pre_hook(lambda _, args: passes.append(len(args[0])))
    depth = concept_depth(bb, images, concepts, concept_names=NAMES, batch_size=100)
    handle.remove()
    assert [n for n in passes if n > 2] == [100] * 6
    easy, hard = depth.first.tolist()
    assert easy < hard < len(depth.stages)
    assert depth.order == NAMES
    assert depth.scores[0, 1] < 0.75 < 0.95 < depth.scores[-1, 1]
    assert depth.stages == [info.name for info in bb.layers()]
    assert depth.table().splitlines()[1].split()[:2] == ["easy", depth.stages[easy]]


def test_the_easy_concept_is_learnt_at_an_earlier_checkpoint(trained):
    bb, states, images, concepts = trained
    before = copy.deepcopy(bb.model.state_dict())
    dynamics = concept_dynamics(bb, states, images, concepts, concept_names=NAMES)
    assert all(torch.equal(before[name], t) for name, t in bb.model.state_dict().items())
    easy, hard = dynamics.first.tolist()
    assert easy < hard <= len(states) - 1
    assert dynamics.order == NAMES
    last = concept_depth(bb, images, concepts, layers=[bb.layer], concept_names=NAMES)
    torch.testing.assert_close(dynamics.scores[-1:], last.scores)
    final = concept_dynamics(bb, [("end", bb.model)], images, concepts)
    torch.testing.assert_close(final.scores, last.scores)


@pytest.mark.parametrize("metric", ["auc", "accuracy"])
def test_scores_are_scikit_learns(metric):
    rng = np.random.default_rng(0)
    concepts = rng.random((300, 2)) < (0.5, 0.2)
    x = rng.normal(size=(300, 5)) * (1, 10, 0.1, 1, 1) + concepts @ rng.normal(size=(2, 5))
    found = emergence([("x", x), ("noise", rng.normal(size=(300, 3)))], concepts, metric=metric)
    train, test = np.array_split(np.random.default_rng(0).permutation(300), 2)
    for j in range(2):
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        probe.fit(x[train], concepts[train, j])
        expected = (
            roc_auc_score(concepts[test, j], probe.predict_proba(x[test])[:, 1])
            if metric == "auc"
            else balanced_accuracy_score(concepts[test, j], probe.predict(x[test]))
        )
        assert float(found.scores[0, j]) == pytest.approx(expected, abs=1e-6)
    assert (found.scores[1] - 0.5).abs().max() < 0.2


def test_first_stage_and_order():
    scores = torch.tensor(
        [[0.96, 0.5, 0.97, 0.5], [0.90, 0.6, 0.97, 0.6], [0.97, 0.7, 1.0, 0.96]]
    ).double()
    found = Emergence(scores, ["a", "b", "c"], ["dip", "never", "at once", "last"], 0.9, "auc")
    assert found.first.tolist() == [2, 3, 0, 2]
    assert found.order == ["at once", "dip", "last", "never"]
    assert "at once: a, dip: c, last: c, never: never" in repr(found)
    assert replace(found, share=0.1).first.tolist() == [0, 1, 0, 1]
    assert [line.split()[-1] for line in found.table().splitlines()] == [
        "c", "1.00", "0.97", "0.96", "0.70"
    ]  # fmt: skip
    axes = found.plot().axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"features": {}}, "no stages"),
        ({"features": {"a": torch.rand(9, 2)}}, "features of a"),
        ({"concepts": torch.rand(20, 2)}, "only 0 and 1"),
        ({"concepts": torch.ones(20, 2)}, r"concept 0.*same in all"),
        ({"concept_names": ["one"]}, "1 concept_names for 2"),
        ({"share": 1.5}, "share"),
        ({"metric": "f1"}, "metric must be one of"),
    ],
)
def test_bad_input(changes, words):
    labels = torch.arange(40).reshape(20, 2) // 2 % 2
    arguments = {"features": {"a": torch.rand(20, 3)}, "concepts": labels} | changes
    with pytest.raises(ValueError, match=words):
        emergence(arguments.pop("features"), **arguments)


def test_no_checkpoints(trained):
    bb, _, images, concepts = trained
    with pytest.raises(ValueError, match="no checkpoints"):
        concept_dynamics(bb, {}, images, concepts)
