# SPDX-License-Identifier: Apache-2.0
"""The files of a comparison: tables, page and pictures, written whole or not at all."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.comparison import Comparison, arrange, read_runs
from pipeline.comparison.page import write_page
from pipeline.comparison.pictures.all import draw_all
from pipeline.comparison.tables.csv_file import comparison_csv
from pipeline.comparison.tables.rows import ComparisonRow, comparison_rows
from pipeline.comparison.tables.table import comparison_markdown, comparison_tables
from pipeline.comparison.tables.verdict import verdict
from pipeline.data import Dataset, load_dataset
from pipeline.errors import InputError
from pipeline.evaluation.report import check_output_folder
from pipeline.evaluation.tables import text_table
from pipeline.files.atomic import sync_folder

# The table is moved last: a folder that has it has all.
CSV_FILE = "comparison.csv"
MARKDOWN_FILE = "comparison.md"
PAGE_FILE = "comparison.html"
FIGURES = "figures"


def write_comparison(
    runs: Sequence[str | os.PathLike[str]],
    output_dir: str | os.PathLike[str],
    dataset_dir: str | os.PathLike[str] | None = None,
    title: str | None = None,
) -> None:
    """Compare runs and write the tables, the page and the pictures, in place of an older comparison; print the tables.

    Args:
        runs: run folders, each with its report in `report`.
        output_dir: folder for tables, page and figures.
        dataset_dir: dataset folder of the reports, for pictures of cases; without it the page has none.
        title: of the page; the dataset and the number of cases by default.

    Raises:
        InputError: runs that cannot be read or compared, or a dataset that they were not scored on.
    """
    dataset = None if dataset_dir is None else load_dataset(dataset_dir)
    comparison = arrange(read_runs(runs), title)
    if dataset is not None:
        dataset, comparison = matched(dataset, str(dataset_dir), comparison)
    folder = check_output_folder(output_dir)
    rows = comparison_rows(comparison)
    with tempfile.TemporaryDirectory(prefix=".comparison_", dir=folder) as staging:
        _write(Path(staging), comparison, rows, dataset)
        _publish(Path(staging), folder)
    if told := verdict(comparison, rows):
        print(f"{told}\n")
    for table in comparison_tables(comparison, rows):
        print(f"{table.caption}\n{text_table(table.header, table.rows)}\n")
    print(f"comparison in {folder}")


def _write(folder: Path, comparison: Comparison, rows: Sequence[ComparisonRow], dataset: Dataset | None) -> None:
    """Write all files into an empty folder."""
    pictures = draw_all(comparison, rows, dataset, folder / FIGURES)
    write_page(folder / PAGE_FILE, comparison, rows, pictures, images=dataset is not None)
    made_by = f"\nMade by `{shlex.join(sys.orig_argv)}`.\n"
    (folder / MARKDOWN_FILE).write_text(comparison_markdown(comparison, rows) + made_by, encoding="utf-8")
    (folder / CSV_FILE).write_text(comparison_csv(comparison, rows), encoding="utf-8", newline="")


def _publish(staging: Path, folder: Path) -> None:
    """Move finished files to where they belong; pictures of an older comparison go."""
    sync_folder(staging)
    for older in (folder / FIGURES).glob("*"):
        if older.suffix in (".png", ".svg"):
            older.unlink()
    files = sorted(path for path in staging.rglob("*") if path.is_file())
    for path in sorted(files, key=lambda path: path.name == CSV_FILE):
        target = folder / path.relative_to(staging)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)


def matched(dataset: Dataset, path: str, comparison: Comparison) -> tuple[Dataset, Comparison]:
    """Return the dataset with the cases of the reports as its test split, and the comparison with their patients.

    Raises `InputError` for a dataset that the runs were not scored on: its pictures would show other cases.
    """
    if (dataset.kind, dataset.name) != (comparison.kind, comparison.dataset):
        raise InputError(
            f"--dataset {path} is {dataset.name} ({dataset.kind}), but the runs were scored on {comparison.dataset} "
            f"({comparison.kind}); give the dataset folder of the reports"
        )
    known = {case.case: case for case in (*dataset.training, *dataset.validation, *dataset.test)}
    missing = sorted(set(comparison.cases) - set(known))
    if missing:
        raise InputError(
            f"--dataset {path} lacks {len(missing)} cases of the reports, such as {missing[0]}; give the dataset "
            "folder that they are of"
        )
    test = tuple(known[case] for case in comparison.cases)
    patients = tuple(case.patient for case in test)
    return replace(dataset, training=(), validation=(), test=test), replace(comparison, patients=patients)
