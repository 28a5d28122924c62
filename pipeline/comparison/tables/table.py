# SPDX-License-Identifier: Apache-2.0
"""The comparison as tables for people: the main figures, rounded, as rows of text and in Markdown."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.comparison.arms import ALONE, TEACHER, Comparison
from pipeline.comparison.gap import Gap
from pipeline.comparison.paired import METRICS, Difference, Metric, main_metric
from pipeline.comparison.run_files import HD95
from pipeline.comparison.tables.csv_file import control_names
from pipeline.comparison.tables.rows import ComparisonRow, MetricScore, OrganFigures
from pipeline.comparison.tables.verdict import choice, verdict
from pipeline.data.dataset.dataset import SCANS
from pipeline.evaluation.statistics import BOOTSTRAP_RESAMPLES, FEWEST_FOR_WILCOXON
from pipeline.evaluation.tables import text_number

NOT_SIGNIFICANT = "n.s."
TOO_FEW = "too few"
NO_GAP = "no gap"
MARKS = {
    NOT_SIGNIFICANT: "the interval includes zero, no difference is shown",
    TOO_FEW: f"the interval is of fewer than {FEWEST_FOR_WILCOXON} and too narrow; without zero it is a hint, no proof",
}
_NOT_APPLICABLE = "-"


@dataclass(frozen=True)
class Table:
    """A table to show: a caption, the header and rows of text; the first cell of a row names it."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def comparison_markdown(comparison: Comparison, rows: Sequence[ComparisonRow]) -> str:
    """Return title, verdict, tables, legend and notes as Markdown."""
    parts = [f"# {_markdown_text(comparison.title)}"]
    parts += [_markdown_text(told)] if (told := verdict(comparison, rows)) else []
    parts += [
        f"**{_markdown_text(table.caption)}**\n\n{markdown_table(table)}"
        for table in comparison_tables(comparison, rows)
    ]
    for heading, lines in (("How to read it", legend(comparison)), ("Notes", notes(comparison, rows))):
        parts.append(f"## {heading}\n\n" + "\n".join(f"- {_markdown_text(line)}" for line in lines))
    return "\n\n".join(parts) + "\n"


def comparison_tables(comparison: Comparison, rows: Sequence[ComparisonRow]) -> list[Table]:
    """Return the tables that people read: scores, what arms change, organs (of scans), and cost."""
    tables = [_score_table(comparison, rows)]
    compared = [row for row in rows if row.arm.role != TEACHER and row.arm is not comparison.control(row.arm.network)]
    if compared:
        tables += [_change_table(comparison, compared), *_control_tables(comparison, rows)]
    if comparison.organs:
        tables += [
            _organ_table("Dice of each organ", comparison, rows, _organ_dice),
            _organ_table("HD95 of each organ in mm: median, penalised mean", comparison, rows, _organ_hd95),
            _organ_table(
                "Cases in which an organ was missed", comparison, rows, lambda organ: _number(organ.n_missed, 0, "g")
            ),
        ]
    return [*tables, _cost_table(rows)]


def legend(comparison: Comparison) -> list[str]:
    """Return what the columns and marks mean, a line each."""
    unit, case = comparison.unit, "case" if comparison.kind == SCANS else "image"
    pooled = [metric.title for metric in METRICS[comparison.kind] if metric.name in ("accuracy", "miou")]
    return [
        "A figure is the mean over seeds ± the sample deviation over seeds; of one seed there is no deviation.",
        "Change is the model minus the same student alone. Where there are several controls, ways to train the student "
        "without a teacher, it is minus the one that is best in validation.",
        f"The interval of a change is of 95 %: {BOOTSTRAP_RESAMPLES:,} draws of "
        f"whole {unit}s, the same for both. It tells how other {unit}s would do, not how another seed would.",
        *(f"{mark}: {meaning}." for mark, meaning in MARKS.items()),
        f"p: Wilcoxon signed-rank test of the {unit}s' differences, seeds averaged, two-sided, corrected by Holm for "
        f"all methods of the table; {_NOT_APPLICABLE} where fewer than {FEWEST_FOR_WILCOXON} {unit}s differ, which can "
        "never reach 0.05.",
        *(
            [
                f"{' and '.join(pooled)} are of all pixels together, their test takes each image's own: "
                "the interval and p may disagree."
            ]
            if pooled
            else []
        ),
        "Gap closed, with its 95 % interval: (model - control) / (teacher - control); 100 % is as good as the teacher. "
        f'"{NO_GAP}" is where the teacher is not better than the control or its advantage may be chance.',
        f"HD95: less is better. The penalised mean takes the diagonal of the {case} where an organ was missed or "
        "invented; the median is inf where that happens in half of them.",
        "Multiply-adds and latency are of one image of the size that the network was trained at; latency is the median "
        "of repeats after a warm-up, batch 1, on one thread of the CPU that made this table.",
    ]


def notes(comparison: Comparison, rows: Sequence[ComparisonRow]) -> list[str]:
    """Return the comparison's own notes, and why figures of its arms are left out."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        for metric in METRICS[comparison.kind]:
            score = row.metrics[metric.name]
            for what, reason in (("gap closed", score.gap.note), ("p", score.test_note)):
                if reason:
                    reasons.setdefault(f"No {what} of {row.arm.label}: {reason}", []).append(metric.title)
    return [
        *choice(comparison, rows),
        *comparison.notes,
        *(f"{reason} ({' and '.join(titles)})." for reason, titles in reasons.items()),
    ]


def _score_table(comparison: Comparison, rows: Sequence[ComparisonRow]) -> Table:
    metrics, main = METRICS[comparison.kind], main_metric(comparison.kind)
    unit = HD95[comparison.kind].removeprefix("hd95_")
    # A column that would be empty is left out.
    last = [main] if any(not math.isnan(row.metrics[main.name].last) for row in rows) else []
    columns = (*(metric.title for metric in metrics), *(f"{metric.title}, last epoch" for metric in last))
    return Table(
        f"Scores over {len(comparison.cases)} {'cases' if comparison.kind == SCANS else 'images'}",
        ("", "seeds", *columns, f"HD95 {unit} (median)", "missed"),
        tuple(
            (
                row.arm.label,
                str(len(row.arm.runs)),
                *(_with_deviation(score.mean, score.sd, metric.decimals) for metric, score in _scores(metrics, row)),
                *(_number(score.last, metric.decimals) for metric, score in _scores(last, row)),
                text_number(row.hd95_median, 2),
                _number(row.n_missed, 0, "g"),
            )
            for row in rows
        ),
    )


def _change_table(comparison: Comparison, rows: Sequence[ComparisonRow]) -> Table:
    """Return the table of what arms change beside the better control, three columns a metric."""
    metrics = METRICS[comparison.kind]
    header = [text for metric in metrics for text in (f"change of {metric.title}", "p", "gap closed")]
    cells = [[cell for pair in _scores(metrics, row) for cell in _change_cells(*pair)] for row in rows]
    return Table(
        "Each arm against the better control of the same student"
        if control_names(comparison)
        else "Each method against the same student alone",
        ("", *header),
        tuple((row.arm.label, *line) for row, line in zip(rows, cells, strict=True)),
    )


def _control_tables(comparison: Comparison, rows: Sequence[ComparisonRow]) -> list[Table]:
    """Return what arms change beside each control, where there are several, a table each but for the better one's."""
    metrics = METRICS[comparison.kind]
    better = {arm.method or ALONE for row in rows if (arm := comparison.control(row.arm.network)) is not None}
    return [
        Table(
            f"Each arm against the same student, {control}",
            ("", *(f"change of {metric.title}" for metric in metrics)),
            tuple(
                (row.arm.label, *(_change(metric, score.others[control]) for metric, score in _scores(metrics, row)))
                for row in rows
                if all(control in score.others for _, score in _scores(metrics, row))
            ),
        )
        for control in control_names(comparison)
        if better != {control}
    ]


def _change_cells(metric: Metric, score: MetricScore) -> tuple[str, str, str]:
    change = score.difference
    if change is None:
        return _NOT_APPLICABLE, _NOT_APPLICABLE, _NOT_APPLICABLE
    p = _NOT_APPLICABLE if math.isnan(score.p_holm) else "< 0.001" if score.p_holm < 0.001 else f"{score.p_holm:.3f}"
    return _change(metric, change), p, _gap(score.gap)


def _change(metric: Metric, change: Difference) -> str:
    """Return a change with its interval, and a mark where it is not to be trusted."""
    told = _number(change.value, metric.decimals, "f", "+")
    if not math.isnan(change.low):
        told += f" ({_number(change.low, metric.decimals)} to {_number(change.high, metric.decimals)})"
    few = change.includes_zero is False and change.pairs < FEWEST_FOR_WILCOXON
    return told + (f" {NOT_SIGNIFICANT}" if change.includes_zero else f" {TOO_FEW}" if few else "")


def _gap(gap: Gap) -> str:
    if math.isnan(gap.share):
        return NO_GAP if gap.is_none else _NOT_APPLICABLE
    return f"{_number(100 * gap.share, 0)} % ({_number(100 * gap.low, 0)} to {_number(100 * gap.high, 0)})"


def _organ_table(
    caption: str, comparison: Comparison, rows: Sequence[ComparisonRow], cell: Callable[[OrganFigures], str]
) -> Table:
    return Table(
        caption,
        ("", *comparison.organs),
        tuple((row.arm.label, *(cell(row.organs[organ]) for organ in comparison.organs)) for row in rows),
    )


def _organ_dice(organ: OrganFigures) -> str:
    return _with_deviation(organ.dice_mean, organ.dice_sd, 3)


def _organ_hd95(organ: OrganFigures) -> str:
    return f"{text_number(organ.hd95_median, 1)}, {text_number(organ.hd95_penalised, 1)}"


def _cost_table(rows: Sequence[ComparisonRow]) -> Table:
    return Table(
        "Cost of one image",
        ("", "parameters", "multiply-adds", "latency ms, CPU, 1 thread"),
        tuple(
            (
                row.arm.label,
                f"{row.cost.parameters / 1e6:.2f} M",
                f"{row.cost.multiply_adds / 1e9:.2f} G",
                f"{row.cost.latency_ms_cpu_1thread:.1f}",
            )
            for row in rows
        ),
    )


def _scores(metrics: Sequence[Metric], row: ComparisonRow) -> list[tuple[Metric, MetricScore]]:
    return [(metric, row.metrics[metric.name]) for metric in metrics]


def _with_deviation(mean: float, deviation: float, decimals: int) -> str:
    return text_number(mean, decimals) + ("" if math.isnan(deviation) else f" ± {deviation:.{decimals}f}")


def _number(value: float, decimals: int, kind: str = "f", sign: str = "") -> str:
    """Return a number with a true minus; `-` where it does not apply. Kind "g" leaves out what is not needed."""
    if math.isnan(value):
        return _NOT_APPLICABLE
    return (f"{value:{sign}.4g}" if kind == "g" else f"{value:{sign}.{decimals}f}").replace("-", "\N{MINUS SIGN}")


def markdown_table(table: Table) -> str:
    """Return a table whose columns are aligned in plain text too."""
    lines = [tuple(map(_markdown_text, line)) for line in (table.header, *table.rows)]
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(table.header))]
    ruler = tuple("-" * width if column == 0 else f"{'-' * (width - 1)}:" for column, width in enumerate(widths))
    return "\n".join(
        "| "
        + " | ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in (lines[0], ruler, *lines[1:])
    )


def _markdown_text(text: str) -> str:
    """Return text that Markdown shows as it stands."""
    text = re.sub(r"&(?=[#\w]+;)", "&amp;", " ".join(text.split()))
    return re.sub(r"[\\|*`\[\]]", r"\\\g<0>", re.sub(r"<(?=[a-zA-Z/!?])", "&lt;", text))
