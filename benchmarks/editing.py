"""Erasing concepts and removing a shortcut: ``python benchmarks/editing.py``."""

import argparse

import torch
from networks import network
from tables import over_seeds, show

from conceptlens import CRAFT, Backbone
from conceptlens.datasets import PlantedConcepts
from conceptlens.datasets.zoo import small_cnn
from conceptlens.editing import erase, erasure_report, shortcuts, suppress

METHODS = ("leace", "projection", "adapter")
OTHERS = {"garden": 1.0, "harbour": 1.0}


def worst(model, data):
    with torch.no_grad():
        right = torch.cat([model(x).argmax(1) for x in data.images.split(256)]) == data.labels
    return min(float(right[data.labels == c].double().mean()) for c in data.labels.unique())


def shortcut(seed):
    data = PlantedConcepts(3000, confounder={"circus": 0.95}, seed=seed)
    biased, (clean, _) = small_cnn(data, seed=seed), network(seed)
    test, audit = (
        data.like(n, seed=seed + s, confounder=OTHERS) for n, s in ((800, 99), (300, 199))
    )
    same = data.like(600, seed=seed + 98)
    bb = Backbone(biased, "features", class_names=data.class_names)
    craft = CRAFT(bb, n_concepts=12, patch_size=32, n_designs=8, batch_size=256)
    explanation = craft.explain(same.images, "circus")
    ranked = shortcuts(explanation, same.images, audit.images, audit.labels)
    fixed = suppress(explanation, ranked.order[0], same.images)
    old, new, goal = worst(biased, test), worst(fixed, test), worst(clean.model, test)
    return old, new, goal, (new - old) / (goal - old), worst(biased, same), worst(fixed, same)


def activations(bb, data):
    with torch.no_grad():
        return torch.cat([bb.activations(x) for x in data.images.split(256)])


def erasures(seed):
    """Each method on one network: probes of fresh rows, and what the task loses."""
    bb, data = network(seed)
    fit, test = data.like(6000, seed=seed + 50), data.like(4000, seed=seed + 51)
    a, b = activations(bb, fit).mean(1), activations(bb, test)
    rows = []
    for method in METHODS:
        report = erasure_report(
            erase(a, fit.concepts[:, 0], method=method), b, test.concepts, 0,
            head=bb.head, labels=test.labels,
        )  # fmt: skip
        probes = (report.before, report.after, report.nonlinear, report.beside)
        task = (*report.task_accuracy, *report.task_loss)
        rows.append((*(float(probe[0]) for probe in probes), report.cost, *task))
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(parser.parse_args().seeds)
    columns = zip(*map(shortcut, seeds), strict=True)
    show(
        "Worst-class accuracy, the found concept suppressed",
        ("biased", "fixed", "unbiased", "share of the gap", "biased, as trained",
         "fixed, as trained"),
        [[over_seeds(c) for c in columns]],
    )  # fmt: skip
    by_method = zip(METHODS, zip(*map(erasures, seeds), strict=True), strict=True)
    show(
        "Erasing 'red disc' at features, fitted to 6000 pictures; probes of 4000 others",
        ("method", "probe before", "after", "nonlinear", "beside", "others lose",
         "task before", "after", "loss before", "after"),
        ([m, *map(over_seeds, zip(*rows, strict=True))] for m, rows in by_method),
    )  # fmt: skip


if __name__ == "__main__":
    main()
