"""Pictures: every format reads right, broken ones are named, crops cover what they say."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from conceptlens import Pictures, UnreadableImageError
from conceptlens.images import (
    crop_boxes,
    cut,
    denormalise,
    position_boxes,
    read_image,
    transform_fingerprint,
)

RED = (255, 0, 0)


def pixel(path, at=(0, 0)):
    return read_image(path).getpixel(at)


def test_formats(tmp_path):
    Image.new("RGB", (4, 4), RED).convert("P").save(tmp_path / "palette.png")
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("L", (4, 4), 128).save(tmp_path / "grey.png")
    Image.fromarray(np.full((4, 4), 32768, np.uint16)).save(tmp_path / "deep.png")
    assert pixel(tmp_path / "palette.png") == RED
    assert np.abs(np.subtract(pixel(tmp_path / "cmyk.jpg"), RED)).max() < 10
    assert pixel(tmp_path / "clear.png") == (255, 255, 255)
    assert pixel(tmp_path / "grey.png") == (128, 128, 128)
    assert set(pixel(tmp_path / "deep.png")) <= {127, 128}


def test_exif_orientation(tmp_path):
    picture = Image.new("RGB", (8, 4))
    exif = picture.getexif()
    exif[0x0112] = 6  # to be turned by a quarter
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").size == (4, 8)


def test_folder_is_sorted_and_nested(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("b/2.png", "a.PNG", "b/1.jpg"):
        Image.new("RGB", (4, 4), RED).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    found = Pictures(tmp_path)
    assert found.names == ["a.PNG", "b/1.jpg", "b/2.png"]
    assert found[0].shape == (3, 4, 4)
    assert found[0][0].eq(1).all()


@pytest.mark.parametrize(
    "images",
    [
        torch.rand(4, 3, 8, 8),
        [torch.rand(3, 8, 8)] * 4,
        [Image.new("L", (8, 8))] * 4,
        [np.zeros((8, 8, 3), np.uint8)] * 4,
        torch.zeros(4, 3, 8, 8, dtype=torch.uint8),
        TensorDataset(torch.rand(4, 3, 8, 8), torch.zeros(4)),
        DataLoader(TensorDataset(torch.rand(4, 3, 8, 8))),
    ],
)
def test_sources(images):
    batches = list(Pictures(images).batches(3))
    assert [indices for indices, _ in batches] == [[0, 1, 2], [3]]
    assert batches[0][1].shape == (3, 3, 8, 8)


def test_broken_pictures_are_left_out_and_named(tmp_path):
    for i in range(3):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:40])
    with pytest.warns(UserWarning, match=r"1\.png"):
        ((indices, x),) = Pictures(tmp_path).batches(8)
    assert indices == [0, 2]
    assert torch.equal(Pictures([tmp_path / f"{i}.png" for i in (1, 2)]).first(), x[1:])
    assert len(x) == 2
    with pytest.raises(UnreadableImageError, match=r"1\.png"):
        list(Pictures([tmp_path / "1.png"]).batches(8))
    with pytest.raises(UnreadableImageError, match=r"1\.png"):
        Pictures([tmp_path / "1.png"]).first()


def test_fingerprint_is_of_content(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (4, 4), RED).save(tmp_path / folder / "x.png")
    first, second = (Pictures(tmp_path / f).fingerprints() for f in ("a", "b"))
    assert first == second
    Image.new("RGB", (4, 4)).save(tmp_path / "b" / "x.png")
    assert first != Pictures(tmp_path / "b").fingerprints()


def test_transform_fingerprint_is_of_behaviour():
    def half(picture):
        return torch.from_numpy(np.array(picture)).movedim(-1, 0) / 510

    assert transform_fingerprint(half) == transform_fingerprint(lambda p: half(p))
    assert transform_fingerprint(half) != transform_fingerprint(None)
    with pytest.raises(ValueError, match="random"):
        transform_fingerprint(lambda p: torch.rand(3, 2, 2))


def test_denormalise_undoes_the_transform():
    from torchvision import transforms as t

    transform = t.Compose([t.ToTensor(), t.Normalize([0.5, 0.4, 0.3], [0.2, 0.3, 0.4])])
    array = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    x = transform(Image.fromarray(array))[None]
    assert torch.equal(denormalise(x, transform)[0], torch.from_numpy(array).movedim(-1, 0))


def test_crops_are_their_boxes_and_reach_the_borders():
    x = torch.rand(2, 3, 50, 70)
    boxes = crop_boxes((50, 70), 20)
    patches = cut(x, boxes)
    for i, (left, top, right, bottom) in enumerate(boxes):
        assert torch.equal(patches[:, i], x[:, :, top:bottom, left:right])
    assert boxes[:, 2].max() == 70
    assert boxes[:, 3].max() == 50
    assert len(boxes.unique(dim=0)) == len(boxes)


def test_boxes_of_positions_lie_around_them_and_inside():
    boxes = position_boxes((40, 60), (2, 3), 20)
    assert boxes.tolist() == [[x, y, x + 20, y + 20] for y in (0, 20) for x in (0, 20, 40)]
    wide = position_boxes((40, 60), (2, 3), 30)
    assert wide[0].tolist() == [0, 0, 30, 30]  # its centre would be (10, 10)
    assert wide[4].tolist() == [15, 10, 45, 40]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda p: Pictures(p), ValueError, "empty of pictures"),
        (lambda p: Pictures(p / "none"), ValueError, "not a folder"),
        (lambda p: Pictures([]), ValueError, "no pictures"),
        (lambda p: Pictures(3), TypeError, "int"),
        (lambda p: Pictures(DataLoader(TensorDataset(torch.rand(4, 3, 8, 8)), shuffle=True)),
         ValueError, "shuffle=False"),
        (lambda p: Pictures(torch.rand(2, 1, 8, 8))[0], ValueError, r"\(1, 8, 8\)"),
        (lambda p: list(Pictures([torch.rand(3, 8, 8), torch.rand(3, 9, 8)]).batches(2)),
         ValueError, "picture 1 has shape"),
        (lambda p: crop_boxes((8, 8), 9), ValueError, "patch_size=9"),
        (lambda p: list(Pictures(torch.rand(2, 3, 8, 8)).batches(0)), ValueError, "batch_size"),
    ],
)  # fmt: skip
def test_bad_input(tmp_path, call, error, words):
    with pytest.raises(error, match=words):
        call(tmp_path)


def test_bomb_is_refused(tmp_path, monkeypatch):
    Image.new("RGB", (40, 40)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UnreadableImageError, match=r"bomb\.png"):
        read_image(tmp_path / "bomb.png")


@pytest.mark.parametrize(
    ("on", "method", "ranks", "expected"),
    [
        ("cpu", "fork", 1, 0),
        ("cuda", "fork", 1, 7),
        ("cuda", "fork", 4, 1),
        ("cuda", "fork", 16, 0),
        ("cuda", "spawn", 1, 0),  # each would run the user's script again
    ],
)
def test_processes_read_for_a_network_that_leaves_the_cores_free(
    monkeypatch, tmp_path, on, method, ranks, expected
):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr("multiprocessing.get_start_method", lambda **_: method)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert Pictures([tmp_path / "a.png"])._workers(torch.device(on)) == expected
    assert Pictures(torch.rand(2, 3, 4, 4))._workers(torch.device(on)) == 0


@pytest.mark.parametrize("num_workers", [0, 1])
def test_sizes_that_differ_are_named_by_workers_too(tmp_path, num_workers):
    for i, side in enumerate((8, 8, 9)):
        Image.new("RGB", (side, 8)).save(tmp_path / f"{i}.png")
    pictures = Pictures(tmp_path)
    pictures.num_workers = num_workers
    with pytest.raises(ValueError, match=r"^2.png has shape \(3, 8, 9\), 0.png has \(3, 8, 8\)"):
        list(pictures.read([range(3)]))


def test_memory_is_pinned_for_a_gpu_only(device):
    ((indices, x, errors),) = Pictures(torch.rand(3, 3, 4, 4)).read([range(3)], device)
    assert (indices, errors) == ([0, 1, 2], [])
    assert x.is_pinned() == (device.type == "cuda")
    torch.testing.assert_close(x.to(device, non_blocking=True).cpu(), x)
