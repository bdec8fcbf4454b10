"""What it takes to explain a thousand classes of 1.3 million pictures, and a check of the sums.

The plan is arithmetic over n pictures of K classes: passes through the network, hours on devices
that do so many passes a second, bytes and files of the three stores (activations of positions, of
crops, and logits), memory a process, and the time and size of the explanations. Speeds are those
that ``distributed.py`` and ``sobol.py`` measured with EfficientNet-Lite0 (``results/``).

The simulation builds the same three stores, for planted pictures and a small CNN on one thread, and
compares passes, files and bytes with the formulas, and how the seconds grow with the pictures.

Run with ``python benchmarks/plan.py``; ``--quick`` simulates fewer pictures.
"""

import argparse
import math
import re
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from tables import goal, show

from conceptlens import CRAFT, NMF, Backbone
from conceptlens.datasets import PlantedConcepts
from conceptlens.datasets.zoo import SmallCNN
from conceptlens.demo import demo_backbone, demo_pictures
from conceptlens.images import Pictures, crop_boxes
from conceptlens.store import SHARD_BYTES, build_stores

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Job:
    """Pictures n, classes K, positions P, channels C, crops a picture m, side of a picture."""

    n: int
    classes: int
    positions: int
    channels: int
    crops: int
    side: int
    batch: int
    item: int  # bytes of a number
    shard: int = SHARD_BYTES

    @property
    def rows(self) -> dict[str, int]:
        """Numbers that each store keeps of a picture."""
        c = self.channels
        return {"positions": self.positions * c, "crops": self.crops * c, "logits": self.classes}

    @property
    def bytes(self) -> dict[str, int]:
        """Bytes of each store."""
        return {name: self.n * numbers * self.item for name, numbers in self.rows.items()}

    @property
    def shard_pictures(self) -> int:
        """Pictures of a file: whole batches, as many as fit where rows are largest."""
        largest = max(self.rows.values()) * self.item
        return max(1, self.shard // (largest * self.batch)) * self.batch

    @property
    def shards(self) -> int:
        """Files of each store."""
        return math.ceil(self.n / self.shard_pictures)

    @property
    def passes(self) -> int:
        """Pictures that go through the trunk: each once, and each of its crops."""
        return self.n * (1 + self.crops)

    @property
    def filling(self) -> int:
        """Bytes that a process holds while it fills stores, besides the network.

        A batch of pictures and one read ahead, the crops of a batch, and two ranges of files, one
        that is written and one that grows.
        """
        pictures = 3 * self.side**2 * 4 * self.batch
        return 3 * pictures + 2 * self.shard_pictures * sum(self.rows.values()) * 4

    @property
    def explaining(self) -> int:
        """Bytes of a class's pictures, positions, crops and logits in memory."""
        each = 3 * self.side**2 + sum(self.rows.values())
        return math.ceil(self.n / self.classes) * each * 4


def size(n_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n_bytes < 1000 or unit == "TB":
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    raise AssertionError


def measured(file: str, pattern: str) -> float:
    """A figure that another script printed."""
    found = re.search(pattern, (RESULTS / file).read_text())
    if found is None:
        raise ValueError(f"{file} has no line like {pattern}: run its script")
    return float(found[1])


# -- the plan ------------------------------------------------------------------------------------


def plan(job: Job, k: int, iterations: int, devices: list[int]) -> None:
    pace = measured("distributed.txt", r"1 process, 1 thread +(\d+)")
    nmf = measured("distributed.txt", r"1 process, 1 thread +\d+ +(\d+)") * 1280 * 25
    exact = measured("sobol.txt", r"conceptlens, N = 32 +([\d.]+) s a picture")
    print(
        f"{job.n:,} pictures, {job.classes} classes, P = {job.positions}, C = {job.channels}, "
        f"m = {job.crops} crops, batches of {job.batch}"
    )
    ways = {"crops resized, n (1 + m)": job.passes, "positions alone, n": job.n}
    show(
        f"Passes through the network and hours = passes / (3600 · {pace:g} a second · devices)",
        ["learnt from", "passes", *(f"{d} devices" for d in devices)],
        [
            [way, f"{passes:.3g}", *(f"{passes / 3600 / pace / d:.3g} h" for d in devices)]
            for way, passes in ways.items()
        ],
    )
    rows = []
    for name in job.rows:
        half = job.bytes[name] * 2 // job.item
        rows.append([name, job.rows[name], size(2 * half), size(half), job.shards])
    show("Stores", ["store", "numbers a picture", "float32", "float16", "files (float32)"], rows)
    per_class = job.n / job.classes
    seconds = per_class * job.crops * iterations * job.channels * k / nmf
    report, folder = explanation_size()
    show(
        "A process, and a class",
        ["what", "how much"],
        [
            ["files a process of 64 fills", f"{job.shards / 64:.3g}"],
            ["memory to fill stores, besides the network", size(job.filling)],
            ["memory to explain a class, besides the network", size(job.explaining)],
            [f"NMF: {per_class * job.crops:.0f} crops, k = {k}, {iterations} iterations",
             f"{seconds:.3g} s"],
            ["Sobol indices, affine head (exact)", f"{per_class * exact:.3g} s"],
            ["both for all classes, one thread",
             f"{(seconds + per_class * exact) * job.classes / 3600:.3g} h"],
            ["report (of 24 pictures)", size(report)],
            ["explanation's folder with its report", size(folder)],
            [f"folders of {job.classes} classes", size(folder * job.classes)],
        ],
    )  # fmt: skip


def explanation_size() -> tuple[int, int]:
    """Bytes of the report of the demo's pictures, and of the folder that holds it."""
    craft = CRAFT(demo_backbone(), crops="positions")
    with tempfile.TemporaryDirectory() as name:
        explanation = craft.explain(demo_pictures())
        folder = explanation.save(Path(name) / "out")
        report = explanation.to_html(folder / "report.html").stat().st_size
        return report, sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


# -- the simulation ------------------------------------------------------------------------------


def simulate(sizes: list[int]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = PlantedConcepts(sizes[-1])
    bb = Backbone(SmallCNN(len(data.class_names)), "features")
    craft = CRAFT(bb, extractor=NMF(8), patch_size=32)
    computing(bb, craft)(data.images[:50], ["positions", "crops", "logits"])  # cut, and warm
    passed: list[int] = []
    bb.model.register_forward_pre_hook(lambda _, inputs: passed.append(len(inputs[0])))
    (positions, channels), side = bb.activations(data.images[:1]).shape[1:], 64
    crops = len(crop_boxes((side, side), 32))
    rows, seconds = [], []
    for n in sizes:
        job = Job(n, len(data.class_names), positions, channels, crops, side, 50, 4, 16 * 2**20)
        passed.clear()
        with tempfile.TemporaryDirectory() as name:
            folders = {store: Path(name) / store for store in job.rows}
            start = time.perf_counter()
            stores = build_stores(
                folders, dict.fromkeys(folders, "plan"), computing(bb, craft),
                Pictures(data.images[:n]), job.batch, shard_bytes=job.shard,
            )  # fmt: skip
            seconds.append(time.perf_counter() - start)
            files = [f for folder in folders.values() for f in folder.glob("*.safetensors")]
            on_disk = sum(f.stat().st_size for f in files)
        assert len(stores) == 3
        predicted = seconds[0] * n / sizes[0]
        # One picture more is computed to learn the shapes.
        rows.append([
            n, f"{job.passes + 1 + crops} / {sum(passed)}", f"{3 * job.shards} / {len(files)}",
            f"{size(sum(job.bytes.values()))} / {size(on_disk)}",
            f"{on_disk / sum(job.bytes.values()) - 1:+.2%}", f"{predicted:.1f} / {seconds[-1]:.1f}",
        ])  # fmt: skip
    show(
        f"Simulation, predicted / measured: P = {positions}, C = {channels}, m = {crops}, "
        "files of 16 MiB",
        ["pictures", "passes", "files", "bytes", "excess", "seconds (linear from the first)"],
        rows,
    )
    x, y = (torch.tensor(v, dtype=torch.float64).log() for v in (sizes, seconds))
    exponent = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
    print()
    goal("exponent of the time to fill stores, in pictures", exponent, 1.05, "", most=True)


def computing(bb: Backbone, craft: CRAFT):
    """What `build_stores` fills the three stores with."""

    def compute(x, wanted):
        a = bb.activations(x)
        found = {
            "positions": a,
            "crops": craft.crop_activations(x, a),
            "logits": bb.head(a)[:, None],
        }
        return [found[name] for name in wanted]

    return compute


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=1_300_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--positions", type=int, default=49)
    parser.add_argument("--channels", type=int, default=1280)
    parser.add_argument("--side", type=int, default=224, help="of a picture, in pixels")
    parser.add_argument("--patch-size", type=int, default=64)
    parser.add_argument("--concepts", type=int, default=10)
    parser.add_argument("--iterations", type=int, default=50, help="of NMF")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--quick", action="store_true", help="simulate a tenth of the pictures")
    given = parser.parse_args()
    m = len(crop_boxes((given.side, given.side), given.patch_size))
    shape = (given.positions, given.channels, m, given.side)
    job = Job(given.pictures, given.classes, *shape, batch=64, item=4)
    plan(job, given.concepts, given.iterations, given.devices)
    simulate([100, 200, 400] if given.quick else [1000, 2000, 4000])
