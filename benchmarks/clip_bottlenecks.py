"""Bottlenecks of texts and of discovered concepts, on the tiny CLIP and planted pictures.

For each seed a tiny CLIP is trained on planted pictures and their captions (or read from the
cache); other pictures, with classes, are split in two. The concept texts are all pairs of the
planted colours and shapes, of which few are ever drawn. A class's text lists the things that its
rule counts, since the CLIP has never read the names of the classes.

"Used" counts weights of the head above a hundredth of the largest, a class on average; "concepts a
decision" how many contributions make up 90 % of the predicted class's logit, by magnitude. The
linear probe has no concepts: its entries are dimensions of the embedding.

Run with ``python benchmarks/clip_bottlenecks.py``.
"""

import argparse
from itertools import product

import torch
from sklearn.linear_model import LogisticRegression
from tables import over_seeds, show

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
FIGURES = ("accuracy", "used a class", "concepts a decision")


def figures(codes: torch.Tensor, weight: torch.Tensor, logits: torch.Tensor, y: torch.Tensor):
    """Accuracy, weights used a class, and concepts that make up 90 % of a logit."""
    predicted = logits.argmax(1)
    parts = contributions(codes, weight, predicted)
    used = (weight.abs() > 0.01 * weight.abs().max()).sum(1).double().mean()
    accuracy = float((predicted == y).double().mean())
    return accuracy, float(used), float(coverage(parts, shares=[0.9]).concepts[0.9])


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
    found["zero-shot"] = (float((scores.argmax(1) == truth).double().mean()), 0.0, 0.0)
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
        weight = model.network_.head.weight
        found[name] = figures(codes, weight, model.decision_function(test), truth)
    sae = SparseAutoencoder(
        192, "batchtopk", sparsity=8, n_epochs=100, batch_size=256, random_state=seed
    ).fit(features_of(training.images, backbone))  # as many pictures, but no classes
    model = DiscoverThenNameCBM(
        sae=sae, text_encoder=clip.encode_words, vocabulary=WORDS, random_state=seed
    ).fit(x, y)
    codes = model.encode(test)[:, 0]
    found["discover then name"] = figures(
        codes, model.network_.weight, model.decision_function(test), truth
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=1500, help="to learn from, and to test on")
    options = parser.parse_args()
    runs = [one_seed(seed, options.pictures) for seed in range(options.seeds)]

    def cell(name: str, i: int, other: str | None = None) -> object:
        less = [0.0 if other is None else run[other][i] for run in runs]
        values = [run[name][i] - z for run, z in zip(runs, less, strict=True)]
        return over_seeds(values) if other or any(values) else "—"

    show(
        f"{len(WORDS)} concept texts, {options.pictures} test pictures: mean and 95 % interval "
        f"over {options.seeds} seeds",
        ("model", *FIGURES),
        ([name, *(cell(name, i) for i in range(3))] for name in runs[0]),
    )
    show(
        "Differences, paired by seed",
        ("model", *FIGURES),
        (
            [f"{a} − {b}", *(cell(a, i, b) for i in range(3))]
            for a, b in (
                ("Sparse, Gumbel", "Sparse, contrastive"),
                ("Sparse, Gumbel", "Sparse, cross-entropy alone"),
                ("concept matrix search", "zero-shot"),
                ("discover then name", "linear probe"),
            )
        ),
    )


if __name__ == "__main__":
    main()
