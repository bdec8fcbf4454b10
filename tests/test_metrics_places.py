"""Pointing game, relevance inside and IoU, worked out by hand."""

import pytest
import torch

from conceptlens.metrics import iou, pointing_game, relevance_inside

METRICS = (pointing_game, relevance_inside, iou)


@pytest.fixture
def masks():
    """Three pictures of 4 × 4: a corner of 4 pixels, one pixel, nothing."""
    masks = torch.zeros(3, 4, 4, dtype=torch.bool)
    masks[0, :2, :2] = True
    masks[1, 3, 3] = True
    return masks


def test_by_hand(masks):
    maps = torch.zeros(3, 4, 4)
    maps[0, 0, 0], maps[0, 0, 1], maps[0, 3, 0] = 5.0, -1.0, 2.0  # peak inside; mass 6 of 8
    maps[1, 2, 2], maps[1, 3, 3] = 4.0, 1.0  # peak one pixel outside; mass 1 of 5
    assert pointing_game(maps, masks).values[:2].tolist() == [1, 0]
    assert pointing_game(maps, masks, tolerance=1).values[:2].tolist() == [1, 1]
    torch.testing.assert_close(
        relevance_inside(maps, masks).values[:2], torch.tensor([6 / 8, 1 / 5], dtype=torch.float64)
    )
    ranked = torch.arange(16.0).reshape(1, 4, 4)  # its four highest pixels are the last row
    place = torch.zeros(1, 4, 4)
    place[0, 3, 1:], place[0, 0, 0] = 1, 1  # four pixels, three of them in the last row
    assert iou(ranked, place).mean == pytest.approx(3 / 5)


@pytest.mark.parametrize("metric", METRICS)
def test_the_mask_itself_is_perfect_and_its_complement_worst(metric, masks, device):
    maps, masks = masks.float().to(device), masks.to(device)
    assert metric(maps, masks).mean == 1
    assert metric(1 - maps, masks).mean == 0
    assert metric(maps, masks).values.device.type == "cpu"


@pytest.mark.parametrize("metric", METRICS)
def test_a_flat_map_scores_the_area(metric, masks):
    expected = torch.tensor([4 / 16, 1 / 16], dtype=torch.float64)
    torch.testing.assert_close(metric(torch.ones(3, 4, 4), masks).defined, expected)


def test_random_maps_are_at_chance():
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(4000, 8, 8, generator=generator)
    masks = torch.zeros(4000, 8, 8)
    masks[:, 2:6, 2:6] = 1  # a quarter
    for metric, chance in ((pointing_game, 0.25), (relevance_inside, 0.25), (iou, 1 / 7)):
        found = metric(maps, masks)
        # The mean of a ratio is not the ratio of means: IoU of 16 random pixels is near 1/7.
        assert abs(found.mean - chance) < 4 * found.stderr + (metric is iou) * 0.01


@pytest.mark.parametrize("metric", METRICS)
def test_pictures_without_the_concept_are_left_out(metric, masks):
    found = metric(torch.rand(3, 4, 4), masks)
    assert found.values.isnan().tolist() == [False, False, True]
    assert 0 <= found.mean <= 1


def test_a_map_of_zeros_has_no_relevance(masks):
    assert relevance_inside(torch.zeros(3, 4, 4), masks).values.isnan().all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("maps", "given", "words"),
    [
        (torch.ones(3, 4), torch.ones(3, 4, 4), r"maps must have shape \(n, H, W\)"),
        (torch.ones(3, 4, 4), torch.ones(3, 4, 5), r"masks must have shape \(n = 3, H = 4, W = 4"),
        (torch.ones(3, 4, 4), torch.full((3, 4, 4), 0.5), "only 0 and 1"),
        (torch.full((3, 4, 4), torch.nan), torch.ones(3, 4, 4), "NaN"),
        (torch.ones(0, 4, 4), torch.ones(0, 4, 4), "maps must have shape"),
    ],
)
def test_bad_input(metric, maps, given, words):
    with pytest.raises(ValueError, match=words):
        metric(maps, given)


def test_bad_tolerance(masks):
    with pytest.raises(ValueError, match="at least 0"):
        pointing_game(torch.ones(3, 4, 4), masks, tolerance=-1)
