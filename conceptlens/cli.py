"""The ``conceptlens`` command."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Sequence
from inspect import signature
from io import TextIOWrapper
from math import ceil
from pathlib import Path
from typing import Any

import torch

from . import distributed
from ._version import __version__
from .checks import check_number, check_path
from .distributed import PeerLostError
from .extraction import EXTRACTORS
from .loading import FORMS, load_backbone

# Seconds that a process waits for one that does not answer: one that has done its share of the
# pictures waits for the slowest, and torchrun itself ends all when one of them dies.
WAIT = 24 * 3600.0
WITHOUT_MODEL = ("demo", "fit", "verify", "compare")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 2 for input that cannot be used, 1 without peers."""
    options = _parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):  # names may hold what the terminal has no sign for
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning  # type: ignore[assignment]
            options.run(options)
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        _complain("error", error)
        return 2
    except PeerLostError as error:
        _complain("error", error)
        return 1
    except KeyboardInterrupt:
        print("conceptlens: interrupted", file=sys.stderr)
        return 130
    return 0


def _show_warning(message: Warning | str, category: type[Warning], *_: Any) -> None:
    if not issubclass(category, (DeprecationWarning, FutureWarning)):
        _complain("warning", message)


def _complain(kind: str, message: Any) -> None:
    """Print it as one line, whatever it is made of."""
    lines = [line.strip() for line in str(message).splitlines()]
    print(f"conceptlens: {kind}: {' '.join(lines)}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="conceptlens",
        description="Which concepts does an image classifier use, where, and how much?",
    )
    parser.add_argument("--version", action="version", version=f"conceptlens {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = _command(
        commands, "demo", _demo, "explain a real network on real photographs, without downloads",
        "conceptlens demo --out demo --photo coffee",
    )  # fmt: skip
    demo.add_argument("--photo", choices=("chelsea", "coffee"), default="chelsea", help="(chelsea)")
    demo.add_argument("--out", type=Path, default=Path("conceptlens-demo"), help="folder to write")

    explain = _command(
        commands, "explain", _explain, "explain classes of a model on a folder of pictures",
        "conceptlens explain torchvision:resnet50 photos/ --layer layer4 --target tabby --out out\n"
        "  conceptlens explain net.py:make photos/ --layer features --target 3 --out out\n"
        "  conceptlens explain torchvision:resnet50 photos/ --all-classes --jobs 4 --out out",
    )  # fmt: skip
    _model_options(explain)
    explain.add_argument("images", metavar="IMAGES", help="folder of pictures, searched below")
    classes = explain.add_mutually_exclusive_group()
    classes.add_argument(
        "--target",
        action="append",
        help="class, by name or index; repeat it for several; default: the most predicted",
    )
    classes.add_argument(
        "--all-classes", action="store_true", help="all classes that the model gives a picture to"
    )
    explain.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder to write; with several classes a folder each and index.html, and what an "
        "earlier run left is used",
    )
    explain.add_argument(
        "--jobs", type=int, default=1, help="processes, for several classes at a time (1)"
    )
    explain.add_argument("--concepts", type=int, default=10, help="number of concepts (10)")
    explain.add_argument("--patch-size", type=int, default=64, help="side of the crops (64)")
    explain.add_argument(
        "--crops",
        choices=("resized", "positions"),
        default="resized",
        help="what concepts are learnt from; positions cost no passes of their own (resized)",
    )
    explain.add_argument(
        "--extractor", choices=EXTRACTORS, default="nmf", help="semi-nmf for signed layers (nmf)"
    )
    explain.add_argument("--seed", type=int, default=0, help="fixes what is drawn at random (0)")

    cache = _command(
        commands, "cache", _cache, "compute a layer's activations once and keep them on disk",
        "conceptlens cache torchvision:resnet50 photos/ --layer layer4 --out acts --dtype float16\n"
        "  torchrun --nproc-per-node 2 -m conceptlens cache net.py:make photos/ --out acts",
    )  # fmt: skip
    _model_options(cache)
    cache.add_argument("images", metavar="IMAGES", help="folder of pictures, searched below")
    cache.add_argument("--out", type=Path, required=True, help="folder of the store")
    cache.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        default="float32",
        help="what numbers are kept in; the shorter ones take half the disk (float32)",
    )
    cache.add_argument(
        "--workers", type=int, help="processes that read pictures (by the device: 0 on a CPU)"
    )
    cache.add_argument(
        "--shard-mib",
        type=float,
        default=16,
        help="size of a file; torchrun's processes share files (16)",
    )

    fit = _command(
        commands, "fit", _fit, "learn a dictionary of concepts from a store",
        "conceptlens fit acts --components 25 --out dictionary\n"
        "  torchrun --nproc-per-node 2 -m conceptlens fit acts --extractor sae --components 4096 "
        "--set n_epochs=5 --out dictionary --checkpoint",
    )  # fmt: skip
    fit.add_argument("store", metavar="STORE", help="what cache wrote")
    fit.add_argument("--out", type=Path, required=True, help="folder of the dictionary")
    fit.add_argument("--extractor", choices=EXTRACTORS, default="nmf", help="method (nmf)")
    fit.add_argument("--components", type=int, default=10, help="number of concepts (10)")
    fit.add_argument("--seed", type=int, default=0, help="fixes what is drawn at random (0)")
    fit.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="further options of its class"
    )
    fit.add_argument(
        "--checkpoint",
        action="store_true",
        help="keep one in OUT, and go on from it if it is there",
    )

    verify = _command(
        commands, "verify", _verify, "read every byte of stores and explanations, check the sums",
        "conceptlens verify acts out",
    )  # fmt: skip
    verify.add_argument("folders", metavar="FOLDER", nargs="+", help="what cache or explain wrote")

    layers = _command(
        commands, "layers", _layers, "list the layers a model can be cut at",
        "conceptlens layers torchvision:resnet50",
    )  # fmt: skip
    _model_options(layers)

    compare = _command(
        commands, "compare", _compare, "set saved explanations side by side on one page",
        "conceptlens compare out-nmf out-sae --out comparison.html",
    )  # fmt: skip
    compare.add_argument(
        "explanations", metavar="FOLDER", nargs="+", help="what explain wrote, the reference first"
    )
    compare.add_argument("--out", type=Path, required=True, help="HTML page to write")
    return parser


def _command(
    commands: Any, name: str, run: Any, summary: str, example: str
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example:\n  {example}\n\n{'' if name in WITHOUT_MODEL else FORMS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run)
    return command


def _model_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", metavar="MODEL", help="see below")
    command.add_argument("--layer", help="where to cut; default: the last layer with positions")
    command.add_argument("--classes", help="names of the classes: a file with one a line, or a,b,c")
    command.add_argument("--device", help="cpu, cuda, cuda:1, mps; default: where the model is")
    command.add_argument("--batch-size", type=int, default=64, help="pictures at once (64)")
    command.add_argument(
        "--autocast",
        choices=("bfloat16", "float16"),
        help="compute the network in this type: faster where the hardware has it, and less exact",
    )


def _backbone(options: argparse.Namespace) -> Any:
    classes = options.classes
    if classes is not None:
        classes = _lines(Path(classes)) if Path(classes).is_file() else classes.split(",")
    return load_backbone(
        options.model,
        options.layer,
        classes=classes,
        device=options.device,
        autocast=None if options.autocast is None else getattr(torch, options.autocast),
    )


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"--classes {path} must be a text in UTF-8: {error}") from error


def _check_out(folder: Path) -> None:
    """Raise before anything is computed if the folder could not be written."""
    places = [check_path(folder, "--out").absolute(), *folder.absolute().parents]
    there = next(place for place in places if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        kind = "no folder" if not there.is_dir() else "read-only"
        raise ValueError(f"--out {folder} cannot be written, {there} is {kind}: name another")


def _demo(options: argparse.Namespace) -> None:
    from .craft import CRAFT
    from .demo import demo_backbone, demo_pictures

    _check_out(options.out)
    explanation = CRAFT(demo_backbone()).explain(demo_pictures(options.photo))
    _write(explanation, options.out)


def _explain(options: argparse.Namespace) -> None:
    from .classes import explain_classes
    from .craft import CRAFT

    _check_out(options.out)
    craft = CRAFT(
        _backbone(options),
        options.concepts,
        options.patch_size,
        crops=options.crops,
        extractor=EXTRACTORS[options.extractor](options.concepts, options.seed),
        batch_size=options.batch_size,
        seed=options.seed,
    )
    targets = [int(t) if t.isdecimal() else t for t in options.target or []]
    if not options.all_classes and len(targets) < 2:
        _write(craft.explain(options.images, *targets), options.out)
        return
    with distributed.together(WAIT):
        index = explain_classes(
            craft, options.images, options.out, targets or None, jobs=options.jobs
        )
        if distributed.rank() == 0:
            print(index)
            print(index.page)


def _write(explanation: Any, out: Path) -> None:
    explanation.save(out)
    explanation.to_html(out / "report.html")
    print(explanation)
    print(out / "report.html")


def _cache(options: argparse.Namespace) -> None:
    from .store import ActivationStore

    check_number(options.shard_mib, "--shard-mib", high=2**30, above=True)
    with distributed.together(WAIT):
        store = ActivationStore.build(
            _backbone(options),
            options.images,
            options.out,
            batch_size=options.batch_size,
            dtype=getattr(torch, options.dtype),
            num_workers=options.workers,
            shard_bytes=ceil(options.shard_mib * 2**20),
        )
        if distributed.rank() == 0:
            print(store)


def _fit(options: argparse.Namespace) -> None:
    from .extraction import SparseAutoencoder
    from .store import ActivationStore

    _check_out(options.out)
    extractor, kept = _extractor(options), options.out / "checkpoint.safetensors"
    with distributed.together(WAIT):
        rows: Any = ActivationStore.open(options.store)
        where = {"checkpoint": kept} if options.checkpoint else {}
        if not isinstance(extractor, SparseAutoencoder):  # it takes its share of each batch itself
            rows = distributed.share_of(rows)
        elif where:
            where = {"checkpoint": kept.parent}
        if where:
            options.out.mkdir(parents=True, exist_ok=True)
        extractor.fit(rows, **where)
        if distributed.rank() == 0:
            extractor.save(options.out)
            kept.unlink(missing_ok=True)
            print(extractor)
            print(options.out)


def _extractor(options: argparse.Namespace) -> Any:
    """The extractor that --extractor, --components, --seed and --set ask for."""
    name, k = options.extractor, options.components
    if name == "sae":  # that of `EXTRACTORS` is for hundreds of rows, a store has millions
        from .extraction import SparseAutoencoder

        extractor: Any = SparseAutoencoder(
            k, sparsity=max(1, min(32, k // 2)), random_state=options.seed
        )
    else:
        extractor = EXTRACTORS[name](k, options.seed)
    if options.checkpoint and "checkpoint" not in signature(extractor.fit).parameters:
        raise ValueError(f"--checkpoint: {name} keeps none, it fits in one go")
    for pair in options.set:
        option, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--set takes NAME=VALUE, got {pair!r}")
        try:
            extractor.set_params(**{option: _value(value)})
        except AttributeError as error:  # of A__B, where A has no options
            raise ValueError(f"--set {pair}: {name} has no option {option!r}") from error
    return extractor


def _value(text: str) -> Any:
    """A number, true, false or null as JSON writes them; else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _verify(options: argparse.Namespace) -> None:
    from .class_index import INDEX_FILE, ClassIndex
    from .explanation import Explanation
    from .store import ActivationStore

    for folder in map(Path, options.folders):
        if (folder / INDEX_FILE).exists():
            ClassIndex(folder).verify()
        elif (folder / "explanation.json").exists():
            Explanation.load(folder)
        else:
            ActivationStore.open(folder).verify()
        print(f"{folder}: whole")


def _layers(options: argparse.Namespace) -> None:
    print(_backbone(options).layers())


def _compare(options: argparse.Namespace) -> None:
    from .comparison import compare
    from .explanation import Explanation

    folders = options.explanations
    if len(set(folders)) < len(folders):
        raise ValueError(f"a folder is given twice: {' '.join(folders)}")
    comparison = compare({folder: Explanation.load(folder) for folder in folders})
    comparison.to_html(options.out)
    print(comparison)
    print(options.out)
