"""The tiny CLIP knows what is in planted pictures, and names the units found in it."""

import pytest
import torch
from sklearn.metrics import roc_auc_score

from conceptlens import Backbone, SparseAutoencoder
from conceptlens.datasets import Formula, PlantedConcepts, TinyCLIP, tiny_clip, zoo
from conceptlens.datasets.planted import CONCEPTS
from conceptlens.naming import by_dissection, by_text, vocabulary

pytest.importorskip("open_clip")
module = pytest.importorskip("conceptlens.datasets.tiny_clip")


@pytest.fixture(scope="module")
def test():
    return PlantedConcepts(400, seed=9)


@pytest.fixture(scope="module")
def clip():
    return tiny_clip(PlantedConcepts(1))


@pytest.fixture(scope="module")
def cosines(test, clip):
    return clip.encode_image(test.images) @ clip.encode_words(CONCEPTS).T


def little(seed=0):
    return PlantedConcepts(
        64, 32, ["red disc", "blue square"], Formula({"yes": "red disc"}), seed=seed
    )


def weights(model):
    return torch.cat([value.flatten().double() for value in model.state_dict().values()])


def test_each_concept_is_told_by_its_text(test, cosines):
    for concept, present, cosine in zip(CONCEPTS, test.concepts.T, cosines.T, strict=True):
        assert roc_auc_score(present.numpy(), cosine.numpy()) >= 0.95, concept


def test_texts_of_two_things_mean_both(test, clip):
    text = clip.encode_text(["a picture of a red disc and a blue square"])
    cosine = clip.encode_image(test.images) @ text[0]
    both = test.concepts[:, :2].all(1)
    assert roc_auc_score(both.numpy(), cosine.numpy()) >= 0.95


def test_the_backbone_is_a_zero_shot_classifier(test, clip, tmp_path):
    truth = torch.arange(len(test)) % len(CONCEPTS)
    single = test.render(torch.eye(len(CONCEPTS), dtype=torch.bool)[truth])[0][:160]
    backbone = clip.backbone(CONCEPTS, "visual")
    logits = backbone(single)
    assert (logits.argmax(1) == truth[:160]).double().mean() >= 0.9
    embeddings = torch.nn.functional.normalize(backbone.activations(single)[:, 0], dim=1)
    torch.testing.assert_close(embeddings, clip.encode_image(single), atol=1e-5, rtol=1e-4)
    folder = clip.save(tmp_path / "clip")
    read = Backbone.from_open_clip(folder, None, classes=CONCEPTS, templates=module.TEMPLATES)
    torch.testing.assert_close(read(single), logits, atol=1e-4, rtol=1e-4)


def test_units_get_the_names_of_what_they_fire_on(clip):
    # A part of a concept's name ("ring") means the concept where no other has it.
    parts = {part for concept in CONCEPTS for part in concept.split()}
    words = [*CONCEPTS, *(word for word in vocabulary() if word not in parts)]
    sparse = PlantedConcepts(800, prevalence=0.25, seed=5)
    test = sparse.like(400, seed=9)
    x, probe = clip.encode_image(sparse.images), clip.encode_image(test.images)
    sae = SparseAutoencoder(12, sparsity=4, n_epochs=200, batch_size=128).fit(x)
    random = torch.randn(50, x.shape[1], generator=torch.Generator().manual_seed(0))
    codes = torch.cat([sae.transform(probe), ((probe - x.mean(0)) @ random.T).relu()], 1)
    auc = torch.tensor(
        [[roc_auc_score(y, u) for y in test.concepts.T.numpy()] for u in codes[:, :12].T.numpy()]
    )
    matched = (auc.amax(1) >= 0.9).nonzero().flatten().tolist()
    assert len({int(auc[i].argmax()) for i in matched}) >= 6
    cosines = probe @ clip.encode_words(words).T
    for names in (
        by_text(torch.cat([sae.components_, random]), words, clip.encode_words),
        by_dissection(codes, cosines, words),
    ):
        right = [i for i in matched if names[i] == CONCEPTS[int(auc[i].argmax())]]
        assert len(right) >= 0.8 * len(matched), names.method
        sure = torch.cat([names.confidence[right], names.confidence[12:]])
        assert roc_auc_score([1] * len(right) + [0] * 50, sure.numpy()) >= 0.9, names.method


def test_the_package_carries_the_default_kind(monkeypatch, clip):
    monkeypatch.setattr(module, "train", None)
    again = tiny_clip(PlantedConcepts(9, rule=Formula({"yes": "red disc"}), seed=3))
    assert torch.equal(weights(again.model), weights(clip.model))
    assert not again.model.training
    assert module.SHIPPED.stat().st_size < 2e6


def test_training_is_repeatable_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(module, "N_STEPS", 3)
    first = weights(tiny_clip(little()).model)
    for path in (tmp_path / "conceptlens" / "zoo").glob("*.safetensors"):
        path.unlink()
    assert torch.equal(weights(tiny_clip(little()).model), first)
    for other in (tiny_clip(little(), seed=1), tiny_clip(little(seed=1))):
        assert not torch.equal(weights(other.model), first)
    monkeypatch.setattr(module, "train", None)
    assert torch.equal(weights(tiny_clip(little()).model), first)


def test_packing_leaves_out_words_that_stayed(monkeypatch):
    monkeypatch.setattr(module, "N_STEPS", 3)
    data = little()
    start, model = module.build(32, 0), module.build(32, 0)
    module.train(TinyCLIP(model, 32), data, 0)
    packed = module.pack(model, start)
    assert 5 <= len(packed["moved"]) <= 30
    again = module.unpack(packed, start).state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(again[name], value, atol=1e-3, rtol=1e-3)


def test_texts_are_true_of_some_picture_and_things_are_equally_often_alone():
    generator = torch.Generator().manual_seed(1)
    prevalence = torch.tensor([0.02, 0.3, 0.5, 0.9])
    present = (torch.rand(200, 4, generator=generator) < prevalence).float()
    said = torch.cat([module._some(present, generator) for _ in range(60)])
    sizes = said.sum(1)
    assert sizes.min() == 1
    assert sizes.max() >= 3
    assert (said @ present.T == sizes[:, None]).any(1).all()
    assert said[sizes == 1].mean(0).min() >= 0.12


def test_the_source_is_part_of_the_key():
    plain = zoo.data_key(little(), 0)
    assert zoo.data_key(little(), 0, (*zoo.SOURCES, "tiny_clip.py")) != plain
