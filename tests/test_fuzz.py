"""Hostile files and names: readers raise what they document, reports keep their tags."""

import struct
import sys
import warnings
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from conceptlens import ActivationStore, Explanation, StoreError
from conceptlens.comparison import compare
from conceptlens.images import UnreadableImageError, read_image
from conceptlens.report.compared import render_comparison
from conceptlens.report.page import render
from conceptlens.sealing import seal

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests" / "faults")]

import fuzz  # noqa: E402
from artefacts import explanation  # noqa: E402

QUICK = settings(max_examples=60, deadline=None, derandomize=True)
PNG = b"\x89PNG\r\n\x1a\n"
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda parts: st.lists(parts) | st.dictionaries(st.text(), parts),
    max_leaves=6,
)


@pytest.mark.parametrize("make", [reader for reader, _ in fuzz.READERS])
def test_mutated_files_raise_what_is_documented(make, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", fuzz.MAX_PIXELS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        counts, found = fuzz.fuzz(make(tmp_path / "x"), 500, seed=1)
    assert not found
    assert counts["accepted"] > 10
    assert counts["refused"] > 100


@pytest.mark.parametrize("make", [reader for reader, _ in fuzz.READERS])
def test_files_that_guided_fuzzing_kept_raise_what_is_documented(make, tmp_path, monkeypatch):
    """`guided_fuzz.py --corpus` found them: each reaches code that the others do not."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", fuzz.MAX_PIXELS)
    reader, outcomes = make(tmp_path / "x"), set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for file in (ROOT / "tests" / "corpus" / make.name).iterdir():
            reader.put(file.read_bytes())
            try:
                reader.read()
                outcomes.add("accepted")
            except reader.documented:
                outcomes.add("refused")
    assert outcomes == {"accepted", "refused"}


def test_any_json_as_a_manifest(tmp_path):
    known = ["format", "key", "names", "row shape", "shards"]

    @QUICK
    @given(record=st.dictionaries(st.sampled_from(known), ANY_JSON))
    def refused(record):
        (tmp_path / "manifest.json").write_bytes(seal({"format": 1} | record))
        with pytest.raises(StoreError, match=r"manifest\.json"):
            ActivationStore.open(tmp_path)

    refused()


def test_any_json_as_an_explanation(tmp_path):
    explanation().save(tmp_path)
    record = fuzz.json.loads((tmp_path / "explanation.json").read_bytes())
    del record["sha256"]

    @QUICK
    @given(changes=st.dictionaries(st.sampled_from(sorted(record)), ANY_JSON, min_size=1))
    def documented(changes):
        (tmp_path / "explanation.json").write_bytes(seal(record | changes))
        try:
            said = repr(Explanation.load(tmp_path))
        except ValueError as error:
            said = f"Explanation refused: {error}"
            named = str(tmp_path) in said
        else:
            named = True
        assert named, said

    documented()


def test_any_bytes_as_a_picture(tmp_path):
    starts = st.sampled_from(
        [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"BM", b"II*\0"]
    )

    @QUICK
    @given(start=starts, rest=st.binary(max_size=200))
    def refused(start, rest):
        (tmp_path / "x").write_bytes(start + rest)
        with pytest.raises(UnreadableImageError, match="cannot be read as a picture"):
            read_image(tmp_path / "x")

    refused()


@pytest.mark.parametrize("side", [10_000, 60_000])
def test_decompression_bombs_are_refused_with_the_limit(tmp_path, side):
    def chunk(kind, data):
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))
    (tmp_path / "bomb.png").write_bytes(PNG + body + chunk(b"IEND", b""))
    with pytest.raises(UnreadableImageError, match=r"bomb.png .*89478485 pixels.*MAX_IMAGE_PIX"):
        read_image(tmp_path / "bomb.png")


class Skeleton(HTMLParser):
    """The tags of a page with the names of their attributes, and what scripts it has."""

    def __init__(self, page):
        super().__init__()
        self.tags = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, *sorted(name for name, _ in attrs)))


HOSTILE = [
    "<script>alert(1)</script>", "</script><script>alert(1)</script>", "\"><img src=x onerror=a()>",
    "' onmouseover='a()", "</style><b>", "<!--", "-->", "{{ 7 * 7 }}", "{% raw %}", "&lt;b&gt;",
    "javascript:a()", "]]>", "\u2028\u2029", r"$\frac{$", r"\bad_$x", "\0", "a\nb",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_text_in_reports(name):
    plain = explanation()

    def pages(word):
        concepts = [
            replace(c, name=word, candidates=[(word, 0.5), (word, 0.25)], confidence=0.5)
            for c in plain.concepts
        ]
        shown = replace(
            plain, target=word, concepts=concepts, picture_names=[word] * 3,
            importance=replace(plain.importance, concept_names=[word, word], target=word),
            metrics={word: 0.5}, subconcepts={}, provenance={"layer": word, word: word},
        )  # fmt: skip
        shown = replace(shown, subconcepts={1: shown})
        yield shown._repr_html_()
        yield render(shown)
        yield render_comparison(compare({word: shown, f"{word}2": shown}))

    for page, expected in zip(pages(name), pages("fur"), strict=True):
        assert Skeleton(page).tags == Skeleton(expected).tags


def test_a_picture_whose_name_is_no_text(tmp_path):
    shown = replace(explanation(), picture_names=["\udcff.png"] * 3, subconcepts={})
    assert Explanation.load(shown.save(tmp_path)).picture_names == shown.picture_names
    assert "?.png" in shown.to_html(tmp_path / "report.html").read_text()
