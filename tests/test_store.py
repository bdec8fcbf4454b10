"""ActivationStore: whole or absent, equal to the last bit when resumed, refused when stale."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.process import BaseProcess as Process
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from conceptlens import ActivationStore, Backbone, Pictures, StoreError
from conceptlens.sealing import seal, unseal
from conceptlens.store import build_stores

SMALL = 2 * 8 * 64 * 6 * 4  # two batches of eight pictures a shard


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 2, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)
    )


def pictures(n=50):
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def build(path, **changes):
    arguments = {"images": pictures(), "batch_size": 8, "shard_bytes": SMALL} | changes
    bb = arguments.pop("bb", None) or Backbone(network(), "1")
    return ActivationStore.build(bb, path=path, **arguments)


def content(path):
    return {f.name: f.read_bytes() for f in sorted(Path(path).iterdir()) if f.name != ".lock"}


def test_rows_are_the_backbones_activations(tmp_path):
    store = build(tmp_path)
    expected = Backbone(network(), "1").activations(pictures())
    assert store.shape == (50, 64, 6)
    assert len(store._shards) == 4
    torch.testing.assert_close(store[:], expected)
    for index in (slice(3, 10), slice(14, 35), slice(-5, None), slice(0, 50, 7), slice(9, 9)):
        torch.testing.assert_close(store[index], expected[index])
    torch.testing.assert_close(store[-1], expected[-1])
    with pytest.raises(IndexError, match="50"):
        store[50]
    assert "50 pictures × 64 positions × 6 channels" in repr(store)


def test_vectors_are_all_rows_shuffled_by_the_seed(tmp_path):
    store = build(tmp_path)
    plain = torch.cat(list(store.vectors(100, shuffle=False)))
    torch.testing.assert_close(plain, store[:].flatten(0, 1))
    batches = list(store.vectors(100, seed=3))
    mixed = torch.cat(batches)
    assert {len(b) for b in batches[:-1]} == {100}
    assert not torch.equal(mixed, plain)
    assert torch.equal(mixed, torch.cat(list(store.vectors(100, seed=3))))
    assert torch.equal(mixed.sum(1).sort().values, plain.sum(1).sort().values)


def test_a_batch_larger_than_the_store_is_all_of_it(tmp_path):
    assert [len(b) for b in build(tmp_path).vectors(10**6)] == [50 * 64]


def test_vectors_of_many_shards_are_mixed_and_none_is_lost(tmp_path):
    x = pictures(160)
    store = build(tmp_path, images=x, shard_bytes=1)  # 20 shards, of which four are held at a time
    plain = torch.cat(list(store.vectors(100, shuffle=False)))
    torch.testing.assert_close(plain, Backbone(network(), "1").activations(x).flatten(0, 1))
    shard_of = {tuple(row): i // (8 * 64) for i, row in enumerate(plain.tolist())}
    batches = list(store.vectors(1000, seed=1))
    assert [len(b) for b in batches] == [1000] * 10 + [240]
    mixed = torch.cat(batches)
    assert torch.equal(mixed.sum(1).sort().values, plain.sum(1).sort().values)
    assert len({shard_of[tuple(row)] for row in batches[0].tolist()}) > 8
    kept = batches[0].clone()
    list(store.vectors(1000, seed=2))
    assert torch.equal(batches[0], kept)  # memory that is read into again is not given away


def test_a_shard_cut_short_while_the_store_is_open_is_refused(tmp_path):
    store = build(tmp_path)
    first = tmp_path / store._shards[0].name
    os.truncate(first, store._shards[0].size - 4)
    with pytest.raises(StoreError, match=f"{first.name}.*ends"):
        store[:16]
    first.write_bytes(b"\xff" * 20)
    with pytest.raises(StoreError, match=first.name):
        list(store.vectors(100))
    first.unlink()
    with pytest.raises(StoreError, match=first.name):
        store[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(tmp_path, dtype):
    store = build(tmp_path, dtype=dtype)
    assert store[:2].dtype == dtype
    expected = Backbone(network(), "1").activations(pictures())
    torch.testing.assert_close(store[:].float(), expected, rtol=0.01, atol=0.01)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bb": Backbone(network(1), "1")}, "weights and layer changed"),
        ({"bb": Backbone(network(), "1", lambda p: torch.ones(3, 16, 16))}, "transform changed"),
        ({"images": pictures() + 0.01}, "pictures changed"),
        ({"dtype": torch.float16}, "dtype changed"),
        ({"batch_size": 16}, "batch size changed"),
    ],
)
@pytest.mark.parametrize("sealed", [True, False])
def test_other_content_is_refused_and_named(tmp_path, changes, words, sealed):
    build(tmp_path)
    if not sealed:
        (tmp_path / "manifest.json").unlink()
    before = content(tmp_path)
    with pytest.raises(StoreError, match=words):
        build(tmp_path, **changes)
    assert content(tmp_path) == before


def test_sealed_store_is_opened_without_the_network(tmp_path):
    build(tmp_path)
    bb = Backbone(network(), "1")
    bb.activations = None  # calling it would fail
    assert len(build(tmp_path, bb=bb)) == 50


KILLED = textwrap.dedent(
    """
    import sys, time
    sys.path.insert(0, {tests!r})
    from test_store import Backbone, build, network
    bb = Backbone(network(), "1")
    run = bb.activations
    bb.activations = lambda x: (time.sleep(0.05), run(x), print("batch", flush=True))[1]
    print("ready", flush=True)
    build({path!r}, bb=bb)
    """
)


def test_killed_at_ten_moments_and_resumed_is_equal_to_the_last_bit(tmp_path):
    build(tmp_path / "whole")
    whole = content(tmp_path / "whole")
    path, clock, killed = tmp_path / "killed", random.Random(0), 0
    for _ in range(10):
        kept = set(path.glob("activations-*"))
        process = start(path)
        time.sleep(clock.uniform(0.0, 0.5))
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        batches = process.stdout.read().count(b"batch") - 1  # the first told the shape
        new = set(path.glob("activations-*")) - kept
        # Lost are at most a shard that was computed and one that was written behind it.
        assert batches <= 2 * len(new) + 4
        if not (path / "manifest.json").exists():
            with pytest.raises(StoreError):
                ActivationStore.open(path)
    assert killed >= 5
    build(path)
    assert content(path) == whole


def start(path):
    code = KILLED.format(tests=str(Path(__file__).parent), path=str(path))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    process.stdout.readline()
    return process


def test_two_processes_build_one_store(tmp_path):
    first, second = start(tmp_path / "a"), start(tmp_path / "a")
    assert (first.wait(60), second.wait(60)) == (0, 0)
    build(tmp_path / "b")
    assert content(tmp_path / "a") == content(tmp_path / "b")


@pytest.mark.parametrize("damage", ["truncate", "remove", "flip", "swap"])
def test_damage_is_found(tmp_path, damage):
    store = build(tmp_path)
    first, second = (tmp_path / shard.name for shard in store._shards[:2])
    data = bytearray(first.read_bytes())
    if damage == "truncate":
        os.truncate(first, len(data) // 2)
    elif damage == "remove":
        first.unlink()
    elif damage == "flip":
        data[-1] ^= 1
        first.write_bytes(data)
    else:
        first.write_bytes(second.read_bytes())
        second.write_bytes(data)
    with pytest.raises(StoreError, match=first.name):
        ActivationStore.open(tmp_path).verify()


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"format": 1}', "[" * 10**5, '{"a":' * 10**5, "\xff", '{"format": NaN}'],
)
def test_foreign_manifest_is_refused(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text, encoding="latin1")
    with pytest.raises(StoreError, match=r"manifest\.json"):
        ActivationStore.open(tmp_path)


SHARD = {"name": "activations-000000000-000000001.safetensors", "rows": 1, "size": 1, "sha256": ""}
MANIFEST = {
    "format": 1, "key": {"dtype": "float32"}, "names": ["a"], "row shape": [1, 1], "shards": [SHARD]
}  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"key": {"dtype": ["float32"]}},
        {"key": {"dtype": "float32", "more": 3}},
        {"names": [1]},
        {"names": [], "shards": []},
        {"row shape": [1.0, 1]},
        {"row shape": [10**9, -(10**9)]},
        {"shards": [SHARD | {"name": "../a.safetensors"}]},
        {"shards": [SHARD | {"name": "/etc/passwd"}]},
        {"shards": [SHARD | {"name": SHARD["name"] + "/../x"}]},
        {"shards": [SHARD | {"rows": True}]},
        {"shards": [SHARD | {"rows": -1}]},
        {"shards": {"name": "a"}},
    ],
)
def test_sealed_manifest_of_a_hostile_hand_is_refused(tmp_path, changes):
    (tmp_path / SHARD["name"]).write_bytes(b"x")
    (tmp_path / "manifest.json").write_bytes(seal(MANIFEST | changes))
    with pytest.raises(StoreError, match=r"manifest\.json"):
        ActivationStore.open(tmp_path)


def test_shard_of_another_size_than_the_row_shape_is_refused(tmp_path):
    build(tmp_path)
    manifest = unseal(tmp_path / "manifest.json")
    (tmp_path / "manifest.json").write_bytes(seal(manifest | {"row shape": [10**9, 10**9]}))
    with pytest.raises(StoreError, match="header is not that of this shard"):
        ActivationStore.open(tmp_path)


def test_swapped_shards_are_refused_when_opened(tmp_path):
    first, second = (tmp_path / shard.name for shard in build(tmp_path)._shards[:2])
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)
    with pytest.raises(StoreError, match=first.name):
        ActivationStore.open(tmp_path)


def test_a_shard_damaged_before_the_seal_is_computed_again(tmp_path):
    whole = build(tmp_path)
    before, shard = content(tmp_path), tmp_path / whole._shards[1].name
    (tmp_path / "manifest.json").unlink()
    data = bytearray(before[shard.name])
    data[-3] ^= 4
    shard.write_bytes(data)
    build(tmp_path)
    assert content(tmp_path) == before


def test_pictures_that_cannot_be_read_are_left_out(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(20):
        Image.new("RGB", (16, 16), (i, i, i)).save(folder / f"{i:02}.png")
    for i in (1, 8, 9, 10, 11):  # a whole shard of them
        (folder / f"{i:02}.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match="5 pictures left out: .*01.png"):
        store = build(tmp_path / "a", images=folder, batch_size=4, shard_bytes=1)
    kept = [0, *range(2, 8), *range(12, 20)]
    assert store.names == [f"{i:02}.png" for i in kept]
    assert len(store._shards) == 4
    grey = torch.tensor(kept)[:, None, None, None].expand(-1, 3, 16, 16) / 255
    torch.testing.assert_close(store[:], Backbone(network(), "1").activations(grey))


def test_workers_read_for_all_shards_and_change_nothing(tmp_path, monkeypatch):
    build(tmp_path / "alone")
    started, start = [], Process.start
    monkeypatch.setattr(Process, "start", lambda p: (started.append(p), start(p))[1])
    build(tmp_path / "helped", num_workers=2)
    assert len(started) == 2  # once for all four shards
    assert content(tmp_path / "helped") == content(tmp_path / "alone")


def test_shards_of_small_rows_hold_a_bounded_number_of_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr("conceptlens.building.SHARD_PICTURES", 17)
    assert [s.rows for s in build(tmp_path, shard_bytes=2**30)._shards] == [16, 16, 16, 2]


def test_reading_draws_no_random_numbers(tmp_path):
    bb = Backbone(network(), "1")
    before = torch.get_rng_state()
    build(tmp_path, bb=bb)
    assert torch.equal(torch.get_rng_state(), before)


def test_names_that_are_no_text_are_kept(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, name in enumerate([b"\xff\xfe.png", b"\n<b>.png", "ü.png".encode()]):
        Image.new("RGB", (16, 16), (i, i, i)).save(tmp_path / "x.png")
        os.rename(tmp_path / "x.png", os.fsencode(folder) + b"/" + name)
    store = build(tmp_path / "store", images=folder)
    assert sorted(map(os.fsencode, store.names)) == sorted(os.listdir(os.fsencode(folder)))


def test_absent_store(tmp_path):
    with pytest.raises(StoreError, match="no store"):
        ActivationStore.open(tmp_path)


def test_activations_that_are_not_finite_are_not_sealed(tmp_path):
    x = pictures()
    x[20] = float("inf")
    with pytest.raises(ValueError, match="picture 20"):
        build(tmp_path, images=x)
    assert not (tmp_path / "manifest.json").exists()


def test_random_transform_is_refused(tmp_path):
    bb = Backbone(network(), "1", lambda picture: torch.rand(3, 16, 16))
    with pytest.raises(ValueError, match="random"):
        build(tmp_path, bb=bb)


LAYERS = ("0", "1", "2", "6")
TINY = 6144  # one batch of layer 0 a shard, two of layer 2, all of layer 6


def deep_network(seed=0):
    """Its second layer works in place, and its layers' rows differ in size."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 2, 2), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3),
        nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 2),
    )  # fmt: skip


def build_layers(path, model, **changes):
    arguments = {"batch_size": 8, "layers": LAYERS, "shard_bytes": TINY} | changes
    return ActivationStore.build_layers(Backbone(model), pictures(), path, **arguments)


def counted(model):
    """The batch sizes of the model's forward passes, as they happen."""
    seen = []
    model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    return seen


def interrupted(model, n):
    """The model, stopped by Ctrl-C as it is given the n-th batch of eight."""
    batches = counted(model)

    def fail(*_):
        if batches.count(8) == n:
            raise KeyboardInterrupt

    model.register_forward_pre_hook(fail)
    return model


def test_layers_from_one_pass_are_the_stores_built_one_by_one(tmp_path):
    model = deep_network()
    batches = counted(model)
    stores = build_layers(tmp_path / "together", model)
    assert list(stores) == list(LAYERS)
    # Cutting takes passes of two pictures at most; the pictures themselves pass once.
    assert [b for b in batches if b > 2] == [8, 8, 8, 8, 8, 8]
    for layer, store in stores.items():
        alone = build(tmp_path / layer, bb=Backbone(deep_network(), layer), shard_bytes=TINY)
        assert torch.equal(store[:], alone[:])
        assert store.names == alone.names
        assert store.key == alone.key


def test_layers_are_resumed_and_only_what_is_missing_is_computed(tmp_path):
    build_layers(tmp_path / "whole", deep_network())
    broken = interrupted(deep_network(), 5)
    with pytest.raises(KeyboardInterrupt):
        build_layers(tmp_path / "a", broken)
    assert not list(tmp_path.glob("a/*/manifest.json"))
    for layer in LAYERS:
        assert len([*tmp_path.glob(f"a/{layer}/activations-*")]) == 4
    next(tmp_path.glob(f"a/{LAYERS[0]}/activations-*")).unlink()
    resumed = deep_network()
    batches = counted(resumed)
    build_layers(tmp_path / "a", resumed)
    assert [b for b in batches if b > 2] == [8, 8, 8]  # of six: three were kept whole
    for layer in LAYERS:
        assert content(tmp_path / "a" / layer) == content(tmp_path / "whole" / layer)
    batches.clear()
    build_layers(tmp_path / "a", resumed)
    assert not batches


def refill(path, x, model=None, **options):
    """Build the store of plain pictures or bring it up to date."""
    bb = Backbone(model or network(), "1")
    arguments = {"shard_bytes": SMALL, "update": True} | options
    stores = build_stores(
        {"1": path}, {"1": bb.fingerprint()}, lambda x, _: [bb.activations(x)], Pictures(x), 8,
        **arguments,
    )  # fmt: skip
    return stores["1"]


def test_an_update_computes_the_shards_whose_pictures_changed(tmp_path):
    old, new = pictures(), torch.cat([pictures(), pictures(10)])
    new[20] += 0.01
    refill(tmp_path / "a", old)
    before = {path.name for path in (tmp_path / "a").glob("activations-*")}
    with pytest.raises(StoreError, match="pictures changed"):
        refill(tmp_path / "a", new, update=False)
    with pytest.raises(StoreError, match="weights and layer changed"):
        refill(tmp_path / "a", new, network(1))
    model = network()
    batches = counted(model)
    store = refill(tmp_path / "a", new, model)
    # Shards of 16 pictures: the second changed, and the last, of two pictures, has twelve now.
    assert [b for b in batches if b > 2] == [8, 8, 8, 4]
    after = {path.name for path in (tmp_path / "a").glob("activations-*")}
    assert len(after & before) == 2
    refill(tmp_path / "b", new)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert torch.equal(store[:], Backbone(network(), "1").activations(new))


def test_an_interrupted_update_leaves_the_old_store_and_is_resumed(tmp_path):
    old, new = pictures(), pictures() + 0.01
    rows = refill(tmp_path, old)[:]
    with pytest.raises(KeyboardInterrupt):
        refill(tmp_path, new, interrupted(network(), 4))
    assert torch.equal(ActivationStore.open(tmp_path)[:], rows)
    model = network()
    batches = counted(model)
    store = refill(tmp_path, new, model)
    assert [b for b in batches if b > 2] == [8, 8, 8, 8]  # of six: the first shard was there
    assert torch.equal(store[:], Backbone(network(), "1").activations(new))
    assert len([*tmp_path.glob("activations-*")]) == 4


def test_a_shard_that_cannot_be_written_stops_the_build(tmp_path, monkeypatch):
    def full(path, data):
        if path.suffix == ".safetensors":
            raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("conceptlens.building.write_atomically", full)
    with pytest.raises(OSError, match="No space left"):
        build(tmp_path)
    assert not (tmp_path / "manifest.json").exists()


def test_no_layers(tmp_path):
    with pytest.raises(ValueError, match="layers is empty"):
        build_layers(tmp_path, deep_network(), layers=())


CROWD = textwrap.dedent(
    """
    import os, sys, time, traceback
    sys.path.insert(0, {tests!r})
    import torch
    from test_store import ActivationStore, Backbone, StoreError, build, network
    torch.set_num_threads(1)  # what a forked process can use
    path, start = {path!r}, time.time() + 0.5

    def builds():
        bb, passes = Backbone(network(), "1"), []
        run = bb.activations
        bb.activations = lambda x: (passes.append(len(x)), run(x))[1]
        build(path, bb=bb)
        os.write(1, b"computed %d\\n" % sum(n for n in passes if n > 1))

    def reads():
        while time.time() < start + 60:
            try:
                return ActivationStore.open(path).verify()
            except StoreError as error:
                assert "unfinished" in str(error) or "no store" in str(error), error
        raise TimeoutError

    for work in [builds] * 8 + [reads] * 2:
        if os.fork() == 0:
            status = 1
            try:
                time.sleep(max(0, start - time.time()))
                work()
                status = 0
            except BaseException:
                traceback.print_exc()
            os._exit(status)
    print("statuses", sum(os.wait()[1] for _ in range(10)))
    """
)


def test_eight_processes_build_one_store_once_while_others_read(tmp_path):
    code = CROWD.format(tests=str(Path(__file__).parent), path=str(tmp_path / "crowd"))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.stderr == ""
    # One computed every picture once, and nobody else any.
    assert sorted(run.stdout.splitlines()) == ["computed 0"] * 7 + ["computed 50", "statuses 0"]
    build(tmp_path / "alone")
    assert content(tmp_path / "crowd") == content(tmp_path / "alone")


def test_threads_build_one_store(tmp_path):
    backbones = [Backbone(network(), "1") for _ in range(4)]  # seeding is not for threads
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(lambda bb: build(tmp_path / "a", bb=bb), backbones))
    build(tmp_path / "b")
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert all(torch.equal(store[:], stores[0][:]) for store in stores)


def test_the_lock_of_a_dead_owner_holds_nobody(tmp_path):
    code = (
        "import os, sys; from filelock import FileLock; "
        "FileLock(sys.argv[1]).acquire(); os.kill(os.getpid(), 9)"
    )
    dead = subprocess.run([sys.executable, "-c", code, tmp_path / ".lock"])
    assert dead.returncode == -signal.SIGKILL
    assert (tmp_path / ".lock").exists()
    assert len(build(tmp_path)) == 50


def test_a_sealed_store_is_opened_without_writing(tmp_path):
    build(tmp_path)
    (tmp_path / ".lock").unlink()
    before = sorted(os.listdir(tmp_path))
    assert len(build(tmp_path)) == 50
    ActivationStore.open(tmp_path).verify()
    assert sorted(os.listdir(tmp_path)) == before
