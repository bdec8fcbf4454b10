"""Sharing work between processes: two that torch starts, one that dies, one alone."""

import os
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from PIL import Image
from safetensors.torch import load_file

from conceptlens import ActivationStore, Backbone, distributed
from conceptlens.cli import main
from conceptlens.distributed import PeerLostError, StoreShare
from conceptlens.extraction import load

ROOT = Path(__file__).parent.parent


def start(number, port, work, queue):
    os.environ |= {
        "RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    try:
        with distributed.together(timeout=20):
            queue.put((number, work()))
    except Exception as error:
        queue.put((number, error))
    queue.close()
    queue.join_thread()


def in_two_processes(work):
    """What `work` returned or raised in process 0 and 1, as torchrun would start them."""
    context = mp.get_context("spawn")
    queue = context.Queue()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    both = [context.Process(target=start, args=(i, port, work, queue)) for i in range(2)]
    for process in both:
        process.start()
    results = {}
    try:
        while len(results) < 2 and (any(p.is_alive() for p in both) or not queue.empty()):
            try:
                number, value = queue.get(timeout=0.2)
            except Exception:  # nothing yet
                continue
            results[number] = value
    finally:
        for process in both:
            process.kill()
            process.join()
    return [results.get(0), results.get(1)]


class Rows:
    """A store of six pictures with one position, whose channel is the picture's number."""

    shape = (6, 1, 1)

    def __len__(self):
        return 6

    def vectors(self, batch_size, shuffle=True, seed=0, pictures=range(6)):
        yield from torch.arange(6.0)[:, None][list(pictures)].split(batch_size)


def sums():
    number = distributed.rank() + 1.0
    total = distributed.all_reduce_(torch.tensor([number, 1]))
    first = distributed.broadcast_(torch.tensor([number]))
    rows = distributed.share_of(torch.arange(5.0)[:, None])
    share = distributed.share_of(Rows())
    pictures = torch.cat(list(share.vectors(2, shuffle=False)))
    return [x.flatten().tolist() for x in (total, first, rows, pictures)], share.shape


def die_or_wait():
    if distributed.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    for _ in range(100):
        distributed.all_reduce_(torch.ones(3))


def fail_or_wait():
    if distributed.rank() == 1:
        raise OSError("disk full")
    for _ in range(100):
        distributed.all_reduce_(torch.ones(3))


def test_two_processes_sum_and_share():
    first, second = in_two_processes(sums)
    assert first == ([[3, 2], [1], [0, 1], [0, 1, 2]], (3, 1, 1))
    assert second == ([[3, 2], [1], [2, 3, 4], [3, 4, 5]], (3, 1, 1))


def test_a_process_that_is_killed_stops_the_other_with_a_clear_error():
    survivor, dead = in_two_processes(die_or_wait)
    assert dead is None
    assert isinstance(survivor, PeerLostError)
    assert "process 0 of 2 lost another" in str(survivor)


def test_an_exception_in_one_process_stops_the_other():
    survivor, failed = in_two_processes(fail_or_wait)
    assert isinstance(survivor, PeerLostError)
    assert isinstance(failed, OSError)


def test_torchruns_two_processes_fit_as_one(tmp_path):
    command = [sys.executable, Path(__file__).with_name("torchrun_fits.py"), tmp_path / "fits"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run(command, check=True, capture_output=True)
    subprocess.run([command[0], *launch, *command[1:]], check=True, capture_output=True)
    alone = load_file(tmp_path / "fits-0-of-1")
    for rank in (0, 1):
        shared = load_file(tmp_path / f"fits-{rank}-of-2")
        torch.testing.assert_close(shared, alone, rtol=0, atol=1e-5)


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 2, 2), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(96, 2)
    )


def build(path, n_passes=None):
    """The store of 50 pictures in shards of eight; the last process dies after some passes."""
    bb, passes = Backbone(network(), "1"), []

    def die(*_):
        passes.append(1)
        if len(passes) > n_passes and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    pictures = torch.rand(50, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    bb.activations(pictures[:2])  # cutting takes passes too
    if n_passes is not None:
        bb.model.register_forward_pre_hook(die)
    return repr(ActivationStore.build(bb, pictures, path, 4, shard_bytes=8 * 16 * 6 * 4))


def content(path):
    return {f.name: f.read_bytes() for f in sorted(Path(path).iterdir()) if f.name != ".lock"}


def test_two_processes_build_the_store_of_one_and_resume_after_a_loss(tmp_path):
    build(tmp_path / "one")
    expected = content(tmp_path / "one")
    both = in_two_processes(partial(build, tmp_path / "two"))
    assert both == [repr(ActivationStore.open(tmp_path / "two"))] * 2
    assert content(tmp_path / "two") == expected
    survivor, dead = in_two_processes(partial(build, tmp_path / "lost", n_passes=4))
    assert dead is None
    assert isinstance(survivor, PeerLostError)
    kept = content(tmp_path / "lost")
    assert "manifest.json" not in kept
    assert 3 <= len([name for name in kept if name.startswith("activations")]) < 7
    in_two_processes(partial(build, tmp_path / "lost"))
    assert content(tmp_path / "lost") == expected


def torchrun(*arguments):
    """``torchrun --nproc-per-node 2 -m conceptlens ...``, on one thread each."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launch, "-m", "conceptlens", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


NETWORK = """
import torch
from torch import nn
from torchvision.transforms import ToTensor
from conceptlens import Backbone

def make():
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(3, 16, 8, 8, bias=False), nn.ReLU())
    model = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3))
    return Backbone(model, "0", ToTensor())
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A network, 60 pictures, and the store of six files that one process makes of them.

    Pictures are tiled by shades of two patterns below noise, so that the dictionary is determined.
    """
    folder = tmp_path_factory.mktemp("work")
    (folder / "net.py").write_text(NETWORK)
    (folder / "photos").mkdir()
    generator = np.random.default_rng(0)
    patterns = generator.integers(0, 196, (2, 8, 8, 3))
    for i in range(60):
        tiles, shades = generator.integers(0, 2, (8, 8)), generator.uniform(0.2, 1, (8, 8))
        picture = patterns[tiles] * shades[..., None, None, None]  # (8, 8, 8, 8, 3)
        pixels = picture.swapaxes(1, 2).reshape(64, 64, 3) + generator.integers(0, 60, (64, 64, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "photos" / f"{i:02d}.png")
    assert main([*cache(folder), "--out", str(folder / "store")]) == 0
    return folder


def cache(folder):
    size = ["--batch-size", "5", "--shard-mib", "0.04"]  # ten pictures of 64 × 16 numbers
    return ["cache", f"{folder}/net.py:make", str(folder / "photos"), *size]


def test_two_processes_of_the_command_fill_one_store(workplace, tmp_path):
    done = torchrun(*cache(workplace), "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{ActivationStore.open(tmp_path)}\n"  # from one process alone
    assert content(tmp_path) == content(workplace / "store")


@pytest.mark.parametrize("extractor", ["nmf", "sae"])
def test_two_processes_of_the_command_fit_as_one(workplace, tmp_path, extractor):
    words = ["fit", workplace / "store", "--components", 2, "--extractor", extractor]
    words += ["--set", "n_epochs=2" if extractor == "sae" else "tol=1e-3"]
    shared = torchrun(*words, "--checkpoint", "--out", tmp_path / "shared")
    assert shared.returncode == 0, shared.stderr
    assert shared.stdout.splitlines()[1:] == [str(tmp_path / "shared")]  # from one process alone
    assert main([*map(str, words), "--out", str(tmp_path / "alone")]) == 0
    found, expected = (load(tmp_path / name).components_ for name in ("shared", "alone"))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_alone_nothing_happens():
    with distributed.together():
        x = torch.ones(2)
        assert distributed.all_reduce_(x) is x
        assert distributed.broadcast_(x) is x
        assert torch.equal(x, torch.ones(2))
        assert (distributed.rank(), distributed.world_size()) == (0, 1)
        rows = Rows()
        assert distributed.share_of(rows) is rows


def test_too_few_rows_for_the_processes(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    with pytest.raises(ValueError, match=r"2 rows or pictures.*3 processes"):
        distributed.my_range(2)


def test_a_share_reads_only_its_pictures():
    share = StoreShare(Rows(), range(2, 5))
    assert torch.cat(list(share.vectors(2))).flatten().tolist() == [2, 3, 4]
