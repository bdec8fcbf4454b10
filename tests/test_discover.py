"""`DiscoverThenNameCBM` on rows that are sparse sums of planted directions."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from conceptlens import SparseAutoencoder
from conceptlens.bottleneck.discover import DiscoverThenNameCBM

K, E = 6, 16
WORDS = ["fur", "wing", "wheel", "leaf", "wave", "brick"]


@pytest.fixture(scope="module")
def planted():
    """Rows (n, e), the classes of their first three concepts, and the concepts' directions."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(E, K, generator=generator)).Q.T
    on = torch.rand(1200, K, generator=generator) < 0.4
    strength = on * (1 + torch.rand(1200, K, generator=generator))
    x = strength @ directions + 0.05 * torch.randn(1200, E, generator=generator)
    votes = on.float()[:, :3] * torch.tensor([3.0, 2.0, 1.5]) + torch.tensor([0, 0.3, 0.6])
    return x, votes.argmax(1), directions


@pytest.fixture(scope="module")
def sae(planted):
    settings = {"sparsity": 3, "n_epochs": 60, "batch_size": 128, "learning_rate": 3e-3}
    return SparseAutoencoder(12, "batchtopk", **settings).fit(planted[0])


@pytest.fixture(scope="module")
def model(planted, sae):
    return DiscoverThenNameCBM(sae=sae, n_lambdas=15).fit(planted[0][:800], planted[1][:800])


def test_few_weights_are_about_as_right_as_logistic_regression_on_the_codes(planted, sae, model):
    x, y, _ = planted
    codes = sae.transform(x)
    torch.testing.assert_close(model.encode(x)[:, 0], codes)
    probe = LogisticRegression(C=100, fit_intercept=False, max_iter=500)
    reference = probe.fit(codes[:800], y[:800]).score(codes[800:], y[800:])
    assert reference > 0.85
    assert model.score(x[800:], y[800:]) > reference - 0.04
    assert (model.network_.weight != 0).sum() < model.network_.weight.numel()
    assert model.sae_ is sae


def test_the_chosen_head_is_the_sparsest_within_one_standard_error(model):
    points = model.path_
    assert [p.lam for p in points] == sorted((p.lam for p in points), reverse=True)
    assert points[0].nonzeros == 0
    best = max(p.accuracy for p in points)
    bound = best - math.sqrt(best * (1 - best) / len(model.held_out_))
    chosen = float(model.network_.weight.count_nonzero(1).double().mean())
    assert chosen == next(p.nonzeros for p in points if p.accuracy >= bound)
    assert chosen < points[-1].nonzeros


def test_one_autoencoder_serves_several_tasks_and_an_unfitted_one_is_copied(planted, sae):
    x, y, _ = planted
    other = DiscoverThenNameCBM(sae=sae, lam=0.01).fit(x, y == 2)
    assert other.sae_ is sae
    assert other.classes_.tolist() == [False, True]
    assert len(other.path_) == 1
    recipe = SparseAutoencoder(8, sparsity=2, n_epochs=1)
    fitted = DiscoverThenNameCBM(sae=recipe, lam=0.01).fit(x, y)
    assert fitted.encode(x).shape == (1200, 1, 8)
    assert not hasattr(recipe, "components_")


def test_names_come_from_the_text_encoder(planted, sae):
    pytest.importorskip("conceptlens.naming")
    x, y, directions = planted
    vectors = dict(zip(WORDS, directions, strict=True))
    encode = lambda words: torch.stack([vectors[w] for w in words])  # noqa: E731
    model = DiscoverThenNameCBM(sae=sae, lam=0.01, text_encoder=encode, vocabulary=WORDS)
    model.fit(x, y)
    cosines = sae.components_ @ directions.T
    assert model.concept_names == [WORDS[j] for j in cosines.argmax(1)]
    torch.testing.assert_close(model.names_.confidence, cosines.amax(1))


def test_explanations_are_sums_over_the_head(planted, model):
    x = planted[0][:200]
    logits = model.decision_function(x)
    torch.testing.assert_close(model.contributions(x).sum(1), logits.amax(1))
    torch.testing.assert_close(model.contributions(x, 2).sum(1), logits[:, 2])
    torch.testing.assert_close(model.contributions(x, [0, 1] * 100).sum(1)[1], logits[1, 1])
    codes, weight = model.encode(x)[:, 0], model.network_.weight
    rows = [i for i in range(200) if logits[i].argmax() == 1]
    truth = np.mean([[max(float(u), 0) for u in codes[i] * weight[1]] for i in rows], axis=0)
    np.testing.assert_allclose(model.class_concepts(x)[1], truth, atol=1e-5)
    name, value = model.top_concepts(x, 3)[0][0]
    parts = model.contributions(x)[0]
    assert value == pytest.approx(float(parts.max()))
    assert name == f"concept {int(parts.argmax())}"
    shares = model.coverage(x).concepts
    assert 1 <= float(shares[0.9]) <= float(shares[0.99]) <= 12


def test_saved_and_loaded_with_its_autoencoder(planted, model, sae, tmp_path):
    x, y, _ = planted
    model.save(tmp_path / "model")
    again = DiscoverThenNameCBM.load(tmp_path / "model")
    assert torch.equal(again.decision_function(x), model.decision_function(x))
    assert torch.equal(again.sae_.transform(x), sae.transform(x))
    assert torch.equal(again.fit(x, y).encode(x), model.encode(x))


def test_refusals(planted, sae):
    x, y, _ = planted
    with pytest.raises(ValueError, match="fitted on 16 channels, the features have 5"):
        DiscoverThenNameCBM(sae=sae).fit(x[:, :5], y)
    with pytest.raises(ValueError, match="nothing is held out to choose lam on"):
        DiscoverThenNameCBM(sae=sae, validation_fraction=0.0).fit(x, y)
    with pytest.raises(ValueError, match=r"n_lambdas ≥ 2, .* got 1,"):
        DiscoverThenNameCBM(sae=sae, n_lambdas=1).fit(x, y)
    model = DiscoverThenNameCBM(sae=sae, lam=0.01).fit(x, y)
    with pytest.raises(ValueError, match=r"there are no classes \[7\]"):
        model.contributions(x, 7)
