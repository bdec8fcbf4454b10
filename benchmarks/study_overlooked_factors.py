"""What explanations depend on beside the model: Ramaswamy et al. (CVPR 2023) on planted concepts.

(i) The same explanation of the same network from two probe sets, of the same or of another
distribution; (ii) how hard the concepts are to learn beside the classes that they explain; (iii)
how much of the network's decisions is kept by explanations short enough for people.

Run with ``python benchmarks/study_overlooked_factors.py`` (about 2 minutes on two cores).

Ramaswamy et al., "Overlooked factors in concept-based explanations: dataset choice, concept
learnability, and human capability", CVPR 2023.
"""

import argparse

import numpy as np
import torch
from networks import network
from sklearn.linear_model import LinearRegression, LogisticRegression
from tables import over_seeds, show
from torch import Tensor

from conceptlens import NMF, Backbone, DictionaryModel
from conceptlens.batching import in_batches
from conceptlens.datasets import PlantedConcepts
from conceptlens.importance import ESTIMATORS
from conceptlens.metrics import HUMAN_LIMIT, learnability, probe_sensitivity, simplicity_curve

TOP = 3
# A probe set of another kind: rarer concepts, and some that come together.
OTHER_KIND = {
    "prevalence": 0.25,
    "correlation": {
        ("red disc", "yellow star"): 0.7,
        ("blue square", "striped purple diamond"): 0.7,
        ("green triangle", "pink heart"): 0.7,
    },
}
LENGTHS = (1, 2, 4, 8, 16, HUMAN_LIMIT)
N_CONCEPTS = 48


def activations(bb: Backbone, data: PlantedConcepts) -> Tensor:
    with torch.no_grad():
        return in_batches(bb.activations, data.images, 128)


def by_labels(bb: Backbone, a: Tensor, data: PlantedConcepts) -> Tensor:
    """Weights ``(n_classes, m)`` of the concept labels in a linear model of the logits."""
    with torch.no_grad():
        logits = in_batches(bb.head, a, 128)
    return torch.from_numpy(LinearRegression().fit(data.concepts, logits).coef_)


def by_vectors(bb: Backbone, a: Tensor, data: PlantedConcepts) -> Tensor:
    """Derivatives ``(n_classes, m)`` of the logits along concept activation vectors."""
    x = a[:, bb.n_prefix :].mean(1)
    scale = x.std(0).clamp(min=1e-6)
    probes = [
        LogisticRegression(max_iter=500).fit(x / scale, labels).coef_[0]
        for labels in data.concepts.T
    ]
    normals = torch.from_numpy(np.stack(probes)).float() / scale
    vectors = torch.nn.functional.normalize(normals, dim=1)
    few = a[:64].clone().requires_grad_()
    totals = bb.head(few).sum(0)
    slopes = [torch.autograd.grad(t, few, retain_graph=True)[0].sum(1).mean(0) for t in totals]
    return torch.stack(slopes) @ vectors.T


METHODS = {"linear model of labels": by_labels, "concept activation vectors": by_vectors}


def sensitivity(bb: Backbone, probes: dict[str, PlantedConcepts]) -> dict[str, list[float]]:
    """Agreement with what the first probe set explains, averaged over the classes."""
    a = {name: activations(bb, data) for name, data in probes.items()}
    first, *others = probes
    rows = {}
    for method, explain in METHODS.items():
        reference = explain(bb, a[first], probes[first])
        for name in others:
            pairs = zip(reference, explain(bb, a[name], probes[name]), strict=True)
            found = [probe_sensitivity(x, y, TOP) for x, y in pairs]
            columns = zip(*((f.rank_correlation, f.overlap) for f in found), strict=True)
            rows[f"{method}, {name}"] = [sum(c) / len(c) for c in columns]
    return rows


def hardness(bb: Backbone, data: PlantedConcepts) -> dict[str, list[float]]:
    """Normalised AP of concepts that the rule uses, that it does not, and of the classes."""
    a = activations(bb, data)
    found = learnability(a[:, bb.n_prefix :].mean(1), data.concepts, data.labels)
    explains = data.true_importance("score") > 0
    used = explains.any(0)
    return {
        "concepts that the rule uses": [float(found.concepts[used].mean())],
        "concepts that it does not use": [float(found.concepts[~used].mean())],
        "classes": [float(found.classes.mean())],
        "share of used concepts harder than a class that they explain": [
            float(found.harder(explains)[used].double().mean())
        ],
    }


def shortness(bb: Backbone, data: PlantedConcepts, seed: int) -> dict[str, list[float]]:
    """Agreement of the decisions with the best m concepts alone, averaged over the classes."""
    a = activations(bb, data)
    nmf = NMF(N_CONCEPTS, random_state=seed, max_iter=200)
    codes = nmf.fit_transform(a.flatten(0, 1)).unflatten(0, a.shape[:2])
    cm = DictionaryModel(bb, nmf)
    rows: dict[str, list[float]] = {}
    for method in ("gradient_x_input", "random"):
        curves = []
        for target in range(len(data.class_names)):
            if method == "random":
                generator = torch.Generator().manual_seed(seed)
                values = torch.rand(N_CONCEPTS, generator=generator)
            else:
                # Decisions against the class need the concepts that speak against it, too.
                values = ESTIMATORS[method](cm, codes, target, seed=seed).values.abs()
            curves.append(simplicity_curve(cm, codes, target, values).mean)
        mean = torch.stack(curves).mean(0)
        rows["best first" if method != "random" else "in random order"] = [
            float(mean[m]) for m in LENGTHS
        ]
    return rows


def run(seed: int, pictures: int) -> list[dict[str, list[float]]]:
    bb, training = network(seed)
    first = training.like(pictures, seed=seed + 500)
    probes = {
        "first": first,
        "same kind": first.like(pictures, seed=seed + 1000),
        "other kind": PlantedConcepts(pictures, **OTHER_KIND, seed=seed + 2000),
    }
    few = first.like(150, seed=seed + 3000)
    return [sensitivity(bb, probes), hardness(bb, first), shortness(bb, few, seed)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=1000)
    options = parser.parse_args()
    runs = [run(seed, options.pictures) for seed in range(options.seeds)]
    probe, hard, short = (
        {
            name: [over_seeds(c) for c in zip(*(part[name] for part in parts), strict=True)]
            for name in parts[0]
        }
        for parts in zip(*runs, strict=True)
    )
    print(f"Mean and 95 % interval over {options.seeds} seeds")
    show(
        "(i) Agreement of explanations from two probe sets",
        ("explanation, second probe set", "rank correlation", f"overlap of the top {TOP}"),
        ([name, *values] for name, values in probe.items()),
    )
    show(
        "(ii) Learnability from the network's features",
        ("labels", "normalised AP on unseen pictures (chance 0.5)"),
        ([name, *values] for name, values in hard.items()),
    )
    show(
        f"(iii) Decisions kept by the best m of {N_CONCEPTS} NMF concepts",
        ("concepts put in", *(f"m = {m}" for m in LENGTHS)),
        ([name, *values] for name, values in short.items()),
    )
    print()
    for method in METHODS:
        same, other = (probe[f"{method}, {kind}"][0] for kind in ("same kind", "other kind"))
        holds = other.interval()[1] < same.interval()[0]
        print(
            f"Probe set ({method}): rank correlation {same.mean:.2f} with a probe set of the same "
            f"kind, {other.mean:.2f} with one of another kind: the finding "
            f"{'holds' if holds else 'does NOT hold'}."
        )
    concepts, _, classes, flagged = (values[0] for values in hard.values())
    holds = concepts.interval()[1] < classes.interval()[0]
    print(
        f"Learnability: normalised AP {concepts.mean:.2f} for concepts, {classes.mean:.2f} for "
        f"classes, {flagged.mean:.0%} of the concepts harder than a class that they explain: the "
        f"finding {'holds' if holds else 'does NOT hold'}."
    )
    few, limit = short["best first"][2], short["best first"][-1]
    print(
        f"Length: {LENGTHS[2]} concepts keep {few.mean:.0%} of the decisions, {HUMAN_LIMIT} keep "
        f"{limit.mean:.0%}: people's limit "
        f"{'costs faithfulness' if limit.interval()[1] < 0.99 else 'costs nothing'} here."
    )


if __name__ == "__main__":
    main()
