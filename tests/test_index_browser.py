"""The index over classes in a real browser: search, order, comparison, console and axe-core."""

import pytest
from browser import in_browser, needs_browser, serious_violations

from conceptlens import CRAFT, Backbone
from conceptlens.classes import explain_classes
from conceptlens.datasets import PlantedConcepts, small_cnn

pytestmark = needs_browser

CARDS = """
const set = (id, value) => {
  document.getElementById(id).value = value;
  document.getElementById(id).dispatchEvent(new Event("input"));
};
const names = (where) => [...document.querySelectorAll(`#${where} > article:not([hidden]) h3`)]
  .map((heading) => heading.textContent);
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    data = PlantedConcepts(100, seed=1)
    bb = Backbone(small_cnn(PlantedConcepts(3000)), "features", class_names=data.class_names)
    craft = CRAFT(bb, 3, 24, crops="positions", n_designs=4)
    images = [*data.images[:30], *data.images[data.labels == 2][:10]]  # most of class 2
    return explain_classes(craft, images, tmp_path_factory.mktemp("index")).page


def test_search_and_order(page):
    found, console = in_browser(
        page,
        CARDS
        + """
        const shown = () => document.getElementById("shown").value;
        const seen = { first: names("cards"), all: shown() };
        set("sort", "pictures"); seen.byPictures = names("cards");
        set("filter", "Garden"); seen.filtered = names("cards"); seen.some = shown();
        set("filter", "concept 1"); seen.byConcept = names("cards").length;
        document.title = JSON.stringify(seen);
        """,
    )
    assert console == []
    assert found["first"] == ["circus", "garden", "harbour"]
    assert found["all"] == "3 of 3 classes"
    assert found["byPictures"][0] == "harbour"
    assert found["filtered"] == ["garden"]
    assert found["some"] == "1 of 3 classes"
    assert found["byConcept"] == 3


@pytest.mark.parametrize(("left", "right"), [("0", "2"), ("2", "0")])
def test_two_classes_are_set_side_by_side(page, left, right):
    found, console = in_browser(
        page,
        CARDS
        + f"""
        const compared = document.getElementById("compared");
        const seen = {{ before: compared.hidden }};
        set("left", "{left}"); set("right", "{left}"); seen.same = compared.hidden;
        set("right", "{right}");
        seen.hidden = compared.hidden; seen.names = names("pair");
        seen.text = document.getElementById("common").textContent;
        seen.marks = [...document.querySelectorAll("#pair > article")].map((card) =>
          [...card.querySelectorAll(".shared")].map((item) => item.lastChild.textContent).sort());
        seen.pairs = pairs.filter(([a, , b]) => a === 0 && b === 2).length;
        document.title = JSON.stringify(seen);
        """,
    )
    assert console == []
    assert found["before"]
    assert found["same"]
    assert not found["hidden"]
    assert found["names"] == [["circus", "garden", "harbour"][int(i)] for i in (left, right)]
    assert found["marks"][0] == found["marks"][1]
    assert len(found["marks"][0]) == found["pairs"]
    assert f"share {found['pairs'] or 'none'} of" in found["text"]


def test_all_is_there_without_scripts(page):
    text = page.read_text()
    body = text[: text.index("<script")]
    for name in ("circus", "garden", "harbour"):
        assert f">{name}</a></h3>" in body
    assert 'id="class-controls" hidden' in body


@pytest.mark.parametrize("size", ["1000,900", "500,900"])
def test_page_fits_the_screen(page, size):
    script = (
        CARDS
        + """
    set("left", "0"); set("right", "1");
    document.title = JSON.stringify(document.documentElement.scrollWidth - innerWidth);
    """
    )
    overflow, console = in_browser(page, script, size=size)
    assert overflow <= 0
    assert console == []


def test_axe_finds_nothing_serious(page, tmp_path):
    assert serious_violations(page, tmp_path) == []
