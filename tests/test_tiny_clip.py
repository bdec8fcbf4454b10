"""The tiny CLIP learns what is in planted pictures, and names the units found in it."""

import pytest
import torch
from sklearn.metrics import roc_auc_score

from conceptlens import SparseAutoencoder
from conceptlens.datasets import Formula, PlantedConcepts, tiny_clip, zoo
from conceptlens.naming import by_dissection, by_text, vocabulary

pytest.importorskip("open_clip")
CONCEPTS = ["red disc", "blue square", "yellow star", "green triangle"]


@pytest.fixture(scope="module")
def data():
    return PlantedConcepts(1500, 40, CONCEPTS, Formula({"yes": "red disc"}))


@pytest.fixture(scope="module")
def clip(data):
    return tiny_clip(data)


def test_texts_tell_the_pictures(data, clip):
    test = data.like(300, seed=9)
    cosines = clip.encode_image(test.images) @ clip.encode_words(CONCEPTS).T
    for present, cosine in zip(test.concepts.T, cosines.T, strict=True):
        assert roc_auc_score(present.numpy(), cosine.numpy()) >= 0.95


def test_the_backbone_is_a_zero_shot_classifier(data, clip):
    test = data.like(300, seed=9)
    bb = clip.backbone(CONCEPTS, "visual")
    single = test.render(torch.eye(4, dtype=torch.bool)[torch.arange(300) % 4])[0]
    assert (bb(single).argmax(1) == torch.arange(300) % 4).double().mean() >= 0.9
    embeddings = torch.nn.functional.normalize(bb.activations(single)[:, 0], dim=1)
    torch.testing.assert_close(embeddings, clip.encode_image(single), atol=1e-5, rtol=1e-4)


def test_units_get_the_names_of_what_they_fire_on(data, clip):
    test = data.like(500, seed=9)
    words = [*CONCEPTS, *vocabulary()[:300]]
    x, probe = clip.encode_image(data.images), clip.encode_image(test.images)
    sae = SparseAutoencoder(16, sparsity=3, n_epochs=60, batch_size=256).fit(x)
    random = torch.randn(50, x.shape[1], generator=torch.Generator().manual_seed(0))
    codes = torch.cat([sae.transform(probe), ((probe - x.mean(0)) @ random.T).relu()], 1)
    auc = torch.tensor(
        [[roc_auc_score(y, u) for y in test.concepts.T.numpy()] for u in codes[:, :16].T.numpy()]
    )
    matched = (auc.amax(1) >= 0.9).nonzero().flatten().tolist()
    assert len({int(auc[i].argmax()) for i in matched}) >= 3
    cosines = probe @ clip.encode_words(words).T
    for names in (
        by_text(torch.cat([sae.components_, random]), words, clip.encode_words),
        by_dissection(codes, cosines, words),
    ):
        right = [i for i in matched if names[i] == CONCEPTS[int(auc[i].argmax())]]
        assert len(right) >= 0.8 * len(matched)
        sure = torch.cat([names.confidence[right], names.confidence[16:]])
        assert roc_auc_score([1] * len(right) + [0] * 50, sure.numpy()) >= 0.9


def test_trained_once_then_read(data, clip, monkeypatch):
    monkeypatch.setattr("conceptlens.datasets.tiny_clip._train", None)
    again = tiny_clip(data)
    x = data.images[:2]
    assert torch.equal(again.encode_image(x), clip.encode_image(x))
    assert not again.model.training


def test_the_source_is_part_of_the_key(data):
    plain = zoo.data_key(data, 0)
    assert zoo.data_key(data, 0, (*zoo.SOURCES, "tiny_clip.py")) != plain
