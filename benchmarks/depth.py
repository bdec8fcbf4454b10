"""Where and when concepts are learnt: an easy and a hard one, by construction of the pictures.

The easy concept is a frame around the picture, a matter of colour. The hard one is whether form
and colour of a symbol agree (red square or blue cross against blue square or red cross): their
exclusive or, which no sum of what colour and form say alone can tell. A CNN and a vision
transformer learn all four combinations as classes.

Run with ``python benchmarks/depth.py``.
"""

import argparse
import copy
from dataclasses import replace
from pathlib import Path

import torch
from tables import over_seeds, show

from conceptlens import Backbone
from conceptlens.datasets import Formula, PlantedConcepts
from conceptlens.datasets.zoo import SmallCNN, SmallViT
from conceptlens.metrics import concept_depth, concept_dynamics
from conceptlens.training import train_epochs

SIZE = 32
NAMES = ("frame", "form agrees with colour")
SYMBOLS = ("red square | blue square", "blue cross | red cross")
# What is built, the layer that dynamics reads, training pictures, epochs, learning rate.
NETWORKS = {
    "CNN": (lambda: SmallCNN(4), "features", 1600, 10, 1e-2),
    "ViT": (lambda: SmallViT(4, SIZE), "blocks.2", 2400, 12, 2e-3),
}


def pictures(n, seed):
    rule = Formula({"framed": "yellow border"})
    parts = [PlantedConcepts(n // 2, SIZE, ("yellow border", s), rule, seed=seed) for s in SYMBOLS]
    concepts = torch.cat([part.concepts for part in parts])
    return torch.cat([part.images for part in parts]), concepts


def studied(name, seed):
    """Depth, dynamics and test accuracy of one network."""
    build, layer, n, n_epochs, lr = NETWORKS[name]
    torch.manual_seed(seed)
    model = build()
    images, concepts = pictures(n, seed)
    weights = torch.tensor([2, 1])
    steps = train_epochs(
        model, images, concepts.long() @ weights, n_epochs=n_epochs, lr=lr, seed=seed
    )
    states = {epoch: copy.deepcopy(model.state_dict()) for epoch in steps}
    test, truth = pictures(1000, seed + 1000)
    bb = Backbone(model, layer)
    with torch.no_grad():
        right = (model(test).argmax(1) == truth.long() @ weights).double().mean()
    depth = concept_depth(bb, test, truth, concept_names=NAMES)
    return depth, concept_dynamics(bb, states, test, truth, concept_names=NAMES), float(right)


def mean_of(found):
    return replace(found[0], scores=torch.stack([f.scores for f in found]).mean(0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--figures", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    rows = []
    for name in NETWORKS:
        runs = [studied(name, seed) for seed in range(options.seeds)]
        for part, kind in enumerate(("layer", "checkpoint")):
            found = [run[part] for run in runs]
            firsts = torch.stack([f.first for f in found]).double()
            earlier = int((firsts[:, 0] < firsts[:, 1]).sum())
            cells = [over_seeds(first) for first in firsts.T]
            stages = str(len(found[0].stages))
            rows.append([name, kind, stages, *cells, f"{earlier} of {options.seeds}"])
            mean = mean_of(found)
            print(f"\n{name}, mean AUC over {options.seeds} seeds\n{mean.table()}")
            path = options.figures / f"depth_{name.lower()}_{kind}s.png"
            mean.plot().savefig(path, dpi=110)
        print(f"\n{name}: accuracy on new pictures {over_seeds(run[2] for run in runs)}")
    show(
        "Index of the first stage (from 0) with 90 % of the way from chance to AUC 1: mean and "
        "95 % interval",
        ("network", "stages", "how many", *NAMES, "the frame earlier"),
        rows,
    )


if __name__ == "__main__":
    main()
