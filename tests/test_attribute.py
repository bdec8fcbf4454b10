"""Importance by gradients and by removal: the theorem, captum, brute force, and one contract."""

import itertools
import math
import warnings

import pytest
import torch
from captum import attr
from torch import nn

from conceptlens import attribute
from conceptlens.importance import ESTIMATORS
from conceptlens.importance.attribute import METHODS
from conceptlens.importance.perturbation import balanced_masks, shapley_weights, subsets
from conceptlens.metrics import c_deletion, c_insertion, c_mu_fidelity


class Head(nn.Module):
    """A head with interactions between concepts and positions, smooth everywhere."""

    class_names = None

    def __init__(self, k=5, p=4):
        super().__init__()
        torch.manual_seed(0)
        self.mix = nn.Sequential(nn.Flatten(), nn.Linear(k * p, 16), nn.Tanh(), nn.Linear(16, 3))
        self.double()

    def classify(self, codes):
        return self.mix(codes)

    forward = classify


class Linear:
    """The logit of class 0 is 1 + Σ slopes · mean code."""

    class_names = None

    def __init__(self, slopes):
        self.slopes = slopes

    def classify(self, codes):
        score = 1 + codes.mean(1) @ self.slopes.to(codes)
        return torch.stack([score, -score], 1)


def codes(n=6, p=4, k=5):
    return torch.rand(n, p, k, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


SLOPES = torch.tensor([3.0, -2.0, 0.0, 0.5, 1.0], dtype=torch.float64)


@pytest.mark.parametrize(
    "method", ["occlusion", "gradient_x_input", "integrated_gradients", "rise", "shapley"]
)
def test_on_a_linear_head_the_estimators_agree(method):
    """The theorem of Fel et al. (2023): each gives βᵢ ūᵢ."""
    found = attribute(Linear(SLOPES), codes(), 0, method=method)
    torch.testing.assert_close(found.per_image, codes().mean(1) * SLOPES, rtol=0, atol=1e-8)


def test_on_a_linear_head_they_are_optimal_for_faithfulness():
    """No order of the concepts deletes or inserts better, and the µ-fidelity is perfect."""
    cm, u = Linear(SLOPES), codes(1)
    importance = attribute(cm, u, 0, method="gradient_x_input")
    best = [f(cm, u, 0, importance).auc for f in (c_deletion, c_insertion)]
    for order in itertools.permutations(range(5)):
        ranks = torch.tensor(order, dtype=torch.float64)
        assert best[0] <= c_deletion(cm, u, 0, ranks).auc + 1e-9
        assert best[1] >= c_insertion(cm, u, 0, ranks).auc - 1e-9
    assert c_mu_fidelity(cm, u, 0, importance).mean == pytest.approx(1, abs=1e-6)


def test_integrated_gradients_and_occlusion_are_captums():
    head, u = Head(), codes()
    flat = attr.IntegratedGradients(head).attribute(u, target=1, n_steps=400)
    ours = attribute(head, u, 1, method="integrated_gradients")
    torch.testing.assert_close(ours.per_image, flat.sum(1).detach(), rtol=1e-3, atol=1e-5)
    features = torch.arange(5).expand(1, 4, 5)  # all positions of a concept are one feature
    removed = attr.FeatureAblation(head).attribute(u, target=1, feature_mask=features)
    ours = attribute(head, u, 1, method="occlusion")
    torch.testing.assert_close(ours.per_image, removed[:, 0].detach(), rtol=0, atol=1e-9)


def test_integrated_gradients_are_complete():
    head, u = Head(), 5 * codes()
    found = attribute(head, u, 2, method="integrated_gradients").per_image.sum(1)
    expected = (head(u) - head(0 * u))[:, 2].detach()
    assert ((found - expected).abs() <= 1e-3 * expected.abs()).all()


def brute_force_shapley(head, u, target):
    """The mean, over all k! orders, of what a concept adds when its turn comes."""
    k = u.shape[2]
    total = torch.zeros(len(u), k, dtype=torch.float64)
    for order in itertools.permutations(range(k)):
        mask = torch.zeros(k, dtype=torch.float64)
        before = head(u * mask)[:, target]
        for concept in order:
            mask[concept] = 1
            after = head(u * mask)[:, target]
            total[:, concept] += after - before
            before = after
    return (total / math.factorial(k)).detach()


def test_shapley_is_brute_force():
    found = attribute(Head(), codes(), 0, method="shapley").per_image
    torch.testing.assert_close(found, brute_force_shapley(Head(), codes(), 0), rtol=0, atol=1e-9)


def test_sampled_shapley_is_near_the_exact_and_efficient():
    """Beyond 12 concepts orders are sampled; 14, of which the head reads five, tell the error."""
    head, u = Head(), codes(3)
    wide = torch.cat([u, torch.ones(3, 4, 9, dtype=torch.float64)], 2)
    cm = type("First", (), {"class_names": None, "classify": lambda _, c: head(c[..., :5])})()
    found = attribute(cm, wide, 0, method="shapley").per_image
    exact = attribute(head, u, 0, method="shapley").per_image
    torch.testing.assert_close(found[:, :5], exact, rtol=0, atol=0.1 * float(exact.abs().max()))
    torch.testing.assert_close(found.sum(1), exact.sum(1), rtol=0, atol=1e-9)
    assert not found[:, 5:].any()


def test_shapley_weights_of_three_players_by_hand():
    """In the game v(S) = 1 if S holds players 0 and 1, these two share the 1."""
    masks = subsets(3)
    game = (masks[:, 0] * masks[:, 1])[None]
    torch.testing.assert_close(
        game @ shapley_weights(masks), torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64)
    )


def test_balanced_masks_are_uncorrelated():
    signs = 2 * balanced_masks(10, seed=0) - 1
    torch.testing.assert_close(signs.T @ signs / len(signs), torch.eye(10).double())
    assert not signs.sum(0).any()


def test_hsic_ranks_by_dependence():
    """The score depends on concept 0 strongly, on 1 weakly, on the others not at all."""
    slopes = torch.tensor([3.0, 1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    found = attribute(Linear(slopes), codes(), 0, method="hsic").values
    assert found.argsort(descending=True)[:2].tolist() == [0, 1]
    assert found[1] > 10 * found[2:].max()
    assert (found >= 0).all()


@pytest.mark.parametrize("method", ["smoothgrad", "vargrad", "squaregrad"])
def test_noisy_gradients_of_a_quadratic_head(method):
    """With f = Σ aᵢ uᵢ² the gradient at u + e is 2a(u + e): its moments are known."""
    a = torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)
    cm = type("Q", (), {"class_names": None})()
    cm.classify = lambda c: (a * c[:, 0] ** 2).sum(1, keepdim=True)
    u = torch.tensor([[[1.0, 0.5, 0.0]]], dtype=torch.float64)
    width = 0.15 * 1.0
    mean, variance = 2 * a * u[0, 0], (2 * a * width) ** 2
    expected = {"smoothgrad": mean, "vargrad": variance, "squaregrad": mean**2 + variance}[method]
    draws = [attribute(cm, u, 0, method=method, seed=s).values for s in range(60)]
    torch.testing.assert_close(torch.stack(draws).mean(0), expected, rtol=0.08, atol=0.02)


# -- the contract ----------------------------------------------------------------------------------


@pytest.fixture(params=ESTIMATORS)
def estimator(request):
    return ESTIMATORS[request.param]


def test_contract(estimator, device):
    head, u = Head().to(device), codes().to(device)
    before = u.clone()
    found = estimator(head, u, 1, seed=3)
    n_entries = len(found.concept_names)
    assert found.per_image.shape == (6, n_entries)
    assert found.values.shape == found.stderr.shape == (n_entries,)
    torch.testing.assert_close(found.values, found.per_image.mean(0))
    assert torch.isfinite(found.stderr).all()
    assert (found.target, found.values.dtype) == ("class 1", torch.float64)
    assert torch.equal(u, before)
    assert all(p.grad is None for p in head.parameters())
    assert repr(found).count("±") == n_entries


def test_same_seed_same_importance_whatever_the_batch(estimator):
    first, again = (estimator(Head(), codes(), 1, seed=3) for _ in range(2))
    assert torch.equal(first.per_image, again.per_image)
    small = estimator(Head(), codes(), 1, seed=3, batch_size=5)
    torch.testing.assert_close(small.per_image, first.per_image, rtol=0, atol=1e-9)


def test_never_more_code_grids_at_once_than_asked(estimator):
    sizes = []
    head = Head()
    cm = type("Watched", (), {"class_names": None})()
    cm.classify = lambda c: (sizes.append(len(c)), head(c))[1]
    estimator(cm, codes(), 1, batch_size=8)
    assert max(sizes) <= 8


def test_an_exception_leaves_gradients_and_generator_as_they_were(estimator):
    cm = type("Broken", (), {"class_names": None})()

    def classify(_):
        raise RuntimeError("no")

    cm.classify = classify
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="no"):
        estimator(cm, codes(), 1)
    assert torch.is_grad_enabled()
    assert torch.equal(state, torch.get_rng_state())


def test_a_concept_that_is_not_read_has_no_importance(estimator):
    cm = type("Two", (), {"class_names": None})()
    cm.classify = lambda c: torch.tanh(c[..., :2].mean(1)).sum(1, keepdim=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = estimator(cm, codes(), 0)
    assert found.values[:2].abs().min() > 10 * found.values[2:].abs().max()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((codes()[0], 0), ValueError, r"\(n, P, k\)"),
        ((codes()[:0], 0), ValueError, r"\(n, P, k\)"),
        ((codes() / 0, 0), ValueError, "NaN"),
        ((codes().numpy(), 0), TypeError, "ndarray"),
        ((codes().long(), 0), TypeError, "int64"),
        ((codes(), 3), ValueError, "class 3 does not exist"),
        ((codes(), "cat"), ValueError, "class_names"),
    ],
)
def test_bad_input(estimator, arguments, error, words):
    with pytest.raises(error, match=words):
        estimator(Head(), *arguments)
    with pytest.raises(ValueError, match="batch_size"):
        estimator(Head(), codes(), 0, batch_size=0)


def test_unknown_method_and_blocked_gradients():
    with pytest.raises(ValueError, match="method must be one of"):
        attribute(Head(), codes(), 0, method="magic")
    cm = type("Blocked", (), {"class_names": None})()
    cm.classify = lambda c: Head()(c).detach()
    with pytest.raises(TypeError, match="occlusion"):
        attribute(cm, codes(), 0, method="saliency")
    attribute(cm, codes(), 0, method="shapley")


@pytest.mark.parametrize("method", METHODS)
def test_a_constant_score_warns(method):
    cm = type("Constant", (), {"class_names": None})()
    cm.classify = lambda c: torch.ones(len(c), 2).to(c) + 0 * c.sum((1, 2))[:, None]
    with pytest.warns(RuntimeWarning, match="zero importance"):
        assert not attribute(cm, codes(), 0, method=method).values.any()
