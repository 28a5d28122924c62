# SPDX-License-Identifier: Apache-2.0
"""What a check of a dataset says: one row a finding, with the file, the fact and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import InputError

ERROR, NOTE = "error", "note"
_HEADINGS = ("severity", "file", "fact", "remedy")
_WIDEST = 60  # a cell that is longer pushes its own row alone
_REPLACE = "replace the file, or take the case out"
_NO_REMEDY = "none needed"
_Result = TypeVar("_Result")


@dataclass(frozen=True, order=True)
class Finding:
    """One row: `severity` is "error" (training refuses it) or "note" (odd but safe); `file` is below the dataset."""

    severity: str
    file: str
    fact: str
    remedy: str


class Findings:
    """Collects the findings on files below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[Finding] = []

    def error(self, path: Path | str, fact: str, remedy: str) -> None:
        """Note what training refuses."""
        self.rows.append(Finding(ERROR, self._relative(path), fact, remedy))

    def note(self, path: Path | str, fact: str, remedy: str = _NO_REMEDY) -> None:
        """Note what is odd but safe."""
        self.rows.append(Finding(NOTE, self._relative(path), fact, remedy))

    def attempt(self, path: Path, read: Callable[..., _Result], *arguments: Any) -> _Result | None:
        """Return what `read` returns; where it raises `InputError`, note that of the file `path` and return None."""
        try:
            return read(*arguments)
        except InputError as error:
            self.refused(path, error)
            return None

    def refused(self, path: Path, error: InputError) -> None:
        """Note what a reader refused. Its line begins with the file, and ends with the remedy behind "; "."""
        line = str(error)
        for start in (f"{path}: ", f"{path} "):
            line = line.removeprefix(start)
        fact, semicolon, remedy = line.rpartition("; ")
        fact, remedy = (fact, remedy) if semicolon else (line, _REPLACE)
        fact = fact.replace(f": {path}", "").replace(f" at {path}", "").replace(str(path), "it")
        self.error(path, fact.replace(f"{self.folder}/", ""), remedy)

    def add_reader_notes(self, path: Path, notes: Iterable[str]) -> None:
        """Note what a reader accepted; what it took instead stands behind ": "."""
        for line in notes:
            fact, colon, taken = line.rpartition(": ")
            self.note(path, *((fact, taken) if colon else (line,)))

    def _relative(self, path: Path | str) -> str:
        path = Path(path)
        return str(path.relative_to(self.folder)) if path.is_relative_to(self.folder) else str(path)


def table(rows: Sequence[Finding]) -> str:
    """Return the rows in columns; characters that a terminal obeys are written as codes."""
    cells = [_HEADINGS, *(tuple(map(_visible, asdict(row).values())) for row in rows)]
    widths = [min(max(map(len, column)), _WIDEST) for column in zip(*cells, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "\n".join(line.rstrip() for line in lines)


def _visible(text: str) -> str:
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)
