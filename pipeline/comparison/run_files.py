# SPDX-License-Identifier: Apache-2.0
"""The files of a finished run and of its report, read and checked."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.data.dataset.dataset import SCANS, SLIDES
from pipeline.errors import InputError
from pipeline.evaluation.provenance import sha256_of
from pipeline.evaluation.report import protocol_named
from pipeline.evaluation.scores import STATUSES
from pipeline.evaluation.surface import diagonal_mm
from pipeline.files.spreadsheets import without_apostrophe
from pipeline.files.texts import read_cells, read_json

_EVALUATE = "evaluate the run again into its folder report (evaluate.yaml with --run_dir RUN/report)"
_TEXT = ("case", "image", "organ", "class", "status")
# Reports of older releases lack it; `image_counts` says so where it is needed.
_OPTIONAL = "pixels_right"
CASE_COLUMN = {SCANS: "case", SLIDES: "image"}
ORGAN_COLUMN = {SCANS: "organ", SLIDES: "class"}
HD95 = {SCANS: "hd95_mm", SLIDES: "hd95_px"}
PENALISED = {SCANS: "hd95_penalised_mm", SLIDES: "hd95_penalised_px"}


def read_record(run: Path) -> dict[str, Any]:
    """Return `run.json` of a run folder; `InputError` if the folder is none, or its run is not finished."""
    if not run.is_dir():
        raise InputError(f"{run} is no folder; give folders of training or distillation runs")
    for name in ("run.json", "model.pt"):
        if not (run / name).is_file():
            raise InputError(f"{run} has no {name}; give the folder of a finished training or distillation run")
    return _read_json(run / "run.json", "give the folder of a finished run, or train again")


def report_kind(report: Path) -> str:
    """Return what a report is of, "scans" or "slides"; `InputError` if there is no report, or one of both."""
    found = [kind for kind in (SCANS, SLIDES) if (report / _case_file(kind)).is_file()]
    if len(found) != 1 or not (report / "summary.json").is_file():
        state = "reports of scans and of slides" if len(found) > 1 else "no report"
        raise InputError(f"{report} holds {state}; {_EVALUATE}")
    return found[0]


def read_summary(report: Path, model: Path) -> dict[str, Any]:
    """Return `summary.json` of a report; `InputError` if it is damaged or of another model file than the run's."""
    model_sha256 = sha256_of(model)
    summary = _read_json(report / "summary.json", _EVALUATE)
    if not isinstance(summary.get("cases"), list) or not isinstance(summary.get("results"), list):
        raise InputError(f"{report / 'summary.json'} lacks its cases or results; {_EVALUATE}")
    checkpoint = summary.get("checkpoint")
    scored = checkpoint.get("sha256") if isinstance(checkpoint, Mapping) else None
    if scored != model_sha256:
        raise InputError(
            f"{report} is of the model {str(scored)[:12]}, but {model} is {model_sha256[:12]}; {_EVALUATE}"
        )
    return summary


def read_scores(report: Path, kind: str, summary: Mapping[str, Any]) -> pd.DataFrame:
    """Return the table of cases of a report, ordered by case and label value, names as text and the rest as numbers.

    A column `hd95_penalised_mm` (of slides `hd95_penalised_px`) is added, which has the diagonal of the volume or image
    in place of inf. Raises `InputError` for a table that is damaged: columns or rows missing, double or not numbers.
    """
    path = report / _case_file(kind)
    case, organ = CASE_COLUMN[kind], ORGAN_COLUMN[kind]
    needed = [column for column in protocol_named(None, kind).per_case_columns if column != _OPTIONAL]
    scores = _numbers(path, _read_table(path, needed))
    scores = scores.sort_values([case, "label"], kind="stable", ignore_index=True)
    if scores.duplicated([case, "label"]).any() or scores[organ].nunique() != scores["label"].nunique():
        raise InputError(f"{path} has a case or organ twice; {_EVALUATE}")
    if len(scores) != scores[case].nunique() * scores["label"].nunique():
        raise InputError(f"{path} lacks rows: not every case has every organ; {_EVALUATE}")
    diagonals = scores[case].map(_diagonals(report / "summary.json", kind, summary))
    if sorted(set(scores[case])) != sorted(str(entry["case"]) for entry in summary["cases"]):
        raise InputError(f"{path} and summary.json beside it have other cases; {_EVALUATE}")
    found = scores[HD95[kind]]
    scores[PENALISED[kind]] = diagonals.where(np.isinf(found), found).astype(float)
    return scores


def _case_file(kind: str) -> str:
    return protocol_named(None, kind).file_names()[0]


def _read_json(path: Path, advice: str) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}); {advice}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no settings; {advice}")
    return content


def _read_table(path: Path, needed: Sequence[str]) -> pd.DataFrame:
    """Return a CSV file as text, as it stands: a case named NA is a case."""
    try:
        header, *rows = read_cells(path)
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a table ({error}); {_EVALUATE}") from error
    lacking = [column for column in needed if column not in header]
    if lacking or not rows:
        raise InputError(f"{path} has no {f'column {lacking[0]}' if lacking else 'rows'}; {_EVALUATE}")
    for line, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise InputError(f"{path} line {line} has {len(row)} cells for {len(header)} columns; {_EVALUATE}")
    return pd.DataFrame(rows, columns=header)


def _numbers(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with numbers in all columns but those of names; an empty cell is NaN."""
    columns = {}
    for name, cells in table.items():
        if name in _TEXT:
            columns[name] = cells.map(without_apostrophe)
            continue
        try:
            columns[name] = pd.to_numeric(cells.replace("", np.nan))
        except ValueError as error:
            raise InputError(f"{path} column {name} is not all numbers ({error}); {_EVALUATE}") from error
    unknown = set(table["status"]) - set(STATUSES)
    if unknown:
        raise InputError(f"{path} has the unknown status {sorted(unknown)[0]!r}; {_EVALUATE}")
    return pd.DataFrame(columns)


def _diagonals(path: Path, kind: str, summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the diagonal of each case's volume in mm (NaN where voxels have no size), or of its image in pixels."""
    diagonals = {}
    for entry in summary["cases"]:
        try:
            shape = [int(length) for length in entry["shape"]]
            spacing = [1.0] * len(shape) if kind == SLIDES else entry.get("steps_mm", entry["spacing_mm"])
            diagonals[str(entry["case"])] = math.nan if spacing is None else diagonal_mm(shape, spacing)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} does not tell shape and spacing of each case ({error!r}); {_EVALUATE}") from error
    return diagonals
