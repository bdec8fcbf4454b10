"""Bottlenecks of texts and of discovered concepts, on the tiny CLIP and planted pictures.

For each seed a tiny CLIP is trained on planted pictures and their captions (or read from the
cache); other pictures, with classes, are split in two. The concept texts are all pairs of the
planted colours and shapes, of which few are ever drawn. A class's text lists the things that its
rule counts, since the CLIP has never read the names of the classes.

"Used" counts weights of the head above a hundredth of the largest, a class on average; "concepts a
decision" how many contributions make up 90 % of the predicted class's logit, by magnitude. The
linear probe has no concepts: its entries are dimensions of the embedding. "Concepts on" is a
picture's own sparsity: activations whose softmax makes up 90 % for the sparse bottlenecks, and
codes that are not zero for discovered concepts.

Run with ``python benchmarks/clip_bottlenecks.py``.
"""

import argparse
from itertools import product

import torch
from sklearn.linear_model import LogisticRegression
from tables import over_seeds, show
from torch import Tensor

from conceptlens import SparseAutoencoder
from conceptlens.bottleneck import DiscoverThenNameCBM, SparseCBM, concept_matrix_search
from conceptlens.bottleneck.contributions import contributions, coverage
from conceptlens.bottleneck.data import features_of
from conceptlens.bottleneck.matrix_search import cosines
from conceptlens.datasets import PlantedConcepts, tiny_clip
from conceptlens.datasets.planted import RULE

COLOURS = ("red", "blue", "yellow", "green", "purple", "orange", "pink", "cyan")
SHAPES = ("disc", "square", "star", "triangle", "diamond", "cross", "heart", "ring")
WORDS = [f"{colour} {shape}" for colour, shape in product(COLOURS, SHAPES)]
SPARSE = {
    "Sparse, Gumbel": {"sparsity": "gumbel"},
    "Sparse, Gumbel, mean over all entries": {"sparsity": "gumbel", "hard": False, "tau_end": 1.0},
    "Sparse, l1": {"sparsity": "l1"},
    "Sparse, contrastive": {"sparsity": "contrastive"},
    "Sparse, cross-entropy alone": {"sparsity": "gumbel", "strength": 0.0},
}
PAIRS = (
    ("Sparse, Gumbel", "Sparse, contrastive"),
    ("Sparse, Gumbel", "Sparse, cross-entropy alone"),
    ("concept matrix search", "zero-shot"),
    ("discover then name", "linear probe"),
)
FIGURES = ("accuracy %", "used a class", "concepts a decision", "concepts on")


def figures(codes: Tensor, weight: Tensor, logits: Tensor, y: Tensor) -> tuple[float, ...]:
    """Accuracy in per cent, weights used a class, and concepts that make up 90 % of a logit."""
    predicted = logits.argmax(1)
    parts = contributions(codes, weight, predicted)
    used = (weight.abs() > 0.01 * weight.abs().max()).sum(1).double().mean()
    return accuracy(logits, y), float(used), most_of(parts)


def accuracy(logits: Tensor, y: Tensor) -> float:
    return 100 * float((logits.argmax(1) == y).double().mean())


def most_of(parts: Tensor) -> float:
    """How many entries of ``(n, k)`` make up 90 % of a row, on average."""
    return float(coverage(parts, shares=[0.9]).concepts[0.9])


def one_seed(seed: int, n: int) -> dict[str, tuple[float, ...]]:
    training = PlantedConcepts(3000, seed=seed)
    clip = tiny_clip(training, seed=seed)
    votes = RULE.weights
    texts = clip.encode_text(
        ["a picture of " + " and ".join(f"a {t}" for t in votes[c]) for c in training.class_names]
    )
    backbone = clip.backbone(training.class_names, layer="visual")
    pictures = [training.like(n, seed=seed + extra) for extra in (1000, 4000)]
    (x, y), (test, truth) = ((features_of(data.images, backbone), data.labels) for data in pictures)
    concepts = clip.encode_words(WORDS)
    found: dict[str, tuple[float, ...]] = {}

    scores = cosines(test, texts)
    found["zero-shot"] = (accuracy(scores, truth),)
    v, t = cosines(test, concepts), cosines(texts, concepts)
    found["concept matrix search"] = figures(
        *(m - m.mean(1, keepdim=True) for m in (v, t)), concept_matrix_search(v, t), truth
    )
    probe = LogisticRegression(max_iter=2000).fit(x, y)
    weight = torch.from_numpy(probe.coef_).to(x)
    logits = torch.from_numpy(probe.decision_function(test))
    found["linear probe"] = figures(test, weight, logits, truth)
    scale = float(clip.model.logit_scale.exp())
    for name, options in SPARSE.items():
        model = SparseCBM(
            concept_embeddings=concepts, concept_names=WORDS, scale=scale, random_state=seed,
            **options,
        ).fit(x, y)  # fmt: skip
        codes = model.encode(test)[:, 0]
        own = figures(codes, model.network_.head.weight, model.decision_function(test), truth)
        found[name] = (*own, most_of(codes.softmax(1)))
    sae = SparseAutoencoder(
        192, "batchtopk", sparsity=8, n_epochs=100, batch_size=256, random_state=seed
    ).fit(features_of(training.images, backbone))  # as many pictures, but no classes
    model = DiscoverThenNameCBM(
        sae=sae, text_encoder=clip.encode_words, vocabulary=WORDS, random_state=seed
    ).fit(x, y)
    codes = model.encode(test)[:, 0]
    own = figures(codes, model.network_.weight, model.decision_function(test), truth)
    found["discover then name"] = (*own, float((codes > 0).sum(1).double().mean()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--pictures", type=int, default=1500, help="to learn from, and to test on")
    options = parser.parse_args()
    runs = [one_seed(seed, options.pictures) for seed in options.seeds]

    def cells(name: str, other: str | None = None) -> list[object]:
        pairs = [(run[name], run[other] if other else (0.0,) * len(FIGURES)) for run in runs]
        n = min(len(figure) for figure in pairs[0])
        found = [over_seeds(a[i] - b[i] for a, b in pairs) for i in range(n)]
        return [*found, *["—"] * (len(FIGURES) - n)]

    show(
        f"{len(WORDS)} concept texts, {options.pictures} test pictures: mean and 95 % interval "
        f"over {len(options.seeds)} seeds",
        ("model", *FIGURES),
        ([name, *cells(name)] for name in runs[0]),
    )
    show(
        "Differences, paired by seed",
        ("model", *FIGURES),
        ([f"{a} − {b}", *cells(a, b)] for a, b in PAIRS),
    )


if __name__ == "__main__":
    main()
