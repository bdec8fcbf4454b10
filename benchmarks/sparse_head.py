"""The sparse head against scikit-learn's saga: time to the same objective, within 1e-4.

    python benchmarks/sparse_head.py [--n 20000] [--k 1024] [--epochs 5 10 15 20 ...]

Codes are standardised rectified mixtures of 128 latent variables, correlated as activations are.
scikit-learn is given growing numbers of epochs, each from scratch, until its objective is within
1e-4 of the best that either found, or the epochs end; objectives are computed in float64. Both use
one core: CPU seconds are compared, which other load on the machine changes little.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from tables import goal
from torch.nn.functional import cross_entropy

from conceptlens.bottleneck.sparse_head import fit_sparse_head

N_CLASSES, LATENT, L1_RATIO = 10, 128, 0.99


def problem(n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.arange(1, LATENT + 1).float() ** -0.5
    y = torch.randint(N_CLASSES, (n,), generator=generator)
    means = 0.9 * torch.randn(N_CLASSES, LATENT, generator=generator)
    latent = (torch.randn(n, LATENT, generator=generator) + means[y]) * spectrum
    mix = torch.randn(LATENT, k, generator=generator) / spectrum.norm()
    codes = torch.relu(latent @ mix + 0.3 * torch.randn(n, k, generator=generator) - 0.5)
    wrong = torch.rand(n, generator=generator) < 0.05
    y = torch.where(wrong, torch.randint(N_CLASSES, (n,), generator=generator), y)
    return (codes - codes.mean(0)) / codes.std(0).clamp(min=1e-6), y


def objective(codes, y, weight, intercept, lam: float) -> float:
    weight, intercept = torch.as_tensor(weight).double(), torch.as_tensor(intercept).double()
    loss = cross_entropy(codes.double() @ weight.T + intercept, y)
    ridge = (1 - L1_RATIO) / 2 * weight.square().sum()
    return float(loss + lam * (L1_RATIO * weight.abs().sum() + ridge))


def timed(task: Callable[[], Any]) -> tuple[Any, float, float]:
    """What it returns, and the seconds of CPU and of the clock that it took."""
    cpu, clock = time.process_time(), time.perf_counter()
    found = task()
    return found, time.process_time() - cpu, time.perf_counter() - clock


def compare(codes: torch.Tensor, y: torch.Tensor, lam: float, epochs: list[int]) -> None:
    head, ours, waited = timed(
        lambda: fit_sparse_head(codes, y, N_CLASSES, lam=lam, l1_ratio=L1_RATIO)
    )
    reached = objective(codes, y, head.weight, head.intercept, lam)
    print(f"lam {lam:g}: ours {ours:.2f} s CPU ({waited:.1f} s waited), objective {reached:.6f}")
    print(f"  {head}", flush=True)
    for most in epochs:
        peer = LogisticRegression(
            penalty="elasticnet", solver="saga", l1_ratio=L1_RATIO, C=1 / (lam * len(y)),
            tol=1e-12, max_iter=most, random_state=0,
        )  # fmt: skip
        _, seconds, waited = timed(lambda peer=peer: peer.fit(codes.numpy(), y.numpy()))
        theirs = objective(codes, y, peer.coef_, peer.intercept_, lam)
        equal = theirs <= (1 + 1e-4) * min(reached, theirs)
        print(
            f"  saga {most} epochs: {seconds:.1f} s CPU ({waited:.1f} s waited) = "
            f"{seconds / ours:.1f}×, objective "
            f"{theirs:.6f} ({theirs / reached - 1:+.1e}){', equal' if equal else ''}",
            flush=True,
        )
        if equal:
            goal(f"sparse head over saga at equal objective, lam {lam:g}", seconds / ours, 1)
            return


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int, default=20_000)
    parser.add_argument("--k", type=int, default=1024)
    parser.add_argument("--lam", type=float, nargs="+", default=[2e-2, 2e-3])
    parser.add_argument("--epochs", type=int, nargs="+", default=[5, 10, 15, 20, 30, 45, 70, 100])
    given = parser.parse_args()
    torch.set_num_threads(1)
    codes, y = problem(given.n, given.k)
    load = os.getloadavg()[0]
    print(f"{given.n} × {given.k}, {N_CLASSES} classes, one thread, load {load:.1f} at the start")
    for lam in given.lam:
        compare(codes, y, lam, given.epochs)
