# SPDX-License-Identifier: Apache-2.0
"""The report of one evaluation: a table of cases, a table of classes, summary.json, and all of it as one page.

Files of a protocol that follows a published convention carry its name, so that they are never mixed with ours.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pipeline.data.dataset.dataset import SCANS, SLIDES
from pipeline.errors import InputError
from pipeline.evaluation.page import page_html
from pipeline.evaluation.protocol import Protocol
from pipeline.evaluation.provenance import json_number
from pipeline.evaluation.scans.protocols import MM, TRANSUNET
from pipeline.evaluation.slides.protocols import FULL, PAPER
from pipeline.evaluation.tables import csv_text, row_content
from pipeline.files.atomic import replace_when_complete

PROTOCOLS = {protocol.name: protocol for protocol in (MM, TRANSUNET, FULL, PAPER)}
_NAMES = {kind: [name for name, protocol in PROTOCOLS.items() if protocol.kind == kind] for kind in (SCANS, SLIDES)}


def protocol_named(name: str | None, kind: str | None = None) -> Protocol:
    """Return the protocol of a name; without a name the first for `kind`, which is "scans" or "slides".

    Raises `InputError` for an unknown name, and for a protocol of the other kind if `kind` is given.
    """
    if kind not in (None, *_NAMES):
        raise ValueError(f"kind is {kind!r}, not one of {', '.join(_NAMES)}")
    if name is None:
        return PROTOCOLS[_NAMES[kind or SCANS][0]]
    if name not in PROTOCOLS:
        known = " or ".join(f"{', '.join(names)} for {kind}" for kind, names in _NAMES.items())
        raise InputError(f"protocol {name!r} is unknown; choose one of {known}")
    protocol = PROTOCOLS[name]
    if kind not in (None, protocol.kind):
        choices = ", ".join(_NAMES[kind])
        raise InputError(f"protocol {name!r} is for {protocol.kind}, but these are {kind}; choose one of {choices}")
    return protocol


def write_report(
    folder: str | os.PathLike[str],
    protocol: Protocol,
    scores: Sequence[Any],
    description: Mapping[str, Any],
) -> list[Any]:
    """Write the files of a report, all or none of them, and return the summary rows.

    `scores` are rows of `protocol.score` over all cases; files list them by case name and label value. `description`
    (JSON primitives) goes into the summary beside the results. Raises `InputError` if there is no score or the folder
    cannot be written.
    """
    if not scores:
        raise InputError(f"no case was scored, so there is no report for {folder}; check the inputs")
    ordered = sorted(scores, key=lambda score: (score.case, score.label))
    rows = protocol.summarise(ordered)
    per_case, per_organ, summary = (Path(folder) / name for name in protocol.file_names())
    content = {
        "protocol": protocol.name,
        "definitions": dict(protocol.definitions),
        **description,
        "files": [per_case.name, per_organ.name],
        **({} if protocol.pooled is None else {"pooled": protocol.pooled(ordered, rows)}),
        "results": [_json_row(row) for row in rows],
    }
    _write_together(
        {
            summary: json.dumps(content, indent=2, allow_nan=False) + "\n",
            Path(folder) / protocol.page_name: page_html(protocol, ordered, rows, description),
            per_organ: csv_text(protocol.per_organ_columns, rows),
            per_case: csv_text(protocol.per_case_columns, ordered),
        }
    )
    return rows


def _write_together(texts: Mapping[Path, str]) -> None:
    """Write all files before the first is renamed; the first named is renamed last."""
    with ExitStack() as files:
        for path, text in texts.items():
            temporary = files.enter_context(replace_when_complete(path))
            temporary.write_text(text, encoding="utf-8", newline="")


def refuse_older_report(folder: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Raise `InputError` if the folder holds a report already, unless it is to be overwritten.

    Files of an old report (another protocol, other predictions) would otherwise stand beside those of a new one.
    """
    older = sorted(path.name for path in Path(folder).glob("summary*.json"))
    if older and not overwrite:
        raise InputError(f"{folder} holds a report already ({older[0]}): choose another, or pass --overwrite True")


def check_output_folder(folder: str | os.PathLike[str]) -> Path:
    """Create the folder and try to write into it: better to fail now than after the work. Raises `InputError`."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(f"cannot write into {folder}: {error.strerror}; choose another output folder") from error
    return Path(folder)


def _json_row(row: Any) -> dict[str, Any]:
    return {name: json_number(value) if isinstance(value, float) else value for name, value in row_content(row).items()}
