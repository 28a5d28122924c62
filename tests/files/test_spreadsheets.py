# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.files.spreadsheets import cells_of, with_apostrophe, without_apostrophe
from pipeline.grid.grid import Outcome, _write_failures
from pipeline.inference.manifest import write_rows

FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"]


@pytest.mark.parametrize("name", FORMULAS)
def test_formula_gets_an_apostrophe_and_loses_it_again(name: str) -> None:
    assert with_apostrophe(name) == "'" + name
    assert without_apostrophe("'" + name) == name


@pytest.mark.parametrize("name", ["case 1", "a=1", "'quoted'", "'", ""])
def test_other_text_stays(name: str) -> None:
    assert with_apostrophe(name) == without_apostrophe(name) == name


def test_negative_numbers_stay_numbers() -> None:
    assert cells_of({"case": "-1", "volume": -1.5, "none": None}) == {"case": "'-1", "volume": -1.5, "none": None}


@dataclass
class Row:
    case: str
    error: str


@pytest.mark.parametrize("name", FORMULAS)
def test_failures_and_manifest_hold_no_formulas(tmp_path: Path, name: str) -> None:
    write_rows(tmp_path / "failures.csv", Row, [Row(name, name)])
    with open(tmp_path / "failures.csv", newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == [{"case": "'" + name, "error": "'" + name}]


def test_failed_runs_hold_no_formulas(tmp_path: Path) -> None:
    _write_failures(tmp_path, Outcome(failed={"=run": "@error"}))
    with open(tmp_path / "failures.csv", newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["run", "error"], ["'=run", "'@error"]]
