# SPDX-License-Identifier: Apache-2.0
"""A table with the outcome of each case of a run, and the check whether an earlier run has done a case."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.files.atomic import replace_when_complete
from pipeline.files.digest import sha256_of
from pipeline.files.spreadsheets import cells_of

MANIFEST_FILE = "manifest.csv"
DONE, KEPT, DAMAGED, FAILED = "done", "kept", "damaged", "failed"


@dataclass(frozen=True)
class ManifestRow:
    """One case.

    `status` is "done" (segmented in this run), "kept" (in an earlier one), "damaged" (parts of the input cannot be
    read) or "failed". `output` is the label map, `sha256` its hash, `seconds` what reading and segmenting took; they
    are empty where the case failed. `notes` are the reader's remarks, or why the case failed.
    """

    case: str
    input: str
    output: str
    sha256: str
    seconds: float | None
    status: str
    notes: str


def write_rows(path: Path, kind: type[Any], rows: Sequence[Any]) -> None:
    """Write instances of the dataclass `kind` as CSV, atomically; the header alone when there is none."""
    with replace_when_complete(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(kind)])
        writer.writeheader()
        writer.writerows(cells_of(asdict(row)) for row in rows)


def input_state(path: Path) -> dict[str, Any]:
    """Return path, size and time of change of a file, or of all files of a folder, to notice a changed input.

    `make` and `rsync` do the same. Hashing a slide of many GB could take longer than segmenting it.
    """
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    found = [file.stat() for file in files]
    return {
        "path": os.path.realpath(path),
        "files": len(found),
        "bytes": sum(one.st_size for one in found),
        "modified_ns": max((one.st_mtime_ns for one in found), default=0),
    }


def completion_record(
    source: Path, label_map: Path, checkpoint_sha256: str, settings: Mapping[str, Any], damaged: bool = False
) -> dict[str, Any]:
    """Return the part of a case's description by which a later run knows that the case is done.

    Args:
        source: the scan or slide.
        label_map: the complete label map, under any name.
        checkpoint_sha256: of the model.
        settings: further settings that the labels depend on, JSON primitives.
        damaged: True if parts of the source cannot be read; a later run then tries again.
    """
    return {
        "checkpoint_sha256": checkpoint_sha256,
        "settings": dict(settings),
        "input_state": input_state(source),
        "sha256": sha256_of(label_map),
        "status": DAMAGED if damaged else DONE,
    }


def row_of_earlier_run(
    case: str, source: Path, outputs: Sequence[Path], checkpoint_sha256: str, settings: Mapping[str, Any]
) -> ManifestRow | None:
    """Return the row of a case that an earlier run has done with the same input, model and settings, else None.

    Args:
        case: its name.
        source: the scan or slide.
        outputs: the files that a case has: the label map first, its description (JSON) last.
        checkpoint_sha256: of the model; without one nothing can be known.
        settings: further settings that the labels depend on.
    """
    label_map, description = outputs[0], outputs[-1]
    if not checkpoint_sha256 or not all(output.is_file() for output in outputs):
        return None
    try:
        told = json.loads(description.read_text(encoding="utf-8"))
        expected = completion_record(source, label_map, checkpoint_sha256, settings)
    except (ValueError, OSError, InputError):  # not ours, or it vanished meanwhile: the case is done again
        return None
    if not isinstance(told, dict) or any(told.get(key) != value for key, value in expected.items()):
        return None
    notes = "; ".join(map(str, told.get("notes", [])))
    return ManifestRow(case, str(source), str(label_map), told["sha256"], told.get("seconds"), KEPT, notes)
