"""CGIM, CEM and CLM, worked out by hand and against SciPy."""

import pytest
import torch
from scipy.spatial.distance import cosine
from scipy.stats import pearsonr

from conceptlens.metrics import cem, cgim, clm


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


TRUTH = torch.tensor([[1.0, 0, 1, 0], [0, 1, 1, 0], [1, 1, 0, 0]])


@pytest.mark.parametrize(
    ("likeness", "oracle"),
    [("cosine", lambda x, y: 1 - cosine(x, y)), ("pearson", lambda x, y: pearsonr(x, y).statistic)],
)
def test_cgim_is_scipys(likeness, oracle):
    weights = normal(3, 4)
    found = cgim(weights, TRUTH, likeness)
    assert found.whole == pytest.approx(oracle(weights.flatten(), TRUTH.flatten()), abs=1e-6)
    for i in range(3):
        assert found.per_class[i] == pytest.approx(oracle(weights[i], TRUTH[i]), abs=1e-6)
    for j in range(3):
        expected = oracle(weights[:, j], TRUTH[:, j])
        assert found.per_concept[j] == pytest.approx(expected, abs=1e-6)
    assert found.per_concept[3].isnan()  # no class has the last concept


@pytest.mark.parametrize("likeness", ["cosine", "pearson"])
def test_cgim_bounds(likeness):
    best, worst = cgim(5 * TRUTH, TRUTH, likeness), cgim(-TRUTH, TRUTH, likeness)
    for found, value in ((best, 1), (worst, -1)):
        assert found.whole == pytest.approx(value)
        torch.testing.assert_close(found.per_class, torch.full((3,), value, dtype=torch.float64))
    assert cgim(torch.zeros(3, 4), TRUTH, likeness).whole == 0
    assert likeness in repr(best)


def test_pearson_ignores_an_offset_and_the_cosine_does_not():
    shifted = TRUTH + 5
    assert cgim(shifted, TRUTH, "pearson").whole == pytest.approx(1)
    assert cgim(shifted, TRUTH, "cosine").whole < 0.8


def test_random_weights_are_at_chance():
    found = torch.tensor([cgim(normal(3, 4, seed=s), TRUTH).whole for s in range(400)])
    assert found.mean().abs() < 3 * found.std() / 20


def test_cem_by_hand():
    importance = torch.tensor([[0.1, 0.9, 0.5, 0.2], [0.7, 0.1, 0.6, 0.5]])
    present = torch.tensor([[0, 1, 0, 1], [0, 0, 1, 1]])
    assert cem(importance, present, top=1).values.tolist() == [1, 0]
    assert cem(importance, present, top=2).values.tolist() == [0.5, 0.5]
    torch.testing.assert_close(
        cem(importance, present, top=3).values, torch.tensor([2 / 3, 2 / 3], dtype=torch.float64)
    )


def test_cem_bounds_and_chance():
    present = normal(3000, 6) > 0.5
    present[:, 0], present[:, 1] = True, False
    assert cem(present.float(), present, top=1).mean == 1
    assert cem(-present.float(), present, top=1).mean == 0
    found = cem(normal(3000, 6, seed=1), present, top=3)
    assert abs(found.mean - float(present.double().mean())) < 4 * found.stderr


@pytest.fixture
def places():
    """Two pictures, three concepts: a corner, a row, and one that is only in the second."""
    masks = torch.zeros(2, 3, 4, 4)
    masks[:, 0, :2, :2] = 1
    masks[:, 1, 3] = 1
    masks[1, 2, 1, 3] = 1
    return masks


def test_clm_by_hand(places):
    maps = places.clone()
    maps[0, 1] = 1 - places[0, 1]  # concept 1 is mapped wrongly in the first picture
    importance = torch.tensor([[0.2, 0.5, 0.9], [0.2, 0.5, 0.9]])
    one, two, three = (clm(importance, maps, places, top).values.tolist() for top in (1, 2, 3))
    assert one[0] != one[0]  # picture 0's most important concept has no place: left out
    assert one[1] == 1
    assert two == [0, 1]
    assert three == [0.5, 1]


@pytest.mark.parametrize("hit", ["peak", "mass", "iou"])
def test_clm_bounds(places, hit, device):
    importance, places = torch.rand(2, 3).to(device), places.to(device)
    assert clm(importance, places, places, 3, hit).mean == 1
    assert clm(importance, 1 - places, places, 3, hit).mean == 0


def test_clm_of_random_maps_is_the_area(places):
    masks = places[1:, :2].expand(2000, -1, -1, -1)
    maps = torch.rand(2000, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    found = clm(normal(2000, 2), maps, masks, top=2)
    assert abs(found.mean - 0.25) < 4 * found.stderr
    assert clm(normal(2000, 2), maps, masks, top=2, tolerance=4).mean == 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: cgim(TRUTH, TRUTH[:2]), r"truth must have shape \(n_classes = 3, k = 4\)"),
        (lambda: cgim(TRUTH, TRUTH, "angle"), "likeness must be one of"),
        (lambda: cem(TRUTH, TRUTH * 0.5), "only 0 and 1"),
        (lambda: cem(TRUTH, TRUTH, top=0), "between 1 and k = 4, got 0"),
        (lambda: cem(TRUTH, TRUTH, top=5), "between 1 and k = 4, got 5"),
        (lambda: clm(TRUTH, torch.ones(3, 4, 2, 2), torch.ones(3, 4, 2, 3)), "W = 2"),
        (lambda: clm(TRUTH, torch.ones(3, 3, 2, 2), torch.ones(3, 3, 2, 2)), "k = 4"),
        (lambda: clm(TRUTH, torch.ones(3, 4, 2, 2), torch.ones(3, 4, 2, 2), hit="x"), "hit must"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()
