"""The sparse head against scikit-learn's saga, the optimality conditions and closed forms."""

import warnings

import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import cross_entropy

from conceptlens.bottleneck.sparse_head import fit_sparse_head, sparse_path


def problem(n=300, k=20, n_classes=4, seed=0, dtype=torch.float64):
    """Correlated nonnegative codes of very different sizes, and classes of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(n, 5, generator=generator, dtype=dtype)
    mix = torch.randn(5, k, generator=generator, dtype=dtype)
    noise = torch.randn(n, k, generator=generator, dtype=dtype)
    codes = torch.relu(base @ mix + 0.5 * noise) * torch.logspace(-0.5, 0.5, k, dtype=dtype)
    logits = base[:, :n_classes] * 2 + torch.linspace(0, 1.5, n_classes, dtype=dtype)
    y = torch.distributions.Categorical(logits=logits)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return codes, y.sample()


def objective(codes, y, weight, b, lam, l1_ratio, share=None):
    each = cross_entropy(codes @ weight.T + b, y, reduction="none")
    loss = each.mean() if share is None else each @ share
    return float(
        loss + lam * (l1_ratio * weight.abs().sum() + (1 - l1_ratio) / 2 * (weight**2).sum())
    )


@pytest.mark.parametrize("l1_ratio", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("intercept", [True, False])
def test_equals_saga(l1_ratio, intercept):
    codes, y = problem()
    lam = 0.01
    peer = LogisticRegression(
        penalty="elasticnet", solver="saga", C=1 / (lam * len(y)), l1_ratio=l1_ratio,
        fit_intercept=intercept, tol=1e-8, max_iter=2_000, random_state=0,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        peer.fit(codes.numpy(), y.numpy())
    theirs = torch.tensor(peer.coef_), torch.tensor(peer.intercept_)
    least = objective(codes, y, *theirs, lam, l1_ratio)
    head = fit_sparse_head(
        codes, y, 4, lam=lam, l1_ratio=l1_ratio, intercept=intercept, tol=1e-6, max_iter=1000
    )
    assert head.objective == pytest.approx(
        objective(codes, y, head.weight, head.intercept, lam, l1_ratio), rel=1e-12
    )
    assert head.objective == pytest.approx(least, rel=1e-6)
    assert 0 <= head.gap <= 1e-6 * head.objective + 1e-15
    # With l1 alone the optimum is flat: the weights are only compared where it is strict.
    if l1_ratio < 1:
        torch.testing.assert_close(head.weight, theirs[0], atol=2e-3, rtol=2e-3)


def test_optimality_conditions_with_balanced_classes():
    codes, y = problem(seed=1)
    lam, l1_ratio = 0.02, 0.9
    head = fit_sparse_head(
        codes, y, 4, lam=lam, l1_ratio=l1_ratio, class_weight="balanced", tol=1e-8, max_iter=1000
    )
    weight, b = head.weight.clone().requires_grad_(), head.intercept.clone().requires_grad_()
    share = (1 / torch.bincount(y).double())[y] / 4
    (cross_entropy(codes @ weight.T + b, y, reduction="none") @ share).backward()
    slope = weight.grad + lam * (1 - l1_ratio) * head.weight
    zero = head.weight == 0
    assert zero.any()
    assert not zero.all()
    assert (slope[zero].abs() <= lam * l1_ratio + 1e-6).all()
    torch.testing.assert_close(
        slope[~zero], -lam * l1_ratio * head.weight[~zero].sign(), atol=1e-5, rtol=0
    )
    assert b.grad.abs().max() < 1e-8


def test_the_gap_bounds_what_is_missing():
    codes, y = problem(seed=2)
    least = fit_sparse_head(codes, y, 4, lam=0.005, tol=1e-7, max_iter=1000).objective
    for steps in (0, 1, 3, 10):
        with pytest.warns(ConvergenceWarning, match="max_iter"):
            head = fit_sparse_head(codes, y, 4, lam=0.005, tol=1e-9, max_iter=steps)
        assert 0 < head.objective - least <= head.gap


def test_path_begins_with_no_weights_and_grows():
    codes, y = problem(seed=3)
    path = sparse_path(codes, y, 4, n_lambdas=8, lam_min_ratio=1e-2)
    assert int(path[0].weight.count_nonzero()) == 0
    torch.testing.assert_close(
        path[0].intercept.softmax(0), torch.bincount(y).double() / len(y), atol=1e-6, rtol=0
    )
    objectives = [head.objective for head in path]
    assert objectives == sorted(objectives, reverse=True)
    assert int(path[-1].nonzeros.sum()) > 20
    cold = fit_sparse_head(codes, y, 4, lam=path[-1].lam)
    assert path[-1].objective == pytest.approx(cold.objective, rel=1e-4)


def test_path_of_the_lasso_without_intercepts():
    """A gap that is known although there is no ridge ends the solver, down to no loss."""
    told = torch.arange(4).repeat(20)
    for codes, y in (problem(seed=4), (torch.eye(4).repeat(20, 1).double(), told)):
        path = sparse_path(
            codes, y, 4, n_lambdas=8, lam_min_ratio=3e-3, l1_ratio=1.0, intercept=False
        )
        assert int(path[0].nonzeros.sum()) == 0
        below = fit_sparse_head(codes, y, 4, lam=0.98 * path[0].lam, l1_ratio=1.0, intercept=False)
        assert int(below.nonzeros.sum()) > 0
        assert all(not head.intercept.any() for head in path)
        assert max(head.n_iter for head in path) < 100
    assert (path[-1](codes).argmax(1) == told).all()
    assert float(cross_entropy(path[-1](codes), told)) < 0.02
    with pytest.raises(ValueError, match="all gradients are zero"):
        sparse_path(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]), 2, intercept=False)


def test_dtype_device_and_more_concepts_than_rows(device):
    codes, y = problem(n=80, k=200, dtype=torch.float32)
    head = fit_sparse_head(codes.to(device), y.to(device), 4, lam=0.02)
    assert head.weight.dtype == torch.float32
    assert head.weight.device.type == device.type
    precise = fit_sparse_head(codes.double(), y, 4, lam=0.02, tol=1e-6, max_iter=1000)
    assert head.objective == pytest.approx(precise.objective, rel=1e-4)
    assert torch.equal(head(codes.to(device)), codes.to(device) @ head.weight.T + head.intercept)
    assert "4 classes, 200 concepts" in repr(head)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": torch.full((6, 2), torch.nan)}, "12"),
        ({"codes": torch.zeros(6, 2, 1)}, "codes must be"),
        ({"y": torch.zeros(5, dtype=torch.long)}, "class index"),
        ({"y": torch.tensor([0, 1, 2, 0, 1, 2])}, "n_classes"),
        ({"y": torch.zeros(6, dtype=torch.long)}, r"classes \[1\]"),
        ({"lam": 0.0}, "lam must be positive"),
        ({"l1_ratio": 1.5}, "1.5"),
        ({"class_weight": "equal"}, "'equal'"),
    ],
)
def test_bad_input(change, message):
    codes = torch.arange(12.0).reshape(6, 2)
    given = {"codes": codes, "y": torch.tensor([0, 1] * 3), "lam": 0.1} | change
    with pytest.raises(ValueError, match=message):
        fit_sparse_head(given.pop("codes"), given.pop("y"), 2, **given)
