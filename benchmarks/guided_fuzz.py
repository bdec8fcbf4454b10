"""Hostile files that coverage guides: atheris mutates what `fuzz.py` starts from.

Each reader's file is replaced by atheris' bytes, JSON with a right checksum. Branches of
conceptlens and Pillow are counted, so that inputs that reach new code are kept and mutated on. JSON
is mutated by its entries most often, as `fuzz.py` does. Anything but the documented error stops it.

Run with ``python benchmarks/guided_fuzz.py read_image --seconds 60``; needs atheris. With
``--corpus FOLDER`` it goes on from the inputs of a folder and adds to them those that reach new
code; ``tests/corpus`` holds a small choice of these.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")

import atheris

COUNTED = ["conceptlens", "PIL"]

with atheris.instrument_imports(include=COUNTED):
    import fuzz
    from PIL import Image


def mutated(seeds: list[bytes], data: bytes, most: int, seed: int) -> bytes:
    """JSON, or a safetensors file's header, with other entries, most often; else other bytes."""
    chance = random.Random(seed)
    if chance.random() < 0.1:  # libFuzzer drops those that reach what another does
        data = chance.choice(seeds)
    try:
        if chance.random() < 0.8:
            if data.startswith(b"{"):
                changed = json.dumps(fuzz.mutated_json(json.loads(data), chance)).encode()
            else:
                changed = fuzz.mutated_header(data, chance)
            return changed if len(changed) <= most else data
    except (ValueError, TypeError, IndexError, RecursionError):  # no JSON, or nothing in it
        pass
    return bytes(atheris.Mutate(data, most))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    readers = {make.name: make for make, _ in fuzz.READERS}
    parser.add_argument("reader", choices=readers)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, help="where inputs lie and are added")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    Image.MAX_IMAGE_PIXELS = fuzz.MAX_PIXELS
    folder = Path(tempfile.mkdtemp())
    corpus = options.corpus or folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    with atheris.instrument_imports(include=COUNTED):  # what is imported when it is needed
        reader = readers[options.reader](folder / "files")
        for i, seed in enumerate(reader.seeds):
            (corpus / f"seed{i}").write_bytes(seed)
            reader.put(seed)
            reader.read()
    counts, start = {"accepted": 0, "refused": 0}, time.monotonic()

    def one(data: bytes) -> None:
        reader.put(data)
        try:
            reader.read()
            counts["accepted"] += 1
        except reader.documented:
            counts["refused"] += 1
        if time.monotonic() - start > options.seconds:
            outcomes = ", ".join(f"{n} {outcome}" for outcome, n in counts.items())
            print(
                f"{reader.name}: {sum(counts.values())} cases in {options.seconds} seconds: "
                f"{outcomes}, none undocumented; {len(list(corpus.iterdir()))} inputs kept",
                flush=True,
            )
            os._exit(0)

    settings = [sys.argv[0], str(corpus), "-max_len=4096", "-mutate_depth=1", "-verbosity=0"]
    atheris.Setup(settings, one, custom_mutator=partial(mutated, reader.seeds))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
