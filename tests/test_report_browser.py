"""The report in a real browser: its controls work, its console is silent, axe-core is content."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
import tarfile

import pytest

from conceptlens import CRAFT, Backbone
from conceptlens.datasets import PlantedConcepts, small_cnn

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs chromium or google-chrome")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    data = PlantedConcepts(3000)
    bb = Backbone(small_cnn(data), "features", class_names=data.class_names)
    explanation = CRAFT(bb, 5, 24).explain(data.images[:40], "circus")
    return explanation.to_html(tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("axe")
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("needs npm, which brings axe-core")
    packed = subprocess.run([npm, "pack", "axe-core"], cwd=folder, capture_output=True, timeout=120)
    if packed.returncode:
        pytest.skip("axe-core cannot be fetched")
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        return archive.extractfile("package/axe.min.js").read().decode()


def in_browser(page, *scripts, size="1000,900"):
    """What the last script leaves in ``document.title`` as JSON, and the console's lines."""
    html = page.read_text()
    digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    allowed = " ".join(f"&#39;sha256-{digest}&#39;" for digest in digests).replace("&#39;", "'")
    html = html.replace("script-src ", f"script-src {allowed} ")
    tags = "".join(f"<script>{script}</script>" for script in scripts)
    copy = page.with_name("tested.html")
    copy.write_text(html.replace("</body>", f"{tags}</body>"))
    result = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={size}",
         f"--user-data-dir={page.parent / 'profile'}", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--disable-quic",
         "--enable-logging=stderr", "--virtual-time-budget=20000", "--dump-dom", f"file://{copy}"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    title = re.search("<title>(.*?)</title>", result.stdout, re.S).group(1)
    console = [line for line in result.stderr.splitlines() if "CONSOLE" in line]
    found = json.loads(title.replace("&quot;", '"').replace("&amp;", "&").replace("&lt;", "<"))
    return found, console


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


def test_axe_finds_nothing_serious(page, axe):
    run = """
    axe.run().then((result) => {
      const bad = result.violations.filter((v) => ["serious", "critical"].includes(v.impact));
      document.title = JSON.stringify(bad.map((v) => [v.id, v.nodes[0].html.slice(0, 120)]));
    });
    """
    violations, _ = in_browser(page, axe, run)
    assert violations == []


def test_page_is_small(page):
    assert page.stat().st_size < 5e6
