"""`compare`: concepts matched across dictionaries and networks, on pages that are safe."""

import re
from dataclasses import replace

import pytest
import torch

from conceptlens.cli import main
from conceptlens.comparison import compare
from conceptlens.explanation import Concept, Crop, Explanation
from conceptlens.importance.result import Importance

HOSTILE = "<script>alert('x')</script>"
ORDER = [2, 0, 3, 1]  # which concept of the reference stands where in the shuffled one


def explanation(values=(0.1, 0.6, 0.3, 0.2), name="fur"):
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor(values)
    importance = Importance(
        values, values / 10, torch.rand(5, 4, generator=generator), "Sobol total", HOSTILE,
        [f"{name} {i} {HOSTILE}" for i in range(4)],
    )  # fmt: skip
    concepts = [
        Concept(i, importance.concept_names[i], float(values[i]), float(values[i]) / 10,
                [Crop(0, (8, 4, 24, 20), 1.0)])
        for i in importance.order
    ]  # fmt: skip
    return Explanation(
        target=HOSTILE,
        importance=importance,
        concepts=concepts,
        pictures=torch.randint(0, 256, (5, 3, 32, 48), generator=generator, dtype=torch.uint8),
        picture_names=[f"{i}.png" for i in range(5)],
        concept_maps=torch.rand(5, 4, 4, 6, generator=generator),
        components=torch.rand(4, 10, generator=generator),
        scores=torch.rand(5, generator=generator),
        metrics={"C-Deletion": 0.25},
        provenance={"layer": HOSTILE, "seed": 0},
    )


def shuffled(first, **changes):
    """The same concepts in another order, which is known."""
    values = first.importance.values[ORDER]
    other = explanation(values.tolist(), "mane")
    return replace(
        other,
        components=first.components[ORDER],
        concept_maps=first.concept_maps[:, ORDER],
        **changes,
    )


def test_concepts_of_one_channel_space_are_matched_by_cosine():
    first = explanation()
    matching = compare({"a": first, "b": shuffled(first)}).matchings["b"]
    assert matching.by == "cosine"
    assert {j: i for i, j in matching.partners.items()} == dict(enumerate(ORDER))
    assert min(matching.similarity.values()) == pytest.approx(1.0)
    assert matching.rank_correlation == pytest.approx(1.0)


@pytest.mark.parametrize(
    "changes", [{"components": torch.rand(4, 7)}, {"provenance": {"fingerprint": "other"}}]
)
def test_concepts_of_different_networks_are_matched_over_common_pictures(changes):
    first = explanation()
    other = replace(shuffled(first), **changes)
    matching = compare({"a": first, "b": other}).matchings["b"]
    assert matching.by == "correlation"
    assert {j: i for i, j in matching.partners.items()} == dict(enumerate(ORDER))
    other = replace(other, picture_names=[f"other {i}" for i in range(5)])
    matching = compare({"a": first, "b": other}).matchings["b"]
    assert (matching.by, matching.partners) == ("nothing", {})


def test_rank_correlation_is_of_the_matched_concepts():
    first = explanation((0.1, 0.6, 0.3, 0.2))
    other = explanation((0.2, 0.1, 0.3, 0.6))  # the same dictionary: ranks 0312 against 1023
    comparison = compare({"a": first, "b": other})
    expected = 1 - 6 * (1 + 9 + 0 + 4) / (4 * 15)
    assert comparison.matchings["b"].rank_correlation == pytest.approx(expected)
    assert comparison.table["rank correlation of importance"]["b"] == pytest.approx(expected)
    assert comparison.table["C-Deletion"] == {"a": 0.25, "b": 0.25}


def test_two_classes_share_the_concepts_that_are_alike(tmp_path):
    first = replace(explanation(), components=torch.eye(4, 10))
    other = replace(shuffled(first), target="dog")
    other.components[ORDER.index(3)] = torch.eye(10)[9]  # a direction that the first has not
    comparison = compare({"a": first, "b": other})
    assert sorted(comparison.matchings["b"].shared) == [0, 1, 2]
    assert comparison.table["concepts shared"] == {"b": 3}
    assert comparison.targets == f"“{HOSTILE}” and “dog”"
    text = comparison.to_html(tmp_path / "page.html").read_text()
    assert "and “dog”</h1>" in text
    assert text.count("cosine 1.00, shared") == 3


def test_fewer_concepts_leave_some_without_a_match(tmp_path):
    first, other = explanation(), explanation(name="mane")
    few = replace(
        other,
        components=other.components[:2],
        concepts=[c for c in other.concepts if c.index < 2],
        importance=replace(other.importance, values=other.importance.values[:2],
                           stderr=other.importance.stderr[:2]),
    )  # fmt: skip
    text = compare({"many": first, "few": few}).to_html(tmp_path / "a.html").read_text()
    assert text.count("no match") == 2
    text = compare({"few": few, "many": first}).to_html(tmp_path / "b.html").read_text()
    assert "Without a match in many" in text


def test_page_and_table_are_safe_and_self_contained(tmp_path):
    first = explanation()
    comparison = compare({"a": first, HOSTILE: shuffled(first)})
    text = comparison.to_html(tmp_path / "deep" / "page.html").read_text()
    for html in (text, comparison._repr_html_()):
        assert "<script" not in html
        assert "&lt;script&gt;" in html
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)
    assert text.count("<img") == len(re.findall(r'<img [^>]*alt="[^"]+"', text))
    assert "cosine 1.00" in text
    assert "rank correlation of importance" in repr(comparison)
    assert len(comparison.plot().axes) == 2


def test_command_compares_saved_explanations(tmp_path, capsys):
    first = explanation()
    first.save(tmp_path / "a")
    shuffled(first).save(tmp_path / "b")
    out = tmp_path / "page.html"
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(out)
    assert "<html" in out.read_text()


@pytest.mark.parametrize(
    ("folders", "words"),
    [(["a"], "two or more, got 1"), (["a", "a"], "twice"), (["a", "none"], "no explanation")],
)
def test_bad_input_of_the_command(tmp_path, capsys, folders, words):
    explanation().save(tmp_path / "a")
    paths = [str(tmp_path / folder) for folder in folders]
    assert main(["compare", *paths, "--out", str(tmp_path / "page.html")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


def test_names_that_no_font_has_are_drawn(tmp_path):
    first = replace(explanation(name="\udcff"), target="\udcff", picture_names=["\udcff", *"bcde"])
    comparison = compare({"out-\udcff": first, "\0": replace(first, provenance={"model": "$_{"})})
    assert "out-?" in comparison.to_html(tmp_path / "a.html").read_text()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "mapping from names to Explanations, got list"),
        ([explanation()] * 2, "mapping from names to Explanations, got list"),
        (None, "mapping from names to Explanations, got NoneType"),
        (explanation(), "mapping from names to Explanations, got Explanation"),
        ({1: explanation(), "b": explanation()}, r"strings, got \[1, 'b'\]"),
    ],
)
def test_what_is_no_mapping_is_refused(given, words):
    with pytest.raises(TypeError, match=words):
        compare(given)


def test_what_is_no_explanation_is_named():
    with pytest.raises(TypeError, match=r"explanations\['b'\] must be an Explanation, got int"):
        compare({"a": explanation(), "b": 3})
