"""Sparse autoencoders beside Overcomplete's and a plain loop: vectors a second, and R².

Run with ``python benchmarks/sae.py`` after installing ``conceptlens[demo]``; it makes a virtual
environment for Overcomplete in ``benchmarks/.peers``. ``speed`` or ``quality`` runs one part.
"""

import contextlib
import io
import statistics
import sys
import time

import torch
from peers import OVERCOMPLETE, run_beside
from tables import goal
from torch.nn.functional import normalize

run_beside("overcomplete", OVERCOMPLETE)

from overcomplete.sae import TopKSAE, train_sae  # noqa: E402

from conceptlens.demo import PHOTOS, demo_backbone, demo_pictures  # noqa: E402
from conceptlens.extraction.sae import SparseAutoencoder  # noqa: E402
from conceptlens.extraction.sae.settings import Settings  # noqa: E402
from conceptlens.extraction.sae.training import Training  # noqa: E402
from conceptlens.extraction.sae.vectors import Vectors  # noqa: E402
from conceptlens.images import Pictures  # noqa: E402

C, K, BATCH = 1280, 2048, 1024
ROUNDS, STEPS = 7, 10


def activations(n_views: int = 220) -> torch.Tensor:
    """Positions of EfficientNet-Lite0's last block on views of two photographs."""
    bb = demo_backbone()
    views = [view for photo in PHOTOS for view in demo_pictures(photo, n_views)]
    batches = Pictures(views, bb.transform).batches(32)
    return torch.cat([bb.activations(x).flatten(0, 1) for _, x in batches])


# -- speed ---------------------------------------------------------------------------------------


def mse(x, x_hat, pre_codes, codes, dictionary):
    return (x - x_hat).square().mean()


class Overcomplete:
    """`train_sae` as its documentation calls it, or (fused) with Adam's quick form."""

    def __init__(self, k: int, fused: bool) -> None:
        self.model = TopKSAE(C, nb_concepts=K, top_k=k)
        self.adam = torch.optim.Adam(self.model.parameters(), lr=1e-3, fused=fused or None)

    def train(self, batches: list[torch.Tensor]) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            train_sae(self.model, batches, mse, self.adam, nb_epochs=1)


class Plain:
    """The same architecture as ours in a dozen lines of dense PyTorch."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.dictionary = normalize(torch.randn(K, C), dim=1).requires_grad_()
        self.encoder = self.dictionary.detach().clone().requires_grad_()
        self.bias = torch.zeros(K, requires_grad=True)
        self.intercept = torch.zeros(C, requires_grad=True)
        parameters = [self.dictionary, self.encoder, self.bias, self.intercept]
        self.adam = torch.optim.Adam(parameters, lr=1e-3, fused=True)

    def train(self, batches: list[torch.Tensor]) -> None:
        for a in batches:
            self.adam.zero_grad()
            z = torch.addmm(self.bias, a - self.intercept, self.encoder.T)
            values, units = z.topk(self.k, dim=1)
            codes = torch.zeros_like(z).scatter(1, units, values.relu())
            (codes @ self.dictionary + self.intercept - a).square().mean().backward()
            self.adam.step()
            with torch.no_grad():
                self.dictionary.div_(self.dictionary.norm(dim=1, keepdim=True))


class Ours:
    def __init__(self, a: torch.Tensor, k: int, variant: str = "topk") -> None:
        settings = Settings(K, variant, float(k), 10**6, BATCH, 1e-3, 0)
        self.training = Training(Vectors(a), settings, a.device)

    def train(self, batches: list[torch.Tensor]) -> None:
        for batch in batches:
            self.training._step(batch)


class Product:
    """The product that no such step can do without: the encoder's, forward."""

    def __init__(self) -> None:
        self.bias, self.encoder = torch.randn(K), torch.randn(K, C)

    def train(self, batches: list[torch.Tensor]) -> None:
        for a in batches:
            torch.addmm(self.bias, a, self.encoder.T)


def speed(a: torch.Tensor, k: int = 16) -> None:
    runners = {
        "Overcomplete 0.3.0 train_sae": Overcomplete(k, fused=False),
        "the same, fused Adam": Overcomplete(k, fused=True),
        "plain dense loop, fused Adam": Plain(k),
        "conceptlens topk": Ours(a, k),
        "conceptlens batchtopk": Ours(a, k, "batchtopk"),
        "one dense product (limit)": Product(),
    }
    times: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(ROUNDS):  # in turns, so that what else the machine does falls on all
        batches = list(a[torch.randperm(len(a))[: STEPS * BATCH]].split(BATCH))
        for name, runner in runners.items():
            start = time.perf_counter()
            runner.train(batches)
            times[name].append(time.perf_counter() - start)
    middle = {name: statistics.median(t[1:]) for name, t in times.items()}
    base, limit = middle["Overcomplete 0.3.0 train_sae"], middle["one dense product (limit)"]
    threads = torch.get_num_threads()
    print(f"\nTopK, {C} → {K}, k {k}, batch {BATCH}, {threads} threads, float32,")
    print(f"median of {ROUNDS - 1} rounds of {STEPS} steps in turns")
    print(f"{'':32}{'vectors/s':>10}{'ratio':>8}{'of limit':>10}")
    for name, t in middle.items():
        rate = STEPS * BATCH / t
        print(f"{name:32}{rate:>10.0f}{base / t:>8.2f}{limit / t:>10.0%}")
    goal("topk autoencoder over Overcomplete's, vectors/s", base / middle["conceptlens topk"], 2)


# -- quality -------------------------------------------------------------------------------------


@torch.no_grad()
def r2(a: torch.Tensor, reconstructed: torch.Tensor) -> float:
    return 1 - float((a - reconstructed).square().sum() / (a - a.mean(0)).square().sum())


def quality(a: torch.Tensor, n_epochs: int = 15, rate: float = 1e-3) -> None:
    order = torch.randperm(len(a), generator=torch.Generator().manual_seed(0))
    train, held = a[order[: -len(a) // 10]], a[order[-len(a) // 10 :]]
    steps = n_epochs * -(-len(train) // BATCH)
    print(f"\nR² on held-out positions after {steps} steps of {BATCH}, {C} → {K}, rate {rate}")
    print(f"{'L0':>4}{'Overcomplete':>14}{'conceptlens':>13}")
    for k in (16, 32, 64):
        torch.manual_seed(0)
        peer = Overcomplete(k, fused=True)
        peer.adam.param_groups[0]["lr"] = rate
        for epoch in range(n_epochs):
            peer.train(list(Vectors(train).batches(BATCH, epoch)))
        peer.model.eval()
        with torch.no_grad():
            theirs = peer.model(held)[2]
        sae = SparseAutoencoder(K, sparsity=k, n_epochs=n_epochs, learning_rate=rate).fit(train)
        ours = sae.inverse_transform(sae.transform(held))
        print(f"{k:>4}{r2(held, theirs):>14.4f}{r2(held, ours):>13.4f}", flush=True)
        goal(f"R² minus Overcomplete's, L0 {k}", r2(held, ours) - r2(held, theirs), 0, "")


if __name__ == "__main__":
    parts = sys.argv[1:] or ["speed", "quality"]
    rows = activations()
    print(
        f"activations: {len(rows)} × {rows.shape[1]}, {float((rows == 0).float().mean()):.0%} zeros"
    )
    if "speed" in parts:
        speed(rows)
    if "quality" in parts:
        quality(rows)
