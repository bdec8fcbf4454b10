"""TCAV on a head whose directions are known."""

import pytest
import scipy.stats
import torch

from conceptlens.importance.tcav import _against_chance, _corrected, fit_cavs, tcav

CHANNELS = 16


def rows(n, direction=None, seed=0):
    """Noise of mean zero: what a sample shares by chance no test can tell from a concept."""
    noise = torch.randn(n, CHANNELS, generator=torch.Generator().manual_seed(seed))
    noise -= noise.mean(0)
    return noise if direction is None else noise + 4 * torch.eye(CHANNELS)[direction]


def head(a):
    """Class 0 rises with channel 0 and falls with channel 1, at every position."""
    score = torch.tanh(a[..., 0] - a[..., 1] + 0.3 * a[..., 2] * a[..., 3]).mean(1)
    return torch.stack([score, -score], 1)


POSITIVES = {"up": rows(60, 0, 1), "down": rows(60, 1, 2), "unused": rows(60, 9, 3)}
ACTIVATIONS = torch.randn(40, 5, CHANNELS, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("method", ["mean", "linear"])
@pytest.mark.parametrize("correction", ["holm", "benjamini-hochberg"])
def test_finds_what_the_head_reads(method, correction):
    cavs = fit_cavs(POSITIVES, rows(200, seed=4), method=method)
    found = tcav(head, ACTIVATIONS, 0, cavs, correction=correction, batch_size=7)
    assert found.scores[0] > 0.95
    assert found.scores[1] < 0.05
    assert (found.p_values[:2] < 0.01).all()
    # A vector is noise where the concept says nothing, and the head reads that noise's sign.
    assert found.spread[2] > 2 * found.spread[:2].max()
    assert repr(found).count("p =") == 3
    assert "<td>up</td>" in found._repr_html_()
    opposite = tcav(head, ACTIVATIONS, 1, cavs)
    torch.testing.assert_close(opposite.scores, 1 - found.scores, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["mean", "linear"])
def test_vectors_point_along_the_concept(method):
    cavs = fit_cavs(POSITIVES, rows(200, seed=4), method=method)
    assert cavs.vectors.shape == (3, 20, CHANNELS)
    torch.testing.assert_close(cavs.vectors.norm(dim=2), torch.ones(3, 20))
    assert (cavs.vectors[0, :, 0] > 0.8).all()
    assert "3 concepts" in repr(cavs)


def test_score_is_the_sign_share_of_directional_derivatives():
    cavs = fit_cavs(POSITIVES, rows(50, seed=4), n_runs=2)
    step = 1e-3 * cavs.vectors[2, 1].double()
    a = ACTIVATIONS.double()
    rises = head(a + step)[:, 0] > head(a - step)[:, 0]
    single = cavs.__class__(["c"], cavs.vectors[2:, 1:], cavs.random, "mean")
    assert float(tcav(head, ACTIVATIONS, 0, single).scores) == float(rises.double().mean())


def test_p_values_are_scipys():
    scores = torch.rand(4, 10, generator=torch.Generator().manual_seed(0)).double()
    random = torch.rand(10, generator=torch.Generator().manual_seed(1)).double()
    p = _against_chance(scores, random)
    for row, value in zip(scores, p, strict=True):
        expected = scipy.stats.ttest_ind(row.numpy(), random.numpy(), equal_var=False).pvalue
        assert float(value) == expected
    same = torch.ones(1, 5).double()
    assert _against_chance(same, same[0]).item() == 1
    assert _against_chance(same, 0 * same[0]).item() == 0


def test_holm_by_hand():
    p = torch.tensor([0.04, 0.01, 0.03], dtype=torch.float64)
    expected = torch.tensor([0.06, 0.03, 0.06], dtype=torch.float64)
    torch.testing.assert_close(_corrected(p, "holm"), expected)
    assert _corrected(torch.tensor([0.6, 0.9]).double(), "holm").tolist() == [1, 1]


def test_random_vectors_are_seldom_significant():
    found = []
    for seed in range(40):
        positives = {"nothing": rows(100, seed=100 + seed)}
        cavs = fit_cavs(positives, rows(200, seed=200 + seed), n_runs=10, seed=seed)
        single = cavs.__class__(["c"], cavs.random[None, 5:], cavs.random[:5], "mean")
        found.append(float(tcav(head, ACTIVATIONS, 0, single).p_values) < 0.05)
    assert sum(found) <= 8


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
    negatives = rows(50, seed=4).to(device)
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
        (lambda: fit_cavs(POSITIVES, rows(3)), "4 rows or more"),
        (lambda: fit_cavs(POSITIVES, rows(9), n_runs=1), "at least 2"),
        (lambda: fit_cavs(POSITIVES, rows(9)[:, :4]), "16 channels, negatives 4"),
        (lambda: fit_cavs({"up": rows(5) / 0}, rows(9)), r"concept_rows\['up'\] holds NaN"),
        (lambda: tcav(head, rows(9), 0, fit_cavs(POSITIVES, rows(9))), r"shape \(n, P, C\)"),
        (lambda: tcav(head, ACTIVATIONS, 7, fit_cavs(POSITIVES, rows(9))), "class 7 does not"),
        (
            lambda: tcav(head, ACTIVATIONS, 0, fit_cavs(POSITIVES, rows(9)), correction="none"),
            "correction must be one of",
        ),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()
