"""Every extractor × importance × map, scored by concepts that are known exactly.

Each method in the tables EXTRACTORS, ESTIMATORS and MAPS explains the zoo's CNN on planted
pictures; a new method joins by being registered. What several combinations share is computed once.

Run with ``python benchmarks/explain_truth.py`` (``--quick`` for a look); it writes
explain_truth.csv and explain_truth.png to ``--out``.
"""

import argparse
import csv
import warnings
from collections import defaultdict
from pathlib import Path

import torch
from matplotlib.figure import Figure
from networks import network
from tables import cell, over_seeds, show
from torch import Tensor

from conceptlens import DictionaryModel
from conceptlens.batching import in_batches
from conceptlens.datasets import PlantedConcepts
from conceptlens.extraction import EXTRACTORS
from conceptlens.importance import ESTIMATORS
from conceptlens.maps import MAPS, concept_maps
from conceptlens.metrics import (
    Estimate,
    Recovery,
    c_deletion,
    c_insertion,
    c_mu_fidelity,
    importance_recovery,
    map_recovery,
    r2,
    recovery,
)

Scores = dict[tuple[str, ...], dict[str, float]]

MEANING = """\
AUC       mean AUC of each planted concept with the extracted concept matched to it
R2        share of the activations' variance that the codes explain
rank      Spearman's correlation of the matched concepts' importance with the true total indices
deletion  area under C-Deletion as a share of the logit's fall; lower is better, 0.5 is chance
insertion area under C-Insertion as a share of the logit's rise; higher is better, 0.5 is chance
mu        C-µFidelity (Pearson)
pointing  share of pictures in which the matched concept's map peaks in the planted concept's place
IoU       of that place with as many of the map's highest pixels
joint     share of pictures whose most important concept is a planted one that is in the picture and
          is mapped to its place"""


def scores_of(seed: int, options: argparse.Namespace) -> Scores:
    """All scores of one seed, by (extractor,), (extractor, importance), … as they depend on."""
    bb, training = network(seed)
    data = training.like(options.pictures, seed=seed + 4000)
    with torch.no_grad():
        a = in_batches(bb.activations, data.images, 128)
    scores: Scores = {}
    for name in options.extractors:
        extractor = EXTRACTORS[name](options.concepts, seed)
        rows = a.flatten(0, 1)
        fitted = rows[torch.randperm(len(rows), generator=generator(seed))[: options.rows]]
        extractor.fit(fitted)
        cm = DictionaryModel(bb, extractor)
        few = slice(options.few)
        with torch.no_grad():
            codes = torch.as_tensor(extractor.transform(rows)).unflatten(0, a.shape[:2])
            rebuilt = extractor.inverse_transform(codes[few].flatten(0, 1))
        found = recovery(codes, data.concepts, names=data.concept_names, seed=seed)
        scores[name,] = {"AUC": found.mean, "R2": r2(a[few].flatten(0, 1), rebuilt)}
        important = importances(cm, codes[few], data, found, name, seed, scores)
        maps = {}
        for method in MAPS:
            tops = mapped(cm, data, found, name, method, options.few_maps, seed, scores)
            if tops is not None:
                maps[method] = tops
        for estimator, per_image in important.items():
            for method, hits in maps.items():
                value = joint(per_image[: len(hits)], hits)
                scores[name, estimator, method] = {"joint": value}
    return scores


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def importances(
    cm: DictionaryModel,
    codes: Tensor,
    data: PlantedConcepts,
    found: Recovery,
    extractor: str,
    seed: int,
    scores: Scores,
) -> dict[str, Tensor]:
    """Score every estimator; return the importance ``(n, k)`` for each picture's own class."""
    labels, truth = data.labels[: len(codes)], data.true_importance()
    own: dict[str, Tensor] = {}
    for name, estimate in ESTIMATORS.items():
        sums: defaultdict[str, float] = defaultdict(float)
        own[name] = torch.zeros(len(codes), codes.shape[2], dtype=torch.float64)
        n_classes = len(data.class_names)
        for target in range(n_classes):
            rows = labels == target
            part = codes[rows]
            result = estimate(cm, part, target, seed=seed)
            own[name][rows] = result.per_image.double().cpu()
            values = result.values
            insertion, deletion = (f(cm, part, target, values) for f in (c_insertion, c_deletion))
            none, full = float(insertion.mean[0]), float(insertion.mean[-1])
            sums["rank"] += importance_recovery(values, truth[target], found.matches)
            sums["deletion"] += (deletion.auc - none) / (full - none)
            sums["insertion"] += (insertion.auc - none) / (full - none)
            sums["mu"] += c_mu_fidelity(cm, part, target, values, n_subsets=64).mean
        scores[extractor, name] = {score: total / n_classes for score, total in sums.items()}
    return own


def mapped(
    cm: DictionaryModel,
    data: PlantedConcepts,
    found: Recovery,
    extractor: str,
    method: str,
    n: int,
    seed: int,
    scores: Scores,
) -> Tensor | None:
    """Score a map; return ``(n, k)``: whether each concept peaks in its planted concept's place.

    None where the map does not exist for the extractor, such as gradients outside torch.
    """
    try:
        maps = concept_maps(cm, data.images[:n], method, seed=seed).detach()
    except (TypeError, ValueError, RuntimeError):
        return None
    masks, matches = data.masks[:n], found.matches
    quality = map_recovery(maps, masks, matches)
    scores[extractor, "", method] = {
        "pointing": float(quality.pointing.nanmean()),
        "IoU": float(quality.iou.nanmean()),
    }
    peaks = maps.flatten(2).argmax(2)  # (n, k)
    hits = torch.zeros(peaks.shape, dtype=torch.bool)
    for j, i in enumerate(matches.tolist()):
        if i >= 0:
            hits[:, i] = masks[:, j].flatten(1).gather(1, peaks[:, i, None])[:, 0]
    return hits


def joint(per_image: Tensor, hits: Tensor) -> float:
    return float(hits.gather(1, per_image.argmax(1)[:, None]).double().mean())


def collect(runs: list[Scores]) -> dict[tuple[str, ...], dict[str, Estimate]]:
    """Estimates over the seeds that have a score."""
    keys = dict.fromkeys(key for scores in runs for key in scores)
    return {
        key: {
            score: over_seeds(scores[key][score] for scores in runs if key in scores)
            for score in next(scores[key] for scores in runs if key in scores)
        }
        for key in keys
    }


def combined(table: dict[tuple[str, ...], dict[str, Estimate]]) -> list[dict[str, object]]:
    """One row a triple, with all that its parts score, best joint score first."""
    triples = [key for key in table if len(key) == 3 and key[1]]
    rows: list[dict[str, object]] = []
    for extractor, estimator, method in triples:
        row: dict[str, object] = {"extractor": extractor, "importance": estimator, "map": method}
        for key in ((extractor,), (extractor, estimator), (extractor, "", method)):
            row |= table[key]
        rows.append(row | table[extractor, estimator, method])
    return sorted(rows, key=lambda row: -float(row["joint"]))  # type: ignore[arg-type]


def write_csv(rows: list[dict[str, object]], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        names = [n for n in rows[0] if isinstance(rows[0][n], Estimate)]
        ends = [f"{n} {end}" for n in names for end in ("mean", "low", "high")]
        writer.writerow(["extractor", "importance", "map", *ends])
        for row in rows:
            numbers = [x for n in names for x in (row[n].mean, *row[n].interval())]
            parts = [row[n] for n in ("extractor", "importance", "map")]
            writer.writerow([*parts, *(f"{x:.4f}" for x in numbers)])


def draw(table: dict[tuple[str, ...], dict[str, Estimate]], path: Path) -> None:
    """Extractor × importance by rank correlation, extractor × map by pointing game."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    panels = (
        ("rank", {(k[0], k[1]): v for k, v in table.items() if len(k) == 2}),
        ("pointing", {(k[0], k[2]): v for k, v in table.items() if len(k) == 3 and not k[1]}),
    )
    for ax, (score, cells) in zip(figure.subplots(1, 2), panels, strict=True):
        rows, columns = (list(dict.fromkeys(k[i] for k in cells)) for i in (0, 1))
        grid = torch.full((len(rows), len(columns)), torch.nan)
        for (row, column), values in cells.items():
            i, j = rows.index(row), columns.index(column)
            grid[i, j] = values[score].mean
            ax.text(j, i, f"{grid[i, j]:.2f}", ha="center", va="center", fontsize=7)
        ax.imshow(grid, cmap="Blues", vmin=0, vmax=1.3, aspect="auto")
        ax.set_xticks(range(len(columns)), columns, rotation=60, ha="right", fontsize=8)
        ax.set_yticks(range(len(rows)), rows, fontsize=8)
        ax.set_title(
            {"rank": "Rank correlation with the true importance"}.get(score, "Pointing game")
        )
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=400, help="whose codes are matched")
    parser.add_argument("--rows", type=int, default=20000, help="activations fitted on")
    parser.add_argument("--few", type=int, default=96, help="pictures for importance")
    parser.add_argument("--few-maps", type=int, default=24, help="pictures for maps")
    parser.add_argument("--concepts", type=int, default=12)
    parser.add_argument("--extractors", nargs="*", choices=list(EXTRACTORS), default=[*EXTRACTORS])
    parser.add_argument("--quick", action="store_true", help="2 seeds and few pictures")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.pictures, options.rows = 2, 150, 5000
        options.few, options.few_maps = 48, 6
    warnings.simplefilter("ignore")  # of single fits that stop early: the scores tell
    table = collect([scores_of(seed, options) for seed in range(options.seeds)])
    rows = combined(table)
    options.out.mkdir(parents=True, exist_ok=True)
    write_csv(rows, options.out / "explain_truth.csv")
    draw(table, options.out / "explain_truth.png")
    print(f"Mean and 95 % interval over {options.seeds} seeds, k = {options.concepts}\n{MEANING}")
    parts = (
        ("Extractors", ("extractor",), lambda k: len(k) == 1),
        ("Extractor × importance", ("extractor", "importance"), lambda k: len(k) == 2),
        ("Extractor × map", ("extractor", "", "map"), lambda k: len(k) == 3 and not k[1]),
    )
    for title, names, chosen in parts:
        keys = [key for key in table if chosen(key)]
        show(title, (*names, *table[keys[0]]), ([*k, *table[k].values()] for k in keys))
    best = (
        [cell(row[c]) for c in ("extractor", "importance", "map", "joint")] for row in rows[:20]
    )
    show(
        f"The best 20 of {len(rows)} combinations (all are in explain_truth.csv)",
        ("extractor", "importance", "map", "joint"),
        best,
    )


if __name__ == "__main__":
    main()
