"""Counting how faults ended."""

import warnings
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from artefacts import Artefact, frozen

SURVIVED, REFUSED, WRONG, UNCLEAR, BLOCKED = (
    "survived", "refused", "wrong answers", "unclear errors", "next run blocked",
)  # fmt: skip
COLUMNS = (SURVIVED, REFUSED, WRONG, UNCLEAR, BLOCKED)
FORBIDDEN = (WRONG, UNCLEAR, BLOCKED)


class Outcomes:
    """How often each outcome followed each kind of fault, and what must not have happened."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        self.complaints: list[str] = []

    def note(self, kind: str, artefact: Artefact, outcome: str, detail: object = "") -> None:
        self.counts[kind, artefact.name][outcome] += 1
        if outcome in FORBIDDEN:
            self.complaints.append(f"{kind}, {artefact.name}: {outcome} {detail!r}"[:300])

    def read(self, kind: str, artefact: Artefact, place: Path, right: set[Any]) -> Exception | None:
        """Read what a fault left behind; the error if it was refused."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = frozen(artefact.read(place))
            except Exception as error:
                clear = isinstance(error, (ValueError, OSError)) and str(place) in str(error)
                self.note(kind, artefact, REFUSED if clear else UNCLEAR, error)
                return error
        self.note(kind, artefact, SURVIVED if found in right else WRONG)
        return None

    def next_run(
        self, kind: str, artefact: Artefact, place: Path, right: set[Any], mend: Callable[[], None]
    ) -> None:
        """Write it again, where needed after `mend`, and expect it to be right."""
        for repair in (lambda: None, mend):
            repair()
            try:
                artefact.write(place)
                found = frozen(artefact.read(place))
                if found in right:
                    return
                detail: object = "another answer"
            except Exception as error:
                detail = error
        self.note(kind, artefact, BLOCKED, detail)
