# SPDX-License-Identifier: Apache-2.0
"""Tables: CSV files that spreadsheets cannot take for formulas, and text for the console."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from pipeline.files.spreadsheets import with_apostrophe


@dataclass(frozen=True)
class ShownTable:
    """A table for people: header and rows of text, with the name of a row in its first cell, and notes for reading."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]

    def text(self) -> str:
        """Return the table for the console, with its notes below."""
        return "\n".join((text_table(self.header, self.rows), *self.notes))


def columns_of(row: Any) -> tuple[str, ...]:
    """Return the column names of a dataclass of rows: its fields, so that `class_` gives the column `class`."""
    return tuple(field.name.removesuffix("_") for field in fields(row))


def row_content(row: Any) -> dict[str, Any]:
    """Return a dataclass row as column name to value."""
    return dict(zip(columns_of(row), asdict(row).values(), strict=True))


def csv_text(columns: Sequence[str], rows: Iterable[Any]) -> str:
    """Return the `columns` of dataclass `rows` as CSV, in the order given.

    Numbers have six decimals, inf is `inf`, NaN (not applicable) and None are empty cells. Text that a spreadsheet
    would run as a formula gets a leading apostrophe.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        content = row_content(row)
        writer.writerow([_cell(content[column]) for column in columns])
    return text.getvalue()


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of text: the first column flush left, the others flush right, two spaces between them."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def text_number(value: float, decimals: int) -> str:
    """Return a number for the console; `-` where it does not apply (NaN)."""
    return "-" if math.isnan(value) else f"{value:.{decimals}f}"


def text_interval(low: float, high: float, decimals: int) -> str:
    """Return an interval for the console; `-` where it is not known (NaN)."""
    return "-" if math.isnan(low) else f"{low:.{decimals}f} to {high:.{decimals}f}"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return with_apostrophe(value)
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6f}"
    return str(value)
