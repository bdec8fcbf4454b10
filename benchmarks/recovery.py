"""How well CRAFT finds planted concepts, on networks and pictures that chose none of its settings.

Run with ``python benchmarks/recovery.py``. The setting is ``tests/test_recovery.py``'s, frozen;
the networks' seeds begin at 100. Dictionaries are learnt from crops and from positions.
"""

import argparse
import itertools
import warnings

import torch
from networks import network
from scipy.stats import spearmanr
from tables import goal, over_seeds, show

from conceptlens import CRAFT
from conceptlens.craft import CROPS
from conceptlens.metrics import (
    importance_of_parts,
    importance_recovery,
    map_recovery,
    recovery,
)

USED = 6  # the first concepts are those of the rule
FIRST_SEED = 100
LAYERS = ("features.5", "features")
GOALS = {"share with AUC >= 0.9": 0.8, "pointing game": 0.8, "rank, sum of parts": 0.8}


def scores(layer: str, crops: str, seed: int) -> dict[str, float]:
    bb, training = network(seed)
    bb = bb.replace(layer=layer)
    craft = CRAFT(bb, n_concepts=16, patch_size=32, crops=crops, n_designs=8, batch_size=256)
    pictures, fresh = training.like(250, seed=seed + 1000), training.like(300, seed=seed + 2000)
    explained = [
        craft.explain(pictures, name, predicted_only=False) for name in training.class_names
    ]
    with torch.no_grad():
        codes = explained[0].model.encode(fresh.images)
    found = recovery(codes, fresh.concepts)
    hits = map_recovery(explained[0].maps(fresh.images), fresh.masks, found.matches)
    truth = training.true_importance()
    summed, single = [], []
    for explanation, true in zip(explained, truth, strict=True):
        parts = importance_of_parts(explanation.importance, found)
        summed.append(float(spearmanr(parts, true).statistic))
        single.append(importance_recovery(explanation.importance, true, found.matches))
    return {
        "mean AUC": float(found.scores[:USED].mean()),
        "share with AUC >= 0.9": float((found.scores[:USED] >= 0.9).double().mean()),
        "pointing game": float(hits.pointing[:USED].mean()),
        "rank, sum of parts": sum(summed) / len(summed),
        "rank, matched code alone": sum(single) / len(single),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    table = {}
    for way in itertools.product(LAYERS, CROPS):
        runs = [scores(*way, FIRST_SEED + i) for i in range(options.seeds)]
        table[way] = {name: over_seeds(run[name] for run in runs) for name in runs[0]}
    show(
        f"CRAFT on the small CNN, k = 16, mean and 95 % interval over {options.seeds} networks",
        ("layer", "crops", *next(iter(table.values()))),
        ([*way, *values.values()] for way, values in table.items()),
    )
    print()
    for (layer, crops), values in table.items():
        for name, least in GOALS.items():
            goal(f"{name}, {layer}, {crops}", values[name].mean, least, "")


if __name__ == "__main__":
    main()
