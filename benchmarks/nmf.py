"""NMF against scikit-learn and Overcomplete: seconds to an objective, starts included.

    python benchmarks/nmf.py [--data sparse dense] [--k 10 25 50] [--rounds 5] [--patience 15]

Per round each library fits once, in turn; the medians are compared. scikit-learn (coordinate
descent, tol 1e-4, dense and as CSR) sets the objective. Ours is timed twice: left to stop by
itself, where the gap says how far from the objective it ends (the problem is not convex: different
runs end in neighbouring optima), and, as Overcomplete is, with the fewest iterations that come
within 0.02 % of the objective; both ratios are printed. Overcomplete is given up after `patience`
times our time (the goal is 10).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
import warnings
from bisect import bisect_left
from pathlib import Path

import scipy.sparse
import torch
from peers import FOLDER, OVERCOMPLETE, python_of
from sklearn.decomposition import NMF as ScikitNMF
from tables import goal

from conceptlens.demo import demo_backbone, demo_pictures
from conceptlens.extraction.nmf import NMF
from conceptlens.extraction.rows import as_rows
from conceptlens.images import Pictures

# Times the objective: what counts as reached.
ENOUGH = 1.0002

PEER = """
import json, sys, time, torch
from overcomplete.optimization import NMF
from overcomplete.optimization.nmf import hierarchical_als
a, k, goal, most = torch.load(sys.argv[1]), int(sys.argv[2]), *map(float, sys.argv[3:5])
nmf, took, reached, steps, more = NMF(k, solver="hals"), 0.0, False, 0, 5
start = time.perf_counter()
z, d = nmf.init_nndsvda(a)
took += time.perf_counter() - start
while took < most and not reached:
    start = time.perf_counter()
    z, d = hierarchical_als(a, z, d, max_iter=more, tol=0)
    took, steps = took + time.perf_counter() - start, steps + more
    error = float(sum((x - y @ d).double().square().sum()
                      for x, y in zip(a.split(4096), z.split(4096))))
    reached, more = error <= goal, 5 if error > 1.001 * goal else 1
print(json.dumps([took, reached, error / goal, steps]))
"""


def sparse_rows() -> torch.Tensor:
    """20 090 positions of EfficientNet-Lite0's last block."""
    bb = demo_backbone()
    views = demo_pictures("chelsea", 205) + demo_pictures("coffee", 205)
    with torch.no_grad():
        parts = [bb.activations(x) for _, x in Pictures(views, bb.transform).batches(32)]
    return torch.cat(parts).flatten(0, 1)


def dense_rows() -> torch.Tensor:
    """100 000 × 512 positive numbers, of rank 40 and noise."""
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(100_000, 40, generator=generator) ** 4
    low = u @ torch.empty(40, 512).exponential_(generator=generator) ** 1.5
    noise = torch.empty(low.shape).exponential_(generator=generator)
    return low + 0.3 * low.mean() * noise


def timed(work):
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def squared_error(a: torch.Tensor, u: torch.Tensor, v: torch.Tensor) -> float:
    """‖A − UV‖² in float64: what scikit-learn reports in float32 is 0.07 % off here."""
    pairs = zip(a.split(4096), u.split(4096), strict=True)
    return float(sum((x.double() - y.double() @ v.double()).square().sum() for x, y in pairs))


def fewest(a: torch.Tensor, k: int, target: float, most: int) -> int | None:
    """The fewest iterations that come within `ENOUGH` of the target, if any."""

    def reaches(count: int) -> bool:
        return NMF(k, max_iter=count).fit(a).reconstruction_err_ ** 2 <= ENOUGH * target

    counts = range(1, most + 1)
    first = bisect_left(counts, x=True, key=reaches)  # more iterations come no less close
    return counts[first] if first < len(counts) else None


def limit(a: torch.Tensor, k: int) -> float:
    """Seconds of the two products of an iteration, the quicker way of a few tries."""
    block = next(iter(as_rows(a)))[1]
    v, u = torch.rand(k, a.shape[1]), torch.rand(k, len(a))
    return min(timed(lambda: (block.cross(v), block.times(u)))[0] for _ in range(5))


def compare(
    name: str, a: torch.Tensor, k: int, rounds: int, most: int, patience: float, file: Path
) -> str:
    csr = scipy.sparse.csr_matrix(a.numpy())
    took: dict[str, list[float]] = {
        "ours": [],
        "goal": [],
        "dense": [],
        "csr": [],
        "overcomplete": [],
    }
    iterations = None
    for _ in range(rounds):
        ours = NMF(k)
        took["ours"].append(timed(lambda: ours.fit_transform(a))[0])  # noqa: B023
        peer = ScikitNMF(k, init="nndsvd", tol=1e-4, max_iter=most, random_state=0)
        seconds, w = timed(lambda: peer.fit_transform(a.numpy()))  # noqa: B023
        took["dense"].append(seconds)
        target = squared_error(a, torch.from_numpy(w), torch.from_numpy(peer.components_))
        if name == "sparse":
            took["csr"].append(timed(lambda: peer.fit_transform(csr))[0])  # noqa: B023
        iterations = iterations or fewest(a, k, target, ours.n_iter_)
        if iterations:
            quick = NMF(k, max_iter=iterations)
            took["goal"].append(timed(lambda: quick.fit_transform(a))[0])  # noqa: B023
        python = python_of("overcomplete", OVERCOMPLETE)
        longest = max(5.0, patience * took["ours"][-1])
        command = [python, "-c", PEER, str(file), str(k), str(ENOUGH * target), str(longest)]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds, reached, off, steps = json.loads(run.stdout)
        took["overcomplete"].append(seconds)
    middle = {peer: statistics.median(times) for peer, times in took.items() if times}
    own = middle.get("goal", middle["ours"])
    ratios = ", ".join(
        f"{peer} {seconds:.2f} s = {seconds / middle['ours']:.1f} and {seconds / own:.1f}×"
        for peer, seconds in middle.items()
        if peer not in ("ours", "goal")
    )
    own_goal, best = 5 if name == "sparse" else 3, min(middle["dense"], middle.get("csr", 1e9))
    goal(f"NMF over scikit-learn, {name}, k = {k}", best / middle["ours"], own_goal)
    goal(f"NMF over Overcomplete, {name}, k = {k}", middle["overcomplete"] / own, 10)
    gap = ours.reconstruction_err_**2 / target - 1
    share = ours.n_iter_ * limit(a, k) / middle["ours"]
    return (
        f"{name} k={k}: ours {middle['ours']:.2f} s ({ours.n_iter_} iterations, gap {gap:+.3%}, "
        f"{share:.0%} of the limit), to within 0.02 % {middle.get('goal', float('nan')):.2f} s "
        f"({iterations} iterations); scikit-learn ({peer.n_iter_} iterations) {ratios} "
        f"({'reached' if reached else 'not reached'}, gap {ENOUGH * off - 1:+.3%}, "
        f"{steps} iterations)"
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", nargs="+", default=["sparse", "dense"])
    parser.add_argument("--k", nargs="+", type=int, default=[10, 25, 50])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-iter", type=int, default=1000, help="scikit-learn's")
    parser.add_argument("--patience", type=float, default=15, help="with Overcomplete")
    given = parser.parse_args()
    for name in given.data:
        a = {"sparse": sparse_rows, "dense": dense_rows}[name]()
        file = FOLDER / f"{name}.pt"
        FOLDER.mkdir(exist_ok=True)
        torch.save(a, file)
        for k in given.k:
            line = compare(name, a, k, given.rounds, given.max_iter, given.patience, file)
            print(f"[{given.rounds} rounds, max_iter {given.max_iter}] {line}", flush=True)
