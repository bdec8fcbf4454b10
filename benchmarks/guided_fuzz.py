"""Hostile files that coverage guides: atheris mutates what `fuzz.py` starts from.

Each reader's file is replaced by atheris' bytes; branches of conceptlens and Pillow are counted, so
that inputs that reach new code are kept and mutated on. Anything but the documented error stops it
and is written down.

Run with ``python benchmarks/guided_fuzz.py read_image --seconds 60``; needs atheris.
"""

import argparse
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")

import atheris

with atheris.instrument_imports(include=["conceptlens", "PIL"]):
    import fuzz
    from PIL import Image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    readers = {make.name: make for make, _ in fuzz.READERS}
    parser.add_argument("reader", choices=readers)
    parser.add_argument("--seconds", type=int, default=60)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    Image.MAX_IMAGE_PIXELS = fuzz.MAX_PIXELS
    folder = Path(tempfile.mkdtemp())
    reader = readers[options.reader](folder / "files")
    target = getattr(reader, "json", None) or reader.file
    seeds = getattr(reader, "seeds", None) or [target.read_bytes()]
    (folder / "corpus").mkdir()
    for i, seed in enumerate(seeds):
        (folder / "corpus" / str(i)).write_bytes(seed)
    counts, start = {"accepted": 0, "refused": 0}, time.monotonic()

    def one(data: bytes) -> None:
        target.write_bytes(data)
        try:
            reader.read()
            counts["accepted"] += 1
        except reader.documented:
            counts["refused"] += 1
        if time.monotonic() - start > options.seconds:
            print(f"{reader.name}: {sum(counts.values())} cases, {counts}, none undocumented")
            sys.stdout.flush()
            os._exit(0)

    atheris.Setup([sys.argv[0], str(folder / "corpus"), "-max_len=4096", "-verbosity=0"], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
