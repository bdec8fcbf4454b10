"""The main job's figures: what importing costs, the demo's time and memory, NMF beside its peer.

Run with ``python benchmarks/main_job.py`` after installing ``conceptlens[demo]``.
"""

import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings

from sklearn.decomposition import NMF as ScikitNMF
from tables import goal

from conceptlens import NMF
from conceptlens.demo import demo_backbone, demo_pictures
from conceptlens.extraction.rows import as_rows
from conceptlens.extraction.starts import low_rank, nndsvd
from conceptlens.images import Pictures


def seconds(*command: str) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def import_cost() -> None:
    times = {
        name: statistics.median(seconds(sys.executable, "-c", f"import {name}") for _ in range(5))
        for name in ("torch", "conceptlens")
    }
    extra = times["conceptlens"] - times["torch"]
    print(f"import conceptlens over import torch: {extra:+.2f} s, median of 5")
    goal("import conceptlens over import torch", extra, 0.3, " s", most=True)


def demo() -> None:
    with tempfile.TemporaryDirectory() as folder:
        took = seconds(sys.executable, "-m", "conceptlens", "demo", "--out", folder + "/demo")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"demo: {took:.0f} s, peak memory {peak:.2f} GiB (limit 2 GB = 1.86 GiB)")
    goal("demo", took, 180, " s", most=True)
    goal("demo, peak memory", peak, 1.86, " GiB", most=True)


def nmf() -> None:
    bb = demo_backbone()
    views = demo_pictures("chelsea", 24) + demo_pictures("coffee", 24)
    ((_, x),) = Pictures(views, bb.transform).batches(48)
    a = bb.activations(x).flatten(0, 1)
    print(f"NMF on {tuple(a.shape)} activations, {float((a == 0).float().mean()):.0%} zeros:")
    for k in (10, 25, 50):
        u, v = nndsvd(low_rank(as_rows(a), k, 0), k)
        u = u.T.contiguous()
        start = time.perf_counter()
        ours = NMF(k)
        ours.fit_transform(a, u=u, v=v)
        middle = time.perf_counter()
        peer = ScikitNMF(k, init="custom", solver="cd", tol=1e-4, max_iter=1000)
        peer.fit_transform(a.numpy(), W=u.numpy().copy(), H=v.numpy().copy())
        end = time.perf_counter()
        ratio = ours.reconstruction_err_**2 / peer.reconstruction_err_**2
        print(
            f"  k = {k}: objective {ratio:.5f} × scikit-learn's (limit 1.001), "
            f"{middle - start:.2f} s against {end - middle:.2f} s"
        )
        goal(
            f"NMF's objective above scikit-learn's, k = {k}",
            100 * ratio - 100,
            0.1,
            " %",
            most=True,
        )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    import_cost()
    demo()
    nmf()
