"""Zero-shot classifiers of open_clip: towers that cut, text embeddings kept, clear errors."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from conceptlens import Backbone
from conceptlens import text as text_module
from conceptlens.datasets.tiny_clip import TinyCLIP, config

open_clip = pytest.importorskip("open_clip")

CLASSES = ["red disc", "blue square", "cyan ring"]
VIT = {"image_size": 64, "patch_size": 8, "layers": 3, "width": 64, "head_width": 16}
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 16}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def untrained(vision=None, seed=0):
    settings = config(64)
    settings["vision_cfg"] = vision or settings["vision_cfg"]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.CLIP(**settings).eval()
        for module in model.modules():  # statistics as of a trained network
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.data.fill_(1.0)
    return TinyCLIP(model, 64)


@pytest.fixture(scope="module")
def tiny():
    return untrained()


def test_the_name_of_a_folder_gives_what_the_model_gives(tiny, tmp_path):
    name = tiny.save(tmp_path / "model")
    bb = Backbone.from_open_clip(name, None, classes=CLASSES, templates=["a {}", "the {} here"])
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        rows = [
            tiny.model.encode_text(tiny.tokenizer([f"a {c}", f"the {c} here"]), normalize=True)
            for c in CLASSES
        ]
        text = torch.nn.functional.normalize(torch.stack([r.mean(0) for r in rows]), dim=1)
        images = tiny.model.encode_image(x, normalize=True)
        expected = tiny.model.logit_scale.exp() * images @ text.T
    torch.testing.assert_close(bb(x), expected, atol=1e-4, rtol=1e-4)
    assert bb.class_names == CLASSES
    pixels = bb.transform(Image.new("RGB", (64, 64), (255, 0, 51)))
    torch.testing.assert_close(pixels[:, 5, 5], torch.tensor([1.0, 0.0, 0.2]))


@pytest.mark.parametrize(
    ("vision", "layers"),
    [
        (VIT, ["visual.transformer.resblocks.1"]),
        (RESNET, ["visual.layer1", "visual.layer4"]),
        (None, ["visual.trunk.layer2"]),
    ],
    ids=["ViT", "ResNet", "timm"],
)
def test_towers_cut_at_any_layer(vision, layers):
    clip = untrained(vision)
    whole = clip.backbone(CLASSES)
    x = torch.rand(2, 3, 64, 64)
    expected = whole.model(x)
    names = [info.name for info in whole.layers()]
    assert {"visual", *layers} <= {*names}
    for layer in ["visual", *layers]:
        torch.testing.assert_close(clip.backbone(CLASSES, layer)(x), expected)
    embeddings = clip.backbone(CLASSES, "visual").activations(x)
    assert embeddings.shape == (2, 1, whole.model.text.shape[1])


def test_local_checkpoint_files_are_read(tiny, tmp_path, monkeypatch):
    (tmp_path / "tiny-planted.json").write_text(json.dumps(config(64)))
    open_clip.add_model_config(tmp_path / "tiny-planted.json")
    save_file(tiny.model.state_dict(), tmp_path / "weights.safetensors")
    torch.save(tiny.model.state_dict(), tmp_path / "weights.pt")
    x = torch.rand(2, 3, 64, 64)
    for file in ("weights.safetensors", "weights.pt"):
        bb = Backbone.from_open_clip("tiny-planted", str(tmp_path / file), classes=CLASSES)
        torch.testing.assert_close(bb.model.visual(x), tiny.model.visual(x))
    (tmp_path / "broken.pt").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"broken\.pt.*holds no weights that fit 'tiny-planted'"):
        Backbone.from_open_clip("tiny-planted", str(tmp_path / "broken.pt"), classes=CLASSES)


def test_texts_are_embedded_once(tiny, monkeypatch):
    first = tiny.encode_text(["a cat", "a dog"])
    torch.testing.assert_close(first.norm(dim=1), torch.ones(2))
    again = TinyCLIP(tiny.model, 64).encode_text
    monkeypatch.setattr(again, "embed", lambda texts: pytest.fail("embedded again"))
    assert torch.equal(again(["a cat", "a dog"]), first)
    other = untrained(seed=1).encode_text
    assert not torch.allclose(other(["a cat", "a dog"]), first)


def test_broken_cache_files_are_written_anew(tiny):
    first = tiny.encode_text(["a cat"])
    (path,) = (text_module.cache_folder() / "text").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:20])
    assert torch.equal(tiny.encode_text(["a cat"]), first)


@pytest.mark.parametrize(
    ("name", "pretrained", "message"),
    [
        ("ViT-B-99", "openai", "no model 'ViT-B-99'; near names: .*ViT-B-16"),
        ("ViT-B-32", "missing.pt", "neither a file nor weights that open_clip knows.*'openai'"),
        ("local-dir:nowhere", None, "no open_clip_config.json"),
    ],
)
def test_what_is_not_there_is_named(name, pretrained, message):
    with pytest.raises(ValueError, match=message):
        Backbone.from_open_clip(name, pretrained, classes=CLASSES)


def test_weights_out_of_reach_say_what_to_do(monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no route to host")

    monkeypatch.setattr(open_clip, "create_model_and_transforms", fail)
    with pytest.raises(ConnectionError, match=r"no route to host.*give its path as pretrained="):
        Backbone.from_open_clip("ViT-B-32", "openai", classes=CLASSES)


@pytest.mark.parametrize(
    ("classes", "templates", "message"),
    [
        (["a", "a"], ["{}"], "list of different names"),
        ([], ["{}"], "list of different names"),
        ("red", ["{}"], "list of different names"),
        (["a"], ["a photo"], "where the class goes"),
        (["a"], [], "where the class goes"),
    ],
)
def test_bad_prompts(tiny, classes, templates, message):
    with pytest.raises(ValueError, match=message):
        tiny.backbone(classes, templates=templates)
