"""Readers of data sets: tiny copies of the real file layouts, read against hand-written truth."""

import os
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from conceptlens import Pictures
from conceptlens.datasets.awa2 import AwA2
from conceptlens.datasets.broden import Broden
from conceptlens.datasets.celeba import CelebA
from conceptlens.datasets.cub import CUB
from conceptlens.datasets.derm7pt import CRITERIA, Derm7pt
from conceptlens.datasets.tables import DatasetError, read_table
from conceptlens.datasets.textile import Textile

NAN = float("nan")


def write(root, files):
    """Write texts and, for a name of a picture, a picture of (width, height, colour)."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_bytes(content.encode())
        else:
            width, height, colour = content
            Image.new("RGB", (width, height), colour).save(path)
    return root


def same(found, expected):
    torch.testing.assert_close(found, torch.tensor(expected), equal_nan=True)


# -- CUB-200-2011 ----------------------------------------------------------------------------------

ALBATROSS = "001.Black_footed_Albatross/Black_Footed_Albatross_{}.jpg"
FINCH = "035.Purple_Finch/Purple_Finch_0003_27492.jpg"
CUB_FILES = {
    "images.txt": (
        f"1 {ALBATROSS.format('0046_18')}\n2 {ALBATROSS.format('0009_34')}\n3 {FINCH}\n"
    ),
    "classes.txt": "1 001.Black_footed_Albatross\n2 035.Purple_Finch\n",
    "image_class_labels.txt": "1 1\n2 1\n3 2\n",
    "train_test_split.txt": "1 0\n2 1\n3 1\n",
    "bounding_boxes.txt": (
        "1 60.0 27.0 325.0 304.0\n2 139.0 30.0 153.0 264.0\n3 14.0 112.0 5.0 6.0\n"
    ),
    "parts/parts.txt": "1 back\n2 beak\n3 left_eye\n4 right_eye\n",
    "parts/part_locs.txt": (
        "1 1 0.0 0.0 0\n1 2 312.0 182.0 1\n1 3 0.0 0.0 0\n1 4 183.0 101.0 1\n"
        "2 1 228.0 138.0 1\n2 2 282.0 154.0 1\n2 3 0.0 0.0 0\n2 4 270.0 146.0 1\n"
        "3 1 10.0 11.0 1\n3 2 12.5 13.0 1\n3 3 14.0 15.0 1\n3 4 0.0 0.0 0\n"
    ),
    "attributes/certainties.txt": "1 not visible\n2 guessing\n3 probably\n4 definitely\n",
    "attributes/class_attribute_labels_continuous.txt": "0.0 47.5 100.0\n12.25 0.0 87.5\n",
    # The second picture's lines have the needless column of the original's pictures 2275 and 9364.
    "attributes/image_attribute_labels.txt": (
        "1 1 0 3 27.708000\n1 2 1 4 27.708000\n1 3 0 1 27.708\n"
        "2 1 1 2 0  1.509\n2 2 0 3 0  1.509\n2 3 1 4 0  1.509\n"
        "3 1 0 4 5.7\n3 3 1 3 5.7\n"
    ),
    "attributes/attributes.txt": (
        "1 has_bill_shape::curved_(up_or_down)\n2 has_eye_color::black\n"
        "3 has_size::large_(16_-_32_in)\n"
    ),
    f"images/{ALBATROSS.format('0046_18')}": (8, 6, "red"),
    f"images/{ALBATROSS.format('0009_34')}": (9, 7, "lime"),
    f"images/{FINCH}": (6, 8, "blue"),
}


def test_cub(tmp_path):
    data = CUB(write(tmp_path, CUB_FILES))
    assert len(data) == 2
    assert data.picture_names == [ALBATROSS.format("0009_34"), FINCH]
    assert data.class_names == ["Black_footed_Albatross", "Purple_Finch"]
    assert data.concept_names[0] == "has_bill_shape::curved_(up_or_down)"
    assert data.groups == {"has_bill_shape": [0], "has_eye_color": [1], "has_size": [2]}
    same(data.labels, [0, 1])
    same(data.concepts, [[1.0, 0.0, 1.0], [0.0, NAN, 1.0]])
    assert data.certainty.tolist() == [[2, 3, 4], [4, 0, 3]]
    assert data.certainty.dtype == torch.int8
    same(data.class_concepts, [[0.0, 0.475, 1.0], [0.1225, 0.0, 0.875]])
    assert data.part_names == ["back", "beak", "left_eye", "right_eye"]
    about = [[False, True, False, False], [False, False, True, True], [False] * 4]
    same(data.concept_parts, about)
    same(data.places(1).box, [14.0, 112.0, 19.0, 118.0])
    same(data.places(1).points, [[10.0, 11, 1], [12.5, 13, 1], [14, 15, 1], [0, 0, 0]])
    assert repr(data) == "CUB(2 pictures, 2 classes, 3 concepts, split='train')"
    assert CUB(tmp_path, "test").picture_names == [ALBATROSS.format("0046_18")]
    assert len(CUB(tmp_path, "all")) == 3


def test_cub_order_of_lines_does_not_matter(tmp_path):
    """Ids join the files, not the order of their lines."""
    plain = CUB(write(tmp_path / "a", CUB_FILES), "all")
    joined = ("class_labels", "split", "boxes", "part_locs", "image_attribute")
    turned = {
        name: "\n".join(reversed(text.splitlines())) + "\n"
        for name, text in CUB_FILES.items()
        if any(word in name for word in joined)
    }
    other = CUB(write(tmp_path / "b", {**CUB_FILES, **turned}), "all")
    assert plain.picture_names == other.picture_names
    assert torch.equal(plain.labels, other.labels)
    torch.testing.assert_close(plain.concepts, other.concepts, equal_nan=True)
    for i in range(3):
        assert torch.equal(plain.places(i).points, other.places(i).points)
        assert torch.equal(plain.places(i).box, other.places(i).box)


@pytest.mark.parametrize("place", ["attributes.txt", "../attributes.txt"])
def test_cub_attributes_beside_the_folder(tmp_path, place):
    """The archive unpacks attributes.txt beside CUB_200_2011."""
    root = write(tmp_path / "CUB_200_2011", CUB_FILES)
    (root / "attributes" / "attributes.txt").rename(root / place)
    assert len(CUB(root).concept_names) == 3


# -- Animals with Attributes 2 ---------------------------------------------------------------------

AWA2_FILES = {
    "classes.txt": "     1\tantelope\n     2\tgrizzly+bear\n     3\tkiller+whale\n",
    "predicates.txt": "     1\tblack\n     2\twhite\n",
    "predicate-matrix-binary.txt": "0 1 \n1 0 \n1 1 \n",
    "predicate-matrix-continuous.txt": "  0.00  12.34\n 39.25  -1.00\n 83.40 100.00\n",
    "trainclasses.txt": "killer+whale\nantelope\n",
    "testclasses.txt": "grizzly+bear\n",
    "JPEGImages/antelope/antelope_10002.jpg": (8, 6, "red"),
    "JPEGImages/antelope/antelope_10001.jpg": (8, 6, "red"),
    "JPEGImages/grizzly+bear/grizzly+bear_10001.jpg": (8, 6, "lime"),
    "JPEGImages/killer+whale/killer+whale_10001.jpg": (8, 6, "blue"),
}


def test_awa2(tmp_path):
    data = AwA2(write(tmp_path, AWA2_FILES))
    assert data.picture_names == [
        "antelope/antelope_10001.jpg",
        "antelope/antelope_10002.jpg",
        "killer+whale/killer+whale_10001.jpg",
    ]
    assert data.class_names == ["antelope", "grizzly+bear", "killer+whale"]
    assert data.concept_names == ["black", "white"]
    same(data.labels, [0, 0, 2])
    same(data.concepts, [[0.0, 1.0], [0.0, 1.0], [1.0, 1.0]])
    same(data.class_concepts, [[0.0, 0.1234], [0.3925, NAN], [0.834, 1.0]])
    assert AwA2(tmp_path, "test").labels.tolist() == [1]
    assert AwA2(tmp_path, "all").labels.tolist() == [0, 0, 1, 2]


# -- CelebA ----------------------------------------------------------------------------------------

CELEBA_FILES = {
    "list_attr_celeba.txt": (
        "3\nBald Eyeglasses Smiling \n"
        "000001.jpg -1  1  1\n000002.jpg  1 -1 -1\n000003.jpg -1 -1  1\n"
    ),
    "list_eval_partition.txt": "000001.jpg 0\n000002.jpg 1\n000003.jpg 0\n",
    "list_landmarks_align_celeba.txt": (
        "3\nlefteye_x lefteye_y righteye_x righteye_y nose_x nose_y leftmouth_x leftmouth_y "
        "rightmouth_x rightmouth_y\n"
        "000001.jpg 69  109  106  113   77  142   73  152  108  154\n"
        "000002.jpg 69  110  107  112   81  135   70  151  108  153\n"
        "000003.jpg 76  112  104  106  108  128   74  156   98  158\n"
    ),
    "img_align_celeba/000001.jpg": (8, 6, "red"),
    "img_align_celeba/000002.jpg": (8, 6, "lime"),
    "img_align_celeba/000003.jpg": (8, 6, "blue"),
}


def test_celeba(tmp_path):
    data = CelebA(write(tmp_path, CELEBA_FILES))
    assert data.picture_names == ["000001.jpg", "000003.jpg"]
    assert data.class_names == ["not Smiling", "Smiling"]
    assert data.concept_names == ["Bald", "Eyeglasses"]
    same(data.labels, [1, 1])
    same(data.concepts, [[0.0, 1.0], [0.0, 0.0]])
    assert data.part_names == ["lefteye", "righteye", "nose", "leftmouth", "rightmouth"]
    points = [[76.0, 112, 1], [104, 106, 1], [108, 128, 1], [74, 156, 1], [98, 158, 1]]
    same(data.places(1).points, points)
    other = CelebA(tmp_path, "val", target="Bald")
    assert other.concept_names == ["Eyeglasses", "Smiling"]
    assert other.labels.tolist() == [1]
    assert len(CelebA(tmp_path, "test")) == 0
    with pytest.raises(ValueError, match=r"target must be one of Bald, .*, got 'Hairy'"):
        CelebA(tmp_path, target="Hairy")


def test_celeba_in_the_folders_of_the_original(tmp_path):
    folder_of = {"list_e": "Eval", "list_a": "Anno", "list_l": "Anno", "img_al": "Img"}
    files = {f"{folder_of[name[:6]]}/{name}": text for name, text in CELEBA_FILES.items()}
    assert CelebA(write(tmp_path, files), "all").picture_names[0] == "000001.jpg"


# -- Broden ----------------------------------------------------------------------------------------

BRODEN_FILES = {
    # As Python's csv module writes it, with \r\n.
    "index.csv": (
        "image,split,ih,iw,sh,sw,color,object,part,material,scene,texture\r\n"
        "ade20k/a.jpg,train,8,12,4,6,ade20k/a_color.png,ade20k/a_object.png,"
        "ade20k/a_part_1.png;ade20k/a_part_2.png,,300,\r\n"
        "dtd/b.jpg,train,8,12,4,6,dtd/b_color.png,,,,,5;6\r\n"
        "opensurfaces/c.jpg,val,8,12,4,6,,,,opensurfaces/c_material.png,0,\r\n"
    ),
    "label.csv": (
        "number,name,category,frequency,coverage,syns\r\n"
        "1,red-c,color(289),289,9.140027,\r\n"
        "2,wall,object(15553);part(29),15582,0.6,\r\n"
        "3,leg,part(7),7,0.1,\r\n"
        '4,fabric,material(36);object(3),39,4.225474,"cloth;linen, raw"\r\n'
        "5,lined,texture(120),120,120.0,\r\n"
        "6,striped,texture(120),120,120.0,\r\n"
        "300,street-s,scene(2000),2000,2000.0,\r\n"
        "301,window,object(2000),2000,10.0,windowpane\r\n"
    ),
    "images/ade20k/a.jpg": (12, 8, "red"),
    "images/dtd/b.jpg": (12, 8, "lime"),
    "images/opensurfaces/c.jpg": (12, 8, "blue"),
    "images/ade20k/a_color.png": (6, 4, (1, 0, 0)),
    "images/dtd/b_color.png": (6, 4, (0, 0, 0)),
    "images/opensurfaces/c_material.png": (6, 4, (4, 0, 0)),
    "images/ade20k/a_part_1.png": (6, 4, (3, 0, 0)),
    "images/ade20k/a_part_2.png": (6, 4, (0, 0, 0)),
}


def make_broden(root, files=BRODEN_FILES):
    write(root, files)
    window = Image.new("RGB", (6, 4), (2, 0, 0))
    window.paste((301 - 256, 1, 0), (1, 0, 4, 2))  # left, top, right, bottom
    window.save(root / "images/ade20k/a_object.png")
    part = Image.new("RGB", (6, 4))
    part.putpixel((5, 3), (2, 0, 0))
    part.save(root / "images/ade20k/a_part_2.png")
    return root


def test_broden(tmp_path):
    data = Broden(make_broden(tmp_path))
    assert data.picture_names == ["ade20k/a.jpg", "dtd/b.jpg"]
    assert data.class_names == ["street-s"]
    assert data.concept_names == [
        *["red-c", "wall", "leg", "fabric", "lined", "striped", "street-s", "window"]
    ]
    assert data.groups == {
        "color": [0],
        "object": [1, 3, 7],
        "part": [1, 2],
        "material": [3],
        "scene": [6],
        "texture": [4, 5],
    }
    same(data.labels, [0, -1])
    truth = [[1.0, 1, 1, 0, NAN, NAN, 1, 1], [0.0, NAN, NAN, NAN, 1, 1, NAN, NAN]]
    same(data[0][2], truth[0])  # read alone
    same(data.concepts, truth)
    same(data[1][2], truth[1])  # and after all were read
    masks = data.places(0).masks
    assert masks.shape == (8, 4, 6)
    window = torch.zeros(4, 6, dtype=torch.bool)
    window[:2, 1:4] = True
    wall = ~window
    wall[3, 5] = True  # object and part together
    assert torch.equal(masks[7], window)
    assert torch.equal(masks[1], wall)
    assert masks[[0, 2, 6]].all()  # red everywhere, leg everywhere, the scene is of all pixels
    assert not masks[3:6].any()


def test_broden_of_some_categories(tmp_path):
    data = Broden(make_broden(tmp_path), categories=["object"])
    assert data.concept_names == ["wall", "fabric", "window"]
    same(data.labels, [0, -1])
    same(data.concepts, [[1.0, 0.0, 1.0], [NAN, NAN, NAN]])
    other = Broden(tmp_path, "val")
    assert other.labels.tolist() == [-1]  # its scene is 0, none
    same(other.concepts, [[NAN, NAN, NAN, 1.0, NAN, NAN, NAN, NAN]])
    with pytest.raises(ValueError, match=r"categories must be of color, .*, got \['smell'\]"):
        Broden(tmp_path, categories=["smell"])


# -- Derm7pt ---------------------------------------------------------------------------------------

DERM7PT_FILES = {
    "meta/meta.csv": (
        "case_num,diagnosis,seven_point_score,pigment_network,streaks,pigmentation,"
        "regression_structures,dots_and_globules,blue_whitish_veil,vascular_structures,"
        "level_of_diagnostic_difficulty,elevation,location,sex,management,clinic,derm,"
        "case_id,notes\n"
        "1,basal cell carcinoma,0,absent,absent,absent,absent,absent,absent,arborizing,"
        "medium,nodular,abdomen,female,excision,NEL/NEL025.JPG,NEL/Nel026.jpg,,\n"
        "2,melanoma (in situ),4,atypical,absent,diffuse irregular,blue areas,irregular,present,"
        'dotted,low,flat,back,male,excision,NEL/Nel032.jpg,NEL/Nel033.jpg,,"seen twice, unsure"\n'
        "3,clark nevus,1,typical,regular,absent,absent,regular,absent,absent,"
        "low,flat,back,male,no further examination,NEL/Nel034.jpg,NEL/Nel035.jpg,,\n"
    ),
    "meta/train_indexes.csv": "indexes\n1\n0\n",
    "meta/valid_indexes.csv": "indexes\n2\n",
    "meta/test_indexes.csv": "indexes\n2\n",
    **{f"images/NEL/Nel0{i}.jpg": (8, 6, "red") for i in (26, 32, 33, 34, 35)},
    "images/NEL/NEL025.JPG": (9, 7, "lime"),
}


def test_derm7pt(tmp_path):
    data = Derm7pt(write(tmp_path, DERM7PT_FILES))
    assert data.picture_names == ["NEL/Nel026.jpg", "NEL/Nel033.jpg"]
    assert data.diagnoses == ["basal cell carcinoma", "melanoma (in situ)"]
    assert data.class_names == [
        *["basal cell carcinoma", "nevus", "melanoma", "miscellaneous", "seborrheic keratosis"]
    ]
    same(data.labels, [0, 2])
    assert list(data.groups) == list(CRITERIA)
    present = [data.concept_names[j] for j in data.concepts[1].nonzero().flatten()]
    assert present == [
        "pigment_network::atypical",
        "streaks::absent",
        "pigmentation::diffuse irregular",
        "regression_structures::blue areas",
        "dots_and_globules::irregular",
        "blue_whitish_veil::present",
        "vascular_structures::dotted",
    ]
    for columns in data.groups.values():
        assert data.concepts[:, columns].sum(1).eq(1).all()
    assert Derm7pt(tmp_path, "val").diagnoses == ["clark nevus"]
    assert Derm7pt(tmp_path, modality="clinic").picture_names[0] == "NEL/NEL025.JPG"
    with pytest.raises(ValueError, match="modality must be derm or clinic, got 'x-ray'"):
        Derm7pt(tmp_path, modality="x-ray")


# -- Textile ---------------------------------------------------------------------------------------


def test_textile_layout(tmp_path, monkeypatch):
    for name, n in (("nominal", 10), ("local", 5), ("global", 5)):
        files = {f"{name}/textile_{i:04d}.jpg": (5, 5, "grey") for i in range(1, n + 1)}
        write(tmp_path, files)
    package = types.ModuleType("conformal_clip_data")
    package.textile_simulated_root = lambda: tmp_path
    monkeypatch.setitem(sys.modules, "conformal_clip_data", package)
    data = Textile("test")
    assert data.picture_names == [
        "nominal/textile_0005.jpg",
        "nominal/textile_0010.jpg",
        "local/textile_0005.jpg",
        "global/textile_0005.jpg",
    ]
    same(data.labels, [0, 0, 1, 2])
    same(data.concepts, [[0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert not set(data.picture_names) & set(Textile("train").picture_names)
    for path in (tmp_path / "local").iterdir():
        path.unlink()
    with pytest.raises(DatasetError, match=r"there are no pictures .*local"):
        Textile()


def test_textile_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "conformal_clip_data", None)
    with pytest.raises(ImportError, match="pip install conformal-clip-data"):
        Textile()


def test_textile_real():
    pytest.importorskip("conformal_clip_data")
    train, test = Textile(), Textile("test")
    assert train.labels.bincount().tolist() == [800, 400, 400]
    assert test.labels.bincount().tolist() == [200, 100, 100]
    assert not set(train.picture_names) & set(test.picture_names)
    x = torch.stack([Pictures(test)[i] for i in (0, 200, 300)])
    assert x.shape == (3, 3, 250, 250)
    assert (x.std((1, 2, 3)) > 0.05).all()


# -- what all have in common -----------------------------------------------------------------------

MAKERS = {
    CUB: CUB_FILES,
    AwA2: AWA2_FILES,
    CelebA: CELEBA_FILES,
    Broden: BRODEN_FILES,
    Derm7pt: DERM7PT_FILES,
}


def make(kind, root):
    return make_broden(root) if kind is Broden else write(root, MAKERS[kind])


@pytest.mark.parametrize("kind", MAKERS, ids=lambda kind: kind.__name__)
def test_common_shape(kind, tmp_path):
    data = kind(make(kind, tmp_path), "all")
    n, m = len(data), len(data.concept_names)
    assert len(data.picture_names) == len(data.paths) == n
    assert data.labels.shape == (n,)
    assert data.labels.dtype == torch.int64
    assert data.concepts.shape == (n, m)
    assert data.concepts.dtype == torch.float32
    assert data.labels.max() < len(data.class_names)
    for i, (picture, label, concepts) in enumerate(data[i] for i in range(n)):
        assert picture == data.paths[i]
        assert os.path.isfile(picture)
        assert label == data.labels[i]
        torch.testing.assert_close(concepts, data.concepts[i], equal_nan=True)
    with pytest.raises(IndexError):
        data[n]
    with pytest.raises(ValueError, match=r"split must be one of train, .*, got 'weekend'"):
        kind(tmp_path, "weekend")
    with pytest.raises(DatasetError, match=r"nowhere' is not a folder"):
        kind(tmp_path / "nowhere")


@pytest.mark.parametrize("kind", MAKERS, ids=lambda kind: kind.__name__)
def test_pictures_takes_them(kind, tmp_path):
    data = kind(make(kind, tmp_path), "all")
    pictures = Pictures(data)
    assert pictures.names == data.picture_names
    red = torch.tensor([1.0, 0.0, 0.0])[:, None, None]
    assert (pictures[0] - red).abs().max() < 0.05


def test_transform_makes_batches(tmp_path):
    def transform(picture):
        return torch.from_numpy(np.array(picture.resize((4, 4)))).movedim(-1, 0) / 255

    data = CUB(write(tmp_path, CUB_FILES), transform=transform)
    ((x, labels, concepts),) = DataLoader(data, batch_size=2)
    assert x.shape == (2, 3, 4, 4)
    assert labels.tolist() == [0, 1]
    torch.testing.assert_close(concepts, data.concepts, equal_nan=True)


# -- malformed files: (reader, file, what is changed, what the error says) -------------------------

MISSING = None
LABELS = "attributes/image_attribute_labels.txt"
LANDMARKS = "list_landmarks_align_celeba.txt"
MALFORMED = [
    (CUB, "images.txt", MISSING, "images.txt cannot be read: No such file"),
    (CUB, "attributes/attributes.txt", MISSING, "attributes.txt is missing"),
    (CUB, f"images/{FINCH}", MISSING, f"images.txt, line 3: the picture .*{FINCH} is missing"),
    (CUB, "images.txt", ("2 001", "1 001"), "images.txt, line 2: id 1 is given a second time"),
    (CUB, "images.txt", ("3 035", "three 035"), "images.txt, line 3: id is 'three', expected a wh"),
    (CUB, "images.txt", (f"3 {FINCH}", "3"), "images.txt, line 3: 1 columns, expected 2"),
    (CUB, "classes.txt", ("", ""), "classes.txt, line 1: the file ends before the first row"),
    (CUB, "image_class_labels.txt", ("3 2", "3 7"), "labels.txt, line 3: class 7 is unknown"),
    (CUB, "image_class_labels.txt", ("3 2", "4 2"), "line 3: image 4 is unknown: images.txt has"),
    (CUB, "image_class_labels.txt", ("\n3 2", ""), "images.txt, line 3: id 3 is unknown: image_c"),
    (CUB, "train_test_split.txt", ("2 1", "2 2"), "split.txt, line 2: train is 2, expected one"),
    (CUB, "bounding_boxes.txt", ("153.0", "wide"), "line 2: width is 'wide', expected a number"),
    (CUB, "bounding_boxes.txt", ("153.0", "nan"), "line 2: width is 'nan', expected a number"),
    (CUB, "parts/part_locs.txt", ("1 2 3", "1 9 3"), "part_locs.txt, line 2: part 9 is unknown"),
    (CUB, "parts/part_locs.txt", ("182.0 1", "182.0 1 7"), "line 2: 6 columns, expected 5"),
    (CUB, "parts/part_locs.txt", ("182.0 1", "182.0 3"), "line 2: visible is 3, expected one of"),
    (CUB, LABELS, ("2 3 1 4 0", "2 3 1 4 0 0"), "labels.txt, line 6: 7 columns, expected 5"),
    (CUB, LABELS, ("3 3 1 3 5.7", "3 3 1"), "labels.txt, line 8: 3 columns, expected 5"),
    (CUB, LABELS, ("3 3 1 3", "3 3 1.5 3"), "line 8: present is '1.5', expected a whole number"),
    (CUB, LABELS, ("3 3 1 3", "3 3 yes 3"), "line 8: present is 'yes', expected a whole number"),
    (CUB, LABELS, ("3 3 1 3", "3 3 2 3"), "line 8: present is 2, expected one of 0, 1"),
    (CUB, LABELS, ("3 3 1 3", "3 3 1 5"), "line 8: certainty is 5, expected one of 1, 2, 3, 4"),
    (CUB, LABELS, ("3 3 1 3", "3 4 1 3"), "line 8: attribute 4 is unknown: attributes.txt has"),
    (CUB, LABELS, ("3 3 1 3", "9 3 1 3"), "line 8: image 9 is unknown: images.txt has no such id"),
    (CUB, LABELS, ("3 3 1 3", "3 1 1 3"), "line 8: image 3, attribute 1 is given a second time"),
    (CUB, LABELS, ("2 1 1 2", "\n\n2 1 x 2"), "line 6: present is 'x'"),  # blank lines count
    (
        CUB,
        "attributes/class_attribute_labels_continuous.txt",
        ("47.5 ", ""),
        "continuous.txt, line 1: 2 columns, expected 3",
    ),
    (
        CUB,
        "attributes/class_attribute_labels_continuous.txt",
        ("\n12.25 0.0 87.5", ""),
        "continuous.txt, line 1: the file has 1 rows, expected 2",
    ),
    (AwA2, "predicates.txt", MISSING, "predicates.txt cannot be read"),
    (AwA2, "classes.txt", ("     2\t", ""), "classes.txt, line 2: 1 columns, expected 2"),
    (AwA2, "predicate-matrix-binary.txt", ("1 0 ", "1"), "binary.txt, line 2: 1 columns, expec"),
    (AwA2, "predicate-matrix-binary.txt", ("1 0", "1 ?"), "line 2: 1 is '?', expected a number"),
    (AwA2, "predicate-matrix-continuous.txt", ("-1.00", "-1.00 3"), "line 2: 3 columns, expected"),
    (AwA2, "predicate-matrix-binary.txt", ("1 1 ", "1 1\n0 0"), "line 4: the file has 4 rows, exp"),
    (AwA2, "trainclasses.txt", ("antelope", "unicorn"), "trainclasses.txt, line 2: name unicorn"),
    (
        AwA2,
        "JPEGImages/killer+whale/killer+whale_10001.jpg",
        MISSING,
        "classes.txt, line 3: there are no pictures",
    ),
    (CelebA, LANDMARKS, MISSING, "list_landmarks_align_celeba.txt is missing"),
    (CelebA, "list_attr_celeba.txt", ("3\n", "4\n"), "line 1: '4' pictures announced, 3 follow"),
    (CelebA, "list_attr_celeba.txt", ("-1\n", "\n"), "attr_celeba.txt, line 4: 3 columns, expec"),
    (CelebA, "list_attr_celeba.txt", ("-1\n", "0\n"), "line 4: Smiling is 0, expected one of -1"),
    (CelebA, "list_attr_celeba.txt", ("-1\n", "no\n"), "line 4: Smiling is 'no', expected a whol"),
    (CelebA, "list_eval_partition.txt", ("2.jpg 1", "2.jpg 3"), "partition.txt, line 2: part is 3"),
    (CelebA, "list_eval_partition.txt", ("002", "009"), "line 2: image 000009.jpg is unknown"),
    (CelebA, "list_eval_partition.txt", ("002", "001"), "line 2: image 000001.jpg is given a sec"),
    (CelebA, LANDMARKS, ("  153\n", "\n"), "landmarks_align_celeba.txt, line 4: 10 columns, exp"),
    (CelebA, LANDMARKS, ("nose_y", "nose_z"), "landmarks_align_celeba.txt, line 2: the columns"),
    (CelebA, "img_align_celeba/000003.jpg", MISSING, "line 5: the picture .*000003.jpg is missing"),
    (Broden, "index.csv", MISSING, "index.csv cannot be read"),
    (Broden, "index.csv", (",sw,", ",width,"), "index.csv, line 1: there is no column 'sw' among"),
    (Broden, "index.csv", (",5;6", ""), "index.csv, line 3: 11 columns, expected 12"),
    (Broden, "index.csv", ("8,12,4,6,,,", "8,12,four,6,,,"), "line 4: sh is 'four', expected a w"),
    (Broden, "index.csv", ("5;6", "5;77"), "index.csv, line 3: texture 77 is not in label.csv"),
    (Broden, "index.csv", ("c.jpg,val", "c.jpg,later"), "line 4: split is later, expected one of"),
    (Broden, "index.csv", (",,300", ',,"300'), "index.csv, line 4: unexpected end of data"),
    (Broden, "label.csv", ("3,leg", "2,leg"), "label.csv, line 4: number 2 is given a second tim"),
    (Broden, "label.csv", ("3,leg", "x,leg"), "label.csv, line 4: number is 'x', expected a who"),
    (Broden, "label.csv", ("part(7)", "part"), "label.csv, line 4: category is 'part', expected"),
    (Broden, "images/dtd/b.jpg", MISSING, "index.csv, line 3: the picture .*b.jpg is missing"),
    (Broden, "images/dtd/b_color.png", MISSING, "index.csv, line 3: the mask .*b_color.png is mi"),
    (Broden, "images/dtd/b_color.png", (5, 4, 0), "line 3: the mask .*png is 4×5, expected 4×6"),
    (Broden, "images/dtd/b_color.png", (6, 4, (7, 1, 0)), "line 3: the mask .*png holds 263, wh"),
    (Broden, "images/dtd/b_color.png", ("", "no"), "line 3: the mask .*png cannot be read"),
    (Derm7pt, "meta/meta.csv", MISSING, "meta.csv cannot be read"),
    (Derm7pt, "meta/meta.csv", (",derm,", ",dermoscopy,"), "meta.csv, line 1: there is no column"),
    (Derm7pt, "meta/meta.csv", ("atypical", "odd"), "line 3: pigment_network is odd, expected on"),
    (Derm7pt, "meta/meta.csv", ("clark nevus", "wart"), "meta.csv, line 4: diagnosis is wart, exp"),
    (Derm7pt, "meta/meta.csv", ("low,flat,back,male,no", "flat,no"), "line 4: 16 columns, expec"),
    (Derm7pt, "meta/train_indexes.csv", ("1\n", "3\n"), "line 2: index 3 is out of range: meta"),
    (Derm7pt, "meta/train_indexes.csv", ("0\n", "-1\n"), "line 3: index -1 is out of range: meta"),
    (Derm7pt, "meta/train_indexes.csv", ("0\n", "1\n"), "line 3: indexes 1 is given a second tim"),
    (Derm7pt, "meta/test_indexes.csv", ("2", "two"), "test_indexes.csv, line 2: indexes is 'two'"),
    (Derm7pt, "images/NEL/Nel033.jpg", MISSING, "meta.csv, line 3: the picture .*Nel033.jpg is m"),
]


@pytest.mark.parametrize(("kind", "file", "change", "message"), MALFORMED)
def test_malformed(kind, file, change, message, tmp_path):
    path = make(kind, tmp_path) / file
    if change is MISSING:
        path.unlink()
    elif len(change) == 3:
        write(tmp_path, {file: change})
    elif change[0] == "":
        path.write_text(change[1])
    else:
        text = path.read_bytes().decode()
        assert change[0] in text
        path.write_bytes(text.replace(*change, 1).encode())
    with pytest.raises(DatasetError, match=message.replace("'?'", r"'\?'").replace("+", r"\+")):
        kind(tmp_path, "all").concepts.sum()


def test_tables_of_other_systems_and_encodings(tmp_path):
    """A byte order mark, \\r\\n, and bytes that are no UTF-8."""
    path = tmp_path / "names.txt"
    path.write_bytes(b"\xef\xbb\xbf1 a b\r\n\r\n2 caf\xe9 \r\n")
    table = read_table(path, {"id": int, "name": str})
    assert table["id"].tolist() == [1, 2]
    assert table["name"].tolist() == ["a b", "caf\N{REPLACEMENT CHARACTER}"]
    assert str(table.error(1, "wrong")) == f"{path}, line 3: wrong"


def test_binary_file_in_place_of_a_table(tmp_path):
    path = tmp_path / "names.txt"
    Image.new("RGB", (64, 64), "red").save(path, "PNG")
    with pytest.raises(DatasetError, match=r"names\.txt, line 1: "):
        read_table(path, {"id": int, "name": int})
