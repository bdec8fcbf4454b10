"""Names by text, dissection, labels and places, against formulas and planted truth."""

import math

import numpy as np
import pytest
import torch

from conceptlens import naming
from conceptlens.naming import AlignedText, by_dissection, by_labels, by_places, by_text
from conceptlens.naming.dissection import N_SETS, log_likelihood
from conceptlens.naming.vocabulary import LISTS

WORDS = [f"word {i}" for i in range(30)]


def embeddings(m=30, e=40, seed=0):
    rows = torch.randn(m, e, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=1)


def encoder(words):
    return embeddings()[[WORDS.index(w) for w in words]]


def test_nearest_text_with_its_cosine_and_runners_up(device):
    chosen = [3, 17, 8]
    directions = 7.0 * embeddings()[chosen].to(device)
    names = by_text(directions, WORDS, encoder)
    assert list(names) == [WORDS[i] for i in chosen]
    torch.testing.assert_close(names.confidence, torch.ones(3))
    expected = embeddings()[17] @ embeddings().T
    words, scores = zip(*names.candidates[1], strict=True)
    assert len(words) == 5
    for word, score in zip(words, scores, strict=True):
        assert score == pytest.approx(float(expected[WORDS.index(word)]), abs=1e-5)
    assert list(scores) == sorted(scores, reverse=True)


def test_random_directions_are_less_sure():
    names = by_text(torch.cat([embeddings()[:20], embeddings(20, seed=9)]), WORDS, encoder)
    assert names.confidence[:20].min() > names.confidence[20:].max()


def test_shared_names_are_told_apart():
    names = by_text(embeddings()[[4, 5, 4]], WORDS, encoder)
    assert names.names == ["word 4", "word 5", "word 4"]
    assert names.labels == ["word 4 (0)", "word 5", "word 4 (2)"]
    assert "word 4 (2): 1.000" in repr(names)


def test_dissection_is_the_formula_computed_naively():
    generator = torch.Generator().manual_seed(1)
    n, k, m, r = 60, 4, 7, 12
    activations = torch.rand(n, k, generator=generator)
    cosines = torch.rand(n, m, generator=generator) * 0.6
    names = by_dissection(activations, cosines, WORDS[:m], n_pictures=r, top=m, random_state=5)

    p = np.exp(10 * cosines.double().numpy())
    p /= p.sum(1, keepdims=True)

    def log_given(pictures, word):
        total = 0.0
        for rank, picture in enumerate(pictures):
            sure = 0.998 - (0.998 - 0.97) * rank / r
            total += math.log(1 + sure * (p[picture, word] - 1) + 1e-7)
        return total

    draws = torch.Generator().manual_seed(5)
    sets = [torch.randperm(n, generator=draws)[:r].tolist() for _ in range(N_SETS)]
    for j in range(k):
        strongest = np.argsort(-activations[:, j].numpy())[:r]
        for word, score in names.candidates[j]:
            i = WORDS.index(word)
            common = math.log(np.mean([math.exp(log_given(s, i)) for s in sets]))
            assert score == pytest.approx(log_given(strongest, i) - common, abs=1e-3)
        chosen = cosines[:, WORDS.index(names[j])].numpy()
        correlation = np.corrcoef(activations[:, j].numpy(), chosen)[0, 1]
        assert float(names.confidence[j]) == pytest.approx(correlation, abs=1e-5)


def test_likelihood_does_not_depend_on_the_batch(monkeypatch):
    given = torch.rand(20, 5).softmax(1)
    sets = torch.stack([torch.randperm(20)[:6] for _ in range(9)])
    whole = log_likelihood(given, sets)
    monkeypatch.setattr("conceptlens.naming.dissection.NUMBERS", 1)
    torch.testing.assert_close(log_likelihood(given, sets), whole)


def test_dissection_finds_planted_words_and_doubts_random_units(device):
    generator = torch.Generator().manual_seed(0)
    present = (torch.rand(400, 10, generator=generator) < 0.4).float()
    cosines = 0.1 + 0.2 * present + 0.02 * torch.randn(400, 10, generator=generator)
    units = present + 0.1 * torch.rand(400, 10, generator=generator)
    noise = torch.rand(400, 10, generator=generator)
    names = by_dissection(torch.cat([units, noise], 1).to(device), cosines, WORDS[:10])
    assert names.names[:10] == WORDS[:10]
    assert names.confidence[:10].min() > names.confidence[10:].max() + 0.3


@pytest.mark.parametrize("metric", ["auc", "ap"])
def test_labels(metric):
    from sklearn.metrics import average_precision_score, roc_auc_score

    generator = torch.Generator().manual_seed(0)
    labels = torch.rand(200, 6, generator=generator) < 0.4
    activations = labels[:, [4, 1]] + torch.randn(200, 2, generator=generator)
    names = by_labels(activations, labels, WORDS[:6], metric=metric)
    assert names.names == ["word 4", "word 1"]
    score = roc_auc_score if metric == "auc" else average_precision_score
    expected = score(labels[:, 4].numpy(), activations[:, 0].numpy())
    assert float(names.confidence[0]) == pytest.approx(expected)


def test_places():
    masks = torch.zeros(3, 2, 8, 8, dtype=torch.bool)
    masks[:, 0, :4, :4] = True
    masks[:, 1, 4:, 4:] = True
    maps = masks.flip(1).float() + 0.1 * torch.rand(3, 2, 8, 8)
    names = by_places(maps, masks, ["left", "right"])
    assert names.names == ["right", "left"]
    torch.testing.assert_close(names.confidence, torch.ones(2, dtype=names.confidence.dtype))


def test_aligned_text_recovers_an_affine_map():
    generator = torch.Generator().manual_seed(0)
    words = [f"class {i}" for i in range(300)]
    weights = torch.nn.functional.normalize(torch.randn(300, 24, generator=generator), dim=1)
    true_map = torch.randn(24, 16, generator=generator)
    texts = torch.nn.functional.normalize(weights @ true_map + 2.0, dim=1)

    def encode(asked):
        return texts[[words.index(w) for w in asked]]

    aligned = AlignedText(encode, n_held_out=50).fit(weights, words)
    assert aligned.retrieval_["top-1"] >= 0.9
    assert aligned.retrieval_["chance top-5"] == pytest.approx(0.1)
    names = aligned.name(3 * weights[:40], words)
    assert sum(a == b for a, b in zip(names, words[:40], strict=True)) >= 38
    shuffled = AlignedText(encode, n_held_out=50).fit(
        weights[torch.randperm(300, generator=generator)], words
    )
    assert shuffled.retrieval_["top-5"] <= 0.3


def test_vocabularies_are_lists_of_different_words():
    for name in LISTS:
        words = naming.vocabulary(name)
        assert len(words) == len({*words}) >= 900
    with pytest.raises(ValueError, match="no vocabulary 'english'"):
        naming.vocabulary("english")


@pytest.mark.parametrize(
    ("words", "message"),
    [(["a", "b", "a"], "more than once"), (["a", " "], "not empty"), ([], "list is empty")],
)
def test_bad_vocabularies(words, message):
    with pytest.raises(ValueError, match=message):
        by_text(torch.rand(2, 40), words, encoder)


def test_bad_input():
    with pytest.raises(TypeError, match="must be a list"):
        by_text(torch.rand(2, 40), "word 1", encoder)
    with pytest.raises(ValueError, match="space that pictures and texts share"):
        by_text(torch.rand(2, 41), WORDS, encoder)
    with pytest.raises(ValueError, match="n_pictures"):
        by_dissection(torch.rand(9, 2), torch.rand(9, 30), WORDS, n_pictures=10)
    with pytest.raises(ValueError, match="the same in all pictures"):
        by_labels(torch.rand(4, 2), torch.ones(4, 30), WORDS)
    with pytest.raises(ValueError, match="n_held_out"):
        AlignedText(encoder).fit(torch.rand(30, 8), WORDS)
    with pytest.raises(ValueError, match="not fitted"):
        AlignedText(encoder).transform(torch.rand(30, 8))
