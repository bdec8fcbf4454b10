"""How fast planted pictures are drawn and small networks trained: python benchmarks/planted.py."""

import os
import tempfile
import time

import torch

from conceptlens.datasets import PlantedConcepts
from conceptlens.datasets.zoo import accuracy, small_cnn, small_vit


def timed(work):
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def main():
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    timed(lambda: PlantedConcepts(1).images)  # loads the sample photos
    seconds = [timed(lambda s=s: PlantedConcepts(2000, seed=s).images)[1] for s in range(3)]
    rate = 2000 / sorted(seconds)[1]
    print(f"drawing: {rate:.0f} pictures of 64 × 64 a second on {torch.get_num_threads()} cores")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder  # so that nothing is read from the cache
        data = PlantedConcepts(3000)
        test = data.like(2000, seed=99)
        for train in (small_cnn, small_vit):
            model, seconds = timed(lambda train=train: train(data))
            print(f"{train.__name__}: {seconds:.0f} s, {accuracy(model, test):.1%} on new pictures")


if __name__ == "__main__":
    main()
