"""CRAFT on a network that was trained on planted concepts finds these concepts again.

Three choices make the question fair:

- The network is cut after its second convolution. Three classes need but two directions of
  evidence, and behind the last convolution the network has nothing else left: "red disc" and
  "blue square" vote for one class and are one direction there, so that no dictionary could tell
  them apart (`test_the_last_layer_merges_concepts_that_vote_alike` shows it).
- All pictures are explained, not only those of the class, in which the class's own concepts
  hardly vary; codes are judged on fresh pictures.
- A planted concept may be found in parts, such as a symbol's edge and its fill. Its importance is
  the sum of the importances of all codes that tell it best.
"""

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from conceptlens import CRAFT, Backbone
from conceptlens.datasets import PlantedConcepts
from conceptlens.datasets.zoo import accuracy, small_cnn

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


def auc_table(codes, concepts):
    """AUC (k, m) of each code's largest or mean value in a picture for each planted concept."""
    scores = torch.stack([codes.amax(1), codes.mean(1)])
    return torch.tensor(
        [
            [max(roc_auc_score(c, s) for s in scores[:, :, i]) for c in concepts.T]
            for i in range(codes.shape[2])
        ]
    )


def matched(auc):
    """The code (m,) of each planted concept, each code once, so that the AUCs' sum is largest."""
    rows, columns = linear_sum_assignment(-auc)
    return torch.from_numpy(rows[columns.argsort()])


@pytest.fixture(scope="module")
def auc(explanations, fresh):
    return auc_table(explanations[0].model.encode(fresh.images), fresh.concepts)


def test_codes_tell_the_concepts_of_the_rule(auc):
    best = auc[matched(auc), range(auc.shape[1])][:USED]
    assert (best >= 0.9).double().mean() >= 0.8
    assert best.mean() >= 0.9


def test_maps_point_at_the_concepts(explanations, auc, fresh):
    peaks = explanations[0].maps(fresh.images)[:, matched(auc)].flatten(2).argmax(2)
    hits = fresh.masks.flatten(2).gather(2, peaks[:, :, None])[..., 0]
    assert hits[:, :USED][fresh.concepts[:, :USED]].double().mean() >= 0.8
    # Where the peak lies tells something only because a symbol covers little of the picture.
    assert fresh.masks[fresh.concepts].double().mean() < 0.1


def test_importance_ranks_concepts_as_the_rule_does(explanations, auc, data):
    truth = data.true_importance()
    best, owner = auc.max(1)
    correlations = []
    for k, explanation in enumerate(explanations):
        found = torch.zeros(len(data.concept_names), dtype=torch.float64)
        found.index_add_(0, owner, explanation.importance.values.double() * (best > 0.7))
        correlations.append(float(spearmanr(found, truth[k]).statistic))
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
