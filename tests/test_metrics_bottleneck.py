"""Metrics of bottleneck models against values worked out by hand."""

import math
from types import SimpleNamespace

import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_auc_score

from conceptlens.metrics.bottleneck import (
    calibration_error,
    class_accuracy,
    completeness,
    concept_accuracy,
    concept_auc,
    effective_concepts,
    leakage,
    overall_concept_accuracy,
    reliability,
)


def test_accuracies():
    assert class_accuracy([[1.0, 2.0], [3.0, 0.0]], [1, 1]).mean == 0.5
    found = torch.tensor([[0.9, 0.2, 0.6], [0.1, 0.8, 0.3], [0.5, 0.5, 0.5]])
    truth = torch.tensor([[1, 0, 0], [0, math.nan, 0], [math.nan] * 3])
    assert concept_accuracy(found, truth).defined.tolist() == pytest.approx([2 / 3, 1])
    assert overall_concept_accuracy(found, truth).defined.tolist() == [0, 1]
    with pytest.raises(ValueError, match="only 0 and 1"):
        concept_accuracy(found, 2 * truth)


def test_calibration_error():
    # Two bins: 0.9 where 3 of 4 are right, 0.2 where 1 of 2 is.
    confidence, right = [0.9] * 4 + [0.2] * 2, [1, 1, 1, 0, 1, 0]
    assert calibration_error(confidence, right) == pytest.approx((4 * 0.15 + 2 * 0.3) / 6)
    assert calibration_error([1.0, 0.0], [1, 0]) == 0
    with pytest.raises(ValueError, match="not logits"):
        calibration_error([1.5], [1])


def test_leakage_of_a_head_that_reads_the_softness():
    # Both codes of 0.6 and 0.9 round to 1; only the soft ones tell the classes apart.
    sly = SimpleNamespace(classify=lambda c: torch.cat([c, 1.5 - c], 1))
    codes, y = torch.tensor([[0.6], [0.9], [0.6], [0.9]]), torch.tensor([1, 0, 1, 0])
    assert leakage(sly, codes, y).mean == 0.5
    assert leakage(sly, codes.round(), y).mean == 0


def test_completeness():
    assert completeness(0.7, 0.9, 0.5) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="exceed chance"):
        completeness(0.7, 0.5, 0.5)


def test_effective_concepts():
    parts = torch.tensor([[1.0, 0, 0, 0], [1, -1, 1, -1], [0, 0, 0, 0]])
    assert effective_concepts(parts).values.tolist() == [1, 4, 0]
    assert effective_concepts(parts, 0.5).values.tolist() == [1, 2, 0]


def test_concept_auc_is_that_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    truth = (torch.rand(80, 3, generator=generator) > 0.4).float()
    scores = (truth + torch.randn(80, 3, generator=generator)).round(decimals=1)  # with ties
    truth[:30, 0] = torch.nan
    truth[:, 2] = 1
    found = concept_auc(scores, truth).values
    wanted = [roc_auc_score(truth[s:, i], scores[s:, i]) for i, s in ((0, 30), (1, 0))]
    assert found[:2].tolist() == pytest.approx(wanted)
    assert found[2].isnan()
    with pytest.raises(ValueError, match="concepts"):
        concept_auc(scores, truth[:, :2])


def test_reliability_is_that_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    confidence = torch.rand(300, generator=generator).double() ** 2
    right = (torch.rand(300, generator=generator) < confidence.sqrt()).double()
    found = reliability(confidence, right, bins=10)
    share, mean = calibration_curve(right, confidence, n_bins=10)
    assert found.right.tolist() == pytest.approx(share.tolist())
    assert found.confidence.tolist() == pytest.approx(mean.tolist())
    assert found.counts.sum() == 300
    assert f"calibration error {calibration_error(confidence, right, 10):.3f}" in repr(found)
    line = found.plot().lines[1]
    assert line.get_ydata().tolist() == pytest.approx(share.tolist())
    assert reliability([0.95, 0.99], [1, 0], 10).counts.tolist() == [2]
