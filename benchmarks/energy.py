"""EnergyCBM on planted concepts: do corrections carry over to other concepts; is p(c | y) right?

Concepts come in two groups that correlate by 0.9, and pictures are noisy, so that features leave
concepts open. In each test picture concepts are corrected one by one in random order; "overall"
is the share of pictures with all concepts right. The joint concept bottleneck sees the same
features, labels and corrections. Intervals are Student's, over seeds; differences are paired.

Run with ``python benchmarks/energy.py``.
"""

import argparse
import time

import torch
from tables import over_seeds, show
from torch import Tensor

from conceptlens import Backbone
from conceptlens.batching import in_batches
from conceptlens.bottleneck.concept_bottleneck import ConceptBottleneck
from conceptlens.bottleneck.energy import EnergyCBM
from conceptlens.datasets import PlantedConcepts
from conceptlens.datasets.zoo import small_cnn

CORRELATION = {
    ("red disc", "blue square", "yellow star", "green triangle"): 0.9,
    ("striped purple diamond", "orange cross", "pink heart", "cyan ring"): 0.9,
}
N_TRAIN, N_TEST = 600, 1000


def features_of(data: PlantedConcepts, noise: float) -> Tensor:
    """Mean activations ``(n, C)`` of noisy pictures in a network that was trained on clean ones."""
    clean = PlantedConcepts(3000, seed=0)
    bb = Backbone(small_cnn(clean, seed=0), "features", class_names=clean.class_names)
    generator = torch.Generator().manual_seed(data.settings["seed"])
    pictures = data.images + noise * torch.randn(data.images.shape, generator=generator)
    with torch.no_grad():
        return in_batches(lambda x: bb.activations(x).mean(1), pictures.clamp(0, 1), 128)


def curves(seed: int, noise: float, n_corrected: int) -> dict[str, dict[str, list[float]]]:
    """Overall accuracy and class accuracy of both models after 0, 1, ... corrections."""
    data = PlantedConcepts(N_TRAIN + N_TEST, seed=300 + seed, correlation=CORRELATION)
    x, y, c = features_of(data, noise), data.labels, data.concepts.float()
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(N_TEST, c.shape[1], generator=generator).argsort(1)
    results = {}
    for name, model in (
        ("EnergyCBM", EnergyCBM(random_state=seed)),
        ("joint CBM", ConceptBottleneck(random_state=seed)),
    ):
        start = time.process_time()
        model.fit(x[:N_TRAIN], y[:N_TRAIN], concepts=c[:N_TRAIN])
        result: dict[str, list[float]] = {"seconds": [time.process_time() - start]}
        result |= {"overall": [], "concepts": [], "class": []}
        test, truth = x[N_TRAIN:], c[N_TRAIN:]
        for n in range(n_corrected + 1):
            mask = torch.zeros_like(truth, dtype=torch.bool).scatter(1, order[:, :n], True)
            values = torch.where(mask, truth, torch.nan)
            corrections = dict(enumerate(values.T))
            if isinstance(model, EnergyCBM):
                found = model.concepts_with(test, corrections)
            else:
                found = model.codes_with(model.predict_concepts(test), truth, mask)
            right = (found > 0.5) == truth.bool()
            classes = model.intervene(test, corrections).argmax(1)
            result["overall"].append(float(right.all(1).double().mean()))
            result["concepts"].append(float(right.double().mean()))
            result["class"].append(float((classes == y[N_TRAIN:]).double().mean()))
        results[name] = result
    return results


def table_errors(seed: int) -> tuple[float, ...]:
    """Mean and largest error in % of p(c_k | y) learnt on clean pictures; CPU seconds to fit."""
    data = PlantedConcepts(2000, seed=500 + seed, correlation=CORRELATION)
    x = features_of(data, noise=0.0)
    start = time.process_time()
    cbm = EnergyCBM(random_state=seed).fit(x, data.labels, concepts=data.concepts)
    seconds = time.process_time() - start
    error = (cbm.joint(x).concepts_given_class() - data.concepts_given_class()).abs()
    counted = torch.stack([data.concepts[data.labels == y].double().mean(0) for y in range(3)])
    by_counting = (counted - data.concepts_given_class()).abs().mean()
    percent = [100 * float(e) for e in (error.mean(), error.max(), by_counting)]
    return *percent, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--noise", type=float, default=0.5, help="of pixels in [0, 1]")
    parser.add_argument("--corrected", type=int, default=4)
    options = parser.parse_args()
    runs = [curves(seed, options.noise, options.corrected) for seed in range(options.seeds)]
    for what in ("overall", "concepts", "class"):
        show(
            f"Accuracy ({what}) in % after n corrections, noise {options.noise}",
            ("n", *runs[0], "gain of EnergyCBM", "gain of joint CBM", "difference of gains"),
            (correction_row(runs, what, n) for n in range(options.corrected + 1)),
        )
    show(
        f"CPU seconds to fit {N_TRAIN} rows",
        ("model", "CPU seconds"),
        ([name, over_seeds(run[name]["seconds"][0] for run in runs)] for name in runs[0]),
    )
    errors = zip(*(table_errors(seed) for seed in range(options.seeds)), strict=True)
    show(
        "p(c_k | y) of EnergyCBM against the planted table, in %: 2000 clean pictures",
        ("mean error", "largest error", "mean error of counting labels", "CPU seconds to fit"),
        [[over_seeds(column) for column in errors]],
    )


def correction_row(runs: list[dict], what: str, n: int) -> list[object]:
    """Both accuracies after n corrections, what these gained, and by how much more in EnergyCBM."""
    now = {name: [100 * run[name][what][n] for run in runs] for name in runs[0]}
    gains = {
        name: [100 * (run[name][what][n] - run[name][what][0]) for run in runs] for name in runs[0]
    }
    more = over_seeds(a - b for a, b in zip(gains["EnergyCBM"], gains["joint CBM"], strict=True))
    return [str(n), *map(over_seeds, now.values()), *map(over_seeds, gains.values()), more]


if __name__ == "__main__":
    main()
