"""The head without bias, against scikit-learn's solver of the same problem."""

import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from conceptlens.bottleneck.bias_free import bias_free_path, fit_bias_free


@pytest.fixture(scope="module")
def rows():
    generator = torch.Generator().manual_seed(0)
    codes = torch.rand(200, 10, generator=generator, dtype=torch.float64) - 0.3
    codes = codes.clamp(min=0) * torch.linspace(0.5, 4, 10)
    votes = codes[:, :3] * torch.tensor([3, 1, 0.6]) + 0.3 * torch.randn(
        200, 3, generator=generator
    )
    return codes, votes.argmax(1)


def objective(rows, weight, lam, share):
    logits = rows[0] @ torch.as_tensor(weight).T
    losses = torch.nn.functional.cross_entropy(logits, rows[1], reduction="none")
    return float(losses @ share + lam * abs(torch.as_tensor(weight)).sum())


@pytest.mark.parametrize("balanced", [False, True])
def test_minimises_what_scikit_learn_minimises(rows, balanced):
    codes, y = rows
    weights = 200 / (3 * torch.bincount(y)) if balanced else None
    share = torch.full((200,), 1 / 200) if weights is None else weights[y] / weights[y].sum()
    share = share.double()
    path = bias_free_path(codes, y, 3, 5, weights)
    assert path[0].nonzeros == 0  # at the largest λ nothing is left, just below it something is
    assert fit_bias_free(codes, y, 3, 0.98 * path[0].lam, weights).nonzeros > 0
    for head in path[1:4]:
        saga = LogisticRegression(
            C=1 / (200 * head.lam), l1_ratio=1, solver="saga", fit_intercept=False,
            class_weight="balanced" if balanced else None, tol=1e-5, max_iter=3000,
        ).fit(codes, y)  # fmt: skip
        truth = objective(rows, saga.coef_, head.lam, share)
        assert objective(rows, head.weight, head.lam, share) <= truth * (1 + 1e-5)


def test_optimality_conditions_hold(rows, device):
    codes, y = (t.to(device) for t in rows)
    head = fit_bias_free(codes, y, 3, 0.01)
    weight = head.weight.clone().requires_grad_()
    torch.nn.functional.cross_entropy(codes @ weight.T, y).backward()
    used = head.weight != 0
    assert (weight.grad.abs() <= 0.01 * 1.005).all()
    torch.testing.assert_close(
        weight.grad[used], -0.01 * head.weight[used].sign(), rtol=5e-3, atol=0
    )
    assert 0 < head.nonzeros < 10
    torch.testing.assert_close(head(codes), codes @ head.weight.T)


def test_path_ends_where_the_classes_are_told_without_error(rows):
    codes = torch.eye(3).repeat(20, 1)
    path = bias_free_path(codes, torch.arange(3).repeat(20), 3, 40)
    assert 5 < len(path) < 40
    assert (path[-1](codes).argmax(1) == torch.arange(3).repeat(20)).all()


def test_refusals(rows):
    with pytest.raises(ValueError, match="n_lambdas ≥ 2, got 1"):
        bias_free_path(*rows, 3, 1)
    with pytest.raises(ValueError, match="no concept is ever on"):
        bias_free_path(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]), 2, 5)
    with pytest.raises(ValueError, match="lam must be a number above 0, got 0"):
        fit_bias_free(*rows, 3, 0)
    with pytest.warns(ConvergenceWarning, match="not optimal after max_iter=2 steps"):
        fit_bias_free(*rows, 3, 1e-4, max_iter=2)
