"""Memory and open files of one process that explains, fits, saves and reports for half an hour.

Prints the resident memory and the open file descriptors over time, and after a warm-up of a fifth
of it the slope of the memory with the 95 % interval of a straight line.

Run with ``python benchmarks/long_run.py --minutes 30``; ``--tracing`` prints instead what torch
keeps of each network that it traces.
"""

import argparse
import gc
import os
import re
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")

import torch
from scipy.stats import linregress, t
from tables import goal, show
from torch import fx, nn

from conceptlens import CRAFT, NMF, ActivationStore, Backbone, Explanation, SparseAutoencoder
from conceptlens.bottleneck import PosthocCBM


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 12, 4, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 2)
    )


def work(seed: int, folder: Path) -> None:
    """One of everything, on other numbers each time."""
    x = torch.rand(24, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    bb = Backbone(network(seed), "1")
    store = ActivationStore.build(bb, x, folder / "store")
    NMF(4, random_state=seed).fit(store)
    SparseAutoencoder(16, sparsity=2, n_epochs=2, random_state=seed).fit(store).save(folder / "sae")
    SparseAutoencoder.load(folder / "sae")
    explanation = CRAFT(bb, 4, 16, n_designs=16, seed=seed).explain(x, predicted_only=False)
    explanation.save(folder / "explanation")
    Explanation.load(folder / "explanation").to_html(folder / "report.html")
    features = store[:].mean(1)
    lively = features[:, features.std(0).argsort(descending=True)[:2]]
    labels = (lively > lively.median(0).values).float()
    PosthocCBM(max_epochs=5).fit(store, labels[:, 0].long(), concepts=labels)


def resident() -> float:
    """MiB held now."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024


def kept(action: Callable[[int], object], seconds: float = 12) -> float:
    """KiB that stay resident after each call."""
    for seed in range(2000):  # until the heap has its size
        action(seed)
    gc.collect()
    before, start, calls = resident(), time.monotonic(), 0
    while time.monotonic() - start < seconds:
        action(calls)
        calls += 1
    gc.collect()
    return (resident() - before) * 1024 / calls


def tracing() -> None:
    torch.set_num_threads(1)
    x = torch.rand(2, 3, 32, 32)
    actions = {
        "calling a new network": lambda seed: network(seed)(x),
        "torch.fx.symbolic_trace of it": lambda seed: fx.symbolic_trace(network(seed))(x),
        "a Backbone of it": lambda seed: Backbone(network(seed), "1")(x),
    }
    rows = [[name, f"{kept(action):.1f}"] for name, action in actions.items()]
    show("Memory that each call keeps", ("call", "KiB"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--tracing", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.tracing:
        tracing()
        return
    seen: list[tuple[float, float, int]] = []
    start, seed = time.monotonic(), 0
    while (minutes := (time.monotonic() - start) / 60) < options.minutes:
        with tempfile.TemporaryDirectory() as folder:
            work(seed, Path(folder))
        seed += 1
        seen.append((minutes, resident(), len(os.listdir("/proc/self/fd"))))
    chosen = [seen[i * (len(seen) - 1) // 9] for i in range(10)]
    rows = [[f"{m:.1f}", f"{memory:.0f}", files] for m, memory, files in chosen]
    show(f"{seed} rounds in {options.minutes:g} minutes", ("minute", "MiB", "open files"), rows)
    warm = [s for s in seen if s[0] > options.minutes / 5]
    line = linregress([s[0] for s in warm], [s[1] for s in warm])
    half = t.ppf(0.975, len(warm) - 2) * line.stderr
    print(f"\nafter the warm-up: {line.slope:+.3f} ± {half:.3f} MiB a minute")
    goal("memory gained in an hour", 60 * line.slope, 10, " MiB", most=True)
    goal("open files gained", warm[-1][2] - warm[0][2], 0, "", most=True)


if __name__ == "__main__":
    main()
