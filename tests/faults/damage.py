"""Damage to files that were written whole: flipped bits, cut, swapped, removed."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from artefacts import Artefact, frozen
from outcome import Outcomes

Files = dict[str, bytes]


def damages(files: Files, chance: random.Random, n: int) -> Iterator[tuple[str, Files]]:
    """Yield (kind, the files as they are after one fault); n flips and as many of the others."""
    places = [(name, i) for name, data in files.items() for i in range(len(data))]
    for name, i in places if len(places) <= n else chance.sample(places, n):
        yield "a bit flipped", files | {name: flipped(files[name], i, chance.randrange(8))}
    names = list(files)
    for _ in range(n // 4):
        name = chance.choice(names)
        data = files[name]
        yield "truncated", files | {name: data[: chance.randrange(len(data))]}
        i = chance.randrange(len(data))
        yield (
            "a block zeroed",
            files | {name: data[:i] + bytes(len(data[i : i + 64])) + data[i + 64 :]},
        )
        yield "bytes appended", files | {name: data + chance.randbytes(chance.randrange(1, 64))}
    for name in names:
        yield "zero length", files | {name: b""}
        yield "removed", {other: data for other, data in files.items() if other != name}
    pairs = [(a, b) for a in names for b in names if a < b and files[a] != files[b]]
    for a, b in pairs if len(pairs) <= n else chance.sample(pairs, n):
        yield "two files swapped", files | {a: files[b], b: files[a]}


def flipped(data: bytes, i: int, bit: int) -> bytes:
    changed = bytearray(data)
    changed[i] ^= 1 << bit
    return bytes(changed)


def inject(artefact: Artefact, folder: Path, outcomes: Outcomes, n: int, seed: int) -> None:
    """Do each damage to a fresh copy, read it, and write it anew."""
    empty = folder / "empty"
    empty.mkdir(parents=True)
    right = {frozen(artefact.read(empty))} if artefact.optional else set()
    artefact.write(folder / "whole")
    files = files_of(folder / "whole")
    place = folder / "damaged"
    put(files, place)
    right.add(frozen(artefact.read(place)))
    for i, (kind, damaged) in enumerate(damages(files, random.Random(seed), n)):
        put(damaged, place)
        error = outcomes.read(kind, artefact, place, right)
        if error is not None and (kind != "a bit flipped" or i % 20 == 0):
            outcomes.next_run(kind, artefact, place, right, lambda e=error: mend(place, e))


def mend(place: Path, error: Exception) -> None:
    """Do what the message says: delete the folder, or else the file that it names."""
    if "delete the folder" in str(error):
        shutil.rmtree(place)
        return
    for name in files_of(place):
        if str(place / name) in str(error):
            (place / name).unlink()


def files_of(folder: Path) -> Files:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != ".lock"
    }


def put(files: Files, folder: Path) -> None:
    """Make `folder` hold these files and no others."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
