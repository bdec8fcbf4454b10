"""Sobol indices against Craft-xai's ``estimate_importance``, from the same codes; and the ranking.

Run with ``python benchmarks/sobol.py``; it makes an environment for Craft-xai in
``benchmarks/.peers``. Times are per picture, medians of interleaved rounds; errors are root mean
squares over the concepts, of the mean over pictures, against a run with many design points.
"""

import statistics
import sys
import time
import warnings
from unittest.mock import MagicMock

import torch
from peers import run_beside
from tables import goal

run_beside("craft", ("Craft-xai==0.0.3",))

# Its samplers import TensorFlow and do without; later imports must not find the stand-in.
sys.modules["tensorflow"] = MagicMock()
from craft.craft_torch import Craft  # noqa: E402

del sys.modules["tensorflow"]

from conceptlens import NMF, DictionaryModel, SemiNMF, sobol  # noqa: E402
from conceptlens.demo import demo_backbone, demo_pictures  # noqa: E402
from conceptlens.images import Pictures  # noqa: E402

K, N, ROUNDS = 10, 32, 5
PICTURES = 8  # of the cut whose head is not affine
TRUTH = 256


def concept_model(layer: str, extractor: NMF) -> tuple[DictionaryModel, torch.Tensor, int]:
    """The demo's network at `layer`, codes of its pictures, and the class it sees in them."""
    bb = demo_backbone(layer)
    ((_, x),) = Pictures(demo_pictures("chelsea", 24), bb.transform).batches(24)
    a = bb.activations(x)
    cm = DictionaryModel(bb, extractor.fit(a.flatten(0, 1)))
    codes = cm.encode(x)
    return cm, codes, int(bb.head(a).argmax(1).mode().values)


def peer(cm: DictionaryModel, codes: torch.Tensor, target: int) -> torch.Tensor:
    """Craft-xai on the same dictionary and codes, so that only the estimation is timed."""
    bb = cm.backbone
    craft = Craft(torch.nn.Identity(), lambda a: bb.head(a.flatten(2).mT), K, 64, 64, "cpu")
    craft.reducer, craft.W = cm.extractor, cm.extractor.components_.numpy()
    craft.transform = lambda _: codes.unflatten(1, bb.grid).numpy()
    return torch.as_tensor(craft.estimate_importance(None, target, N))


def timed(work):
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def error(values: torch.Tensor, truth: torch.Tensor) -> float:
    return float((values - truth).square().mean().sqrt())


def compare(title: str, layer: str, extractor: NMF, sizes: list[int], pictures: int) -> None:
    cm, codes, target = concept_model(layer, extractor)
    codes = codes[:pictures]
    truth = sobol(cm, codes, target, n_designs=TRUTH, seed=1000)
    print(f"\n{title}: layer {layer}, {len(codes)} pictures, k = {K}; truth by {truth.method}")
    took, found = {}, {}
    for seed in range(ROUNDS):
        runs = {f"Craft-xai, N = {N}": lambda: peer(cm, codes, target)}
        for n in sizes:
            runs[f"conceptlens, N = {n}"] = lambda n=n, seed=seed: (
                sobol(cm, codes, target, n_designs=n, seed=seed).values
            )
        for name, run in runs.items():
            seconds, values = timed(run)
            took.setdefault(name, []).append(seconds / len(codes))
            found.setdefault(name, []).append(error(values, truth.values))
    first = statistics.median(next(iter(took.values())))
    for name, times in took.items():
        seconds = statistics.median(times)
        rms = statistics.mean(e**2 for e in found[name]) ** 0.5
        print(f"  {name:22} {seconds:9.5f} s a picture {first / seconds:8.1f}×   error {rms:.2g}")


def stability(layer: str, extractor: NMF, repetitions: int, pictures: int) -> None:
    cm, codes, target = concept_model(layer, extractor)
    codes = codes[:pictures]
    tops, designs = [], []
    for seed in range(repetitions):
        found = sobol(cm, codes, target, n_designs=4, tolerance=0.01, max_designs=256, seed=seed)
        tops.append(frozenset(found.order[:3]))
        designs.append(found.method.rpartition(", ")[2])
    same = max(tops.count(top) for top in set(tops)) / repetitions
    used = ", ".join(f"{designs.count(n)} with {n}" for n in sorted(set(designs)))
    print(
        f"\nlayer {layer}: with tolerance 0.01 the three most important concepts are the same in "
        f"{same:.0%} of {repetitions} repetitions; {used}"
    )
    goal(f"the same three most important concepts, {layer}", 100 * same, 95, " %")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    compare("Affine head", "_swish", NMF(K), [N], 24)
    compare("Two blocks earlier", "_blocks.13", SemiNMF(K), [4, 8, 16], PICTURES)
    stability("_swish", NMF(K), 100, 24)
    stability("_blocks.13", SemiNMF(K), 20, PICTURES)
