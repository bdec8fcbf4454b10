"""Odd numbers: any shape, dtype and scale gives finite results or an error; invariances."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from conceptlens import NMF, ActivationStore, Backbone, SemiNMF, sobol
from conceptlens.extraction import EXTRACTORS
from conceptlens.importance import ESTIMATORS

QUICK = settings(max_examples=8, deadline=None, derandomize=True)
FAST = {  # each with few iterations: what is asked here holds from the first on
    name: make for name, make in EXTRACTORS.items() if name not in ("dictionary-learning", "ica")
}
KINDS = ("plain", "zero column", "duplicate rows", "zero rows", "one value", "rank one")


def rows(n, c, kind, exponent, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    a = torch.rand(n, c, generator=generator, dtype=torch.float64)
    if kind == "zero column":
        a[:, 0] = 0
    elif kind == "duplicate rows":
        a = a[:1].repeat(n, 1)
    elif kind == "zero rows":
        a[::2] = 0
    elif kind == "one value":
        a = torch.ones_like(a)
    elif kind == "rank one":
        a = a[:, :1] * a[:1]
    return (a * 10.0**exponent).to(dtype)


def extractor(name, k):
    made = FAST[name](k, 0)
    for option, value in (("max_iter", 30), ("n_epochs", 5)):
        if option in made.get_params():
            made.set_params(**{option: value})
    return made


@pytest.mark.parametrize("name", FAST)
def test_results_are_finite_or_refused(name):
    @QUICK
    @given(
        n=st.integers(1, 12), c=st.integers(1, 6), k=st.integers(1, 4), kind=st.sampled_from(KINDS),
        exponent=st.sampled_from([-30, -18, -6, 0, 6, 15, 18, 30]),
        dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
        seed=st.integers(0, 3),
    )  # fmt: skip
    def check(n, c, k, kind, exponent, dtype, seed):
        a = rows(n, c, kind, exponent, dtype, seed)
        before = a.clone()
        model = extractor(name, k)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                codes = model.fit_transform(a)
            except (ValueError, FloatingPointError):
                return
            rebuilt = model.inverse_transform(codes)
        assert torch.equal(a, before)
        assert codes.shape == (n, len(model.components_))
        assert rebuilt.shape == a.shape
        for result in (codes, rebuilt, torch.as_tensor(model.components_)):
            assert result.isfinite().all()

    check()


@pytest.mark.parametrize("name", ["nmf", "semi-nmf", "convex-nmf"])
def test_rescaled_rows_give_rescaled_reconstructions(name):
    """‖A − UV‖ scales with A: the fit is the same up to the scale, here a power of two."""

    @QUICK
    @given(power=st.integers(-30, 30), seed=st.integers(0, 5))
    def check(power, seed):
        a = rows(20, 6, "plain", 0, torch.float64, seed)
        one, two = (extractor(name, 3) for _ in range(2))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rebuilt = one.inverse_transform(one.fit_transform(a))
            scaled = two.inverse_transform(two.fit_transform(a * 2.0**power))
        torch.testing.assert_close(scaled / 2.0**power, rebuilt, rtol=1e-5, atol=1e-5)

    check()


@pytest.mark.parametrize("make", [NMF, SemiNMF])
def test_the_order_of_rows_does_not_matter(make):
    @QUICK
    @given(seed=st.integers(0, 20))
    def check(seed):
        a = rows(20, 6, "plain", 0, torch.float64, seed)
        order = torch.randperm(20, generator=torch.Generator().manual_seed(seed))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            one, two = make(3, max_iter=30).fit(a), make(3, max_iter=30).fit(a[order])
            torch.testing.assert_close(one.components_, two.components_, rtol=1e-4, atol=1e-6)
            codes = one.transform(a)
            torch.testing.assert_close(one.transform(a[order]), codes[order])

    check()


class Head:
    """Logits of any shape of codes, one nonlinear and one constant."""

    class_names = ("curved", "constant")

    def classify(self, codes):
        level = codes.mean(1)
        k = level.shape[1]
        curved = (level * torch.linspace(1, 2, k).to(level)).sum(1).tanh() + level.prod(1)
        return torch.stack([curved, torch.zeros_like(curved)], 1)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_importances_are_finite_and_follow_the_concepts(name):
    @settings(max_examples=8, deadline=None, derandomize=True)
    @given(
        n=st.integers(1, 4), p=st.integers(1, 3), k=st.integers(1, 4), seed=st.integers(0, 9),
        kind=st.sampled_from(KINDS), dtype=st.sampled_from([torch.float32, torch.float64]),
    )  # fmt: skip
    def check(n, p, k, seed, kind, dtype):
        codes = rows(n * p, k, kind, 0, dtype, seed).unflatten(0, (n, p))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = ESTIMATORS[name](Head(), codes, 0, seed=0)
            flat = ESTIMATORS[name](Head(), codes, 1, seed=0)
        assert found.values.shape == (k,)
        assert found.per_image.shape == (n, k)
        assert found.values.isfinite().all()
        # A logit that never changes owes nothing to any concept.
        torch.testing.assert_close(flat.values.double(), torch.zeros(k).double())

    check()


def test_sobol_indices_do_not_depend_on_the_order_of_pictures_or_their_scale():
    class Linear:
        def classify(self, codes):
            return codes.mean(1) @ torch.tensor([[1.0, 0.0], [2.0, 1.0], [4.0, 0.0]]).to(codes)

    codes = rows(8, 3, "plain", 0, torch.float64, 0)[:, None]
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    values = sobol(Linear(), codes, 0).values
    for other in (codes[order], codes * 1e-20, codes * 1e20):
        torch.testing.assert_close(sobol(Linear(), other, 0).values, values)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["nmf", "semi-nmf", "pca", "kmeans"])
def test_half_precision_stores_are_fitted_like_their_rows(tmp_path, dtype, name):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 4, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)
    )
    x = torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    store = ActivationStore.build(Backbone(model, "1"), x, tmp_path, dtype=dtype)
    a = store[:].flatten(0, 1).float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one, two = extractor(name, 3).fit(store), extractor(name, 3).fit(a)
    rebuilt = [made.inverse_transform(made.transform(a)) for made in (one, two)]
    errors = [float((a - r).norm() / a.norm()) for r in rebuilt]
    assert errors[0] == pytest.approx(errors[1], rel=0.02, abs=1e-3)
