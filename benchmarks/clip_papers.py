"""The papers' protocol: bottlenecks on a real CLIP, on CIFAR, ImageNet, CUB and Places365.

Semenov et al. (2024) and Rao et al. (2024): embeddings of all pictures by a frozen CLIP; zero-shot
classification, concept matrix search, a linear probe, the sparse bottleneck in three ways and
discover-then-name, beside the accuracy that Semenov et al. published with ViT-L/14.

Data sets and checkpoints must be on this machine; nothing is fetched:

    python benchmarks/clip_papers.py cifar10 data/cifar --clip ViT-L-14 --weights ViT-L-14.pt \\
        --concepts concepts.txt --cache embeddings/cifar10

``cifar10`` and ``cifar100`` are torchvision's folders, ``cub`` is CUB_200_2011, and ``imagenet``,
``places365`` and ``folder`` hold ``train/`` and ``val/`` with a folder a class. Embeddings are kept
in the cache, and a killed run goes on from there. The concepts' file has one text a line; class
names may be given in the same way, where the folders' names are none.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from tables import show
from torch import Tensor

from conceptlens import ActivationStore, Backbone, SparseAutoencoder
from conceptlens.bottleneck import DiscoverThenNameCBM, SparseCBM, concept_matrix_search
from conceptlens.bottleneck.contributions import contributions, coverage
from conceptlens.bottleneck.data import features_of
from conceptlens.bottleneck.matrix_search import cosines
from conceptlens.classifiers import load_open_clip, zero_shot
from conceptlens.datasets import CUB
from conceptlens.text import TextEncoder

SETS = ("cifar10", "cifar100", "imagenet", "cub", "places365", "folder")
PUBLISHED = {
    "zero-shot": (81.79, 52.84, 76.20, 62.63, 41.12),
    "concept matrix search": (85.03, 62.95, 77.82, 65.17, 39.43),
    "linear probe": (96.12, 80.03, 83.90, 79.29, 48.33),
    "Sparse, gumbel": (91.17, 74.88, 71.61, 80.02, 41.34),
    "Sparse, l1": (85.11, 73.24, 71.02, 74.91, 40.87),
    "Sparse, contrastive": (84.75, 68.46, 70.22, 67.04, 40.22),
}


def pictures(name: str, root: Path, train: bool) -> tuple[Any, Tensor, list[str]]:
    """A data set's pictures, their classes and the names of these."""
    from torchvision import datasets

    if name == "cub":
        birds = CUB(root, "train" if train else "test")
        return birds, birds.labels, [label.replace("_", " ") for label in birds.class_names]
    if name.startswith("cifar"):
        made = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name](str(root), train)
    else:
        made = datasets.ImageFolder(str(root / ("train" if train else "val")))
    names = [label.replace("_", " ") for label in made.classes]
    if name == "imagenet" and len(names) == 1000:  # folders are called by WordNet's numbers
        from torchvision.models import ResNet18_Weights

        names = list(ResNet18_Weights.DEFAULT.meta["categories"])
    return made, torch.tensor(made.targets), names


def lines(path: Path) -> list[str]:
    """The texts of a file, one a line."""
    texts = [line.strip() for line in path.read_text().splitlines()]
    return list(dict.fromkeys(text for text in texts if text))


def embeddings(backbone: Backbone, images: Any, cache: Path, batch_size: int) -> Tensor:
    """Embeddings ``(n, e)``, computed once."""
    store = ActivationStore.build(backbone, images, cache, batch_size=batch_size)
    if len(store) != len(images):
        raise ValueError(f"{len(images) - len(store)} pictures cannot be read: remove them")
    return features_of(store, None)


def row(logits: Tensor, y: Tensor, codes: Tensor | None = None, weight: Tensor | None = None):
    """Accuracy in per cent; weights used a class; concepts for 90 % of the logit."""
    predicted = logits.argmax(1)
    accuracy = f"{100 * float((predicted == y).double().mean()):.2f}"
    if codes is None or weight is None:
        return accuracy, "—", "—"
    used = (weight.abs() > 0.01 * weight.abs().max()).sum(1).double().mean()
    found = coverage(contributions(codes, weight, predicted), shares=[0.9]).concepts[0.9]
    return accuracy, f"{float(used):.1f}", f"{float(found):.1f}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", choices=SETS)
    parser.add_argument("root", type=Path)
    parser.add_argument("--clip", required=True, help="open_clip's name, or local-dir:FOLDER")
    parser.add_argument("--weights", help="checkpoint file; none for local-dir")
    parser.add_argument("--concepts", type=Path, required=True)
    parser.add_argument("--classes", type=Path, help="names, in the order of the labels")
    parser.add_argument("--vocabulary", type=Path, help="words to name discovered concepts by")
    parser.add_argument("--sae", type=Path, help="a saved SparseAutoencoder of other pictures")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--template", default="a photo of a {}.")
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--sae-epochs", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)

    train, y, names = pictures(options.dataset, options.root, True)
    held, truth, _ = pictures(options.dataset, options.root, False)
    names = lines(options.classes) if options.classes else names
    clip, transform, tokenizer = load_open_clip(options.clip, options.weights)
    clip.to(options.device)
    encode = TextEncoder.of_clip(clip, tokenizer)
    made = zero_shot(clip, transform, encode, names, [options.template])
    backbone = Backbone(*made.as_arguments("visual"))
    x, test = (
        embeddings(backbone, images, options.cache / part, options.batch_size)
        for images, part in ((train, "train"), (held, "val"))
    )
    words = lines(options.concepts)
    concepts = encode(words).cpu()
    texts = encode([options.template.format(name) for name in names]).cpu()

    rows = {"zero-shot": row(cosines(test, texts), truth)}
    v, t = cosines(test, concepts), cosines(texts, concepts)
    centred = [m - m.mean(1, keepdim=True) for m in (v, t)]
    rows["concept matrix search"] = row(concept_matrix_search(v, t), truth, *centred)
    probe = LogisticRegression(max_iter=1000).fit(x, y)
    logits = torch.from_numpy(probe.predict_proba(test)).log()
    rows["linear probe"] = row(logits, truth)
    scale = float(clip.logit_scale.exp())
    for way in ("gumbel", "l1", "contrastive"):
        model = SparseCBM(
            concept_embeddings=concepts, concept_names=words, sparsity=way, scale=scale,
            max_epochs=options.epochs, batch_size=options.batch_size,
        ).fit(x, y)  # fmt: skip
        codes, weight = model.encode(test)[:, 0], model.network_.head.weight
        rows[f"Sparse, {way}"] = row(model.decision_function(test), truth, codes, weight)
    if options.sae:
        sae = SparseAutoencoder.load(options.sae)
    else:
        sae = SparseAutoencoder(
            8 * x.shape[1], "relu", n_epochs=options.sae_epochs, batch_size=4096,
            learning_rate=5e-4,
        )  # fmt: skip
    vocabulary = lines(options.vocabulary) if options.vocabulary else None
    model = DiscoverThenNameCBM(sae=sae, text_encoder=encode, vocabulary=vocabulary).fit(x, y)
    codes, weight = model.encode(test)[:, 0], model.network_.weight
    rows["discover then name"] = row(model.decision_function(test), truth, codes, weight)

    at = SETS.index(options.dataset)
    show(
        f"{options.dataset}: {len(x)} pictures to learn from, {len(test)} to test on, "
        f"{len(names)} classes, {len(words)} concept texts, {options.clip}",
        ("model", "accuracy %", "used a class", "concepts a decision", "published, ViT-L/14"),
        (
            [name, *found, str(PUBLISHED[name][at]) if name in PUBLISHED and at < 5 else "—"]
            for name, found in rows.items()
        ),
    )


if __name__ == "__main__":
    main()
