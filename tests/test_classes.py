"""`explain_classes`: the same as one class at a time, done once, and an index that is safe."""

import re
import shutil
import subprocess
import sys
from copy import deepcopy
from dataclasses import asdict, replace
from functools import partial

import pytest
import torch
from PIL import Image
from torch.utils.data import Subset

from conceptlens import CRAFT, NMF, Backbone, classes, distributed
from conceptlens.class_index import Card, ClassIndex, class_folder, read_card
from conceptlens.classes import explain_classes
from conceptlens.cli import main
from conceptlens.datasets import PlantedConcepts, small_cnn
from conceptlens.report.index import shared_pairs
from conceptlens.sealing import seal, unseal

HOSTILE = "<script>alert('x')</script>/../.."
NETWORK = """
from torchvision import transforms as t
import conceptlens as cl

def net():
    data = cl.datasets.PlantedConcepts(3000)
    return cl.Backbone(cl.datasets.small_cnn(data), "features", t.ToTensor(), data.class_names)
"""


@pytest.fixture(scope="module")
def planted():
    return PlantedConcepts(100, seed=1), small_cnn(PlantedConcepts(3000))


@pytest.fixture
def data(planted):
    return planted[0]


def method(planted):
    data, model = planted
    bb = Backbone(model, "features", class_names=[*data.class_names])
    return CRAFT(bb, 3, 24, crops="positions", n_designs=4, batch_size=2)


@pytest.fixture
def craft(planted):
    return method(planted)


@pytest.fixture
def passes(monkeypatch):
    """How many pictures and crops went through the trunk."""
    seen = []
    activations = Backbone.activations

    def counted(self, x):
        seen.append(len(x))
        return activations(self, x)

    monkeypatch.setattr(Backbone, "activations", counted)
    return seen


@pytest.fixture
def explained(monkeypatch):
    """The classes that are explained, one after the other."""
    seen = []
    explain = CRAFT.explain_pictures

    def noted(self, pictures, rows):
        seen.append(self.backbone.class_names[pictures.target])
        return explain(self, pictures, rows)

    monkeypatch.setattr(CRAFT, "explain_pictures", noted)
    return seen


def of_class(data, name, n):
    """The first n pictures of a class."""
    return data.images[data.labels == data.class_names.index(name)][:n]


def two_classes(data):
    return [*of_class(data, "circus", 4), *of_class(data, "harbour", 4)]


@pytest.fixture
def pictures(data):
    """Four of a class, and then as many of another."""
    return two_classes(data)


@pytest.fixture(scope="module")
def first_run(planted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("first")
    explain_classes(method(planted), two_classes(planted[0]), folder)
    return folder


@pytest.fixture
def done(first_run, tmp_path):
    """What a run on `pictures` left in the test's folder."""
    shutil.copytree(first_run, tmp_path, dirs_exist_ok=True)
    return ClassIndex(tmp_path)


@pytest.mark.parametrize(("crops", "predicted_only"), [("resized", True), ("positions", False)])
def test_each_class_is_as_if_explained_alone(craft, data, tmp_path, crops, predicted_only):
    craft.crops, craft.batch_size = crops, 16
    images = data.images[:16] if predicted_only else Subset(data, range(8))
    index = explain_classes(craft, images, tmp_path, predicted_only=predicted_only)
    assert len(index) > 1
    for name, found in index.items():
        expected = craft.explain(images, name, predicted_only=predicted_only)
        assert found.picture_names == expected.picture_names
        assert found.provenance == expected.provenance
        assert torch.equal(found.pictures, expected.pictures)
        for part in ("components", "concept_maps", "scores", "logit_parts"):
            torch.testing.assert_close(
                getattr(found, part), getattr(expected, part), rtol=1e-4, atol=1e-5
            )
        torch.testing.assert_close(
            found.importance.values, expected.importance.values, rtol=1e-4, atol=1e-5
        )
        assert found.metrics == pytest.approx(expected.metrics, rel=1e-4, abs=1e-5)


def test_several_processes_give_what_one_does(craft, pictures, tmp_path):
    alone = explain_classes(craft, pictures, tmp_path / "alone")
    shared = explain_classes(craft, pictures, tmp_path / "shared", jobs=2)
    for name, expected in alone.items():
        torch.testing.assert_close(shared[name].components, expected.components)
        assert shared[name].metrics == pytest.approx(expected.metrics, rel=1e-4)


def test_workers_that_are_used_again_follow_into_another_folder(
    craft, pictures, tmp_path, monkeypatch
):
    for name in ("here", "there"):
        (tmp_path / name / "photos").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / name)
        for i, picture in enumerate(pictures):
            pixels = (picture * 255).byte().movedim(0, 2).numpy()
            Image.fromarray(pixels).save(f"photos/{i}.png")
        assert len(explain_classes(craft, "photos", "out", jobs=2)) == 2


def test_a_second_run_does_nothing(craft, pictures, tmp_path, passes, explained):
    first = explain_classes(craft, pictures, tmp_path)
    assert passes
    assert explained
    written = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if "index" not in p.name}
    passes.clear()
    explained.clear()
    first.page.unlink()
    again = explain_classes(craft, pictures, tmp_path)
    assert (passes, explained) == ([], [])
    assert again.cards == first.cards
    assert again.page.exists()
    here = {p: p.stat().st_mtime_ns for p in written if p.is_file() and p.name != "classes.json"}
    assert here == {p: written[p] for p in here}


def test_a_changed_picture_costs_its_shard_and_its_class(
    craft, data, pictures, tmp_path, passes, explained, monkeypatch
):
    small = partial(classes.build_stores, shard_bytes=1)  # a batch a shard
    monkeypatch.setattr(classes, "build_stores", small)
    explain_classes(craft, pictures, tmp_path)
    # A picture that tells the shapes, four shards, and one a class that tells its pictures' size.
    assert passes == [1, 2, 2, 2, 2, 1, 1]
    passes.clear()
    explained.clear()
    pictures[-1] = of_class(data, "harbour", 5)[-1]
    explain_classes(craft, pictures, tmp_path)
    assert explained == ["harbour"]
    assert passes == [1, 2, 1]


@pytest.mark.parametrize("change", [{"n_concepts": 4}, {"seed": 1}, {"patch_size": 32}])
def test_other_settings_explain_again(craft, pictures, tmp_path, done, explained, change):
    for name, value in change.items():
        setattr(craft, name, value)
    explain_classes(craft, pictures, tmp_path)
    assert sorted(explained) == ["circus", "harbour"]


def test_another_network_explains_again(craft, data, pictures, tmp_path, done, explained):
    before = done["circus"]
    craft.backbone = Backbone(
        deepcopy(craft.backbone.model), "features", class_names=data.class_names
    )
    with torch.no_grad():
        craft.backbone.model.features[0].weight.mul_(1.01)
    after = explain_classes(craft, pictures, tmp_path)["circus"]
    assert sorted(explained) == ["circus", "harbour"]
    assert before.provenance["fingerprint"] != after.provenance["fingerprint"]


@pytest.mark.parametrize(
    ("name", "damage"),
    [("card.json", "flip"), ("explanation.json", "flip"), ("explanation.json", "remove"),
     ("report.html", "flip"), ("pictures/00003.png", "remove")],
)  # fmt: skip
def test_damaged_folders_are_done_again(craft, pictures, tmp_path, done, explained, name, damage):
    file = tmp_path / done.cards["circus"].folder / name
    if damage == "remove":
        file.unlink()
    else:
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    with pytest.raises(ValueError, match=file.name):
        ClassIndex(tmp_path).verify()
    again = explain_classes(craft, pictures, tmp_path)
    assert explained == ["circus"]
    again.verify()


def test_an_interrupted_run_goes_on(craft, pictures, tmp_path, explained, monkeypatch):
    save = Card.write

    def interrupted(card, *arguments):
        if card.name == "harbour":
            raise KeyboardInterrupt
        save(card, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Card, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            explain_classes(craft, pictures, tmp_path)
    assert explained == ["circus", "harbour"]
    explained.clear()
    assert list(explain_classes(craft, pictures, tmp_path)) == ["circus", "harbour"]
    assert explained == ["harbour"]


def test_a_class_that_fails_is_told_and_stops_no_other(craft, pictures, tmp_path, explained):
    craft.crops = "resized"
    boxes = craft.explain(pictures[:1], predicted_only=False).provenance["crops"]
    craft.n_concepts = boxes + 1  # more than the crops of one picture
    explained.clear()
    few = pictures[:5]  # one of the harbour
    with pytest.warns(UserWarning, match="'harbour' could not be explained"):
        index = explain_classes(craft, few, tmp_path)
    assert list(index) == ["circus"]
    assert str(boxes) in index.failed["harbour"]
    assert index.failed["harbour"] in index.page.read_text().replace("&#39;", "'")
    with pytest.raises(KeyError, match="no explanation of class 'harbour'"):
        index["harbour"]
    with pytest.warns(UserWarning, match="harbour"):  # it may go well another time
        explain_classes(craft, few, tmp_path)
    with (
        pytest.raises(ValueError, match="none of 1 classes could be explained; 'harbour'"),
        pytest.warns(UserWarning, match="harbour"),
    ):
        explain_classes(craft, few, tmp_path, "harbour")


def test_classes_without_pictures_are_listed(craft, pictures, tmp_path, done):
    assert done.without_pictures == ["garden"]
    assert "garden" in done.page.read_text()
    assert list(explain_classes(craft, pictures, tmp_path, ["harbour", 1])) == ["harbour"]
    with pytest.raises(ValueError, match="none of the 8 pictures is given to garden"):
        explain_classes(craft, pictures, tmp_path, "garden")


def test_bad_input(craft, pictures, tmp_path):
    for targets, words in [("gardn", "'garden'"), (3, "there are 3 classes"), ([], "empty")]:
        with pytest.raises(ValueError, match=words):
            explain_classes(craft, pictures, tmp_path / "none", targets)
    with pytest.raises(ValueError, match="jobs must be at least 1, got 0"):
        explain_classes(craft, pictures, tmp_path / "none", jobs=0)
    for targets in (1.5, b"a", {"circus": 0}, [None]):
        with pytest.raises(TypeError, match=re.escape(repr(targets).strip("[]"))):
            explain_classes(craft, pictures, tmp_path / "none", targets)
    with pytest.raises(TypeError, match="craft must be a CRAFT, got NoneType"):
        explain_classes(None, pictures, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with pytest.raises(ValueError, match=r"no classes\.json"):
        ClassIndex(tmp_path)


@pytest.mark.parametrize("names", [["a"], list("abcd")])
def test_names_of_other_classes_are_refused(craft, pictures, tmp_path, names):
    craft.backbone.class_names = names
    with pytest.raises(ValueError, match=f"class_names must have 3 names, got {len(names)}"):
        explain_classes(craft, pictures, tmp_path)
    assert not (tmp_path / "classes.json").exists()


def test_processes_take_classes_in_turn(craft, pictures, tmp_path, done, explained, monkeypatch):
    for card in done.cards.values():
        shutil.rmtree(tmp_path / card.folder)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(ValueError, match="card"):  # that of the other process
        explain_classes(craft, pictures, tmp_path)
    assert explained == ["harbour"]


def test_hostile_names_stay_in_the_folder_and_off_the_page(craft, data, pictures, tmp_path):
    craft.backbone.class_names[0] = HOSTILE
    craft.extractor = NMF(3)
    index = explain_classes(craft, pictures, tmp_path / "deep" / "out")
    assert HOSTILE in index
    assert {p.name for p in (tmp_path / "deep").iterdir()} == {"out"}
    for html in (index.page.read_text(), index._repr_html_()):
        assert HOSTILE not in html
        assert "&lt;script&gt;" in html
    text = index.page.read_text()
    assert text.count("<script") == 2
    links = set(re.findall(r'(?:src|href)="(?!data:|#)([^"]*)"', text))
    assert links == {f"{card.folder}/report.html" for card in index.cards.values()}
    assert all((index.folder / link).is_file() for link in links)


def test_classes_of_one_name_are_told_apart(craft, pictures, tmp_path):
    craft.backbone.class_names[2] = "circus"
    index = explain_classes(craft, pictures, tmp_path)
    assert list(index) == ["circus (class 0)", "circus (class 2)"]
    assert index["circus (class 2)"].target == "circus"


def test_folders_of_classes_are_safe_and_different():
    names = ["tabby", "Tabby", "..", "a/b", "a\\b", "con", "ü", "x" * 300, ""]
    folders = [class_folder(i, name) for i, name in enumerate(names)]
    assert len({folder.casefold() for folder in folders}) == len(names)
    assert all(re.fullmatch(r"\d{4}[A-Za-z0-9-]{0,41}", folder) for folder in folders)


@pytest.mark.parametrize("folder", ["../x", "/etc", "0001-../x", ""])
def test_an_index_that_points_elsewhere_is_refused(tmp_path, folder):
    with pytest.raises(ValueError, match="folder of a class"):
        ClassIndex.write(tmp_path, [folder], [], {})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"about": {}}, "'store'"),
        ({"about": {"store": "../../x"}}, "'../../x' is no folder of stores"),
        ({"without pictures": "abc"}, "'abc'"),
        ({"folders": 3}, "not iterable"),
    ],
)
def test_an_index_that_was_made_up_is_refused(done, tmp_path, change, words):
    path = tmp_path / "classes.json"
    path.write_bytes(seal(unseal(path) | change))
    with pytest.raises(ValueError, match=words):
        ClassIndex(tmp_path)


def test_components_that_cannot_be_read_are_named(done, tmp_path):
    name = next(iter(done))
    path = tmp_path / done.cards[name].folder / "tensors.safetensors"
    card = done.cards[name]
    done.cards[name] = replace(card, concepts=[replace(card.concepts[0], index=99)])
    with pytest.raises(ValueError, match=r"tensors\.safetensors cannot be read"):
        done.components(name)
    path.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"tensors\.safetensors cannot be read"):
        done.components(name)


def test_an_index_without_its_stores_is_not_whole(done, tmp_path):
    shutil.rmtree(tmp_path / "store")
    with pytest.raises(ValueError, match="logits holds no store"):
        done.verify()


@pytest.mark.parametrize(
    "change",
    [{"card": 3}, {"files": {"../../secret": ""}}, {"files": {"/dev/zero": ""}}, {"format": 2},
     {"thumbnail": "https://elsewhere"}, {"score": "high"}, {"concepts": [{}]}],
)  # fmt: skip
def test_a_card_that_was_made_up_is_refused(tmp_path, change):
    concept = {"index": 0, "name": "fur", "importance": 0.5, "thumbnail": None}
    fields = asdict(Card("cat", "0000-cat", 3, 0.5, None, 1.0)) | {"concepts": [concept]}
    record = {"format": 1, "digest": "", "files": {}, "card": fields}
    folder = tmp_path / "0000-cat"
    folder.mkdir()
    (folder / "card.json").write_bytes(seal(record))
    assert read_card(folder)[0].concepts[0].name == "fur"
    for part in (concept, fields, record):  # each entry is changed where it stands
        part |= {name: value for name, value in change.items() if name in part}
    (folder / "card.json").write_bytes(seal(record))
    with pytest.raises(ValueError, match="no card of this version"):
        read_card(folder)


def test_index_tells_what_it_holds(done):
    for name, card in done.cards.items():
        metrics = done[name].metrics
        assert card.faithfulness == metrics["C-µFidelity"]
        assert card.agreement == metrics["prediction agreement"]
        shown = f"rebuilt {100 * card.agreement:.0f}&nbsp;%"
        assert f"faithfulness {card.faithfulness:.2f}, {shown}" in done.page.read_text()
    assert "ClassIndex of 2 classes" in repr(done)
    assert "circus: 4 pictures" in repr(done)
    assert "1 without pictures" in repr(done)
    html = done._repr_html_()
    assert html.count("<img") == sum(len(card.concepts) for card in done.cards.values())
    assert len(done) == 2
    assert "garden" not in done


def test_thumbnails_and_page_are_small(done):
    uris = [c.thumbnail for card in done.cards.values() for c in card.concepts]
    assert max(map(len, uris)) * 3 / 4 < 3000
    assert done.page.stat().st_size < 16_000 + len(done) * 16_000


def test_shared_concepts_are_mutual_and_near():
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q
    first, second = directions[:3], 5 * directions[[4, 2, 5]]
    third = torch.stack([directions[0] + 0.5 * directions[6], directions[0] + directions[7]])
    assert shared_pairs([first, second, third]) == [
        (0, 2, 1, 1, 1.0),
        (0, 0, 2, 0, pytest.approx(1 / 1.25**0.5, abs=0.005)),
    ]
    assert shared_pairs([first]) == shared_pairs([]) == []


@pytest.fixture
def explain(tmp_path, pictures):
    """Arguments of the command, without the classes and where to write."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, picture in enumerate(pictures):
        pixels = (picture.movedim(0, -1) * 255).byte().numpy()
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    (tmp_path / "net.py").write_text(NETWORK)
    return ["explain", f"{tmp_path}/net.py:net", str(folder), "--concepts", "3",
            "--patch-size", "24", "--crops", "positions"]  # fmt: skip


def test_torchruns_two_processes_explain_as_one(explain, tmp_path):
    assert main([*explain, "--all-classes", "--out", str(tmp_path / "alone")]) == 0
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, "-m", "conceptlens", *explain, "--all-classes", "--out"]
    subprocess.run([sys.executable, *command, tmp_path / "shared"], check=True, capture_output=True)
    alone, shared = ClassIndex(tmp_path / "alone"), ClassIndex(tmp_path / "shared")
    assert list(shared) == list(alone) == ["circus", "harbour"]
    for name, expected in alone.items():
        torch.testing.assert_close(shared[name].components, expected.components)


def test_command_explains_all_classes(explain, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([*explain, "--out", str(out), "--all-classes"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(out / "index.html")
    assert list(ClassIndex(out)) == ["circus", "harbour"]
    assert main(["verify", str(out)]) == 0
    two = ["--target", "circus", "--target", "2"]
    assert main([*explain, "--out", str(out), *two, "--jobs", "1"]) == 0
    capsys.readouterr()
    for wrong, words in [
        (["--target", "circus", "--target", "nowhere"], "unknown class 'nowhere'"),
        (["--all-classes", "--jobs", "0"], "jobs must be at least 1, got 0"),
    ]:
        assert main([*explain, "--out", str(tmp_path / "none"), *wrong]) == 2
        assert words in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main([*explain, "--out", str(out), "--all-classes", "--target", "circus"])
    assert stopped.value.code == 2
