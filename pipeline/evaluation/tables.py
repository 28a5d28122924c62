# SPDX-License-Identifier: Apache-2.0
"""Tables: CSV files that spreadsheets cannot take for formulas, and text for the console."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

# A cell that begins with one of these is run as a formula when a spreadsheet opens the file.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def csv_text(columns: Sequence[str], rows: Iterable[Any]) -> str:
    """Return the `columns` of dataclass `rows` as CSV, in the order given.

    Numbers have six decimals, inf is `inf`, NaN (not applicable) and None are empty cells. Text that a spreadsheet
    would run as a formula gets a leading apostrophe.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        content = asdict(row)
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


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return f"'{value}" if value.startswith(_FORMULA_STARTS) else value
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6f}"
    return str(value)
