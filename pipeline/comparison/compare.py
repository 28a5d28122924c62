# SPDX-License-Identifier: Apache-2.0
"""Compare finished runs: the teacher, students alone and students with each method, on the cases of their reports."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.comparison import Comparison, arrange, read_runs
from pipeline.comparison.csv_file import comparison_csv
from pipeline.comparison.page import write_page
from pipeline.comparison.pictures.all import draw_all
from pipeline.comparison.rows import ComparisonRow, comparison_rows
from pipeline.comparison.table import comparison_markdown, comparison_tables
from pipeline.comparison.verdict import verdict
from pipeline.data import Dataset, load_dataset
from pipeline.errors import InputError, run_command
from pipeline.evaluation.report import check_output_folder
from pipeline.evaluation.tables import text_table

# The table is moved last: a folder that has it has all.
CSV_FILE = "comparison.csv"
MARKDOWN_FILE = "comparison.md"
PAGE_FILE = "comparison.html"
FIGURES = "figures"


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare the runs that the command line names; returns exit code 0."""
    options = _parser().parse_args(arguments)
    if (Path(options.output) / CSV_FILE).exists() and not options.overwrite:
        raise InputError(f"{options.output} holds a comparison already: choose another folder, or pass --overwrite")
    write_comparison(options.runs, options.output, options.dataset, options.title)
    return 0


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
        dataset, comparison = _matched(dataset, str(dataset_dir), comparison)
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
    for older in (folder / FIGURES).glob("*"):
        if older.suffix in (".png", ".svg"):
            older.unlink()
    files = sorted(path for path in staging.rglob("*") if path.is_file())
    for path in sorted(files, key=lambda path: path.name == CSV_FILE):
        target = folder / path.relative_to(staging)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)


def _matched(dataset: Dataset, path: str, comparison: Comparison) -> tuple[Dataset, Comparison]:
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipeline.comparison.compare", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder with its report in RUN/report")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for tables, page and figures")
    parser.add_argument("--dataset", metavar="DIR", help="dataset folder of the reports, for pictures of cases")
    parser.add_argument("--title", help="title of the page; the dataset and the number of cases by default")
    parser.add_argument("--overwrite", action="store_true", help="replace a comparison that DIR holds")
    return parser


if __name__ == "__main__":
    run_command(main)
