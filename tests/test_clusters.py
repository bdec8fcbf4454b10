"""The strategic cluster graph, on pictures whose strategies are planted."""

import re

import pytest
import torch

from conceptlens.clusters import cluster_graph
from conceptlens.importance.result import Importance

NAMES = ["fur", "eyes", "<b>grass</b>", "sky"]


def importance(n_each=(20, 14, 8), noise=0.03, seed=0):
    """Three strategies: fur; eyes and grass; sky and fur."""
    centres = torch.tensor([[1.0, 0, 0, 0], [0, 0.55, 0.45, 0], [0.4, 0, 0, 0.6]])
    generator = torch.Generator().manual_seed(seed)
    truth = torch.arange(3).repeat_interleave(torch.tensor(n_each))
    rows = centres[truth] + noise * torch.rand(len(truth), 4, generator=generator)
    rows *= 1 + 5 * torch.rand(len(truth), 1, generator=generator)  # strength is no strategy
    result = Importance(rows.mean(0), rows.std(0), rows, "made up", "cat", NAMES)
    return result, truth


@pytest.mark.parametrize("n_each", [(20, 14, 8), (7, 5, 4)])
def test_planted_strategies_are_found_and_named(n_each):
    found, truth = importance(n_each)
    graph = cluster_graph(found)
    assert torch.equal(graph.clusters, truth)
    names = [re.sub(r" \d+ %", "", name) for name in graph.names]
    assert names == ["fur", "eyes + <b>grass</b>", "sky + fur"]
    assert 90 < int(re.search(r"fur (\d+) %", graph.names[0])[1]) < 100
    assert graph.sizes == list(n_each)
    assert (0, 2) in graph.edges
    again = cluster_graph(found)
    assert torch.equal(graph.points, again.points)


def test_one_strategy_is_one_cluster():
    generator = torch.Generator().manual_seed(0)
    rows = 1 + 0.2 * torch.rand(60, 12, generator=generator)
    result = Importance(rows.mean(0), rows.std(0), rows, "m", "cat", [str(i) for i in range(12)])
    graph = cluster_graph(result)
    assert len(graph) == 1
    assert graph.edges == []


def test_equal_pictures_and_one_concept_do_not_break_it():
    rows = torch.ones(15, 1)
    graph = cluster_graph(Importance(rows[0], rows[0], rows, "m", "cat", ["all"]))
    assert graph.names == ["all 100 %"]


def test_figure_and_refusals(tmp_path):
    found, _ = importance()
    cluster_graph(found, n_clusters=2).plot().figure.savefig(tmp_path / "graph.png")
    assert (tmp_path / "graph.png").stat().st_size > 5000
    few, _ = importance((3, 3, 3))
    with pytest.raises(ValueError, match="12 pictures or more, got 9"):
        cluster_graph(few)
    with pytest.raises(ValueError, match="n_clusters must be from 1 to 42"):
        cluster_graph(found, n_clusters=0)
