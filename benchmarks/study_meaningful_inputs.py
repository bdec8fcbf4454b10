"""Do concept predictors look at their concepts? The question of Furby et al. (2024) on our cards.

Concept networks are trained on hands of six cards, each concept a symbol on its own card, with
labels of each picture, with labels of its class alone, and where concepts always come in pairs.
How much of the relevance of a concept's score (integrated gradients) lies on the concept's symbol?

Run with ``python benchmarks/study_meaningful_inputs.py`` (about 3 minutes on two cores).

Furby et al., "Can we constrain concept bottleneck models to learn semantically meaningful input
features?", 2024.
"""

import argparse

import torch
from captum.attr import IntegratedGradients
from tables import over_seeds, show
from torch import Tensor, nn

from conceptlens.datasets import PlantedConcepts, Votes
from conceptlens.metrics import pointing_game, relevance_inside

CONCEPTS = ("red disc", "blue square", "yellow star", "green triangle", "pink heart", "cyan ring")
PAIRS = tuple(zip(CONCEPTS[::2], CONCEPTS[1::2], strict=True))
RULE = Votes({name: dict.fromkeys(pair, 2.0) for name, pair in zip("ABC", PAIRS, strict=True)})
SETTINGS = {
    "instance labels": {},
    "class-level labels": {"labelling": "class"},
    "always in pairs": {"correlation": dict.fromkeys(PAIRS, 1.0)},
    "nothing (untrained)": {},
}
SIZE = 48


def network() -> nn.Module:
    """Pictures to concept logits."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 8), (8, 16), (16, 32)):
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
        layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * (SIZE // 8) ** 2, len(CONCEPTS)))


def train(x: Tensor, labels: Tensor, seed: int, epochs: int) -> nn.Module:
    torch.manual_seed(seed)
    model = network()
    steps = epochs * -(-len(x) // 64)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            loss = nn.functional.binary_cross_entropy_with_logits(model(x[rows]), labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return model.eval()


def standardised(data: PlantedConcepts) -> Tensor:
    return (data.images - 0.5) / 0.25


def accuracy(model: nn.Module, x: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float(((model(x) > 0) == labels).double().mean())


def inside(model: nn.Module, data: PlantedConcepts) -> tuple[float, float, float]:
    """Share of the relevance on the symbol, pointing game, and the symbol's own area."""
    gradients = IntegratedGradients(model)
    x, found = standardised(data), []
    for j in range(len(CONCEPTS)):
        rows = data.concepts[:, j] & data.concept_labels[:, j]
        relevance = gradients.attribute(x[rows], target=j, n_steps=12, internal_batch_size=256)
        relevance, masks = relevance.sum(1).detach(), data.masks[rows, j]
        found.append(
            [
                relevance_inside(relevance, masks).mean,
                pointing_game(relevance.abs(), masks).mean,
                float(masks.double().mean()),
            ]
        )
    share, pointing, area = torch.tensor(found).mean(0).tolist()
    return share, pointing, area


def run(setting: str, seed: int, pictures: int, epochs: int) -> list[float]:
    options = {"size": SIZE, "concepts": CONCEPTS, "rule": RULE, "layout": "hand"}
    data = PlantedConcepts(pictures, **options, **SETTINGS[setting], seed=seed)
    test = data.like(200, seed=seed + 1000)
    apart = PlantedConcepts(500, **options, seed=seed + 2000)
    x = standardised(data)
    if setting.startswith("nothing"):
        torch.manual_seed(seed)
        model = network().eval()
    else:
        model = train(x, data.concept_labels.float(), seed, epochs)
    told = accuracy(model, standardised(test), test.concept_labels)
    true = accuracy(model, standardised(apart), apart.concepts)
    return [told, true, *inside(model, test)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=1500)
    parser.add_argument("--epochs", type=int, default=8)
    options = parser.parse_args()
    table = {}
    for setting in SETTINGS:
        runs = [run(setting, s, options.pictures, options.epochs) for s in range(options.seeds)]
        table[setting] = [over_seeds(column) for column in zip(*runs, strict=True)]
    columns = (
        "trained on",
        "accuracy on its own kind of labels",
        "accuracy on what is there",
        "relevance on the symbol",
        "peak on the symbol",
        "symbol's area",
    )
    title = f"Mean and 95 % interval over {options.seeds} seeds, {len(CONCEPTS)} concepts"
    show(title, columns, ([name, *values] for name, values in table.items()))
    trained = list(SETTINGS)[:3]
    best, *others = (table[name][2].interval() for name in trained)
    holds = all(best[0] > other[1] for other in others)
    shares = ", ".join(f"{table[name][2].mean:.0%} for {name}" for name in trained)
    print(
        f"\nFurby et al.'s finding {'holds' if holds else 'does NOT hold'} here: relevance on the "
        f"concept's own symbol is {shares}; the intervals "
        f"{'do not overlap' if holds else 'overlap'}."
    )


if __name__ == "__main__":
    main()
