"""`ClassIndex`: the explanations of many classes in one folder, and the page that links them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from .checks import check_names, check_path
from .explanation import Concept, Explanation
from .explanation_files import RECORD_FILE, TENSOR_FILE
from .files import write_atomically
from .sealing import seal, sha256_of, unseal

FORMAT = 1
INDEX_FILE, CARD_FILE, REPORT_FILE, PAGE_FILE = (
    "classes.json", "card.json", "report.html", "index.html",
)  # fmt: skip
JPEG = "data:image/jpeg;base64,"
# Of a class's concepts; the others are in its report.
N_BEST = 4
# These two mean the same in every class; the other metrics are on the scale of its logits.
FAITHFULNESS, AGREEMENT = "C-µFidelity", "prediction agreement"


@dataclass(frozen=True)
class CardConcept:
    """One of a class's best concepts on the index."""

    index: int
    name: str
    importance: float
    thumbnail: str | None


@dataclass(frozen=True)
class Card:
    """What the index tells about a class.

    Attributes
    ----------
    name, folder : str
        The class, and the name of its folder.
    pictures : int
        How many it was explained on.
    score : float
        The mean probability that the model gives to the class.
    faithfulness : float or None
        C-µFidelity, where there is more than one concept.
    agreement : float
        The share of the pictures that keep their class when rebuilt from the concepts.
    concepts : list of CardConcept
        The best, most important first.
    error : str or None
        Why there is no explanation.
    """

    name: str
    folder: str
    pictures: int
    score: float | None = None
    faithfulness: float | None = None
    agreement: float | None = None
    concepts: Sequence[CardConcept] = ()
    error: str | None = None

    @staticmethod
    def of(explanation: Explanation, name: str, folder: str) -> Card:
        """Summarise an explanation."""
        return Card(
            name,
            folder,
            len(explanation.pictures),
            float(explanation.scores.mean()),
            explanation.metrics.get(FAITHFULNESS),
            explanation.metrics[AGREEMENT],
            [_card_concept(explanation, c) for c in explanation.concepts[:N_BEST]],
        )

    def write(self, root: Path, digest: str) -> None:
        """Write it into the class's folder: the last file there, which says what it is made of."""
        folder = root / self.folder
        files: dict[str, str] = {}
        if self.error is None:
            files = {name: sha256_of(folder / name) for name in (RECORD_FILE, REPORT_FILE)}
            files |= unseal(folder / RECORD_FILE)["files"]
        record = {"format": FORMAT, "digest": digest, "files": files, "card": asdict(self)}
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / CARD_FILE, seal(record))


class ClassIndex(Mapping[str, Explanation]):
    """The explanations of many classes, as `explain_classes` wrote them, loaded when asked for.

    It is a mapping from names of classes to explanations.

    Parameters
    ----------
    folder : str or Path
        What `explain_classes` wrote.

    Attributes
    ----------
    folder, page : Path
        The folder, and the page in it.
    cards : dict of str to Card
        What the page tells about each class, by name.
    failed : dict of str to str
        The classes that could not be explained, and why.
    without_pictures : list of str
        The classes that the model gives no picture to.
    about : dict of str to str
        How it was made.

    Raises
    ------
    ValueError
        If the folder holds no index, or a file of it is damaged; the message names the file.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = check_path(folder)
        self.page = self.folder / PAGE_FILE
        path = self.folder / INDEX_FILE
        if not path.is_file():
            raise ValueError(f"{str(folder)!r} holds no index of classes: there is no {INDEX_FILE}")
        record = unseal(path)
        try:
            if record["format"] != FORMAT:
                raise ValueError(f"format {record['format']!r}, this version reads {FORMAT}")
            folders = [_checked(str(name)) for name in record["folders"]]
            self.about: dict[str, str] = {k: str(v) for k, v in record["about"].items()}
            if not re.fullmatch("[0-9a-f]{12}", self.about["store"]):
                raise ValueError(f"{self.about['store']!r} is no folder of stores")
            self.without_pictures = check_names(record["without pictures"], "without pictures")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no index of this version: {error!r}") from error
        cards = [read_card(self.folder / name)[0] for name in folders]
        self.cards = {card.name: card for card in cards if card.error is None}
        self.failed = {card.name: card.error for card in cards if card.error is not None}

    @staticmethod
    def write(
        folder: Path, folders: list[str], without_pictures: list[str], about: dict[str, str]
    ) -> ClassIndex:
        """Write the list of classes, whose cards lie in their folders, and the page."""
        from .report.index import render_index

        record = {
            "format": FORMAT,
            "about": about,
            "folders": folders,
            "without pictures": without_pictures,
        }
        write_atomically(folder / INDEX_FILE, seal(record))
        index = ClassIndex(folder)
        write_atomically(index.page, render_index(index).encode(errors="replace"))
        return index

    def components(self, name: str) -> Tensor:
        """The dictionary's rows of the concepts on a class's card, ``(N_BEST or fewer, C)``."""
        card = self.cards[name]
        path = self.folder / card.folder / TENSOR_FILE
        try:
            with safe_open(path, "pt") as file:
                rows: Tensor = file.get_tensor("components")
            return rows[[concept.index for concept in card.concepts]]
        except (OSError, SafetensorError, IndexError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from error

    def verify(self) -> None:
        """Read every byte of stores, explanations and reports and compare it with its checksum.

        Raises
        ------
        ValueError
            Naming the first file that is damaged.
        """
        from .store import ActivationStore

        stores = self.folder / "store" / self.about["store"]
        for name in ("logits", "positions"):
            ActivationStore.open(stores / name).verify()
        if (stores / "crops").exists():  # crops may be the positions
            ActivationStore.open(stores / "crops").verify()
        for card in self.cards.values():
            check(self.folder / card.folder)

    def __getitem__(self, name: str) -> Explanation:
        if name not in self.cards:
            why = f": {self.failed[name]}" if name in self.failed else ""
            raise KeyError(f"no explanation of class {name!r} in {str(self.folder)!r}{why}")
        return Explanation.load(self.folder / self.cards[name].folder)

    def __iter__(self) -> Iterator[str]:
        return iter(self.cards)

    def __len__(self) -> int:
        return len(self.cards)

    def __repr__(self) -> str:
        rows = [
            f"  {card.name}: {card.pictures} pictures, mean probability {card.score:.2f}, "
            + ", ".join(f"{c.name} {c.importance:.2f}" for c in card.concepts[:2])
            for card in list(self.cards.values())[:10]
        ]
        if len(self) > len(rows):
            rows.append(f"  and {len(self) - len(rows)} more")
        rows += [f"  {name} failed: {why}" for name, why in self.failed.items()]
        if self.without_pictures:
            rows.append(f"  {len(self.without_pictures)} without pictures")
        return "\n".join([f"ClassIndex of {len(self)} classes in {str(self.folder)!r}", *rows])

    def _repr_html_(self) -> str:
        rows = []
        for card in self.cards.values():
            crops = "".join(
                f'<img height="48" alt="{escape(c.name)}" src="{escape(c.thumbnail)}">'
                for c in card.concepts
                if c.thumbnail
            )
            cells = (card.name, str(card.pictures), f"{card.score:.2f}")
            rows.append("".join(f"<td>{escape(cell)}</td>" for cell in cells) + f"<td>{crops}</td>")
        titles = ("Class", "Pictures", "Mean probability", "Best concepts")
        head = "".join(f"<th>{title}</th>" for title in titles)
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<table><tr>{head}</tr>{body}</table>"


def read_card(folder: Path) -> tuple[Card, dict[str, Any]]:
    """Read what `Card.write` wrote, and the record around it; ValueError if it is damaged."""
    path = folder / CARD_FILE
    record = unseal(path)
    try:
        if record["format"] != FORMAT:
            raise ValueError(f"format {record['format']!r}, this version reads {FORMAT}")
        card = _card(record["card"])
        if card.folder != folder.name:
            raise ValueError(f"it is the card of {card.folder!r}")
        if any(".." in name or Path(name).is_absolute() for name in dict(record["files"])):
            raise ValueError("it names files outside its folder")
        return card, record
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path} is no card of this version: {error!r}") from error


def _card(fields: dict[str, Any]) -> Card:
    card = Card(str(fields["name"]), str(fields["folder"]), int(fields["pictures"]))
    if fields["error"] is not None:
        return replace(card, error=str(fields["error"]))
    faithfulness = fields["faithfulness"]
    return replace(
        card,
        score=float(fields["score"]),
        faithfulness=None if faithfulness is None else float(faithfulness),
        agreement=float(fields["agreement"]),
        concepts=[_concept(concept) for concept in fields["concepts"]],
    )


def _concept(fields: dict[str, Any]) -> CardConcept:
    picture = fields["thumbnail"]
    if picture is not None and not picture.startswith(JPEG):
        raise ValueError("a thumbnail is no JPEG")
    name, importance = str(fields["name"]), float(fields["importance"])
    return CardConcept(int(fields["index"]), name, importance, picture)


def is_done(folder: Path, digest: str) -> bool:
    """Whether the folder holds the whole explanation of a class that is made of `digest`."""
    try:
        return check(folder) == digest
    except ValueError:
        return False


def check(folder: Path) -> str:
    """Return what a class's folder is made of; ValueError if a file of it is damaged."""
    card, record = read_card(folder)
    if card.error is not None:
        raise ValueError(f"{folder} holds no explanation: {card.error}")
    for name, expected in record["files"].items():
        if sha256_of(folder / name) != expected:
            raise ValueError(f"{folder / name} is damaged: its checksum differs")
    return str(record["digest"])


def class_folder(index: int, name: str) -> str:
    """A folder's name for a class: its number, and what any file system takes of its name."""
    return f"{index:04d}-{re.sub(r'[^A-Za-z0-9]+', '-', name).strip('-')[:40]}".rstrip("-")


def _checked(folder: str) -> str:
    if not re.fullmatch(r"\d{4,}(-[A-Za-z0-9-]+)?", folder):
        raise ValueError(f"{folder!r} is no folder of a class")
    return folder


def _card_concept(explanation: Explanation, concept: Concept) -> CardConcept:
    from .report.page import thumbnail_uri

    picture = thumbnail_uri(explanation.pixels(concept.crops[0])) if concept.crops else None
    return CardConcept(concept.index, concept.name, concept.importance, picture)
