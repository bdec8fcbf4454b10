"""CRAFT on a network that was trained on planted concepts finds these concepts again.

Three choices make the question fair:

- The network is cut after its second convolution. Behind the last one no channel tells the weaker
  concept of a class (`test_the_last_layer_merges_concepts_that_vote_alike`), perhaps because three
  classes need but two directions of evidence, so that a nonnegative dictionary, which is made of
  directions of growing channels, cannot either. `benchmarks/recovery.py` has both cuts.
- All pictures are explained, not only those of the class, in which the class's own concepts
  hardly vary; codes are judged on fresh pictures.
- A planted concept may be found in parts, such as a symbol's edge and its fill. Its importance is
  the sum of the importances of all codes that tell it best.
"""

import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from conceptlens import CRAFT, Backbone
from conceptlens.datasets import PlantedConcepts
from conceptlens.datasets.zoo import accuracy, small_cnn
from conceptlens.metrics import importance_of_parts, map_recovery, recovery

USED = 6  # the first concepts are those of the rule


@pytest.fixture(scope="module")
def data():
    return PlantedConcepts(3000)


@pytest.fixture(scope="module")
def fresh(data):
    return data.like(300, seed=7)


@pytest.fixture(scope="module")
def model(data):
    return small_cnn(data)


@pytest.fixture(scope="module")
def explanations(data, model):
    bb = Backbone(model, "features.5", class_names=data.class_names)
    craft = CRAFT(bb, n_concepts=16, patch_size=32, n_designs=8, batch_size=256)
    pictures = data.like(250, seed=8)
    return [craft.explain(pictures, name, predicted_only=False) for name in data.class_names]


@pytest.fixture(scope="module")
def found(explanations, fresh):
    codes = explanations[0].model.encode(fresh.images)
    return recovery(codes, fresh.concepts, names=fresh.concept_names)


def test_codes_tell_the_concepts_of_the_rule(found):
    assert (found.scores[:USED] >= 0.9).double().mean() >= 0.8
    assert found.scores[:USED].mean() >= 0.9
    assert found.chance < 0.7


def test_maps_point_at_the_concepts(explanations, found, fresh):
    hits = map_recovery(explanations[0].maps(fresh.images), fresh.masks, found.matches)
    assert hits.pointing[:USED].mean() >= 0.8
    # Where the peak lies tells something only because a symbol covers little of the picture.
    assert hits.chance[:USED].max() < 0.1


def test_importance_ranks_concepts_as_the_rule_does(explanations, found, data):
    correlations = [
        spearmanr(importance_of_parts(explanation.importance, found), truth).statistic
        for explanation, truth in zip(explanations, data.true_importance(), strict=True)
    ]
    assert sum(correlations) / 3 >= 0.8
    assert min(correlations) >= 0.6


def test_the_last_layer_merges_concepts_that_vote_alike(data, model, fresh):
    """No channel of the last layer tells the weaker concept of a class, one of the middle does."""
    square = fresh.concepts[:, data.concept_names.index("blue square")]
    best = {}
    for layer in ("features.5", "features"):
        a = Backbone(model, layer).activations(fresh.images)
        scores = torch.cat([a.amax(1), a.mean(1)], 1)
        values = [roc_auc_score(square, s) for s in scores.T]
        best[layer] = max(max(v, 1 - v) for v in values)
    assert best["features.5"] > 0.95
    assert best["features"] < 0.85


def test_the_network_knows_its_rule(model, data):
    assert accuracy(model, data.like(600, seed=99)) >= 0.97
