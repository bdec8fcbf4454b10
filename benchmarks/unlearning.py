"""Forgetting a class by poisoned labels, beside retraining and plain fine-tuning.

A small CNN is trained on planted pictures (2000 of 48 × 48, three classes, eight concepts) and on
the textile pictures (1600; of every 4 × 4 pixels the mean, the darkest and the brightest are the
three channels). It forgets class seed mod 3. Fine-tuning is on the retained pictures only, with as
many passes as unlearning makes. Retraining starts from other weights, without the class.

    python benchmarks/unlearning.py planted --seeds 0 1 2 3 4

Each seed's figures are added to the CSV file; the table is of all that is in it.
"""

import argparse
import copy
import csv
import time
from collections import deque
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from tables import over_seeds, show

from conceptlens import Backbone
from conceptlens.datasets import PlantedConcepts, Textile
from conceptlens.datasets.zoo import SmallCNN
from conceptlens.editing.unlearning import unlearn
from conceptlens.metrics import unlearning_scores
from conceptlens.training import train_epochs

N_EPOCHS = {"planted": 14, "textile": 20}
LR = 1e-2
FILE = Path("benchmarks/results/unlearning.csv")
COLUMNS = (
    "forget_accuracy", "retained_accuracy", "membership_auc", "output_distance",
    "parameter_distance", "passes", "seconds",
)  # fmt: skip


def planted(seed):
    """Training and test pictures with labels, the training concepts, and the names of all."""
    data = PlantedConcepts(2000, 48, seed=seed)
    test = data.like(1000, seed=seed + 1000)
    train = (data.images, data.labels)
    return train, (test.images, test.labels), data.concepts, data.concept_names, data.class_names


def blocks(picture):
    x = torch.from_numpy(np.array(picture.convert("L"))).float()[1:249, 1:249] / 255
    x = x.unfold(0, 4, 4).unfold(1, 4, 4).flatten(2)
    return torch.stack([x.mean(2), x.amin(2), x.amax(2)])


def textile(_seed):
    sets = [Textile(split, transform=blocks) for split in ("train", "test")]
    x, new = (torch.stack([data[i][0] for i in range(len(data))]) for data in sets)
    mean, std = (f(x, (0, 2, 3), keepdim=True) for f in (torch.mean, torch.std))
    data, test = sets
    pairs = ((x - mean) / std, data.labels), ((new - mean) / std, test.labels)
    return *pairs, data.concepts, data.concept_names, data.class_names


DATA = {"planted": planted, "textile": textile}


def fitted(model, images, labels, n_epochs, seed, lr=LR):
    """The model trained in place, the passes and seconds that it took."""
    start = time.perf_counter()
    deque(train_epochs(model, images, labels, n_epochs=n_epochs, lr=lr, seed=seed), maxlen=0)
    return model, n_epochs * len(images), time.perf_counter() - start


def new_cnn(seed):
    torch.manual_seed(seed)
    return SmallCNN(3)


def compared(name, seed):
    """The scores and the cost of each way to forget, by its name."""
    train, test, concepts, concept_names, class_names = DATA[name](seed)
    forgotten = seed % 3
    rest = train[1] != forgotten
    retained = train[0][rest], train[1][rest]
    ways = {"original": fitted(new_cnn(seed), *train, N_EPOCHS[name], seed)}
    ways["retrained"] = fitted(new_cnn(seed + 100), *retained, N_EPOCHS[name], seed + 100)
    bb = Backbone(ways["original"][0], "features", class_names=class_names)
    for poison in ("random", "targeted"):
        found = unlearn(
            bb, *train, forgotten, concepts=concepts, concept_names=concept_names, poison=poison,
            seed=seed,
        )  # fmt: skip
        print(f"{name}, seed {seed}: {found}", flush=True)
        ways[f"unlearned, {poison}"] = found.model, found.n_passes, found.seconds
    n_epochs = max(1, round(found.n_passes / len(retained[0])))
    model = copy.deepcopy(bb.model)
    ways["fine-tuned"] = fitted(model, *retained, n_epochs, seed, lr=2e-3)
    reference = ways["retrained"][0]
    return {
        way: {
            **asdict(unlearning_scores(model, forgotten, train, test, reference)),
            "passes": passes / ways["retrained"][1],
            "seconds": seconds / ways["retrained"][2],
        }
        for way, (model, passes, seconds) in ways.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", choices=DATA)
    parser.add_argument("--seeds", type=int, nargs="*", default=list(range(5)))
    parser.add_argument("--file", type=Path, default=FILE)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in options.seeds:
        found = compared(options.data, seed)
        with options.file.open("a", newline="") as file:
            writer = csv.writer(file)
            for way, scores in found.items():
                writer.writerow([options.data, seed, way, *(scores[c] for c in COLUMNS)])
    with options.file.open(newline="") as file:
        rows = [row for row in csv.reader(file) if row[0] == options.data]
    by_way: dict[str, list[list[float]]] = {}
    for _, _, way, *values in rows:
        by_way.setdefault(way, []).append([float(v) for v in values])
    show(
        f"{options.data}: mean and 95 % interval over {len(by_way['original'])} seeds; distances "
        "to the retrained network, costs as shares of retraining's",
        ("way", *(c.replace("_", " ") for c in COLUMNS)),
        ([way, *map(over_seeds, zip(*v, strict=True))] for way, v in by_way.items()),
    )


if __name__ == "__main__":
    main()
