# SPDX-License-Identifier: Apache-2.0
"""The comparison as tables: every figure in a CSV file, the telling ones rounded in Markdown and HTML."""

from __future__ import annotations

import csv
import html
import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.data.dataset import SCANS
from pipeline.evaluation.comparison.paired import METRICS, Metric
from pipeline.evaluation.comparison.rows import ComparisonRow, MetricScore, OrganFigures
from pipeline.evaluation.comparison.run_files import HD95
from pipeline.evaluation.comparison.runs import METHOD, Comparison
from pipeline.evaluation.statistics import BOOTSTRAP_RESAMPLES, FEWEST_FOR_WILCOXON
from pipeline.evaluation.tables import text_number
from pipeline.spreadsheets import with_apostrophe

NOT_SIGNIFICANT = "n.s."
TOO_FEW = "too few"
_MARKS = {
    NOT_SIGNIFICANT: "the interval includes zero, no difference is shown",
    TOO_FEW: f"the interval is of fewer than {FEWEST_FOR_WILCOXON} and too narrow; without zero it is a hint, no proof",
}
_NOTHING = "-"
_UNITS = {SCANS: "mm"}


@dataclass(frozen=True)
class Table:
    """A table to show: a caption, the header and rows of text; the first cell of a row names it."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def comparison_csv(comparison: Comparison, rows: Sequence[ComparisonRow]) -> str:
    """Return all figures as CSV, one row an arm; text that a spreadsheet would run gets a leading apostrophe.

    Numbers have ten significant digits, inf is `inf`, what does not apply is an empty cell.
    """
    contents = [_csv_content(comparison, row) for row in rows]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(with_apostrophe, contents[0]))
    writer.writerows([_csv_cell(value) for value in content.values()] for content in contents)
    return text.getvalue()


def comparison_markdown(comparison: Comparison, rows: Sequence[ComparisonRow]) -> str:
    """Return title, tables, legend and notes as Markdown."""
    parts = [f"# {_markdown_text(comparison.title)}"]
    parts += [
        f"**{_markdown_text(table.caption)}**\n\n{_markdown_table(table)}"
        for table in comparison_tables(comparison, rows)
    ]
    for heading, lines in (("How to read it", legend(comparison)), ("Notes", notes(comparison, rows))):
        parts.append(f"## {heading}\n\n" + "\n".join(f"- {_markdown_text(line)}" for line in lines))
    return "\n\n".join(parts) + "\n"


def html_tables(comparison: Comparison, rows: Sequence[ComparisonRow]) -> str:
    """Return the tables as HTML, each in a `<div class="scroll">` that scrolls on its own; text is escaped."""
    return "\n".join(_html_table(table) for table in comparison_tables(comparison, rows))


def comparison_tables(comparison: Comparison, rows: Sequence[ComparisonRow]) -> list[Table]:
    """Return the tables that people read: scores, what methods change, organs (of scans), and cost."""
    tables = [_score_table(comparison, rows)]
    methods = [row for row in rows if row.arm.role == METHOD]
    if methods:
        tables.append(_change_table(comparison, methods))
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
    unit = "case" if comparison.kind == SCANS else "image"
    pooled = [metric.title for metric in METRICS[comparison.kind] if metric.name in ("accuracy", "miou")]
    return [
        "A figure is the mean over seeds ± the sample deviation over seeds; of one seed there is no deviation.",
        f"Change is the method minus the same student alone, with its 95 % interval: {BOOTSTRAP_RESAMPLES:,} draws of "
        f"whole {unit}s, the same for both. It tells how other {unit}s would do, not how another seed would.",
        *(f"{mark}: {meaning}." for mark, meaning in _MARKS.items()),
        f"p: Wilcoxon signed-rank test of the {unit}s' differences, seeds averaged, two-sided, corrected by Holm for "
        f"all methods of the table; {_NOTHING} where fewer than {FEWEST_FOR_WILCOXON} {unit}s differ, which can never "
        "reach 0.05.",
        *(
            [
                f"{' and '.join(pooled)} are of all pixels together, their test takes each image's own: "
                "the interval and p may disagree."
            ]
            if pooled
            else []
        ),
        "Gap closed: (method - alone) / (teacher - alone); 100 % is as good as the teacher. It is left out where the "
        "teacher is not better or its advantage may be chance.",
        f"HD95: less is better. The penalised mean takes the diagonal of the {unit} where an organ was missed or "
        "invented; the median is inf where that happens in half of them.",
        "Multiply-adds and latency are of one image of the size that the network was trained at; latency is the median "
        "of repeats after a warm-up, batch 1, on one thread of the CPU that made this table.",
    ]


def notes(comparison: Comparison, rows: Sequence[ComparisonRow]) -> list[str]:
    """Return the comparison's own notes, and why figures of its methods are left out."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        for metric in METRICS[comparison.kind]:
            score = row.metrics[metric.name]
            for what, reason in (("gap closed", score.gap_note), ("p", score.test_note)):
                if reason:
                    reasons.setdefault(f"No {what} of {row.arm.label}: {reason}", []).append(metric.title)
    return [
        *comparison.notes,
        *(f"{reason} ({' and '.join(titles)})." for reason, titles in reasons.items()),
    ]


def _csv_content(comparison: Comparison, row: ComparisonRow) -> dict[str, Any]:
    arm, hd95 = row.arm, HD95[comparison.kind]
    content: dict[str, Any] = {
        "label": arm.label,
        "role": arm.role,
        "network": arm.network,
        "method": arm.method,
        "n_seeds": len(arm.runs),
        "seeds": " ".join(str(run.seed) for run in arm.runs),
        "epochs": " ".join(dict.fromkeys(str(run.epochs) for run in arm.runs)),
        "n_cases": row.cases,
        "parameters": row.cost.parameters,
        "multiply_adds": row.cost.multiply_adds,
        "latency_ms_cpu_1thread": row.cost.latency_ms_cpu_1thread,
        "n_missed": row.n_missed,
        f"{hd95}_median": row.hd95_median,
    }
    for metric in METRICS[comparison.kind]:
        content.update(_csv_metric(metric.name, row.metrics[metric.name]))
    for key in ("gap_note", "test_note"):
        reasons: dict[str, list[str]] = {}
        for metric in METRICS[comparison.kind]:
            reasons.setdefault(getattr(row.metrics[metric.name], key), []).append(metric.title)
        content[key] = "; ".join(f"{' and '.join(titles)}: {reason}" for reason, titles in reasons.items() if reason)
    for organ, figures in row.organs.items():
        content |= {
            f"dice_mean_{organ}": figures.dice_mean,
            f"dice_sd_{organ}": figures.dice_sd,
            f"{hd95}_median_{organ}": figures.hd95_median,
            f"hd95_penalised_{_UNITS[comparison.kind]}_mean_{organ}": figures.hd95_penalised,
            f"n_missed_{organ}": figures.n_missed,
        }
    return content


def _csv_metric(name: str, score: MetricScore) -> dict[str, Any]:
    change = score.difference
    return {
        f"{name}_mean": score.mean,
        f"{name}_sd": score.sd,
        f"{name}_difference": change and change.value,
        f"{name}_difference_ci95_low": change and change.low,
        f"{name}_difference_ci95_high": change and change.high,
        f"{name}_interval_includes_zero": change and change.includes_zero,
        f"{name}_wilcoxon_p": change and change.p,
        f"{name}_wilcoxon_p_holm": score.p_holm,
        f"{name}_gap_closed": score.gap_closed,
    }


def _csv_cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.10g}"
    return with_apostrophe(str(value))


def _score_table(comparison: Comparison, rows: Sequence[ComparisonRow]) -> Table:
    metrics = METRICS[comparison.kind]
    unit = HD95[comparison.kind].removeprefix("hd95_")
    return Table(
        f"Scores over {len(comparison.cases)} {'cases' if comparison.kind == SCANS else 'images'}",
        ("", "seeds", *(metric.title for metric in metrics), f"HD95 {unit} (median)", "missed"),
        tuple(
            (
                row.arm.label,
                str(len(row.arm.runs)),
                *(_with_deviation(score.mean, score.sd, metric.decimals) for metric, score in _scores(metrics, row)),
                text_number(row.hd95_median, 2),
                _number(row.n_missed, 0, "g"),
            )
            for row in rows
        ),
    )


def _change_table(comparison: Comparison, rows: Sequence[ComparisonRow]) -> Table:
    """Return the table of what methods change, three columns a metric."""
    metrics = METRICS[comparison.kind]
    header = [text for metric in metrics for text in (f"change of {metric.title}", "p", "gap closed")]
    cells = [[cell for pair in _scores(metrics, row) for cell in _change_cells(*pair)] for row in rows]
    return Table(
        "Each method against the same student alone",
        ("", *header),
        tuple((row.arm.label, *line) for row, line in zip(rows, cells, strict=True)),
    )


def _change_cells(metric: Metric, score: MetricScore) -> tuple[str, str, str]:
    change = score.difference
    if change is None:
        return _NOTHING, _NOTHING, _NOTHING
    told = _number(change.value, metric.decimals, "f", "+")
    if not math.isnan(change.low):
        told += f" ({_number(change.low, metric.decimals)} to {_number(change.high, metric.decimals)})"
    few = change.includes_zero is False and change.pairs < FEWEST_FOR_WILCOXON
    mark = f" {NOT_SIGNIFICANT}" if change.includes_zero else f" {TOO_FEW}" if few else ""
    p = _NOTHING if math.isnan(score.p_holm) else "< 0.001" if score.p_holm < 0.001 else f"{score.p_holm:.3f}"
    gap = _NOTHING if math.isnan(score.gap_closed) else f"{_number(100 * score.gap_closed, 0)} %"
    return told + mark, p, gap


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
        return _NOTHING
    return (f"{value:{sign}.4g}" if kind == "g" else f"{value:{sign}.{decimals}f}").replace("-", "\N{MINUS SIGN}")


def _markdown_table(table: Table) -> str:
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


def _html_table(table: Table) -> str:
    header = "".join(
        f'<th scope="col">{html.escape(cell)}</th>' if cell else '<th scope="col">arm</th>' for cell in table.header
    )
    body = "\n".join(
        f'<tr><th scope="row">{html.escape(name)}</th>{"".join(map(_html_cell, cells))}</tr>'
        for name, *cells in table.rows
    )
    caption = html.escape(table.caption)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}">\n<table>\n'
        f"<caption>{caption}</caption>\n<thead><tr>{header}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody>\n</table>\n</div>"
    )


def _html_cell(cell: str) -> str:
    """Return a cell; a mark is an abbreviation that explains itself."""
    text = html.escape(cell)
    for mark, meaning in _MARKS.items():
        if text.endswith(f" {mark}"):
            told = f'<abbr title="{html.escape(meaning)}">{mark}</abbr>'
            return f'<td class="not-significant">{text.removesuffix(mark)}{told}</td>'
    return f"<td>{text}</td>"
