"""How well the tiny CLIP learns each planted concept: `python benchmarks/tiny_clip.py`.

Each figure is the area under the ROC curve of the cosine with "a picture of a <concept>", on
pictures not seen in training. With ``--ship`` the weights of seed 0 that the package carries are
trained anew and written.
"""

import argparse
import time

from safetensors.torch import save
from sklearn.metrics import roc_auc_score

from conceptlens.datasets import PlantedConcepts, TinyCLIP, tiny_clip
from conceptlens.datasets.tiny_clip import SHIPPED, build, pack, train
from conceptlens.files import write_atomically


def ship():
    data = PlantedConcepts(3000)
    model = build(data.size, 0)
    start = time.process_time()
    train(TinyCLIP(model, data.size), data, 0)
    print(f"trained in {time.process_time() - start:.0f} s of processor time")
    SHIPPED.parent.mkdir(exist_ok=True)
    packed = pack(model, build(data.size, 0))
    write_atomically(SHIPPED, save({name: t.contiguous() for name, t in packed.items()}))
    print(f"{SHIPPED.stat().st_size / 1e6:.2f} MB")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--ship", action="store_true")
    arguments = parser.parse_args()
    if arguments.ship:
        ship()
    for seed in range(arguments.seeds):
        data = PlantedConcepts(3000, seed=seed)
        data.images  # noqa: B018  drawn before the clock starts
        wall, cpu = time.perf_counter(), time.process_time()
        clip = tiny_clip(data, seed=seed)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        test = data.like(500, seed=seed + 1000)
        cosines = clip.encode_image(test.images) @ clip.encode_words(data.concept_names).T
        auc = [
            roc_auc_score(y.numpy(), c.numpy())
            for y, c in zip(test.concepts.T, cosines.T, strict=True)
        ]
        figures = " ".join(f"{a:.3f}" for a in auc)
        print(f"seed {seed}: {figures}  (wall {wall:.0f} s, processor {cpu:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
