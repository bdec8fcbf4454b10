"""The command line: what it writes, and one clear line with exit status 2 for bad input."""

import re

import pytest
import torch
from PIL import Image

from conceptlens import NMF, ActivationStore, Explanation, SparseAutoencoder
from conceptlens.cli import main
from conceptlens.extraction import load

NETWORK = """
import torch
from torch import nn
from conceptlens import Backbone

def net(scale=1.0):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 8, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3)
    )
    model[0].weight.data[0] *= scale
    return model

def with_names():
    from torchvision import transforms as t
    transform = t.Compose([t.Resize((64, 64)), t.ToTensor()])
    return Backbone(net(), None, transform, ["cat", "dog", "bird"])

def nan():
    return net(float("nan"))

def number():
    return 3
"""


class Branching(torch.nn.Module):
    def forward(self, x):
        if x.mean() > 0:
            x = x.relu()
        return x.mean((2, 3))


@pytest.fixture
def files(tmp_path):
    (tmp_path / "net.py").write_text(NETWORK)
    folder = tmp_path / "photos" / "nested"
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for i in range(12):
        pixels = torch.randint(0, 256, (16, 16, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).resize((80, 64)).save(folder / f"{i:02d}.png")
    torch.jit.script(Branching()).save(tmp_path / "scripted.pt")
    (tmp_path / "latin.txt").write_bytes("chien\nbête\n".encode("latin-1"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jpg").write_bytes(b"not a picture")
    return tmp_path


def run(files, command, capsys):
    arguments = command.format(d=files).split()
    status = main(arguments)
    out, err = capsys.readouterr()
    return status, out, err


def test_explain_writes_a_report_and_an_explanation(files, capsys):
    command = (
        "explain {d}/net.py:with_names {d}/photos --layer 1 --concepts 4 --patch-size 32 "
        "--out {d}/out"
    )
    status, out, err = run(files, command, capsys)
    assert status == 0, err
    assert out.splitlines()[-1] == str(files / "out" / "report.html")
    assert "<html" in (files / "out" / "report.html").read_text()
    explanation = Explanation.load(files / "out")
    assert explanation.target in ("cat", "dog", "bird")
    assert len(explanation.concepts) == 4


def test_cache_writes_a_store_and_a_second_run_finds_it(files, capsys):
    command = "cache {d}/net.py:with_names {d}/photos --layer 1 --out {d}/store --dtype float16"
    assert run(files, command, capsys)[0] == 0
    manifest = (files / "store" / "manifest.json").stat().st_mtime_ns
    assert run(files, command, capsys)[0] == 0
    assert (files / "store" / "manifest.json").stat().st_mtime_ns == manifest
    assert ActivationStore.open(files / "store").shape == (12, 64, 12)


def test_autocast_computes_in_that_type_and_is_another_store(files, capsys):
    command = "cache {d}/net.py:with_names {d}/photos --layer 1 --out {d}/"
    assert run(files, command + "exact", capsys)[0] == 0
    assert run(files, command + "rounded --autocast bfloat16", capsys)[0] == 0
    exact, rounded = (ActivationStore.open(files / name)[:] for name in ("exact", "rounded"))
    assert torch.equal(rounded, rounded.bfloat16().float())
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(rounded, exact, rtol=0.03, atol=0.03)
    status, _, err = run(files, command + "exact --autocast bfloat16", capsys)
    assert (status, "activations of other content" in err) == (2, True), err


@pytest.mark.parametrize(
    ("words", "extractor"),
    [
        ("", NMF(10)),
        ("--components 3 --set tol=1e-3 init=random --seed 4 --checkpoint", None),
        ("--extractor sae --components 6 --set n_epochs=2 --checkpoint", None),
    ],
)
def test_fit_writes_the_dictionary_that_the_class_learns(files, capsys, words, extractor):
    cache = "cache {d}/net.py:with_names {d}/photos --layer 1 --out {d}/store"
    assert run(files, cache, capsys)[0] == 0
    status, out, err = run(files, f"fit {{d}}/store --out {{d}}/fitted {words}", capsys)
    assert status == 0, err
    assert out.splitlines()[-1] == str(files / "fitted")
    if "sae" in words:
        extractor = SparseAutoencoder(6, sparsity=3, n_epochs=2)
    elif words:
        extractor = NMF(3, tol=1e-3, init="random", random_state=4)
    extractor.fit(ActivationStore.open(files / "store"))
    fitted = load(files / "fitted")
    assert repr(fitted) == repr(extractor)
    assert torch.equal(fitted.components_, extractor.components_)
    names = {file.name for file in (files / "fitted").iterdir()}
    assert names == {"model.safetensors", "config.json", "README.md"}


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("fit {d}/photos --out {d}/o", "photos"),
        ("fit {d}/store --components 13 --out {d}/o", "n_components=13"),
        ("fit {d}/store --out {d}/net.py", "net.py is no folder: name another"),
        ("fit {d}/store --out {d}/net.py/o --checkpoint", "net.py is no folder"),
        ("fit {d}/store --out {d}/a\udcff", "--out must be UTF-8"),
        ("fit {d}/store --set tol --out {d}/o", "NAME=VALUE, got 'tol'"),
        ("fit {d}/store --set tool=1 --out {d}/o", "'tool'"),
        ("fit {d}/store --set random_state__a=1 --out {d}/o", "no option 'random_state__a'"),
        ("fit {d}/store --extractor pca --set estimator=2 --out {d}/o", "scikit-learn's, got 2"),
        ("fit {d}/store --extractor pca --set k=2 --out {d}/o", "are: ['estimator']"),
        ("fit {d}/store --extractor pca --checkpoint --out {d}/o", "--checkpoint: pca"),
    ],
)
def test_fits_that_cannot_be_are_refused(files, capsys, command, words):
    run(files, "cache {d}/net.py:with_names {d}/photos --layer 1 --out {d}/store", capsys)
    status, _, err = run(files, command, capsys)
    assert status == 2
    assert words in err
    assert err.count("\n") == 1
    assert not (files / "o").exists()


def test_verify_tells_whole_from_damaged(files, capsys):
    make = "{d}/net.py:with_names {d}/photos --layer 1 --out {d}"
    run(files, f"cache {make}/store", capsys)
    run(files, f"explain {make}/out --concepts 2 --patch-size 32", capsys)
    status, out, err = run(files, "verify {d}/store {d}/out", capsys)
    assert (status, err) == (0, "")
    assert out == f"{files}/store: whole\n{files}/out: whole\n"
    for damaged in (max((files / "store").glob("*.safetensors")), files / "out/pictures/00000.png"):
        data = bytearray(damaged.read_bytes())
        data[-20] ^= 1
        damaged.write_bytes(data)
        status, _, err = run(files, f"verify {damaged.parents[damaged.suffix == '.png']}", capsys)
        assert status == 2
        assert err.startswith(f"conceptlens: error: {damaged} is damaged")
    assert run(files, "verify {d}/photos", capsys)[0] == 2


def test_layers_lists_what_can_be_cut(files, capsys):
    status, out, _ = run(files, "layers {d}/net.py:net", capsys)
    assert status == 0
    assert re.search(r"^1 +ReLU +12×28×28 +≥ 0", out, re.MULTILINE)


@pytest.mark.parametrize(("file", "layer"), [("net.pt2", "1"), ("net.pt", "relu_0")])
def test_model_files(files, capsys, file, layer):
    scope = {}
    exec(NETWORK, scope)
    model, x = scope["net"](), torch.randn(2, 3, 224, 224)
    if file == "net.pt":
        torch.jit.trace(model, x).save(files / file)
    else:
        batch = torch.export.Dim("batch", min=1, max=64)
        program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
        torch.export.save(program, files / file)
    command = f"explain {{d}}/{file} {{d}}/photos --layer {layer} --concepts 2 --out {{d}}/out"
    status, _, err = run(files, command, capsys)
    assert status == 0, err
    assert Explanation.load(files / "out").provenance["layer"] == layer


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("explain {d}/net.py:with_names {d}/empty --out {d}/o", "empty"),
        ("explain {d}/net.py:with_names {d}/broken --out {d}/o", "a.jpg"),
        ("explain {d}/net.py:with_names {d}/nowhere --out {d}/o", "nowhere"),
        ("explain {d}/net.py:with_names {d}/photos --layer 11 --out {d}/o", "no layer '11'"),
        ("explain {d}/net.py:with_names {d}/photos --target bidr --out {d}/o", "'bird'"),
        (
            "explain {d}/net.py:with_names {d}/photos --layer 0 --out {d}/o",
            "layer '0' hold negative",
        ),
        ("explain {d}/net.py:nan {d}/photos --out {d}/o", "NaN"),
        ("explain {d}/net.py:with_names {d}/photos --layer 1 --concepts 13 --out {d}/o", "13"),
        ("explain {d}/net.py:number {d}/photos --out {d}/o", "gave a int"),
        ("explain {d}/net.py:other {d}/photos --out {d}/o", "no function 'other'"),
        ("layers {d}/scripted.pt", "torch.export.save"),
        ("layers {d}/net.py", "not a TorchScript file"),
        ("explain {d}/other.py:net {d}/photos --out {d}/o", "there is no file"),
        ("explain torchvision:resnet51 {d}/photos --out {d}/o", "'resnet50'"),
        ("layers open_clip:ViT-B-32/openai", "--classes"),
        ("layers {d}/net.py:with_names --device cdua", "device 'cdua' cannot be used here"),
        ("layers {d}/net.py:with_names --device cuda:99", "device 'cuda:99' cannot be used here"),
        ("explain {d}/nowhere {d}/photos --out {d}/net.py", "net.py is no folder"),
        ("cache {d}/net.py:net {d}/photos --out {d}/a\0b", "NUL character"),
        ("explain {d}/net.py:net {d}/photos --classes {d}/latin.txt --out {d}/o", "latin.txt must"),
        ("explain {d}/net.py:with_names {d}/photos --target ² --out {d}/o", "unknown class '²'"),
        ("cache {d}/net.py:net {d}/photos --shard-mib nan --out {d}/o", "--shard-mib must be"),
        ("cache {d}/net.py:net {d}/photos --shard-mib 1e308 --out {d}/o", "to 1.07374e+09"),
    ],
)
def test_bad_input_is_one_clear_line_and_status_2(files, capsys, command, words):
    status, _, err = run(files, command, capsys)
    errors = [line for line in err.splitlines() if line.startswith("conceptlens: error:")]
    assert status == 2
    assert len(errors) == 1
    assert errors[0] == err.splitlines()[-1]
    assert words in errors[0]
    assert not (files / "o").exists()


def test_a_terminal_that_lacks_signs_is_told_all_the_same(files, monkeypatch):
    command = "explain {d}/net.py:net {d}/photos --layer 1 --concepts 2 --patch-size 32 --out {d}/o"
    words = command.format(d=files).split()
    with (files / "told").open("w", encoding="ascii") as terminal:
        monkeypatch.setattr("sys.stdout", terminal)
        assert main([*words, "--classes", "bête,\udcff,<b>"]) == 0
    assert "\\xb1" in (files / "told").read_text()  # of ±
    assert Explanation.load(files / "o").target in ("bête", "\udcff", "<b>")


def test_a_read_only_folder_is_told_before_anything_is_computed(files, capsys, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: path != files)
    status, _, err = run(files, "explain {d}/nowhere {d}/photos --out {d}/deep/o", capsys)
    assert status == 2
    assert err.endswith(f"cannot be written, {files} is read-only: name another\n")
    assert not (files / "deep").exists()


def test_one_broken_picture_is_skipped_and_named(files, capsys):
    (files / "photos" / "bad.jpg").write_bytes(b"not a picture")
    command = "explain {d}/net.py:with_names {d}/photos --layer 1 --concepts 3 --out {d}/out"
    status, _, err = run(files, command, capsys)
    assert status == 0, err
    assert "bad.jpg" in err


@pytest.mark.parametrize("command", ["", "demo", "explain", "cache", "fit", "verify", "layers"])
def test_help_has_an_example(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*command.split(), "--help"])
    assert stopped.value.code == 0
    assert not command or f"conceptlens {command} " in capsys.readouterr().out.split("example")[1]
