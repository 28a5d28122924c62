# SPDX-License-Identifier: Apache-2.0
"""The report of one evaluation: per_case.csv, per_organ.csv and summary.json, and the table on the console.

Protocol `mm` is this project's: millimetres, every missed organ counted. Protocol `transunet` is the published Synapse
convention; its files carry its name, so that the two are never mixed.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pipeline.atomic import replace_when_complete
from pipeline.errors import InputError
from pipeline.evaluation.provenance import json_number
from pipeline.evaluation.scores import score_case
from pipeline.evaluation.summaries import OrganSummary, summarise_organs
from pipeline.evaluation.tables import csv_text, text_number, text_table
from pipeline.evaluation.transunet import TransUNetScore, TransUNetSummary, score_case_transunet, summarise_transunet

PER_CASE_COLUMNS = (
    "case",
    "organ",
    "label",
    "status",
    "dice",
    "iou",
    "hd95_mm",
    "hd95_pooled_mm",
    "assd_mm",
    "volume_label_ml",
    "volume_prediction_ml",
)
PER_ORGAN_COLUMNS = tuple(field.name for field in fields(OrganSummary))


@dataclass(frozen=True)
class Protocol:
    """How cases are scored and organs summarised, and what the files and their columns are called.

    `score(case, prediction, label, organs, spacing_mm)` returns score rows, `summarise(rows)` summary rows with the row
    `mean` last. `suffix` is part of every file name. `definitions` explains the figures in `summary.json`.
    """

    name: str
    suffix: str
    score: Callable[..., list[Any]]
    summarise: Callable[[Sequence[Any]], list[Any]]
    per_case_columns: tuple[str, ...]
    per_organ_columns: tuple[str, ...]
    definitions: Mapping[str, str]

    def file_names(self) -> tuple[str, str, str]:
        """Return the names of the case table, the organ table and the summary."""
        return f"per_case{self.suffix}.csv", f"per_organ{self.suffix}.csv", f"summary{self.suffix}.json"


MM = Protocol(
    name="mm",
    suffix="",
    score=score_case,
    summarise=summarise_organs,
    per_case_columns=PER_CASE_COLUMNS,
    per_organ_columns=PER_ORGAN_COLUMNS,
    definitions={
        "dice": "per volume and organ; 0 where one side alone has the organ; absent organs do not count",
        "hd95_mm": "larger of the directed 95th percentiles of surface distance, in mm; inf where one side is empty",
        "hd95_pooled_mm": "95th percentile of both directions pooled (medpy), in mm",
        "hd95_penalised_mm": "hd95_mm with the diagonal of the volume in place of inf",
        "assd_mm": "mean distance over all surface voxels of both sides, in mm",
        "volume_error_ml": "prediction minus label",
        "mean": "over organs, of the mean over the cases that have the organ in label or prediction",
    },
)
TRANSUNET = Protocol(
    name="transunet",
    suffix="_transunet",
    score=score_case_transunet,
    summarise=summarise_transunet,
    per_case_columns=tuple(field.name for field in fields(TransUNetScore)),
    per_organ_columns=tuple(field.name for field in fields(TransUNetSummary)),
    definitions={
        "hd95_voxels": "95th percentile of both directions pooled (medpy), in voxels, spacing ignored",
        "missed, absent": "Dice 0, HD95 0",
        "false_positive": "Dice 1, HD95 0",
        "mean": "over organs, of the mean over all cases",
    },
)
PROTOCOLS = {protocol.name: protocol for protocol in (MM, TRANSUNET)}


def protocol_named(name: str) -> Protocol:
    """Return the protocol `mm` or `transunet`; `InputError` for another name."""
    if name not in PROTOCOLS:
        raise InputError(f"protocol {name!r} is unknown; choose one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def write_report(
    folder: str | os.PathLike[str],
    protocol: Protocol,
    scores: Sequence[Any],
    description: Mapping[str, Any],
) -> list[Any]:
    """Write the three files of a report, all or none of them, and return the summary rows.

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
        "results": [_json_row(row) for row in rows],
    }
    _write_together(
        {
            summary: json.dumps(content, indent=2, allow_nan=False) + "\n",
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

    A new report of another checkpoint beside files of an old one (another protocol, other predictions) misleads.
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


def report_table(rows: Sequence[Any]) -> str:
    """Return the summary rows of either protocol as a table for the console, with all counts and what they mean."""
    if isinstance(rows[0], OrganSummary):
        header = ("Dice", "95% interval", "HD95 mm", "median", "penalised", "volume error ml")
        figures = [_figures(row) for row in rows]
        note = (
            "HD95 is inf where an organ was missed or invented; the penalised mean takes the volume's diagonal there."
        )
    else:
        header = ("Dice", "HD95 voxels")
        figures = [(text_number(row.dice_mean, 3), text_number(row.hd95_voxels_mean, 2)) for row in rows]
        note = "TransUNet convention: compare with published Synapse figures alone; a missed organ has HD95 0."
    table = text_table(
        ("organ", "cases", "ok", "missed", "false pos", "absent", *header),
        [(row.organ, *map(str, _counts(row)), *cells) for row, cells in zip(rows, figures, strict=True)],
    )
    return f"{table}\n{note}"


def _figures(row: OrganSummary) -> tuple[str, ...]:
    known = not math.isnan(row.dice_ci95_low)
    return (
        text_number(row.dice_mean, 3),
        f"{row.dice_ci95_low:.3f} to {row.dice_ci95_high:.3f}" if known else "-",
        text_number(row.hd95_mm_mean, 2),
        text_number(row.hd95_mm_median, 2),
        text_number(row.hd95_penalised_mm_mean, 2),
        text_number(row.volume_error_ml_mean, 2),
    )


def _counts(row: OrganSummary | TransUNetSummary) -> tuple[int, ...]:
    return row.n_cases, row.n_ok, row.n_missed, row.n_false_positive, row.n_absent


def _json_row(row: Any) -> dict[str, Any]:
    return {name: json_number(value) if isinstance(value, float) else value for name, value in asdict(row).items()}
