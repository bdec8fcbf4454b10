"""Concept maps against planted places, and the cost of NNLS's gradient.

Every method of `MAPS` maps the concepts that NMF finds in the zoo's CNN on planted pictures; each
planted concept is matched to one of them. The differences to "interpolate" are paired by seed.

Run with ``python benchmarks/maps.py``.
"""

import argparse
import time

import torch
from networks import network
from tables import over_seeds, show

from conceptlens import NMF, DictionaryModel
from conceptlens.batching import in_batches
from conceptlens.extraction.implicit import implicit_nnls
from conceptlens.extraction.nnls import nnls
from conceptlens.maps import MAPS, concept_maps
from conceptlens.metrics import map_recovery, recovery

SCORES = ("pointing", "IoU", "ms a picture")


def scores_of(seed: int, n_maps: int, n_pictures: int = 400) -> dict[str, tuple[float, ...]]:
    """Pointing game, IoU and time of each method, for the network of one seed."""
    bb, training = network(seed)
    data = training.like(n_pictures, seed=seed + 4000)
    with torch.no_grad():
        a = in_batches(bb.activations, data.images, 128)
        rows = a.flatten(0, 1)
        chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:20000]
        cm = DictionaryModel(bb, NMF(12, random_state=seed).fit(rows[chosen]))
        codes = cm.extractor.transform(rows).unflatten(0, a.shape[:2])
    found = recovery(codes, data.concepts, names=data.concept_names, seed=seed)
    scores = {}
    for method in MAPS:
        start = time.perf_counter()
        maps = concept_maps(cm, data.images[:n_maps], method, seed=seed)
        milliseconds = 1000 * (time.perf_counter() - start) / n_maps
        quality = map_recovery(maps, data.masks[:n_maps], found.matches)
        scores[method] = (
            float(quality.pointing.nanmean()), float(quality.iou.nanmean()), milliseconds
        )  # fmt: skip
    return scores


def gradient_cost(n: int, channels: int, k: int) -> tuple[float, float]:
    """Seconds of the forward solve and of the backward one, the best of five."""
    generator = torch.Generator().manual_seed(0)
    v = torch.rand(k, channels, generator=generator)
    v *= torch.rand(k, channels, generator=generator) > 0.7
    a = torch.rand(n, k, generator=generator) @ v + 0.1 * torch.rand(n, channels)
    forward, backward = [], []
    for _ in range(5):
        start = time.perf_counter()
        nnls(a, v)
        forward.append(time.perf_counter() - start)
        x = a.clone().requires_grad_()
        total = implicit_nnls(x, v).sum()
        start = time.perf_counter()
        torch.autograd.grad(total, x)
        backward.append(time.perf_counter() - start)
    return min(forward), min(backward)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=24, help="mapped, for each seed")
    options = parser.parse_args()
    sizes = ((4900, 1280, 10), (4900, 512, 25), (20000, 512, 10))
    costs = [(*size, *gradient_cost(*size)) for size in sizes]
    show(
        "Seconds of NNLS and of its gradient",
        ("rows", "channels", "k", "forward", "backward", "ratio"),
        (
            [str(n), str(c), str(k), f"{f:.4f}", f"{b:.4f}", f"{b / f:.2f}"]
            for n, c, k, f, b in costs
        ),
    )
    runs = [scores_of(seed, options.pictures) for seed in range(options.seeds)]
    cells = {
        method: [over_seeds(run[method][i] for run in runs) for i in range(len(SCORES))]
        + [over_seeds(run[method][i] - run["interpolate"][i] for run in runs) for i in (0, 1)]
        for method in MAPS
    }
    show(
        f"Maps against planted places: mean and 95 % interval over {options.seeds} seeds",
        ("map", *SCORES, "pointing − interpolate's", "IoU − interpolate's"),
        ([method, *row] for method, row in cells.items()),
    )


if __name__ == "__main__":
    main()
