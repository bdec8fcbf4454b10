"""Concept matrix search, against correlations computed one by one."""

import numpy as np
import pytest
import torch

from conceptlens.bottleneck.matrix_search import concept_matrix_search, search_by_text


def test_equals_the_correlation_of_each_picture_with_each_class(device):
    generator = torch.Generator().manual_seed(0)
    v = torch.rand(7, 12, generator=generator, dtype=torch.float64)
    t = torch.rand(4, 12, generator=generator, dtype=torch.float64)
    found = concept_matrix_search(v.to(device), t.to(device))
    for i in range(7):
        for y in range(4):
            truth = np.corrcoef(v[i].numpy(), t[y].numpy())[0, 1]
            assert float(found[i, y]) == pytest.approx(truth, abs=1e-12)
    # How like the concepts a picture is as a whole says nothing.
    torch.testing.assert_close(concept_matrix_search((3 * v + 2).to(device), t.to(device)), found)


def test_constant_rows_are_like_no_class():
    found = concept_matrix_search(torch.full((1, 5), 0.25), torch.rand(3, 5))
    assert torch.equal(found, torch.zeros(1, 3))


def test_by_text_finds_the_class_of_pictures_that_hold_its_concepts():
    words = ["stripes", "hooves", "wings", "beak", "zebra", "parrot"]
    space = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0))).Q
    vectors = dict(zip(words[:4], space[:4], strict=True))
    vectors["zebra"] = space[0] + space[1] + space[4]
    vectors["parrot"] = space[2] + space[3] + space[5]

    def encode(texts):
        return torch.stack([vectors[text] for text in texts])

    pictures = torch.stack([space[0] + 0.5 * space[1], space[2], space[3] - space[0]])
    found = search_by_text(pictures, ["zebra", "parrot"], words[:4], encode)
    assert found.argmax(1).tolist() == [0, 1, 1]
    scaled = search_by_text(9 * pictures.numpy(), ["zebra", "parrot"], words[:4], encode)
    torch.testing.assert_close(scaled, found)


def test_refusals():
    with pytest.raises(ValueError, match=r"class_similarities must have shape .*k = 5.*\(3, 4\)"):
        concept_matrix_search(torch.rand(2, 5), torch.rand(3, 4))
    with pytest.raises(ValueError, match="NaN"):
        concept_matrix_search(torch.full((2, 5), torch.nan), torch.rand(3, 5))
    with pytest.raises(ValueError, match=r"text embeddings must have shape .*e = 6"):
        search_by_text(torch.rand(2, 6), ["a"], ["b"], lambda texts: torch.ones(len(texts), 5))
