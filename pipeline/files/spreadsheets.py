# SPDX-License-Identifier: Apache-2.0
"""Cells of CSV files that no spreadsheet takes for formulas: names of files may be anybody's choice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# A cell that begins with one of these is run as a formula when a spreadsheet opens the file.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def with_apostrophe(text: str) -> str:
    """Return text for a cell: with an apostrophe before it where a spreadsheet would run it as a formula."""
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text


def without_apostrophe(cell: str) -> str:
    """Return the text that `with_apostrophe` made a cell of."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(_FORMULA_STARTS) else cell


def cells_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row for `csv.DictWriter`, its texts by `with_apostrophe`; numbers may be negative."""
    return {name: with_apostrophe(value) if isinstance(value, str) else value for name, value in row.items()}
