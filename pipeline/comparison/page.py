# SPDX-License-Identifier: Apache-2.0
"""The comparison as one HTML file that needs nothing else: tables, pictures, notes, and how it was made."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.comparison.arms import Comparison
from pipeline.comparison.pictures.style import PNG_DPI, Picture
from pipeline.comparison.tables.rows import ComparisonRow
from pipeline.comparison.tables.table import MARKS, comparison_tables, legend, notes
from pipeline.comparison.tables.verdict import verdict
from pipeline.data import image_size
from pipeline.evaluation.provenance import describe_run
from pipeline.files.atomic import replace_when_complete
from pipeline.pages.render import render

NO_IMAGES = "Segmentations and graphs need the images: give --dataset FOLDER to have them drawn."
TEMPLATE = Path(__file__).with_name("page.html.j2")
_CSS_DPI = 96
_LARGEST_SVG = 300_000  # bytes; pictures made of pixels are smaller as PNG
_LEAST_SHARE = 0.75  # of a picture's own size: text is still read at that, below it the picture scrolls in its box


def write_page(
    path: str | os.PathLike[str],
    comparison: Comparison,
    rows: Sequence[ComparisonRow],
    pictures: Sequence[Picture],
    images: bool = True,
) -> None:
    """Write a comparison as HTML, atomically; the page opens offline and has neither scripts nor links to elsewhere.

    Args:
        path: the file.
        comparison: what is compared.
        rows: its figures.
        pictures: what `draw_all` drew; they are written into the page.
        images: False where there was no dataset to draw images of, which the page then says.

    Raises:
        InputError: a picture cannot be read or the page cannot be written.
    """
    with replace_when_complete(path) as temporary:
        temporary.write_text(page_html(comparison, rows, pictures, images), encoding="utf-8")


def page_html(
    comparison: Comparison, rows: Sequence[ComparisonRow], pictures: Sequence[Picture], images: bool = True
) -> str:
    """Return the page of `write_page` as text."""
    return render_page(
        title=comparison.title,
        verdict=verdict(comparison, rows),
        tables=comparison_tables(comparison, rows),
        marks=MARKS,
        legend=legend(comparison),
        notes=notes(comparison, rows),
        pictures=pictures,
        left_out="" if images else NO_IMAGES,
        arms=comparison.arms,
    )


def render_page(*, pictures: Sequence[Picture], **content: Any) -> str:
    """Return a page of tables and pictures; `content` is what the template shows, and nothing where it is not given."""
    content = {"verdict": "", "notes": (), "left_out": "", "arms": (), **content}
    return render(TEMPLATE, **content, pictures=[_shown(picture) for picture in pictures], made=describe_run())


def _shown(picture: Picture) -> dict[str, Any]:
    """Return a picture's words with its size in CSS pixels and an address that holds it."""
    height, width = (round(length * _CSS_DPI / PNG_DPI) for length in image_size(picture.png))
    least = round(_LEAST_SHARE * width)
    return asdict(picture) | {"height": height, "width": width, "least": least, "address": _data_uri(picture)}


def _data_uri(picture: Picture) -> str:
    """Return a picture as an address that holds it: the SVG, or the PNG where there is none or only a large one."""
    vector = picture.svg is not None and picture.svg.stat().st_size <= _LARGEST_SVG
    path, kind = (picture.svg, "svg+xml") if vector else (picture.png, "png")
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
