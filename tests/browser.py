"""A headless browser for tests: Chromium, and axe-core inside it."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
import tarfile

import pytest

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs chromium or google-chrome")


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


def serious_violations(page, folder):
    """What axe-core finds that is serious or critical, by rule, with the first place."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("needs npm, which brings axe-core")
    packed = subprocess.run([npm, "pack", "axe-core"], cwd=folder, capture_output=True, timeout=120)
    if packed.returncode:
        pytest.skip("axe-core cannot be fetched")
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        axe = archive.extractfile("package/axe.min.js").read().decode()
    run = """
    axe.run().then((result) => {
      const bad = result.violations.filter((v) => ["serious", "critical"].includes(v.impact));
      document.title = JSON.stringify(bad.map((v) => [v.id, v.nodes[0].html.slice(0, 120)]));
    });
    """
    return in_browser(page, axe, run)[0]
