"""Hostile files for the three readers: nothing but the documented errors.

Manifests of stores, saved explanations and pictures are mutated: bytes flipped, cut, doubled and
spliced; entries of JSON replaced by other types, huge numbers, NaN, paths that lead elsewhere and
deep nesting, then sealed again with a right checksum, so that the checks behind it are reached. A
reader may accept what is left valid, or raise StoreError (`ActivationStore.open`), ValueError
(`Explanation.load`) or UnreadableImageError (`read_image`). Anything else is printed with its case.

Run with ``python benchmarks/fuzz.py --cases 200000``.
"""

import argparse
import hashlib
import io
import json
import os
import random
import resource
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")
sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "faults"))

import torch
from artefacts import build, explanation
from PIL import Image
from tables import goal, show

from conceptlens import ActivationStore, Explanation, StoreError
from conceptlens.images import UnreadableImageError, read_image
from conceptlens.sealing import SUM, seal

# Small pictures that claim to be large are as telling as large ones, and faster.
MAX_PIXELS = 10**6
DEEP = "[" * 3000 + "]" * 3000
HOSTILE: list[Any] = [
    None, True, False, 0, -1, 1, 2, 10**9, -(10**9), 2**63, 10**400, 0.5, -0.0, 1e308,
    float("nan"), float("inf"), "", "a", "float32", "float64", "../a", "/etc/passwd", "a\0b",
    "\ud800", "<script>", "x" * 10**4, [], [[]], {}, {"": []}, [1, 2], [10**9, 10**9], {"a": 1},
]  # fmt: skip


def mutated_bytes(data: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    """A few random changes to bytes."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 8))):
        i = chance.randrange(len(changed) + 1)
        j = min(len(changed), i + chance.choice((1, 2, 4, 16, 64)))
        what = chance.randrange(7)
        if what == 0 and i < len(changed):
            changed[i] ^= 1 << chance.randrange(8)
        elif what == 1 and i < len(changed):
            changed[i] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        elif what == 2:
            changed[i:i] = chance.randbytes(j - i)
        elif what == 3:
            del changed[i:j]
        elif what == 4:
            changed[i:i] = changed[i:j] * chance.choice((1, 2, 50))
        elif what == 5:
            other = chance.choice(others)
            k = chance.randrange(len(other))
            changed[i:j] = other[k : k + j - i]
        elif chance.random() < 0.2:
            del changed[i:]
    return bytes(changed)


def mutated_json(record: Any, chance: random.Random) -> Any:
    """One entry, anywhere, replaced, removed, doubled or moved."""
    record = json.loads(json.dumps(record))
    nodes: list[tuple[Any, Any]] = []

    def collect(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)):
            nodes.append((node, key))
            if isinstance(node[key], (dict, list)):
                collect(node[key])

    collect(record)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        node, key = chance.choice(nodes)
        what = chance.randrange(6)
        try:
            if what == 0:
                del node[key]
            elif what == 1:
                other, other_key = chance.choice(nodes)
                node[key] = json.loads(json.dumps(other[other_key]))
            elif what == 2 and isinstance(node, list):
                node.append(node[key])
            elif what == 3 and isinstance(node[key], (int, float)):
                node[key] += chance.choice((-1, 1, 0.5, 10**6))
            else:
                node[key] = chance.choice(HOSTILE)
        except (KeyError, IndexError, OverflowError):  # removed by an earlier change, or huge
            continue
    return record


def mutated_header(data: bytes, chance: random.Random) -> bytes:
    """A safetensors file whose header has other entries; ValueError if it has no header."""
    size = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(mutated_json(json.loads(data[8:size]), chance)).encode()
    return len(header).to_bytes(8, "little") + header + data[size:]


def text_of(record: Any, chance: random.Random) -> bytes:
    """JSON, most often sealed anew; sometimes with a key given twice or nested deeply."""
    kind = chance.random()
    if kind < 0.8:
        return seal({name: item for name, item in record.items() if name != SUM})
    text = json.dumps(record)
    name = chance.choice(list(record) or ["a"])
    if kind < 0.9:
        text = text[:-1] + f", {json.dumps(name)}: {json.dumps(chance.choice(HOSTILE))}}}"
    elif kind < 0.92:
        text = text[:-1] + f', "deep": {DEEP}}}'
    return text.encode()


def resealed(data: bytes) -> bytes:
    """JSON with a right checksum, so that what lies behind it is reached; else the bytes."""
    try:
        record = json.loads(data)
        return seal({name: item for name, item in record.items() if name != SUM})
    except (ValueError, AttributeError, RecursionError):
        return data


class Manifests:
    """Stores whose manifest is mutated."""

    name, documented = "ActivationStore.open", StoreError

    def __init__(self, folder: Path) -> None:
        build(folder)
        self.folder, self.file = folder, folder / "manifest.json"
        self.data = self.file.read_bytes()
        self.record, self.seeds = json.loads(self.data), [self.data]

    def put(self, data: bytes) -> None:
        self.file.write_bytes(resealed(data))

    def write(self, chance: random.Random) -> bytes:
        if chance.random() < 0.3:
            data = mutated_bytes(self.data, chance, [self.data])
        else:
            data = text_of(mutated_json(self.record, chance), chance)
        self.file.write_bytes(data)
        return data

    def read(self) -> None:
        store = ActivationStore.open(self.folder)
        repr(store)
        assert len(store[:]) == len(store.names) == len(store)


class Explanations:
    """Saved explanations whose JSON or tensors are mutated, the sums made right again."""

    name, documented = "Explanation.load", ValueError

    def __init__(self, folder: Path) -> None:
        replace(explanation(), subconcepts={}).save(folder)
        self.folder = folder
        self.json, self.tensors = folder / "explanation.json", folder / "tensors.safetensors"
        self.data = {file: file.read_bytes() for file in (self.json, self.tensors)}
        self.record, self.seeds = json.loads(self.data[self.json]), list(self.data.values())

    def put(self, data: bytes) -> None:
        """Take it for the JSON if it looks so, for the tensors otherwise."""
        self._restore()
        if data.startswith(b"{"):
            self.json.write_bytes(resealed(data))
        else:
            self._put_tensors(data)

    def write(self, chance: random.Random) -> bytes:
        self._restore()
        what = chance.random()
        if what < 0.25:
            data = mutated_bytes(self.data[self.json], chance, list(self.data.values()))
            self.json.write_bytes(data)
        elif what < 0.75:
            data = text_of(mutated_json(self.record, chance), chance)
            self.json.write_bytes(data)
        else:
            data = self._mutated_tensors(chance)
            self._put_tensors(data)
        return data

    def _restore(self) -> None:
        for file, data in self.data.items():
            file.write_bytes(data)

    def _put_tensors(self, data: bytes) -> None:
        self.tensors.write_bytes(data)
        sums = self.record["files"] | {self.tensors.name: hashlib.sha256(data).hexdigest()}
        record = self.record | {"files": sums}
        del record[SUM]
        self.json.write_bytes(seal(record))

    def _mutated_tensors(self, chance: random.Random) -> bytes:
        data = self.data[self.tensors]
        if chance.random() < 0.5:
            size = 8 + int.from_bytes(data[:8], "little")
            return mutated_bytes(data[:size], chance, [data]) + data[size:]
        return mutated_header(data, chance)

    def read(self) -> None:
        found = Explanation.load(self.folder)
        repr(found)
        for concept in found.concepts:
            for crop in concept.crops:
                assert found.pixels(crop).numel()
        found.waterfall(0)


class PictureFiles:
    """Small pictures of every format, mutated."""

    name, documented = "read_image", UnreadableImageError
    FORMATS = ("PNG", "JPEG", "GIF", "BMP", "PPM", "TIFF", "WEBP")

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.file = folder / "picture"
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (9, 12, 4), generator=generator, dtype=torch.uint8).numpy()
        rgba = Image.fromarray(pixels, "RGBA")
        self.seeds = [_encoded(rgba.convert("RGB"), kind) for kind in self.FORMATS]
        self.seeds += [_encoded(rgba, "PNG"), _encoded(rgba.convert("P"), "PNG")]
        wide = Image.fromarray(pixels[..., 0].astype("uint16") * 257)
        self.seeds += [_encoded(wide, "PNG"), _encoded(rgba.convert("CMYK"), "JPEG")]
        exif = Image.Exif()
        exif[0x0112] = 6
        self.seeds.append(_encoded(rgba.convert("RGB"), "JPEG", exif=exif.tobytes()))

    def put(self, data: bytes) -> None:
        self.file.write_bytes(data)

    def write(self, chance: random.Random) -> bytes:
        data = mutated_bytes(chance.choice(self.seeds), chance, self.seeds)
        self.put(data)
        return data

    def read(self) -> None:
        picture = read_image(self.file)
        assert picture.mode == "RGB"
        assert picture.width * picture.height <= MAX_PIXELS


def _encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


READERS: tuple[tuple[Callable[[Path], Any], float], ...] = (
    (Manifests, 0.4), (Explanations, 0.25), (PictureFiles, 0.35),
)  # fmt: skip


def fuzz(reader: Any, cases: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Read `cases` mutations; the outcomes, and what was not documented."""
    counts: Counter[str] = Counter()
    found: list[str] = []
    for i in range(cases):
        data = reader.write(random.Random(f"{reader.name} {seed} {i}"))
        try:
            reader.read()
            counts["accepted"] += 1
        except reader.documented:
            counts["refused"] += 1
        except Exception as error:
            counts["undocumented"] += 1
            found.append(f"{reader.name} case {i}: {error!r:.200} for {data[:300]!r}")
    return counts, found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    torch.set_num_threads(1)
    rows, complaints = [], []
    with tempfile.TemporaryDirectory() as folder:
        for i, (make, share) in enumerate(READERS):
            reader = make(Path(folder, str(i)))
            start, n = time.perf_counter(), round(share * options.cases)
            counts, found = fuzz(reader, n, options.seed)
            outcomes = (counts[o] for o in ("accepted", "refused", "undocumented"))
            rows.append([reader.name, n, *outcomes, f"{time.perf_counter() - start:.0f}"])
            complaints += found
    rows.append(["all", *(sum(row[i] for row in rows) for i in range(1, 5)), ""])
    head = ("reader", "cases", "accepted", "refused", "undocumented errors", "seconds")
    show("Mutated files", head, rows)
    print(f"\nmost memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    goal("mutated files read", rows[-1][1], 200_000, "")
    goal("undocumented errors", rows[-1][4], 0, "", most=True)
    for complaint in complaints[:20]:
        print("UNDOCUMENTED:", complaint)
    return int(bool(complaints))


if __name__ == "__main__":
    sys.exit(main())
