# SPDX-License-Identifier: Apache-2.0
"""Whose scan is whose: the CSV file with the columns `case` and `patient`."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from pipeline.data.scans.case_names import bare_name, case_of_file
from pipeline.errors import InputError
from pipeline.files.texts import read_cells


def read_patients(path: str | Path | None, cases: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return case to patient from a CSV file with the columns `case` and `patient`; without one, each is its own.

    A case may be written as the name of its file. The list holds a problem for each case without a patient.
    """
    if path is None:
        return {case: case for case in cases}, []
    listed, problems = listed_patients(path)
    by_file = {bare_name(case_of_file(name)): patient for name, patient in listed.items()}
    patients = {case: listed.get(case) or by_file.get(case) for case in cases}
    problems += [f"{path}: no patient for case {case}" for case, patient in patients.items() if not patient]
    return {case: patient or case for case, patient in patients.items()}, problems


def listed_patients(path: str | Path) -> tuple[dict[str, str], list[str]]:
    """Return all cases of such a file with their patients, and a problem for each case with two."""
    listed: dict[str, str] = {}
    problems = []
    for row in read_rows(path, ("case", "patient")):
        case, patient = row["case"], row["patient"]
        if listed.setdefault(case, patient) != patient:
            problems.append(f"{path}: case {case} has two patients, {listed[case]} and {patient}")
    return listed, problems


def read_rows(path: str | Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Return the rows of a CSV file, stripped, as column to text; `InputError` where one of `columns` is missing.

    Commas, semicolons or tabs separate the cells; capitals in the first line do not count.
    """
    names = " and ".join(filter(None, (", ".join(columns[:-1]), columns[-1])))
    try:
        header, *rows = read_cells(path) or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read {path}: {error}; give a CSV file with the columns {names}") from error
    places = {cell.strip().lower(): place for place, cell in enumerate(header)}
    if not rows or not set(columns) <= places.keys():
        raise InputError(f"{path} lacks the columns {names} in its first line")
    return [{column: _cell(row, places[column]) for column in columns} for row in rows]


def _cell(row: Sequence[str], place: int) -> str:
    return row[place].strip() if place < len(row) else ""
