"""Intervention curves on a model whose concepts and classes are known exactly."""

import pytest
import torch

from conceptlens.bottleneck.concept_bottleneck import ConceptBottleneck
from conceptlens.bottleneck.interventions import POLICIES, intervention_curve


@pytest.fixture(scope="module")
def fitted():
    generator = torch.Generator().manual_seed(0)
    concepts = (torch.rand(400, 4, generator=generator) > 0.5).float()
    y = (concepts[:, :3].sum(1) > 1.5).long()
    x = concepts + 0.7 * torch.randn(400, 4, generator=generator)
    cbm = ConceptBottleneck(training="independent", max_epochs=40)
    return cbm.fit(x, y, concepts=concepts), x, y, concepts


@pytest.mark.parametrize("policy", POLICIES)
def test_corrections_make_everything_right(fitted, policy):
    cbm, x, y, concepts = fitted
    curve = intervention_curve(cbm, x, y, concepts, policy=policy)
    assert curve.class_accuracy.per_image.shape == (400, 5)
    assert curve.class_accuracy.mean[0] == pytest.approx(cbm.score(x, y))
    right = (cbm.predict_concepts(x) > 0.5) == (concepts > 0.5)
    assert curve.concept_accuracy.mean[0] == pytest.approx(float(right.double().mean()))
    assert (curve.concept_accuracy.mean.diff() >= 0).all()
    assert curve.overall_accuracy.mean[-1] == 1
    truth = {i: concepts[:, i] for i in range(4)}
    best = cbm.intervene(x, truth).argmax(1)
    assert curve.class_accuracy.mean[-1] == pytest.approx(float((best == y).double().mean()))


def test_uncertainty_corrects_sooner_than_chance(fitted):
    cbm, x, y, concepts = fitted
    areas = {
        policy: intervention_curve(cbm, x, y, concepts, policy=policy).concept_accuracy.auc
        for policy in ("random", "uncertainty")
    }
    assert areas["uncertainty"] > areas["random"] + 0.01


def test_groups_and_missing_concepts(fitted):
    cbm, x, y, concepts = fitted
    missing = concepts.clone()
    missing[:, 0] = torch.nan
    curve = intervention_curve(cbm, x, y, missing, groups=[[0], [1, 2, 3]])
    assert curve.class_accuracy.per_image.shape == (400, 3)
    best = cbm.intervene(x, {i: concepts[:, i] for i in (1, 2, 3)}).argmax(1)
    assert curve.class_accuracy.mean[-1] == pytest.approx(float((best == y).double().mean()))
    with pytest.raises(ValueError, match="one group"):
        intervention_curve(cbm, x, y, concepts, groups=[[0, 1]])
    with pytest.raises(ValueError, match="policy"):
        intervention_curve(cbm, x, y, concepts, policy="best")
