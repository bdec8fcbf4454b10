"""Figures of discovered concepts, on directions and codes that are planted."""

import pytest
import torch

from conceptlens.bottleneck.discovered import (
    cluster_strengths,
    meta_cluster_figure,
    meta_clusters,
    task_figure,
)

NAMES = ["fur", "hair", "wool", "sky", "cloud", "dead"]


@pytest.fixture
def directions():
    generator = torch.Generator().manual_seed(0)
    animal, air = torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q[:2]
    noise = 0.2 * torch.randn(6, 8, generator=generator)
    return torch.stack([animal, animal, animal, air, air, animal]) + noise


def test_meta_clusters_are_the_planted_ones_and_leave_out_dead_concepts(directions, device):
    alive = torch.tensor([True] * 5 + [False], device=device)
    found = meta_clusters(directions.to(device), alive, 2).tolist()
    assert found[0] == found[1] == found[2] != found[3] == found[4]
    assert set(found[:5]) == {0, 1}
    assert found[5] == -1
    assert meta_clusters(directions[:1], alive[:1].cpu(), 1).tolist() == [0]
    with pytest.raises(ValueError, match="n_clusters must be 1 to 5, got 6"):
        meta_clusters(directions, alive, 6)


def test_strengths_are_sums_of_means_and_clusters_are_called_by_their_strongest():
    codes = torch.tensor([[1.0, 3, 0, 0, 0, 0], [2, 3, 0, 1, 0, 0], [0, 0, 0, 4, 6, 0]])
    classes, clusters = torch.tensor([0, 0, 1]), torch.tensor([0, 0, 0, 1, 1, -1])
    strength, names = cluster_strengths(codes, classes, clusters, NAMES, n_named=2)
    assert strength.tolist() == [[4.5, 0], [0.5, 10]]
    assert names == ["hair, fur", "cloud, sky"]
    _, names = cluster_strengths(codes, classes, clusters, ["a", "a", "a", "b", "c", "d"])
    assert names == ["a", "c, b"]


def test_figures(tmp_path, directions):
    codes = torch.rand(20, 6, generator=torch.Generator().manual_seed(0))
    clusters = meta_clusters(directions, torch.ones(6), 3)
    figure = meta_cluster_figure(codes, torch.arange(20) % 2, clusters, NAMES, ["cat", "kite"])
    figure.savefig(tmp_path / "clusters.png")
    pictures = torch.zeros(20, 3, 8, 8) + torch.arange(20)[:, None, None, None] / 20
    tasks = {"zoo": codes, "weather": codes.flip(0)}
    figure = task_figure(tasks, {"zoo": pictures, "weather": pictures}, [0, 4], NAMES, n_pictures=2)
    figure.savefig(tmp_path / "tasks.png")
    shown = [float(ax.images[0].get_array().mean()) for ax in figure.axes if ax.images]
    first = codes[:, 0].argsort(descending=True)[:2]
    assert shown[:2] == pytest.approx((first / 20).tolist())
    assert shown[2:4] == pytest.approx(((19 - first) / 20).tolist())
    with pytest.raises(ValueError, match="'zoo' has 20 codes for 3 pictures"):
        task_figure(tasks, {"zoo": pictures[:3], "weather": pictures}, [0], NAMES)
    with pytest.raises(ValueError, match="pictures of \\['zoo'\\]"):
        task_figure(tasks, {"zoo": pictures}, [0], NAMES)
