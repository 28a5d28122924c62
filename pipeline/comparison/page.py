# SPDX-License-Identifier: Apache-2.0
"""The comparison as one HTML file that needs nothing else: tables, pictures, notes, and how it was made."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Sequence

from pipeline.comparison.arms import Comparison
from pipeline.comparison.page_style import STYLE
from pipeline.comparison.pictures.style import PNG_DPI, Picture
from pipeline.comparison.tables.rows import ComparisonRow
from pipeline.comparison.tables.table import html_tables, legend, notes
from pipeline.comparison.tables.verdict import verdict
from pipeline.data import image_size
from pipeline.evaluation.provenance import describe_run
from pipeline.files.atomic import replace_when_complete

NO_IMAGES = "Segmentations and graphs need the images: give --dataset FOLDER to have them drawn."
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
    title = html.escape(comparison.title)
    links = [("tables", "Tables"), ("reading", "How to read them"), ("notes", "Notes")]
    links += [(f"picture-{number}", picture.title) for number, picture in enumerate(pictures, 1)]
    links += [("made", "How this was made")]
    navigation = "".join(f'<li><a href="#{place}">{html.escape(text)}</a></li>' for place, text in links)
    figures = "\n".join(_figure(number, picture) for number, picture in enumerate(pictures, 1))
    told = f"<p>{html.escape(sentence)}</p>\n" if (sentence := verdict(comparison, rows)) else ""
    left_out = "" if images else f"<p>{html.escape(NO_IMAGES)}</p>\n"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{STYLE}</style>
</head>
<body>
<header>
<h1>{title}</h1>
{told}<nav aria-label="Contents"><ul>{navigation}</ul></nav>
</header>
<main>
<section id="tables">
<h2>Tables</h2>
{html_tables(comparison, rows)}
</section>
<section id="reading">
<h2>How to read them</h2>
{_list(legend(comparison))}
</section>
<section id="notes">
<h2>Notes</h2>
{_list(notes(comparison, rows))}
</section>
<section id="pictures">
<h2>Pictures</h2>
{left_out}{figures}
</section>
<section id="made">
<h2>How this was made</h2>
{_making(comparison)}
</section>
</main>
</body>
</html>
"""


def _figure(number: int, picture: Picture) -> str:
    height, width = (round(length * _CSS_DPI / PNG_DPI) for length in image_size(picture.png))
    least = round(_LEAST_SHARE * width)
    title, caption, alt = (html.escape(text) for text in (picture.title, picture.caption, picture.alt))
    return (
        f'<figure id="picture-{number}">\n<h3>{title}</h3>\n'
        f'<div class="scroll" role="region" aria-label="{title}" tabindex="0">'
        f'<img src="{_data_uri(picture)}" alt="{alt}" width="{width}" height="{height}" '
        f'style="min-width:{least}px;max-width:max(100%,{least}px)"></div>\n'
        f"<figcaption>{caption}</figcaption>\n</figure>"
    )


def _data_uri(picture: Picture) -> str:
    """Return a picture as an address that holds it: the SVG, or the PNG where there is none or only a large one."""
    vector = picture.svg is not None and picture.svg.stat().st_size <= _LARGEST_SVG
    path, kind = (picture.svg, "svg+xml") if vector else (picture.png, "png")
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def _list(lines: Sequence[str]) -> str:
    return "<ul>\n" + "\n".join(f"<li>{html.escape(line)}</li>" for line in lines) + "\n</ul>"


def _making(comparison: Comparison) -> str:
    """Return command, versions and machine, and the model files of all runs."""
    made = describe_run()
    facts = {
        "Command": made["command"],
        "Versions": ", ".join(f"{name} {version}" for name, version in made["versions"].items()),
        "Machine": f"{made['machine']['platform']}, {made['machine']['cpu_count']} CPUs",
    }
    listed = "\n".join(
        f"<dt>{html.escape(name)}</dt><dd><code>{html.escape(text)}</code></dd>" for name, text in facts.items()
    )
    runs = "\n".join(
        f'<tr><th scope="row">{html.escape(arm.label)}</th><td>{run.seed}</td><td>{run.epochs}</td>'
        f"<td><code>{html.escape(str(run.path))}</code></td><td><code>{run.model_sha256[:12]}</code></td></tr>"
        for arm in comparison.arms
        for run in arm.parts
    )
    return (
        f'<dl>\n{listed}\n</dl>\n<div class="scroll" tabindex="0" role="region" aria-label="Runs">\n<table>\n'
        "<caption>Runs</caption>\n"
        '<thead><tr><th scope="col">arm</th><th scope="col">seed</th><th scope="col">epochs</th>'
        '<th scope="col">folder</th><th scope="col">SHA-256 of the model</th></tr></thead>\n'
        f"<tbody>\n{runs}\n</tbody>\n</table>\n</div>"
    )
