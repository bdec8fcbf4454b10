"""TCAV on a head whose directions are known."""

import pytest
import scipy.stats
import torch

from conceptlens.importance.tcav import _against_chance, _corrected, fit_cavs, tcav

CHANNELS = 16


def rows(n, direction=None, seed=0):
    noise = torch.randn(n, CHANNELS, generator=torch.Generator().manual_seed(seed))
    return noise if direction is None else noise + 4 * torch.eye(CHANNELS)[direction]


def head(a):
    """Class 0 rises with channel 0 and falls with channel 1, at every position."""
    score = torch.tanh(a[..., 0] - a[..., 1] + 0.3 * a[..., 2] * a[..., 3]).mean(1)
    return torch.stack([score, -score], 1)


POSITIVES = {"up": rows(400, 0, 1), "down": rows(400, 1, 2), "unused": rows(400, 9, 3)}
ACTIVATIONS = torch.randn(40, 5, CHANNELS, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("method", ["mean", "linear"])
@pytest.mark.parametrize("correction", ["holm", "benjamini-hochberg"])
def test_finds_what_the_head_reads(method, correction):
    cavs = fit_cavs(POSITIVES, rows(1200, seed=4), method=method)
    found = tcav(head, ACTIVATIONS, 0, cavs, correction=correction, batch_size=7)
    assert found.scores[0] > 0.95
    assert found.scores[1] < 0.05
    assert (found.p_values[:2] < 0.01).all()
    assert found.p_values[2] > 0.05
    assert repr(found).count("p =") == 3
    assert "<td>up</td>" in found._repr_html_()
    opposite = tcav(head, ACTIVATIONS, 1, cavs)
    torch.testing.assert_close(opposite.scores, 1 - found.scores, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["mean", "linear"])
def test_vectors_point_along_the_concept(method):
    cavs = fit_cavs(POSITIVES, rows(1200, seed=4), method=method)
    assert cavs.vectors.shape == (3, 20, CHANNELS)
    torch.testing.assert_close(cavs.vectors.norm(dim=2), torch.ones(3, 20))
    assert (cavs.vectors[0, :, 0] > 0.7).all()
    assert "3 concepts" in repr(cavs)


def test_score_is_the_sign_share_of_directional_derivatives():
    cavs = fit_cavs(POSITIVES, rows(50, seed=4), n_runs=2)
    step = 1e-3 * cavs.vectors[2, 1].double()
    a = ACTIVATIONS.double()
    rises = head(a + step)[:, 0] > head(a - step)[:, 0]
    single = cavs.__class__(["c"], cavs.vectors[2:, 1:].expand(-1, 2, -1), cavs.random, "mean")
    assert float(tcav(head, ACTIVATIONS, 0, single).scores) == float(rises.double().mean())


def test_p_values_are_scipys():
    scores = torch.rand(4, 10, generator=torch.Generator().manual_seed(0)).double()
    random = torch.rand(10, generator=torch.Generator().manual_seed(1)).double()
    p = _against_chance(scores, random)
    for row, value in zip(scores, p, strict=True):
        expected = scipy.stats.ttest_ind(row.numpy(), random.numpy(), equal_var=False).pvalue
        assert float(value) == pytest.approx(expected, rel=1e-9)
    same = torch.ones(1, 5).double()
    assert _against_chance(same, same[0]).item() == 1
    assert _against_chance(same, 0 * same[0]).item() == 0


def test_holm_by_hand():
    p = torch.tensor([0.04, 0.01, 0.03], dtype=torch.float64)
    expected = torch.tensor([0.06, 0.03, 0.06], dtype=torch.float64)
    torch.testing.assert_close(_corrected(p, "holm"), expected)
    assert _corrected(torch.tensor([0.6, 0.9]).double(), "holm").tolist() == [1, 1]


@pytest.mark.parametrize("direction", [None, 9])
def test_concepts_without_effect_are_seldom_significant(direction):
    """At the level of 0.05: 5 of 100 are expected, 12 or more happen once in 200 such tests."""
    found = 0
    for seed in range(100):
        positives = {"unread": rows(60, direction, seed=1000 + seed)}
        cavs = fit_cavs(positives, rows(120, seed=2000 + seed), seed=seed)
        found += float(tcav(head, ACTIVATIONS, 0, cavs).p_values) < 0.05
    assert found < 12


def test_no_row_serves_two_runs():
    """Rows that mark themselves: each vector points away from the channels of its own rows."""
    marks = torch.eye(CHANNELS)
    cavs = fit_cavs({"c": marks[:8]}, torch.zeros(12, CHANNELS), n_runs=4)
    used = (cavs.vectors[0] > 0).sum(0)
    assert used.tolist() == [1] * 8 + [0] * 8


class FakeStore:
    """What a store offers, counting what is read."""

    def __init__(self, a):
        self.a, self.read = a, 0

    def __len__(self):
        return len(self.a)

    def __getitem__(self, index):
        return self.a[index]

    def vectors(self, batch_size, shuffle=True, seed=0):
        self.read += 1
        assert not shuffle
        yield from self.a.flatten(0, 1).split(batch_size)


def test_stores_are_read_once():
    store = FakeStore(rows(60, 0, 1)[:, None])
    negatives = FakeStore(rows(200, seed=4)[:, None])
    cavs = fit_cavs({"up": store}, negatives)
    assert store.read == negatives.read == 1
    expected = fit_cavs({"up": rows(60, 0, 1)}, rows(200, seed=4))
    assert torch.equal(cavs.vectors, expected.vectors)
    found = tcav(head, FakeStore(ACTIVATIONS), 0, cavs, batch_size=7)
    assert torch.equal(found.scores, tcav(head, ACTIVATIONS, 0, cavs).scores)


def test_seed_fixes_the_vectors(device):
    positives = {"up": POSITIVES["up"].to(device)}
    negatives = rows(60, seed=4).to(device)
    one, same = (fit_cavs(positives, negatives, seed=1) for _ in range(2))
    assert torch.equal(one.vectors, same.vectors)
    assert one.vectors.device.type == device.type
    assert not torch.equal(one.vectors, fit_cavs(positives, negatives, seed=2).vectors)
    assert tcav(head, ACTIVATIONS.to(device), 0, one).scores[0] > 0.9


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: fit_cavs({}, rows(9)), "concept_rows is empty"),
        (lambda: fit_cavs(POSITIVES, rows(9), method="svm"), "method must be one of"),
        (lambda: fit_cavs(POSITIVES, rows(9)), "3 rows a run or more, 60"),
        (lambda: fit_cavs({"up": rows(5)}, rows(60)), "5 rows for n_runs = 20"),
        (lambda: fit_cavs(POSITIVES, rows(9), n_runs=1), "at least 2"),
        (lambda: fit_cavs(POSITIVES, rows(60)[:, :4]), "16 channels, negatives 4"),
        (lambda: fit_cavs({"up": rows(5) / 0}, rows(60)), r"concept_rows\['up'\] must be finite"),
        (lambda: tcav(head, rows(9), 0, fit_cavs(POSITIVES, rows(60))), r"shape \(n, P, C\)"),
        (lambda: tcav(head, ACTIVATIONS, 7, fit_cavs(POSITIVES, rows(60))), "class 7 does not"),
        (
            lambda: tcav(head, ACTIVATIONS, 0, fit_cavs(POSITIVES, rows(60)), correction="none"),
            "correction must be one of",
        ),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()
