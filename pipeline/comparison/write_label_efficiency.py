# SPDX-License-Identifier: Apache-2.0
"""The files of a comparison by amounts of labels: one comparison each, and a table, a page and a figure of all."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.comparison import arrange, read_runs
from pipeline.comparison.label_efficiency import Amount, EfficiencyRow, efficiency_rows, labelled_count, verdict
from pipeline.comparison.page import render_page
from pipeline.comparison.paired import Difference, main_metric
from pipeline.comparison.pictures.label_curves import draw_label_curves
from pipeline.comparison.tables.table import MARKS, NOT_SIGNIFICANT, Table, markdown_table
from pipeline.comparison.write import FIGURES, matched, write_comparison
from pipeline.data import load_dataset
from pipeline.evaluation.report import check_output_folder
from pipeline.evaluation.tables import text_table
from pipeline.files.atomic import replace_when_complete

NAME = "label_efficiency"
_LEGEND = (
    "Every arm of an amount learned from the same labelled patients, fewer always among more. The teacher had these "
    "labels alone.",
    "Control: the student alone, by whichever of its trainings is better in validation. Mean teacher: the student "
    "follows an average of its own weights, without a teacher, on the same images as the last arm.",
    "Intervals are 95 % bootstrap intervals over patients; n.s.: the interval includes zero.",
    "Share of all: the figure divided by that of the control which had all labels.",
)


def write_label_efficiency(
    amounts: Mapping[str, Sequence[Path]],
    output_dir: str | os.PathLike[str],
    dataset_dir: str | os.PathLike[str],
    title: str | None = None,
) -> None:
    """Compare the runs of each amount of labels in a folder of its name, then all amounts with each other.

    Args:
        amounts: name of the amount to the folders of its runs.
        output_dir: folder for label_efficiency.csv, .md, .html and figures.
        dataset_dir: dataset folder of the reports.
        title: of the page.

    Raises:
        InputError: runs that cannot be read or compared.
    """
    folder, dataset = check_output_folder(output_dir), load_dataset(dataset_dir)
    compared = []
    for name, runs in amounts.items():
        write_comparison(runs, folder / name, dataset_dir, f"{dataset.name}: {name.replace('_', ' ')} of the labels")
        _, comparison = matched(dataset, str(dataset_dir), arrange(read_runs(runs)))
        compared.append(Amount(name, labelled_count(comparison, dataset_dir), comparison))
    rows = efficiency_rows(compared)
    tables = [_table(student, rows) for student in dict.fromkeys(row.student for row in rows)]
    picture = draw_label_curves(rows, folder / FIGURES)
    title = title or f"{dataset.name}: accuracy by the amount of labels"
    told = verdict(rows)
    page = render_page(title=title, verdict=told, tables=tables, marks=MARKS, legend=_LEGEND, pictures=[picture])
    for ending, text in (("html", page), ("md", _markdown(title, told, tables)), ("csv", _csv(rows))):
        with replace_when_complete(folder / f"{NAME}.{ending}") as temporary:
            temporary.write_text(text, encoding="utf-8", newline="")
    for table in tables:
        print(f"{table.caption}\n{text_table(table.header, table.rows)}\n")
    print(f"{told}\nlabels compared in {folder}".lstrip())


def _table(student: str, rows: Sequence[EfficiencyRow]) -> Table:
    mine = [row for row in rows if row.student == student]
    metric = main_metric(mine[0].amount.comparison.kind)
    header = ("labels", "patients", "arm", metric.title, "by seed", "over mean teacher", "over control", "share of all")
    cells = [
        (
            row.amount.label,
            "all" if row.amount.patients is None else f"{row.amount.patients:g}",
            row.arm.label,
            f"{row.mean:.3f}",
            " ".join(f"{value:.3f}" for value in row.values),
            _change(row.over_mean_teacher),
            _change(row.over_control),
            "-" if row.share_of_all is None else f"{100 * row.share_of_all:.0f} %",
        )
        for row in mine
    ]
    return Table(f"{student}: test {metric.title} by the amount of labels", header, tuple(cells))


def _change(difference: Difference | None) -> str:
    if difference is None:
        return "-"
    if math.isnan(difference.low):
        return f"{difference.value:+.3f}"
    mark = f" {NOT_SIGNIFICANT}" if difference.includes_zero else ""
    return f"{difference.value:+.3f} ({difference.low:+.3f} to {difference.high:+.3f}){mark}"


def _markdown(title: str, told: str, tables: Sequence[Table]) -> str:
    parts = [
        f"# {title}",
        *([told] if told else []),
        *(f"**{table.caption}**\n\n{markdown_table(table)}" for table in tables),
    ]
    return "\n\n".join([*parts, "\n".join(f"- {line}" for line in _LEGEND)]) + "\n"


def _csv(rows: Sequence[EfficiencyRow]) -> str:
    """Return every figure, one row for each arm and amount."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    references = ("mean_teacher", "control")
    columns = [f"over_{name}{part}" for name in references for part in ("", "_low", "_high", "_p")]
    writer.writerow(
        ["amount", "labelled_patients", "student", "arm", "metric", "mean", "seeds", *columns, "share_of_all"]
    )
    for row in rows:
        differences = [
            ("", "", "", "") if found is None else (found.value, found.low, found.high, found.p)
            for found in (row.over_mean_teacher, row.over_control)
        ]
        amount, metric = row.amount, main_metric(row.amount.comparison.kind)
        patients, share = ("" if value is None else value for value in (amount.patients, row.share_of_all))
        seeds = " ".join(f"{value:.6g}" for value in row.values)
        start = [amount.name, patients, row.student, row.arm.label, metric.name, row.mean, seeds]
        writer.writerow([*start, *(value for found in differences for value in found), share])
    return text.getvalue()
