"""How often names are right, and whether their confidence tells: `python benchmarks/naming.py`.

1. A tiny CLIP on planted pictures: a sparse autoencoder's units, named by text and by dissection,
   beside the planted concept that each fires on; random directions are named too.
2. EfficientNet-Lite0: the map from its head's weights to a sentence model's space, and what it
   calls the concepts of the demo's photographs.
"""

import argparse
import time

import torch
from sklearn.metrics import roc_auc_score

from conceptlens import CRAFT, SparseAutoencoder, naming
from conceptlens.datasets import PlantedConcepts, tiny_clip
from conceptlens.datasets.drawing import COLOURS, SHAPES

MATCHED = 0.9  # the area under the ROC curve from which a unit fires on a planted concept
HEADER = """Units of a sparse autoencoder on a tiny CLIP's embeddings, 8 planted concepts.
Matched units fire on a concept with an AUC of 0.9 or more; top-1 is the share of them named so.
"random": AUC of the confidence between right names and those of 100 random directions; "others":
alive units that are misnamed or fire on no one concept, and the AUC between right names and theirs.
Vocabularies: the concepts with the default words but those that are part of a concept's name; with
these too ("ring" means the same as "cyan ring" where there is no other); all colours × shapes.
seed way        vocabulary        top-1 matched alive concepts  random others     AUC"""


def planted(seed, n_units=12):
    """One seed: for each way and vocabulary top-1, units, and right names against others."""
    training = PlantedConcepts(3000, seed=seed)
    start = time.perf_counter()
    clip = tiny_clip(training, seed=seed)
    seconds = time.perf_counter() - start
    # Fewer things a picture than in training: what is sparse can be found by sparsity.
    data = PlantedConcepts(1500, prevalence=0.25, seed=seed + 10)
    probe = data.like(600, seed=seed + 100)
    x = clip.encode_image(data.images)
    embeddings = clip.encode_image(probe.images)
    sae = SparseAutoencoder(
        n_units, sparsity=4, n_epochs=200, batch_size=128, random_state=seed
    ).fit(x)
    codes = sae.transform(embeddings)
    truth = probe.concepts.numpy()
    auc = torch.tensor(
        [[roc_auc_score(y, u) for y in truth.T] for u in codes.T.numpy()]
    )  # (units, concepts)
    alive = codes.max(0).values > 0
    quality, fires_on = auc.max(1)
    matched = alive & (quality >= MATCHED)
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(100, x.shape[1], generator=generator)
    strength = ((embeddings - x.mean(0)) @ random.T).relu()

    concepts = data.concept_names
    parts = {part for concept in concepts for part in concept.split()}
    common = naming.vocabulary()
    words = [*concepts, *(word for word in common if word not in parts)]
    pairs = [*concepts, *(f"{c} {s}" for c in COLOURS for s in SHAPES)]
    rows = {}
    for label, vocabulary in (
        ("default words", words),
        ("with their parts", [*concepts, *common]),
        ("colours × shapes", pairs),
    ):
        vocabulary = list(dict.fromkeys(vocabulary))
        cosines = embeddings @ clip.encode_words(vocabulary).T
        both = torch.cat([codes, strength], 1)
        ways = {
            "text": naming.by_text(
                torch.cat([sae.components_, random]), vocabulary, clip.encode_words
            ),
            "dissection": naming.by_dissection(both, cosines, vocabulary),
        }
        for way, names in ways.items():
            units = matched.nonzero().flatten().tolist()
            right = [i for i in units if names[i] == concepts[int(fires_on[i])]]
            wrong = [i for i in alive.nonzero().flatten().tolist() if i not in right]
            sure = names.confidence
            rows[way, label] = (
                len(right) / max(1, len(units)), len(units), int(alive.sum()),
                len({int(fires_on[i]) for i in units}),
                told(sure[right], sure[n_units:]), len(wrong), told(sure[right], sure[wrong]),
            )  # fmt: skip
    return rows, seconds


def told(right, others):
    """How well confidence tells right names from others: area under the ROC curve."""
    if not len(right) or not len(others):
        return float("nan")
    return roc_auc_score([1] * len(right) + [0] * len(others), torch.cat([right, others]).numpy())


def photos():
    """Held-out retrieval of ImageNet's class names, and the names of the demo's concepts."""
    from conceptlens.demo import demo_backbone, demo_pictures

    bb = demo_backbone()
    encode = naming.sentence_encoder()
    weights = bb.model._fc.weight
    for seed in range(3):
        aligned = naming.AlignedText(encode, random_state=seed).fit(weights, bb.class_names)
        figures = ", ".join(f"{name} {value:.2f}" for name, value in aligned.retrieval_.items())
        print(f"  held-out classes, split {seed}: {figures}; ridge {aligned.alpha_:.3g}")
    for photo, target in (("chelsea", "Egyptian cat"), ("coffee", "espresso")):
        explanation = CRAFT(bb, n_concepts=6).explain(demo_pictures(photo), target=target)
        for name in naming.vocabulary.__defaults__[0], "imagenet":
            names = aligned.name(explanation.components, naming.vocabulary(name))
            print(f"\n{photo}, vocabulary {name!r}:\n{explanation.named(names)!r}\n{names!r}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=["planted", "photos"])
    arguments = parser.parse_args()
    if arguments.only != "photos":
        print(HEADER)
        for seed in range(arguments.seeds):
            rows, seconds = planted(seed)
            for (way, label), (top1, n, alive, found, random, wrong, other) in rows.items():
                figures = (
                    f"{top1:5.2f} {n:7} {alive:5} {found:8} {random:7.3f} {wrong:6} {other:7.3f}"
                )
                print(f"{seed:4} {way:10} {label:17} {figures}")
            print(f"     (the CLIP was trained or read in {seconds:.0f} s)", flush=True)
    if arguments.only != "planted":
        print("\nEfficientNet-Lite0 with all-MiniLM-L6-v2, 100 of 1000 classes held out")
        photos()


if __name__ == "__main__":
    main()
