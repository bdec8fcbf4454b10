"""`explain_classes`: many classes from one pass over the pictures, explained side by side."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from . import distributed
from ._version import __version__
from .backbone import Backbone
from .checks import check_names, check_path, check_whole
from .class_index import CARD_FILE, REPORT_FILE, Card, ClassIndex, class_folder, is_done
from .class_pictures import ClassPictures, class_name
from .craft import CRAFT
from .images import Pictures, transform_fingerprint
from .progress import bar
from .sealing import digest
from .store import ActivationStore, build_stores, shared_fingerprints

# How many pictures' logits are read at a time: few megabytes for a thousand classes.
LOGITS_AT_ONCE = 4096
# Of a CRAFT's attributes those that its results do not depend on, or that have a fingerprint.
NOT_SETTINGS = ("backbone", "batch_size")

Stores = Mapping[str, ActivationStore]


@dataclass(frozen=True)
class _Job:
    """What the explanations of all classes have in common."""

    craft: CRAFT
    stores: Stores
    root: Path
    predicted_only: bool


@dataclass(frozen=True)
class _Class:
    """A class to explain; the digest is of all that its explanation depends on."""

    target: int
    name: str
    rows: list[int]  # of the stores
    places: list[int]  # of its pictures among all
    digest: str

    @property
    def folder(self) -> str:
        return class_folder(self.target, self.name)


def explain_classes(
    craft: CRAFT,
    images: Any,
    folder: str | Path,
    targets: int | str | Sequence[int | str] | None = None,
    *,
    predicted_only: bool = True,
    jobs: int = 1,
) -> ClassIndex:
    """Explain many classes from one pass over the pictures.

    Activations, crops and logits are kept in stores below `folder`; each class is then explained
    from them, as ``craft.explain(images, target)`` would, into a folder of its own, and
    ``index.html`` links the reports. A second call does only what changed: stores are brought up to
    date, and a class is explained again only if its pictures, the settings, the network or the
    version changed, or if its folder is damaged or unfinished. Stores of another network, batch
    size or kind of crops are left where they are. Inside `distributed.together` the processes share
    pictures and classes.

    Parameters
    ----------
    craft : CRAFT
        The method with its settings.
    images : folder, list, Dataset, DataLoader or Tensor
        As `Pictures` takes them.
    folder : str or Path
        Where to write; what a former call left there is used.
    targets : int, str, or sequence of these, optional
        The classes. Default: all that the network gives a picture to.
    predicted_only : bool
        Explain a class on the pictures that the network gives to it, otherwise on all.
    jobs : int
        Processes that explain classes at a time; the threads of torch are divided among them.
        Each holds the network and one class's pictures, of each 4 bytes for every number: 3·H·W
        pixels twice, P·C activations, m·C of its m crops, and P·k codes. While stores are filled
        memory holds two files of each; it does not grow with the number of pictures
        (``benchmarks/growth.py``).

    Returns
    -------
    ClassIndex
        The explanations by names of classes, loaded when asked for. A class that could not be
        explained is in ``failed`` and the others are explained all the same.

    Raises
    ------
    ValueError
        For unknown classes, class names of another number than the model has classes, pictures
        that cannot be read, activations that are not finite, and when no class could be explained.
    TypeError
        For what is no CRAFT, no class and no number of jobs.
    """
    if not isinstance(craft, CRAFT):
        raise TypeError(f"craft must be a CRAFT, got {type(craft).__name__}")
    check_whole(jobs, "jobs")
    folder, bb = check_path(folder), craft.backbone
    if isinstance(targets, (int, str)):
        targets = [targets]
    if targets is not None and (isinstance(targets, bytes) or not isinstance(targets, Sequence)):
        raise TypeError(f"targets must be a class or a sequence of classes, got {targets!r}")
    wanted = None if targets is None else list(dict.fromkeys(map(bb.class_index, targets)))
    if wanted == []:
        raise ValueError("targets is empty: name classes, or leave it out to explain all")
    pictures = Pictures.of(images, bb.transform)
    root = folder.absolute()  # workers that are used again may be in another folder
    sums = shared_fingerprints(pictures)
    job = _Job(craft, _fill(craft, pictures, sums, root / "store"), root, predicted_only)
    classes, without = _classes(job, pictures, sums, wanted)
    mine = classes[distributed.rank() :: distributed.world_size()]
    todo = [c for c in mine if not is_done(folder / c.folder, c.digest)]
    _explain_all(job, pictures, todo, jobs)
    distributed.barrier()
    if distributed.rank() == 0:
        about = {
            "model": type(bb.model).__name__,
            "layer": str(bb.layer),
            "pictures": str(len(job.stores["logits"])),
            "store": job.stores["logits"].path.parent.name,
            "conceptlens": __version__,
        }
        ClassIndex.write(folder, [c.folder for c in classes], without, about)
    distributed.barrier()
    index = ClassIndex(folder)
    if not index:
        raise ValueError(_nothing(index, pictures))
    return index


def _fill(craft: CRAFT, pictures: Pictures, sums: Sequence[str], folder: Path) -> Stores:
    """Bring the stores up to date, by one pass over the pictures that are new.

    Each network and way to cut crops has stores of its own.
    """
    bb = craft.backbone
    names = ["positions", "logits"]
    key = [bb.fingerprint(), transform_fingerprint(pictures.transform), craft.batch_size]
    if craft.crops != "positions":  # which are a store already
        names.append("crops")
        key += [craft.crops, craft.patch_size]

    def compute(x: Tensor, wanted: Sequence[str]) -> list[Tensor]:
        a = bb.activations(x)
        rows = {
            "positions": lambda: a,
            "logits": lambda: bb.head(a)[:, None],
            "crops": lambda: craft.crop_activations(x, a),
        }
        return [rows[name]() for name in wanted]

    made_of = digest(key)
    folders = {name: folder / made_of[:12] / name for name in names}
    made_by = dict.fromkeys(names, made_of)
    stores = build_stores(
        folders, made_by, compute, pictures, craft.batch_size, update=True, contents=sums
    )
    if any(store.names != stores["logits"].names for store in stores.values()):
        raise ValueError(f"the stores below {folder} hold different pictures: delete the folder")
    return stores


def _classes(
    job: _Job, pictures: Pictures, sums: Sequence[str], wanted: list[int] | None
) -> tuple[list[_Class], list[str]]:
    """The classes to explain, and the names of those without pictures."""
    bb, store = job.craft.backbone, job.stores["logits"]
    predicted = torch.cat(
        [
            store[i : i + LOGITS_AT_ONCE][:, 0].argmax(1)
            for i in range(0, len(store), LOGITS_AT_ONCE)
        ]
    )
    n_classes = store.shape[2]
    if bb.class_names is not None:
        check_names(bb.class_names, "class_names", n_classes)
    if wanted is None:
        wanted = list(range(n_classes)) if job.predicted_only else predicted.unique().tolist()
    elif max(wanted) >= n_classes:
        raise ValueError(f"class {max(wanted)} does not exist: the model has {n_classes} classes")
    places = _places(store.names, pictures.names)
    common = _settings(job)
    every = list(range(len(store)))
    classes, without = [], []
    for target in wanted:
        name = _label(bb, target)
        rows = (predicted == target).nonzero()[:, 0].tolist() if job.predicted_only else every
        if not rows:
            without.append(name)
            continue
        shown = [[store.names[i], sums[places[i]]] for i in rows]
        made_of = digest([common, target, name, shown])
        classes.append(_Class(target, name, rows, [places[i] for i in rows], made_of))
    return classes, without


def _places(kept: Sequence[str], names: Sequence[str]) -> list[int]:
    """Where the pictures that could be read stand among all; both are in the same order."""
    places = iter(range(len(names)))
    return [next(i for i in places if names[i] == name) for name in kept]


def _label(bb: Backbone, target: int) -> str:
    """The class's name, with its number where several classes have that name."""
    name = class_name(bb, target)
    repeated = bb.class_names is not None and bb.class_names.count(name) > 1
    return f"{name} (class {target})" if repeated else name


def _settings(job: _Job) -> dict[str, Any]:
    """All that an explanation depends on beside its pictures."""
    craft = job.craft
    settings = {n: repr(v) for n, v in vars(craft).items() if n not in NOT_SETTINGS}
    return {
        "conceptlens": __version__,
        "backbone": craft.backbone.fingerprint(),
        "transform": transform_fingerprint(craft.backbone.transform),
        "predicted only": job.predicted_only,
        **settings,
    }


def _explain_all(job: _Job, pictures: Pictures, classes: list[_Class], jobs: int) -> None:
    from joblib import Parallel, delayed

    tasks = (delayed(_explain)(job, c, _some(pictures, c.places)) for c in classes)
    with (
        bar("conceptlens", len(classes), "classes") as progress,
        distributed.alone(),  # a class is one process's: its dictionary is not shared
    ):
        for _ in Parallel(n_jobs=jobs, return_as="generator_unordered")(tasks):
            progress.update(1)


def _some(pictures: Pictures, places: list[int]) -> Pictures:
    """Some pictures without the others, so that they can be sent to another process."""
    source = pictures.source
    if isinstance(source, Tensor):
        source = source[places]
    elif isinstance(source, Sequence):
        source = [_own(source[i]) for i in places]
    else:
        source = Subset(source, places)
    some = Pictures(source, pictures.transform)
    some.names = [pictures.names[i] for i in places]
    return some


def _own(item: Any) -> Any:
    """A picture, or where it lies, as another process understands it, maybe in another folder."""
    if isinstance(item, (str, Path)):
        return Path(item).absolute()
    return item.clone() if isinstance(item, Tensor) else item


def _explain(job: _Job, c: _Class, pictures: Pictures) -> None:
    """Explain one class into its folder; one that cannot be explained says why there."""
    folder = job.root / c.folder
    (folder / CARD_FILE).unlink(missing_ok=True)
    try:
        explanation = job.craft.explain_pictures(*_read(job, c, pictures))
        explanation.save(folder)
        explanation.to_html(folder / REPORT_FILE)
        card = Card.of(explanation, c.name, c.folder)
    except Exception as error:  # whatever it is, the other classes are still to be explained
        warnings.warn(f"class {c.name!r} could not be explained: {error}", stacklevel=2)
        why = f"{type(error).__name__}: {error}"
        card = Card(c.name, c.folder, len(c.rows), error=why)
    card.write(job.root, c.digest)


def _read(job: _Job, c: _Class, pictures: Pictures) -> tuple[ClassPictures, Tensor]:
    """The class's pictures and what the network made of them and of their crops."""
    craft = job.craft
    device = craft.backbone.device
    x = torch.cat([batch for _, batch in pictures.batches(craft.batch_size)])
    if len(x) != len(c.rows):
        raise ValueError(f"{len(c.rows) - len(x)} pictures can no longer be read")
    craft.backbone.activations(x[:1])  # where the stores were whole it has seen no picture's size
    rows = {
        name: torch.stack([store[i] for i in c.rows]).to(device)
        for name, store in job.stores.items()
    }
    a = rows["positions"]
    given = ClassPictures(
        x, a, rows["logits"][:, 0], pictures.names, c.target, len(job.stores["logits"]),
        job.predicted_only,
    )  # fmt: skip
    return given, rows["crops"] if "crops" in rows else craft.crop_activations(x, a)


def _nothing(index: ClassIndex, pictures: Pictures) -> str:
    """Why an index holds no class."""
    if index.failed:
        name, why = next(iter(index.failed.items()))
        return f"none of {len(index.failed)} classes could be explained; {name!r}: {why}"
    return (
        f"none of the {len(pictures)} pictures is given to {', '.join(index.without_pictures)} by "
        "the model: name other classes, or pass predicted_only=False"
    )
