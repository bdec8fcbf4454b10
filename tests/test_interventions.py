"""Intervention curves on a model whose concepts and classes are known exactly."""

import pytest
import torch

from conceptlens.bottleneck import (
    BOTTLENECKS,
    POLICIES,
    ConceptBottleneck,
    DiscoverThenNameCBM,
    EnergyCBM,
    SparseCBM,
    intervention_curve,
)


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


# Texts and discovered concepts have no labels that could correct them.
LABELLED = [
    name
    for name, make in BOTTLENECKS.items()
    if not isinstance(make(0), (SparseCBM, DiscoverThenNameCBM))
]


@pytest.fixture(scope="module", params=LABELLED)
def any_model(request):
    """A model of the table on features that mix three concepts, and fresh rows."""
    generator = torch.Generator().manual_seed(1)
    concepts = (torch.rand(500, 3, generator=generator) > 0.5).float()
    y = 2 * concepts[:, 0].long() + (concepts[:, 1:].sum(1) > 0.5).long()
    mix = torch.randn(3, 8, generator=generator)
    x = concepts @ mix + torch.randn(500, 8, generator=generator)
    model = BOTTLENECKS[request.param](0).fit(x[:300], y[:300], concepts=concepts[:300])
    return model, x[300:], y[300:], concepts[300:]


@pytest.mark.parametrize("policy", POLICIES)
def test_every_model_goes_from_its_prediction_to_its_intervention(any_model, policy):
    model, x, y, concepts = any_model
    kept = [int(name.split()[-1]) for name in model.concept_names]
    truth = concepts[:, kept]
    curve = intervention_curve(model, x, y, truth, policy=policy)
    right = (model.predict_concepts(x) > 0.5) == (truth > 0.5)
    starts = [c.mean[0].item() for c in (curve.class_accuracy, curve.concept_accuracy)]
    assert starts == pytest.approx([model.score(x, y), float(right.double().mean())])
    assert curve.overall_accuracy.mean[0] == pytest.approx(float(right.all(1).double().mean()))
    assert curve.concept_accuracy.mean[-1] == curve.overall_accuracy.mean[-1] == 1
    everything = {i: truth[:, i] for i in range(len(kept))}
    best = model.classes_[model.intervene(x, everything).argmax(1).numpy()]
    assert curve.class_accuracy.mean[-1] == pytest.approx((best == y.numpy()).mean())
    if len(kept) == 3:  # the concepts that are left out determine the class too
        assert curve.class_accuracy.mean[-1] > curve.class_accuracy.mean[0]


def test_the_scores_of_the_policies(fitted):
    cbm, x, _, _ = fitted
    values, head = cbm.predict_concepts(x), cbm.network_.to_classes
    best = head(values).argmax(1)
    scores = {
        name: order(cbm, x, values, torch.Generator().manual_seed(0))
        for name, order in POLICIES.items()
    }
    entropy = -(values * values.log() + (1 - values) * (1 - values).log())
    torch.testing.assert_close(scores["uncertainty"], entropy)
    torch.testing.assert_close(scores["contribution"], (values * head.weight[best]).abs())
    now = cbm.predict_proba(x).gather(1, best[:, None])[:, 0]
    change = torch.zeros(len(x))
    for state in (0, 1):
        then = cbm.intervene(x, {2: state}).softmax(1).gather(1, best[:, None])[:, 0]
        change += (values[:, 2] if state else 1 - values[:, 2]) * (then - now).abs()
    torch.testing.assert_close(scores["cooperative"][:, 2], entropy[:, 2] + change)


def test_a_correction_moves_other_concepts_of_an_energy_model_alone():
    generator = torch.Generator().manual_seed(2)
    first = (torch.rand(600, 1, generator=generator) > 0.5).float()
    concepts, y = first.repeat(1, 3), first[:, 0].long()
    x = concepts + 1.5 * torch.randn(600, 3, generator=generator)
    rises = {}
    for model in (ConceptBottleneck(max_epochs=40), EnergyCBM(max_epochs=60, lr=1e-2)):
        model.fit(x[:400], y[:400], concepts=concepts[:400])
        curve = intervention_curve(model, x[400:], y[400:], concepts[400:])
        rises[type(model)] = float(curve.overall_accuracy.mean[:2].diff())
    assert rises[EnergyCBM] > rises[ConceptBottleneck] + 0.02
    corrected = model.concepts_with(x[400:], {0: concepts[400:, 0]})
    assert torch.equal(corrected[:, 0], concepts[400:, 0])


def test_rows_without_labels_are_judged_by_class_alone(fitted):
    cbm, x, y, concepts = fitted
    missing = concepts.clone()
    missing[:100] = torch.nan
    curve = intervention_curve(cbm, x, y, missing)
    assert len(curve.class_accuracy.per_image) == 400
    known = intervention_curve(cbm, x[100:], y[100:], concepts[100:])
    assert curve.concept_accuracy.mean[0] == known.concept_accuracy.mean[0]
    with pytest.raises(ValueError, match="nothing to correct"):
        intervention_curve(cbm, x, y, concepts * torch.nan)
    with pytest.raises(ValueError, match="binary"):
        intervention_curve(cbm, x, y, 2 * concepts)


def test_plot_shows_the_three_curves(fitted):
    curve = intervention_curve(*fitted, policy="uncertainty")
    (ax,) = curve.plot().axes
    assert [line.get_ydata()[-1] for line in ax.lines[1:]] == [1, 1]
    assert ax.get_xlabel() == "concepts corrected, or groups of them"
    assert ax.get_legend().get_texts()[0].get_text().startswith("class, area 0.")
