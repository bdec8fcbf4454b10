"""The text tables of data sets, read fast, with errors that name the file and the line."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import Any, TextIO

import numpy as np

Rows = Iterator[tuple[int, list[str]]]


class DatasetError(ValueError):
    """A data set's file is missing or malformed; the message names the file and the line."""


@dataclass(frozen=True, eq=False)
class Table:
    """The columns of a text table by name, each an array with one entry a row.

    Attributes
    ----------
    path : Path
        The file.
    columns : dict of str to array
        int64, float64 or text.
    rows : callable
        Reads the file again as (line number, fields), to find the line of a row.
    """

    path: Path
    columns: dict[str, np.ndarray]
    rows: Callable[[], Rows]

    def __getitem__(self, column: str) -> np.ndarray:
        return self.columns[column]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def error(self, row: int, problem: str) -> DatasetError:
        """The error to raise for `row`, which names its line."""
        line, _ = next(islice(self.rows(), row, None))
        return DatasetError(f"{self.path}, line {line}: {problem}")

    def require(self, good: np.ndarray, problem: Callable[[int], str]) -> None:
        """Raise ``problem(row)`` for the first row that is not `good` ``(n,)``."""
        if not good.all():
            row = int(good.argmin())
            raise self.error(row, problem(row))

    def require_values(self, column: str, allowed: Sequence[Any]) -> None:
        """Raise for the first row whose entry in `column` is none of those `allowed`."""
        self.require(
            np.isin(self[column], allowed),
            lambda row: (
                f"{column} is {self[column][row]}, expected one of {', '.join(map(str, allowed))}"
            ),
        )

    def require_unique(self, *columns: str) -> None:
        """Raise for the first row whose entries in `columns` occurred before."""
        order = np.lexsort([self[column] for column in columns])
        later, earlier = order[1:], order[:-1]
        again = np.all([self[c][later] == self[c][earlier] for c in columns], axis=0)
        if again.any():
            row = int(later[again].min())
            given = ", ".join(f"{column} {self[column][row]}" for column in columns)
            raise self.error(row, f"{given} is given a second time")

    def locate(self, column: str, other: Table, key: str = "id") -> np.ndarray:
        """For each row, the row of `other` whose `key` is this row's entry in `column`.

        Raises
        ------
        DatasetError
            For the first row whose entry is not there.
        """
        wanted, keys = self[column], other[key]
        order = np.argsort(keys, kind="stable")
        found = order[np.searchsorted(keys, wanted, sorter=order).clip(max=len(keys) - 1)]
        self.require(
            keys[found] == wanted,
            lambda row: f"{column} {wanted[row]} is unknown: {other.path.name} has no such {key}",
        )
        return found

    def match(self, column: str, other: Table, key: str) -> np.ndarray:
        """As `locate`, where `other` must also have no row that this table lacks."""
        other.locate(key, self, column)
        return self.locate(column, other, key)


def read_table(
    path: Path,
    columns: Mapping[str, type | None],
    *,
    unique: Sequence[str] = (),
    skip: int = 0,
    comma: bool = False,
    spare: int = 0,
) -> Table:
    """Read a table whose columns are separated by white space or commas.

    Parameters
    ----------
    path : Path
        The file; blank lines do not count as rows.
    columns : dict of str to type
        Names and kinds (int, float or str) of the columns; None for one that is not read. Without
        commas they are all columns in their order, and a last one of text takes the rest of the
        line. With commas the first line names the columns, and these are picked.
    unique : sequence of str
        Columns whose entries together must differ from row to row.
    skip : int
        Lines before the table.
    spare : int
        How many columns a line may have too many.

    Raises
    ------
    DatasetError
        If the file cannot be read, is empty, or a line has another number of columns, or a field
        is no finite number where one is expected, or `unique` does not hold.
    """
    at = {name: j for j, name in enumerate(columns)}
    width = len(columns)
    if comma:
        header = read_header(path)
        width, skip = len(header), 1
        missing = [name for name in columns if name not in header]
        if missing:
            raise DatasetError(
                f"{path}, line 1: there is no column {missing[0]!r} among {', '.join(header)}"
            )
        at = {name: header.index(name) for name in columns}
    splits = width - 1 if not comma and list(columns.values())[-1] is str else -1
    rows = partial(_rows, path, comma, skip, splits)

    texts: dict[str, list[str]] = {name: [] for name, kind in columns.items() if kind is str}
    n = 0
    for line, fields in rows():
        if not width <= len(fields) <= width + spare:
            raise DatasetError(f"{path}, line {line}: {len(fields)} columns, expected {width}")
        for name, column in texts.items():
            column.append(fields[at[name]].strip())
        n += 1
    if n == 0:
        raise DatasetError(f"{path}, line {skip + 1}: the file ends before the first row")

    numeric = {name: kind for name, kind in columns.items() if kind in (int, float)}
    found = {name: np.array(column) for name, column in texts.items()}
    if numeric:
        found |= _numbers(path, numeric, at, n, rows, comma, skip)
    table = Table(path, found, rows)
    if unique:
        table.require_unique(*unique)
    return table


def read_matrix(path: Path, n_rows: int, n_columns: int) -> np.ndarray:
    """Read a table of numbers ``(n_rows, n_columns)`` without names."""
    table = read_table(path, {str(j): float for j in range(n_columns)})
    if len(table) != n_rows:
        row = min(len(table) - 1, n_rows)  # the first too many, or the last there is
        raise table.error(row, f"the file has {len(table)} rows, expected {n_rows}")
    return np.stack(list(table.columns.values()), axis=1)


def read_header(path: Path, line: int = 1, comma: bool = True) -> list[str]:
    """Read the fields of one line, the names of a table's columns."""
    for _, fields in _rows(path, comma, line - 1, -1):
        return [field.strip() for field in fields]
    raise DatasetError(f"{path}, line {line}: the file ends before the names of its columns")


def first_of(folder: Path, *names: str) -> Path:
    """The first path below `folder` that exists.

    Raises
    ------
    DatasetError
        If none does.
    """
    for name in names:
        if (folder / name).exists():
            return folder / name
    where = " or ".join(str(folder / name) for name in names)
    raise DatasetError(f"{where} is missing")


def _open(path: Path) -> TextIO:
    # A byte that is no UTF-8 must not stop what is right elsewhere, nor hide what is wrong.
    return path.open(encoding="utf-8-sig", errors="replace", newline="")


def _rows(path: Path, comma: bool, skip: int, splits: int) -> Rows:
    """(line number, fields) of each line that is not blank."""
    reader = None
    try:
        with _open(path) as file:
            if comma:
                reader = csv.reader(file, strict=True)
                numbered = ((reader.line_num, fields) for fields in reader)
            else:
                numbered = ((i, line.strip().split(None, splits)) for i, line in enumerate(file, 1))
            for line, fields in islice(numbered, skip, None):
                if fields:
                    yield line, fields
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from error
    except csv.Error as error:
        raise DatasetError(f"{path}, line {reader.line_num if reader else 0}: {error}") from error


def _numbers(
    path: Path,
    kinds: Mapping[str, type],
    at: Mapping[str, int],
    n: int,
    rows: Callable[[], Rows],
    comma: bool,
    skip: int,
) -> dict[str, np.ndarray]:
    """The columns of numbers, by NumPy's reader; what it refuses is looked for line by line."""
    try:
        with _open(path) as file:
            values = np.loadtxt(
                file,
                delimiter="," if comma else None,
                quotechar='"' if comma else None,
                comments=None,
                skiprows=skip,
                usecols=[at[name] for name in kinds],
                ndmin=2,
            )
        columns = zip(values.T, kinds.values(), strict=True)
        good = len(values) == n and all(_are_numbers(column, kind) for column, kind in columns)
        problem = "a number is expected in every field"
    except ValueError as error:
        good, problem = False, str(error)
    if not good:
        for line, fields in rows():
            for name, kind in kinds.items():
                if not _is_number(fields[at[name]], kind):
                    wanted = "a whole number" if kind is int else "a number"
                    raise DatasetError(
                        f"{path}, line {line}: {name} is {fields[at[name]]!r}, expected {wanted}"
                    )
        raise DatasetError(f"{path} cannot be read: {problem}")
    return {
        name: values[:, j].astype(np.int64) if kind is int else values[:, j]
        for j, (name, kind) in enumerate(kinds.items())
    }


def _are_numbers(column: np.ndarray, kind: type) -> bool:
    return bool(np.isfinite(column).all()) and (kind is float or bool((column % 1 == 0).all()))


def _is_number(field: str, kind: type) -> bool:
    try:
        value = float(field)
    except ValueError:
        return False
    return isfinite(value) and (kind is float or value.is_integer())
