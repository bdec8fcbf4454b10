"""README and docs: all code runs, pages build without a warning, and links lead somewhere."""

import doctest
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch
from browser import needs_browser, serious_violations
from PIL import Image
from torchvision import transforms
from torchvision.models import ResNet18_Weights
from torchvision.models.resnet import BasicBlock, ResNet

import conceptlens.classifiers
from conceptlens.classifiers import Classifier
from conceptlens.cli import main

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / "docs/howto").glob("*"),
]
# A block that is not run says why on the line before it.
BLOCK = re.compile(r"(<!-- not run: .+? -->\n)?^```(python|bash)\n(.*?)^```$", re.M | re.S)
# Lines of the shell that only CI or a fresh machine can run: the environment's own.
SETUP = ".venv/bin/"


def blocks(page):
    found = BLOCK.findall(page.read_text())
    return [(language, code) for reason, language, code in found if not reason]


NETWORK = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    features = [nn.Conv2d(3, 64, 9, 8), nn.ReLU(), *(nn.Identity() for _ in range(5)), nn.ReLU()]
    model = nn.Sequential()
    model.features = nn.Sequential(*features)
    model.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4))
    model.classifier[2].bias.data[3] += 9
    return model
"""


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """What the pages take for granted: a user's own network and photographs, in a folder.

    torchvision's networks are a small untrained one here, as weights cannot be fetched; it gives
    every picture to the class that the pages explain.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    (tmp_path / "net.py").write_text(NETWORK)
    (tmp_path / "photos").mkdir()
    generator = torch.Generator().manual_seed(0)
    for i in range(6):
        pixels = torch.randint(0, 256, (24, 24, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).resize((240, 240)).save(f"photos/{i}.png")
    namespace = {}
    exec(NETWORK, namespace)
    transform = transforms.Compose([transforms.Resize(96), transforms.ToTensor()])
    names = ResNet18_Weights.DEFAULT.meta["categories"]

    def untrained(name, weights):
        torch.manual_seed(0)
        model = ResNet(BasicBlock, [1, 1, 1, 1]).eval()
        model.fc.bias.data[names.index("tabby")] += 20
        return Classifier(model, transform, names)

    monkeypatch.setattr(conceptlens.classifiers, "torchvision_classifier", untrained)
    mine = {"model": namespace["make"](), "transform": transform, "names": list("abcd")}
    pictures = torch.rand(40, 3, 96, 96, generator=generator)
    labelled = {"y": torch.arange(40) % 4, "c": torch.rand(40, 2, generator=generator) < 0.5}
    mine |= labelled | {"concept_names": ["striped", "dotted"], "pictures": pictures}
    return {**mine, "x": pictures[:2]}


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: p.stem)
def test_code_of_a_page_runs(page, workplace):
    namespace = dict(workplace)
    for language, code in blocks(page):
        if language == "python":
            exec(compile(code, page.name, "exec"), namespace)
            continue
        for line in code.splitlines():
            command = shlex.split(line, comments=True)
            if command[:1] == ["conceptlens"]:
                assert main(command[1:]) == 0, line
            else:
                assert SETUP in line, f"{page.name}: nobody runs {line!r}"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    build = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    result = subprocess.run(
        [*build, "-D", "nb_execution_mode=off", "docs", str(folder)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    return result, folder


def test_pages_build_without_a_warning(built):
    result, folder = built
    assert result.returncode == 0, result.stderr
    assert (folder / "index.html").exists()


class Links(HTMLParser):
    """The targets of a page's links, and what can be linked to in it."""

    def __init__(self, page):
        super().__init__()
        self.targets, self.anchors = set(), {""}
        self.feed(page.read_text())

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found.get("id"), found.get("name")}
        self.targets |= {found.get("href"), found.get("src")} - {None}


def dead_links(folder):
    """Those between pages, and to their parts, that lead nowhere; those to elsewhere."""
    pages = {page: Links(page) for page in folder.rglob("*.html")}
    dead, external = [], set()
    for page, links in pages.items():
        for target in links.targets:
            parts = urlsplit(target)
            if parts.scheme == "data":
                continue
            if parts.scheme or parts.netloc:
                external.add(target)
                continue
            goal = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            anchors = pages[goal].anchors if goal in pages else {""}
            if not goal.exists() or unquote(parts.fragment) not in anchors:
                dead.append(f"{page.relative_to(folder)}: {target}")
    return sorted(dead), sorted(external)


def test_links_of_the_pages_lead_somewhere(built):
    dead, external = dead_links(built[1].resolve())
    assert dead == []
    assert [link for link in external if not link.startswith("https://")] == []  # not followed


def test_dead_links_are_found(tmp_path):
    links = '<a href="#here"></a><a href="#gone"></a><a href="b.html#x"></a><a href="c.html"></a>'
    (tmp_path / "a.html").write_text(f'<p id="here">{links}<a href="https://example.org"></a></p>')
    (tmp_path / "b.html").write_text('<p id="y"></p>')
    dead, external = dead_links(tmp_path.resolve())
    assert dead == ["a.html: #gone", "a.html: b.html#x", "a.html: c.html"]
    assert external == ["https://example.org"]


def test_links_of_the_readme_lead_somewhere():
    targets = re.findall(r"\]\(([^)\s]+)\)", (ROOT / "README.md").read_text())
    files = [target for target in targets if not urlsplit(target).scheme]
    assert files
    assert [target for target in files if not (ROOT / urlsplit(target).path).exists()] == []


LIBRARY = ROOT / "conceptlens"
WITH_EXAMPLES = [file for file in sorted(LIBRARY.rglob("*.py")) if ">>>" in file.read_text()]


@pytest.mark.parametrize("file", WITH_EXAMPLES, ids=lambda file: file.stem)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_examples_in_docstrings_run(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    module = import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
    assert doctest.testmod(module).failed == 0


@needs_browser
def test_axe_finds_nothing_serious_on_the_front_page(built, tmp_path):
    assert serious_violations(built[1] / "index.html", tmp_path) == []
