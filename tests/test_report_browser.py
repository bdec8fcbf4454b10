"""The report in a real browser: its controls work, its console is silent, axe-core is content."""

import pytest
from browser import in_browser, needs_browser, serious_violations

from conceptlens import CRAFT, Backbone
from conceptlens.datasets import PlantedConcepts, small_cnn

pytestmark = needs_browser


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    data = PlantedConcepts(3000)
    bb = Backbone(small_cnn(data), "features", class_names=data.class_names)
    explanation = CRAFT(bb, 5, 24).explain(data.images[:40], "circus")
    return explanation.to_html(tmp_path_factory.mktemp("report") / "report.html")


def test_controls_sort_filter_and_paint(page):
    found, console = in_browser(
        page,
        """
        const names = () => [...document.querySelectorAll("#cards > article:not([hidden]) > h3")]
          .map((heading) => heading.textContent);
        const set = (id, value) => {
          document.getElementById(id).value = value;
          document.getElementById(id).dispatchEvent(new Event("input"));
        };
        const blank = () => {
          const like = document.querySelector(".mapped canvas");
          const canvas = document.createElement("canvas");
          [canvas.width, canvas.height] = [like.width, like.height];
          return canvas.toDataURL();
        };
        const ink = () => document.querySelector(".mapped canvas").toDataURL();
        const shown = document.getElementById("shown").value;
        const seen = { first: names(), shown, ink: ink(), empty: blank() };
        set("sort", "name"); seen.byName = names();
        set("filter", "concept 2"); seen.filtered = names();
        set("concept", "1"); seen.otherInk = ink();
        seen.frames = document.querySelectorAll(".mapped[tabindex='0'] canvas").length;
        seen.wide = document.documentElement.scrollWidth > innerWidth;
        document.title = JSON.stringify(seen);
        """,
    )
    assert console == []
    assert found["byName"] == sorted(found["first"]) == [f"concept {i}" for i in range(5)]
    assert found["shown"] == "5 of 5 concepts"
    assert found["filtered"] == ["concept 2"]
    assert found["frames"] == 8
    assert found["ink"] != found["empty"]
    assert found["ink"] != found["otherInk"]
    assert not found["wide"]


def test_page_fits_a_phone(page):
    script = "document.title = JSON.stringify(document.documentElement.scrollWidth - innerWidth)"
    overflow, console = in_browser(page, script, size="500,900")
    assert overflow <= 0
    assert console == []


def test_axe_finds_nothing_serious(page, tmp_path):
    assert serious_violations(page, tmp_path) == []


def test_page_is_small(page):
    assert page.stat().st_size < 5e6
