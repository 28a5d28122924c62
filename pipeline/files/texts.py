# SPDX-License-Identifier: Apache-2.0
"""Text files that a user may have edited: with or without a byte order mark, with any line ends and separators."""

from __future__ import annotations

import codecs
import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Excel writes ; where the comma is the decimal sign, and tabs as "Unicode text".
_SEPARATORS = ",;\t"
_SEPARATOR_LINE = "sep="  # how Excel is told the separator, in a first line of its own


def read_text(path: str | os.PathLike[str]) -> str:
    """Return the text of a file in UTF-8 or UTF-16, without byte order mark; lines end with LF alone.

    Raises `OSError`, and `UnicodeDecodeError` for another encoding.
    """
    content = Path(path).read_bytes()
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if wide else "utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")


def read_json(
    path: str | os.PathLike[str], object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None
) -> Any:
    """Return what a JSON file holds; raises what `read_text` does, and `ValueError` where it is no JSON."""
    return json.loads(read_text(path), object_pairs_hook=object_pairs_hook)


def read_cells(path: str | os.PathLike[str]) -> list[list[str]]:
    """Return the rows of a CSV file, the header first, without empty lines.

    The separator is whichever of comma, semicolon and tab the first line has most of. Raises what `read_text` does,
    and `csv.Error`.
    """
    lines = read_text(path).split("\n")
    if lines[0].lower().startswith(_SEPARATOR_LINE):
        lines = lines[1:]
    separator = max(_SEPARATORS, key=(lines or [""])[0].count)
    text = [f"{line}\n" for line in lines]
    return [row for row in csv.reader(text, delimiter=separator, strict=True) if any(cell.strip() for cell in row)]
