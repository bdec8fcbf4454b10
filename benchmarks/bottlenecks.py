"""Every bottleneck model on planted data in three settings and on textile pictures.

Planted: mean features of the zoo's CNN after its second convolution, heads fitted on 800 pictures
and tested on 400, over seeds. "instance": labels say what is in each picture. "class": they say
what is in most of its class's pictures, and are judged by what is there. "confounded": concepts
correlate and one class bears a tag in training, not in the test. Textile: EfficientNet-Lite0's
mean features at its default cut, the package's 1600 and 400 pictures, and as concepts the two kinds
of defect, which determine the class.

"concepts" is the share of labels predicted right, "all concepts" that of pictures with all right.
"AUC" is the mean class accuracy while concepts are corrected to the truth one by one, in random
order. "nonzeros" is how many concepts a class reads. "label-free" is given the labels in place of
similarities and drops concepts that it follows with a cubed cosine below 0.3: its figures are of
the rest, on textiles one of the two.

Run with ``python benchmarks/bottlenecks.py``.
"""

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tables import over_seeds, show
from torch import Tensor

from conceptlens import ActivationStore, Backbone, demo
from conceptlens.bottleneck import (
    Bottleneck,
    ConceptBottleneck,
    EnergyCBM,
    LabelFreeCBM,
    PosthocCBM,
)
from conceptlens.bottleneck.data import features_of
from conceptlens.datasets import PlantedConcepts, Textile
from conceptlens.datasets.zoo import small_cnn

SETTINGS = ("instance", "class", "confounded")
COLUMNS = ("class", "concepts", "all concepts", "AUC", "nonzeros", "seconds")
MODELS: dict[str, Callable[[int], Bottleneck]] = {
    "joint": lambda seed: ConceptBottleneck(random_state=seed),
    "sequential": lambda seed: ConceptBottleneck(training="sequential", random_state=seed),
    "independent": lambda seed: ConceptBottleneck(training="independent", random_state=seed),
    "post-hoc": lambda seed: PosthocCBM(random_state=seed),
    "post-hoc hybrid": lambda seed: PosthocCBM(hybrid=True, random_state=seed),
    "label-free": lambda seed: LabelFreeCBM(random_state=seed, interpretability=0.3),
    "energy": lambda seed: EnergyCBM(random_state=seed),
}
PLAIN = {
    "linear probe": lambda seed: LogisticRegression(max_iter=5000),
    "black box": lambda seed: MLPClassifier((64,), max_iter=1000, random_state=seed),
}
Rows = tuple[Tensor, Tensor, Tensor]  # features, classes, concepts
PAIRS = {
    ("red disc", "blue square"): 0.7,
    ("yellow star", "green triangle"): 0.7,
    ("striped purple diamond", "orange cross"): 0.7,
}


def scores_of(model: Bottleneck, train: Rows, test: Rows, truth: Tensor, seed: int) -> list[float]:
    """The figures of `COLUMNS`; `truth` are the true concepts of the test pictures."""
    start = time.perf_counter()
    model.fit(train[0], train[1], concepts=train[2])
    seconds = time.perf_counter() - start
    x, y, _ = test
    # Label-free models drop concepts; the default names say which labels the rest are.
    truth = truth[:, [int(name.split()[-1]) for name in model.concept_names]]
    k = truth.shape[1]
    right = (model.predict_concepts(x) > 0.5) == truth.bool()
    order = torch.randperm(k, generator=torch.Generator().manual_seed(seed)).tolist()
    curve = [model.score(x, y)]
    for j in range(1, k + 1):
        corrected = model.intervene(x, {i: truth[:, i] for i in order[:j]})
        predicted = torch.from_numpy(model.classes_)[corrected.argmax(1)]
        curve.append(float((predicted == y).double().mean()))
    head = getattr(model.network_, "to_classes", None)
    read = float("nan") if head is None else float(head.weight.count_nonzero()) / len(head.weight)
    return [
        curve[0],
        float(right.double().mean()),
        float(right.all(1).double().mean()),
        sum(curve) / len(curve),
        read,
        seconds,
    ]


def plain_scores(model: object, train: Rows, test: Rows) -> list[float]:
    pipeline = make_pipeline(StandardScaler(), model)
    start = time.perf_counter()
    pipeline.fit(train[0], train[1])
    seconds = time.perf_counter() - start
    return [pipeline.score(test[0], test[1]), *[float("nan")] * 4, seconds]


def table(title: str, cases: list[tuple[Rows, Rows, Tensor]]) -> None:
    """Print the figures of every model over the cases, one a seed."""
    found: dict[str, list[list[float]]] = {}
    for seed, (train, test, truth) in enumerate(cases):
        for name, make in MODELS.items():
            found.setdefault(name, []).append(scores_of(make(seed), train, test, truth, seed))
        for name, plain in PLAIN.items():
            found.setdefault(name, []).append(plain_scores(plain(seed), train, test))
    rows = []
    for name, scores in found.items():
        columns = [
            value if len(cases) > 1 else value.mean
            for value in map(over_seeds, zip(*scores, strict=True))
        ]
        rows.append([name, *("–" if cell != cell else cell for cell in map(plainly, columns))])
    show(title, ["model", *COLUMNS], rows)


def plainly(value: object) -> object:
    """NaN for an estimate of nothing."""
    mean = getattr(value, "mean", value)
    return float("nan") if mean != mean else value


def planted(setting: str, seed: int, bb: Backbone) -> tuple[Rows, Rows, Tensor]:
    options: dict[str, object] = {}
    if setting == "class":
        options["labelling"] = "class"
    if setting == "confounded":
        options |= {"correlation": PAIRS, "confounder": {"circus": 1.0}}
    data = PlantedConcepts(800, seed=seed + 100, **options)
    fresh = data.like(400, seed=seed + 200, confounder={})
    told = data.concept_labels.float()
    varies = told.std(0) > 0  # class-level labels of concepts that no class mostly has are constant
    parts = []
    for part in (data, fresh):
        labels = part.concept_labels[:, varies].float()
        parts.append((features_of(part.images, bb), part.labels, labels))
    return parts[0], parts[1], fresh.concepts[:, varies].float()


def textile() -> tuple[Rows, Rows, Tensor]:
    bb = demo.demo_backbone()
    parts = []
    for split in ("train", "test"):
        data = Textile(split, bb.transform)
        with tempfile.TemporaryDirectory() as folder:
            store = ActivationStore.build(bb, data, folder)
            x = features_of(store, None)
        parts.append((x, data.labels, torch.as_tensor(data.concepts).float()))
    return parts[0], parts[1], parts[1][2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=(*SETTINGS, "textile"))
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    settings = [arguments.only] if arguments.only else [*SETTINGS, "textile"]
    training = PlantedConcepts(3000)
    bb = Backbone(small_cnn(training), "features.5", class_names=training.class_names)
    for setting in settings:
        if setting == "textile":
            table("Textile, EfficientNet-Lite0 features (one split)", [textile()])
        else:
            cases = [planted(setting, seed, bb) for seed in range(arguments.seeds)]
            table(f"Planted, {setting} (mean ± 95 % over {arguments.seeds} seeds)", cases)


if __name__ == "__main__":
    main()
