"""Sparse autoencoders against their formulas, dense gradients, planted dictionaries and kills."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
import torch
from memory import printed_by
from sklearn.base import clone
from test_distributed import in_two_processes
from torch.nn.functional import normalize

from conceptlens import ActivationStore, Backbone, distributed
from conceptlens.distributed import PeerLostError
from conceptlens.extraction.sae import SparseAutoencoder, loss_recovered, training
from conceptlens.extraction.sae.formulas import Step
from conceptlens.extraction.sae.sparse import Picks, decode, encode, top_k, top_of_batch
from conceptlens.extraction.sae.variants import VARIANTS
from conceptlens.sealing import unpack

K, C, N = 12, 7, 9


def random_weights(variant, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    w = {"encoder": draw(K, C), "encoder_bias": draw(K), "intercept": draw(C)}
    w["components"] = normalize(draw(K, C), dim=1)
    for name, start in VARIANTS[variant].more(K, C).items():
        w[name] = start.to(dtype) + 0.3 * (draw(K) if start.ndim else draw(1)[0])
    return w


def random_rows(dtype=torch.float64):
    return torch.randn(N, C, generator=torch.Generator().manual_seed(1), dtype=dtype)


def small(variant="topk", **options):
    """An estimator that learns `planted` in a fraction of a second."""
    options = {"n_epochs": 4, "batch_size": 100, "learning_rate": 3e-3} | options
    if VARIANTS[variant].counts:
        options.setdefault("sparsity", 3)
    return SparseAutoencoder(40, variant, **options)


def planted(n=1000, k=32, c=16, on=3, seed=0):
    """Rows that are sums of few of k > c directions, and the directions."""
    generator = torch.Generator().manual_seed(seed)
    v = normalize(torch.randn(k, c, generator=generator), dim=1)
    units = torch.rand(n, k, generator=generator).topk(on, dim=1).indices
    sizes = 1 + torch.rand(n, on, generator=generator)
    return torch.zeros(n, k).scatter(1, units, sizes) @ v, v


# -- formulas --------------------------------------------------------------------------------


def keep_largest(z, count):
    """Zero all but the `count` largest entries of all of `z`."""
    level = z.flatten().sort(descending=True).values[count - 1]
    return torch.where(z >= level, z, torch.zeros_like(z))


def linear(w, a):
    return (a - w["intercept"]) @ w["encoder"].T


def z_of(w, a):
    return linear(w, a) + w["encoder_bias"]


def by_row(w, a, k):
    return torch.stack([keep_largest(row, k) for row in z_of(w, a)]).clamp(min=0)


def above(w, a):
    return torch.where(z_of(w, a) > w["log_threshold"].exp(), z_of(w, a), 0.0)


def opened(w, a):
    magnitude = w["log_scale"].exp() * linear(w, a) + w["magnitude_bias"]
    return torch.where(z_of(w, a) > 0, magnitude, 0.0).clamp(min=0)


CODES = {
    "relu": lambda w, a, k: z_of(w, a).clamp(min=0),
    "topk": by_row,
    "batchtopk": lambda w, a, k: above(w, a),
    "matryoshka": lambda w, a, k: above(w, a),
    "jumprelu": lambda w, a, k: above(w, a),
    "gated": lambda w, a, k: opened(w, a),
}


def share(w, a, u):
    """‖a − â‖² / C, the mean over rows."""
    return (a - u @ w["components"] - w["intercept"]).square().sum(1).mean() / C


def by_batch(w, a, k):
    return keep_largest(z_of(w, a), N * k).clamp(min=0)


def held(w):
    return w | {name: w[name].detach() for name in ("components", "intercept")}


def nested_share(w, a, u):
    parts = []
    for size in (K // 16, K // 8, K // 4, K // 2, K):
        prefix = u.clone()
        prefix[:, size:] = 0
        parts.append(share(w, a, prefix))
    return sum(parts) / len(parts)


def dead_share(w, a, u, s, dead):
    """What the dead units' largest codes leave of the residual, the residual held."""
    rest = (a - u @ w["components"] - w["intercept"]).detach()
    z = z_of(w, a)[:, dead]
    r = torch.stack([keep_largest(row, min(len(dead), s)) for row in z]).clamp(min=0)
    return (rest - r @ w["components"][dead]).square().sum(1).mean() / C / 32


LOSSES = {
    "relu": lambda w, a, s, dead: (
        share(w, a, CODES["relu"](w, a, s)) + s * CODES["relu"](w, a, s).sum(1).mean() / C**0.5
    ),
    "topk": lambda w, a, s, dead: (
        share(w, a, by_row(w, a, s)) + dead_share(w, a, by_row(w, a, s), s, dead)
    ),
    "batchtopk": lambda w, a, s, dead: (
        share(w, a, by_batch(w, a, s)) + dead_share(w, a, by_batch(w, a, s), s, dead)
    ),
    "matryoshka": lambda w, a, s, dead: (
        nested_share(w, a, by_batch(w, a, s)) + dead_share(w, a, by_batch(w, a, s), s, dead)
    ),
    "jumprelu": lambda w, a, s, dead: (
        share(w, a, above(w, a)) + s * (above(w, a) > 0).double().sum(1).mean()
    ),
    "gated": lambda w, a, s, dead: (
        share(w, a, opened(w, a))
        + s * z_of(w, a).clamp(min=0).sum(1).mean() / C**0.5
        + share(held(w), a, z_of(w, a).clamp(min=0))
    ),
}


def test_tables_name_every_variant():
    assert CODES.keys() == LOSSES.keys() == VARIANTS.keys()


@pytest.mark.parametrize("variant", VARIANTS)
def test_codes_are_those_of_the_formula(variant):
    w, a = random_weights(variant), random_rows()
    codes = VARIANTS[variant].codes(w, a, 4)
    torch.testing.assert_close(codes, CODES[variant](w, a, 4), rtol=0, atol=1e-12)
    assert 0 < (codes > 0).sum() < codes.numel()


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_its_gradients_are_those_of_the_dense_formula(variant):
    a, dead = random_rows(), torch.tensor([1, 4, 5, 10])
    sparsity = 3 if VARIANTS[variant].counts else 0.3
    w = {name: x.requires_grad_(x.ndim > 0) for name, x in random_weights(variant).items()}
    learnt = {name: x for name, x in w.items() if x.requires_grad}
    expected = LOSSES[variant](w, a, sparsity, dead)
    # The formula's own derivative in θ is zero almost everywhere: see the next test.
    wanted = torch.autograd.grad(expected, list(learnt.values()), allow_unused=True)
    outcome = VARIANTS[variant].loss(w, a, Step(0, sparsity, N, dead))
    found = torch.autograd.grad(outcome.loss, list(learnt.values()))
    torch.testing.assert_close(outcome.loss, expected, rtol=0, atol=1e-12)
    for name, ours, theirs in zip(learnt, found, wanted, strict=True):
        if name != "log_threshold":
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12, msg=name)
            assert ours.any(), name


def test_thresholds_learn_straight_through_the_jump():
    """∂L/∂log θ = −θ/ε Σ [|z − θ| < ε/2] (θ ∂L/∂u + λ), ε = 0.05 √C; unit by unit."""
    w, a, rate, width = random_weights("jumprelu"), random_rows(), 0.3, 0.05 * C**0.5
    z, theta = z_of(w, a), w["log_threshold"].exp()
    w["encoder_bias"] += theta - z[0] + 0.2 * width  # one row near every threshold
    w["log_threshold"].requires_grad_()
    z, theta = z_of(w, a), w["log_threshold"].detach().exp()
    u = above(w, a).detach()
    to_u = -2 * (a - u @ w["components"] - w["intercept"]) @ w["components"].T / C
    expected = torch.zeros(K, dtype=torch.float64)
    for i in range(N):
        for j in range(K):
            if abs(z[i, j] - theta[j]) < width / 2:
                expected[j] -= theta[j] / width * (theta[j] * to_u[i, j] + rate) / N
    step = Step(0, rate, N, torch.tensor([], dtype=torch.long))
    VARIANTS["jumprelu"].loss(w, a, step).loss.backward()
    torch.testing.assert_close(w["log_threshold"].grad, expected, rtol=0, atol=1e-12)
    assert (expected != 0).sum() >= K


def test_batch_threshold_follows_the_least_code_of_each_batch():
    w, a = random_weights("batchtopk"), random_rows()
    least = by_batch(w, a, 2)[by_batch(w, a, 2) > 0].min().log()
    before = w["log_threshold"].clone()
    none = torch.tensor([], dtype=torch.long)
    VARIANTS["batchtopk"].loss(w, a, Step(1000, 2, N, none))
    torch.testing.assert_close(w["log_threshold"], before + 0.01 * (least - before))
    VARIANTS["batchtopk"].loss(w, a, Step(0, 2, N, none))
    torch.testing.assert_close(w["log_threshold"], least)


# -- sparse kernels --------------------------------------------------------------------------


def test_sparse_kernels_pass_gradcheck(device):
    a, w, d, c = (
        torch.randn(*shape, dtype=torch.float64, device=device, requires_grad=True)
        for shape in ((5, 4), (6, 4), (6, 4), (6,))
    )
    picks = top_k((a @ w.T + c).detach(), 3)

    def run(a, w, c, d):
        values = encode(a, w, c, (a @ w.T + c).detach(), picks)
        return values, decode(values, picks, d)

    # What encode() is given as `pre` carries no gradient, so that finite differences see it.
    assert torch.autograd.gradcheck(run, (a, w, c, d))


@pytest.mark.parametrize("heavy", [False, True])
def test_the_largest_of_a_batch_are_all_found(heavy):
    z = torch.randn(50, 200, generator=torch.Generator().manual_seed(0))
    if heavy:  # one row holds all of them
        z[7] += 100
    picks, level = top_of_batch(z, 150)
    expected = (z >= z.flatten().sort(descending=True).values[149]).nonzero()
    found = torch.stack([picks.rows, picks.units], 1)
    assert sorted(found.tolist()) == expected.tolist()
    assert level == z[picks.rows, picks.units].min()


def test_empty_batches_and_silent_units_have_zero_gradients():
    d = torch.randn(6, 4, requires_grad=True)
    none = torch.tensor([], dtype=torch.long)
    out = decode(torch.tensor([], requires_grad=True), Picks(none, none, (3, 6)), d)
    out.sum().backward()
    assert not out.any()
    assert not d.grad.any()


# -- the estimator ---------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_estimator_conventions(variant, device):
    a = planted()[0].to(device)
    before = a.clone()
    model = small(variant)
    codes = model.fit_transform(a)
    assert torch.equal(a, before)
    assert codes.shape == (1000, 40)
    assert model.components_.shape == (40, 16)
    assert model.components_.device == a.device
    assert (model.n_features_in_, model.n_iter_) == (16, 40)
    norms = model.components_.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=0, atol=1e-5)
    assert clone(model).get_params() == model.get_params()
    again = clone(model).fit(a)
    if device.type == "cpu":
        assert all(torch.equal(again.weights_[name], w) for name, w in model.weights_.items())
    torch.testing.assert_close(model.transform(a[:7]), codes[:7])
    assert isinstance(clone(model).fit_transform(a.cpu().numpy()), np.ndarray)
    assert [set(epoch) for epoch in model.history_] == [{"r2", "l0", "dead"}] * 4
    assert model.history_[-1]["r2"] > model.history_[0]["r2"]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", [torch.as_tensor, np.asarray])
def test_sparse_codes_are_the_dense_ones(variant, kind, monkeypatch):
    monkeypatch.setattr("conceptlens.extraction.sae.estimator.CHUNK", 64)
    a = kind(planted(150)[0])
    model = small(variant).fit(a)
    dense, sparse = model.transform(a), model.transform(a, sparse=True)
    assert sparse.shape == dense.shape
    full = sparse.to_dense() if kind is torch.as_tensor else sparse.toarray()
    np.testing.assert_array_equal(full, dense)
    back = model.inverse_transform(sparse)
    assert type(back) is type(a)
    np.testing.assert_allclose(back, model.inverse_transform(dense), rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_codes_and_rows_are_differentiable_in_their_input(variant):
    model = small(variant).fit(planted(200)[0])
    a = planted(3, seed=1)[0].double().requires_grad_()

    def both(a):
        u = model.transform(a)
        return u, model.inverse_transform(u)

    assert torch.autograd.gradcheck(both, (a,))


def test_figures_are_those_of_the_data_and_free_of_its_scale():
    a, _ = planted()
    last = small(n_epochs=8).fit(a).history_[-1]
    model = small(n_epochs=8).fit(1000 * a + 5)
    rest = 1000 * a + 5 - model.inverse_transform(model.transform(1000 * a + 5))
    true = 1 - rest.square().sum() / (1000 * (a - a.mean(0))).square().sum()
    assert model.history_[-1]["r2"] == pytest.approx(float(true), abs=0.01)
    assert last["l0"] == pytest.approx(3, abs=0.05)
    codes = small(n_epochs=8).fit(a).transform(a)
    assert (codes > 0).sum(1).double().mean() == pytest.approx(3, abs=0.05)


@pytest.mark.parametrize("variant", ["topk", "batchtopk"])
def test_planted_overcomplete_dictionary_is_found(variant):
    a, v = planted(n=8000, k=48, c=24)
    model = SparseAutoencoder(
        64, variant, sparsity=3, n_epochs=20, batch_size=256, learning_rate=3e-3
    ).fit(a)
    cosines = (v @ model.components_.T).numpy()
    rows, columns = scipy.optimize.linear_sum_assignment(-cosines)
    assert cosines[rows, columns].mean() >= 0.95


@pytest.mark.parametrize("variant", ["relu", "gated", "jumprelu"])
def test_heavier_penalties_give_sparser_codes(variant):
    a, _ = planted()
    light, heavy = (
        small(variant, n_epochs=10, sparsity=s).fit(a).history_[-1] for s in (1e-3, 1.0)
    )
    assert heavy["l0"] < 0.9 * light["l0"]
    assert heavy["r2"] < light["r2"]


def test_dead_units_start_anew_from_badly_explained_rows():
    a, _ = planted()
    state = training.Training(
        training.Vectors(a),
        training.Settings(40, "relu", 1e-3, 10, 100, 1e-3, 0),
        torch.device("cpu"),
    )
    with torch.no_grad():
        state.weights["encoder_bias"][:5] = -1e3
    for batch in a.split(100):
        state._step(batch)
    assert state._figures()["dead"] == pytest.approx(5 / 40)
    others = state.weights["encoder"][5:].clone()
    state._resample(a, 0)
    norms = state.weights["components"].norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(40), rtol=0, atol=1e-5)
    assert torch.equal(state.weights["encoder"][5:], others)
    state._start_epoch()
    for batch in a.split(100):
        state._step(batch)
    assert state._figures()["dead"] == 0


def test_float64_stays_float64():
    model = small().fit(planted()[0].double())
    assert {w.dtype for w in model.weights_.values()} == {torch.float64}


def test_monitor_adds_figures_of_each_epoch():
    a, _ = planted()
    head = torch.nn.Linear(16, 4)
    pictures = a.view(250, 4, 16)

    def recovered(model):
        return {"recovered": loss_recovered(model, lambda x: 9 * head(x.mean(1)), pictures)}

    model = small(n_epochs=6).fit(a, monitor=recovered)
    figures = [epoch["recovered"] for epoch in model.history_]
    assert figures[-1] == recovered(model)["recovered"]
    assert 0.5 < figures[-1] <= 1


def test_loss_recovered_is_one_for_perfect_and_zero_for_zero_reconstructions():
    class Scaled:
        def __init__(self, factor):
            self.factor = factor

        def transform(self, a):
            return a

        def inverse_transform(self, u):
            return self.factor * u

    generator = torch.Generator().manual_seed(0)
    a, w = torch.rand(9, 2, 5, generator=generator), torch.randn(5, 3, generator=generator)

    def head(x):
        return x.sum(1) @ w

    assert loss_recovered(Scaled(1.0), head, a) == 1
    assert loss_recovered(Scaled(0.0), head, a) == 0
    with pytest.raises(ValueError, match="nothing to recover"):
        loss_recovered(Scaled(1.0), head, a, labels=head(a).argmin(1))


# -- stores, checkpoints, processes ----------------------------------------------------------


@pytest.fixture
def store(tmp_path):
    """480 vectors of 16 channels."""
    network = torch.nn.Sequential(
        torch.nn.Identity(), torch.nn.Conv2d(3, 16, 2, 2), torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(16, 2),
    )  # fmt: skip
    pictures = torch.rand(120, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return ActivationStore.build(Backbone(network, "2"), pictures, tmp_path / "store")


def test_a_store_gives_what_its_rows_give(store):
    streamed = small().fit(store)
    held = small().fit(store[:].flatten(0, 1))
    assert all(torch.equal(streamed.weights_[n], w) for n, w in held.weights_.items())
    assert streamed.history_ == held.history_


MEMORY = """
from conceptlens import ActivationStore, SparseAutoencoder
from conceptlens.distributed import StoreShare

sae = SparseAutoencoder(16, sparsity=4, n_epochs=1, batch_size=4096)
store = ActivationStore.open(sys.argv[1])
sae.fit(StoreShare(store, range(16)))
before = peak()
streamed = sae.fit(store).weights_
after = peak()
held = store[:].split([shard.rows for shard in store._shards])
store._reader._read = lambda pieces, rows: torch.cat([held[i][a:b] for i, a, b in pieces], out=rows)
differences = [(w - streamed[name]).abs().max() for name, w in sae.fit(store).weights_.items()]
print(after - before, peak() - before, float(max(differences)))
"""


def test_a_store_of_four_times_the_allowed_memory_is_fitted_within_it(tmp_path):
    """128 MiB of activations, 32 allowed: thrice the four shards of 1 MiB that are mixed."""
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 128, 2, 2), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )
    pictures = torch.rand(1024, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    backbone = Backbone(network, "0")
    ActivationStore.build(backbone, pictures, tmp_path / "s", batch_size=8, shard_bytes=2**20)
    streamed, held, difference = printed_by(MEMORY, tmp_path / "s")
    assert streamed < 32 < 96 < held
    assert difference < 1e-4


def stop_after(monkeypatch, steps):
    """Make a fit fail after so many steps, a checkpoint having been written after each."""
    monkeypatch.setattr(training, "SECONDS", -1.0)
    step = training.Training._step

    def counted(self, batch):
        if self.number == steps:
            raise KeyboardInterrupt
        step(self, batch)

    monkeypatch.setattr(training.Training, "_step", counted)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("steps", [17, 30])
def test_stopped_and_resumed_is_equal_to_the_last_bit(variant, steps, tmp_path, monkeypatch):
    a, _ = planted()
    options = {"n_epochs": 10, "sparsity": 3 if VARIANTS[variant].counts else 0.02}
    whole = small(variant, **options).fit(a)
    with monkeypatch.context() as patch:
        stop_after(patch, steps)
        with pytest.raises(KeyboardInterrupt):
            small(variant, **options).fit(a, checkpoint=tmp_path)
    resumed = small(variant, **options).fit(a, checkpoint=tmp_path)
    assert all(torch.equal(resumed.weights_[name], w) for name, w in whole.weights_.items())
    assert resumed.history_ == whole.history_
    assert len(list(tmp_path.iterdir())) == 1


KILLED = textwrap.dedent(
    """
    import sys, time
    sys.path.insert(0, {tests!r})
    from test_sae import planted, small, training
    training.SECONDS = -1.0
    step = training.Training._step
    training.Training._step = lambda self, batch: (time.sleep(0.02), step(self, batch))
    print("ready", flush=True)
    small(n_epochs=10).fit(planted()[0], checkpoint={path!r})
    """
)


def test_killed_and_resumed_is_equal_to_the_last_bit(tmp_path):
    code = KILLED.format(tests=str(Path(__file__).parent), path=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    process.stdout.readline()
    while not (tmp_path / "checkpoint.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    _, record = unpack(tmp_path / "checkpoint.safetensors")
    assert 0 < record["number"] < 100
    resumed = small(n_epochs=10).fit(planted()[0], checkpoint=tmp_path)
    whole = small(n_epochs=10).fit(planted()[0])
    assert all(torch.equal(resumed.weights_[name], w) for name, w in whole.weights_.items())


def test_a_checkpoint_of_another_fit_is_refused(tmp_path):
    a, _ = planted()
    small().fit(a, checkpoint=tmp_path)
    with pytest.raises(ValueError, match=r"other settings \(learning_rate=0.003, not 0.01\)"):
        small(learning_rate=0.01).fit(a, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="other data"):
        small().fit(a + 1e-6, checkpoint=tmp_path)
    assert small().fit(a, checkpoint=tmp_path).n_iter_ == 40  # done already


def test_a_store_changes_the_checkpoints_data(store, tmp_path):
    small().fit(store, checkpoint=tmp_path / "c")
    with pytest.raises(ValueError, match="other data"):
        small().fit(store[:].flatten(0, 1), checkpoint=tmp_path / "c")


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "foreign"])
def test_a_damaged_checkpoint_is_refused(damage, tmp_path):
    a, _ = planted()
    small().fit(a, checkpoint=tmp_path)
    (file,) = tmp_path.iterdir()
    spoil(file, damage)
    with pytest.raises(ValueError, match=file.name):
        small().fit(a, checkpoint=tmp_path)


def spoil(file, damage):
    data = bytearray(file.read_bytes())
    if damage == "truncate":
        data = data[: len(data) // 2]
    elif damage == "flip":
        data[-3] ^= 1
    else:
        data = b"" if damage == "empty" else b"[1, 2]"
    file.write_bytes(data)


SHARED = {v: 3 if VARIANTS[v].counts else 0.01 for v in VARIANTS}


def fit_all():
    """Every variant on the same rows; a batch that two processes cannot halve is among them."""
    a = planted(999)[0].double()
    fits = {v: small(v, n_epochs=5, sparsity=SHARED[v]).fit(a) for v in VARIANTS}
    return {v: {n: w.numpy() for n, w in fit.weights_.items()} for v, fit in fits.items()}


def fit_all_then_die():
    """What `fit_all` gives, and what a fit raises of which process 1 dies after 25 steps."""
    fits = fit_all()
    with pytest.raises(ValueError, match="different rows"):
        small().fit(distributed.share_of(planted(999)[0]))
    training.SECONDS = -1.0
    step = training.Training._step

    def dying(self, batch):
        if self.number == 25 and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        step(self, batch)

    training.Training._step = dying
    try:
        small().fit(planted()[0].double(), checkpoint=os.environ["SAE_CHECKPOINT"])
    except PeerLostError as error:
        return fits, str(error)


def test_two_processes_learn_what_one_does_and_stop_when_one_dies(tmp_path, monkeypatch):
    monkeypatch.setenv("SAE_CHECKPOINT", str(tmp_path))
    (together, words), _ = in_two_processes(fit_all_then_die)
    for variant, weights in fit_all().items():
        for name, w in weights.items():
            found = together[variant][name]
            np.testing.assert_allclose(found, w, rtol=0, atol=1e-5, err_msg=f"{variant} {name}")
    assert "lost another one" in words
    a = planted()[0].double()
    resumed, whole = small().fit(a, checkpoint=tmp_path), small().fit(a)
    for name, w in whole.weights_.items():
        torch.testing.assert_close(resumed.weights_[name], w, rtol=0, atol=1e-5)


# -- saving ----------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_saved_and_loaded_is_the_same(variant, tmp_path):
    a, _ = planted(300)
    model = small(variant).fit(a)
    model.save(tmp_path)
    loaded = SparseAutoencoder.load(tmp_path)
    assert loaded.get_params() == model.get_params()
    assert torch.equal(loaded.transform(a), model.transform(a))
    assert (loaded.history_, loaded.n_iter_) == (model.history_, model.n_iter_)
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"model.safetensors", "config.json", "README.md"}
    assert "40 concepts" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "foreign", "remove"])
def test_a_damaged_folder_is_refused(name, damage, tmp_path):
    small().fit(planted(300)[0]).save(tmp_path)
    file = tmp_path / name
    file.unlink() if damage == "remove" else spoil(file, damage)
    with pytest.raises(ValueError, match=name):
        SparseAutoencoder.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2}, {"options": None}, {"options": {"variant": "topk"}}, {"n_iter": "many"},
        {"history": [1]}, {"options": {"n_components": 10**12}},
        {"options": {"n_components": "40"}}, {"options": {"variant": "../../etc"}},
        {"options": {"sparsity": 1e9}},
    ],
)  # fmt: skip
def test_a_hostile_config_is_refused(change, tmp_path):
    small().fit(planted(300)[0]).save(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    if isinstance(change.get("options"), dict) and change["options"] != {"variant": "topk"}:
        change = {"options": config["options"] | change["options"]}
    file.write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=r"config\.json"):
        SparseAutoencoder.load(tmp_path)


# -- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "options", "error", "words"),
    [
        (torch.full((5, 4), float("nan")), {}, ValueError, "NaN"),
        (torch.ones(5), {}, ValueError, r"\(n, C\)"),
        (torch.ones(0, 4), {}, ValueError, r"\(n, C\)"),
        (torch.ones(5, 4, dtype=torch.int64), {}, TypeError, "int64"),
        (torch.zeros(5, 4), {}, ValueError, "all rows are the same"),
        (torch.ones(5, 4), {}, ValueError, "all rows are the same"),
        (torch.rand(5, 4), {"variant": "top"}, ValueError, r"variant.*'topk'.*got 'top'"),
        (torch.rand(5, 4), {"sparsity": 41}, ValueError, "sparsity=41.*n_components=40"),
        (torch.rand(5, 4), {"sparsity": 2.5}, ValueError, "sparsity=2.5"),
        (torch.rand(5, 4), {"sparsity": -1}, ValueError, "sparsity.*above 0"),
        (torch.rand(5, 4), {"n_components": 0}, ValueError, "n_components.*got 0"),
        (torch.rand(5, 4), {"n_epochs": 1.5}, ValueError, "n_epochs.*1.5"),
        (torch.rand(5, 4), {"batch_size": 0}, ValueError, "batch_size"),
        (torch.rand(5, 4), {"learning_rate": 0}, ValueError, "learning_rate"),
        (torch.rand(5, 4), {"random_state": -1}, ValueError, "random_state"),
        (torch.rand(500, 4), {"learning_rate": 1e30}, FloatingPointError, "learning_rate"),
    ],
)
def test_bad_rows_and_options(a, options, error, words):
    with pytest.raises(error, match=words):
        small().set_params(**options).fit(a)


def test_bad_use(tmp_path):
    for use in (
        lambda model: model.transform(torch.rand(5, 4)),
        lambda model: model.inverse_transform(torch.rand(5, 40)),
        lambda model: model.save(tmp_path),
    ):
        with pytest.raises(ValueError, match="not fitted"):
            use(small())
    model = small().fit(planted(200)[0])
    with pytest.raises(ValueError, match=r"3 channels.*has 16"):
        model.transform(torch.rand(5, 3))
    with pytest.raises(ValueError, match=r"expected \(n, 40\)"):
        model.inverse_transform(torch.rand(5, 3))
    with pytest.raises(ValueError, match=r"config\.json"):
        SparseAutoencoder.load(tmp_path / "nowhere")
