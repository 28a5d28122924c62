# SPDX-License-Identifier: Apache-2.0
"""Every figure of a comparison as a CSV file, one row for each arm."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

from pipeline.comparison.arms import ALONE, Comparison
from pipeline.comparison.paired import METRICS
from pipeline.comparison.run_files import HD95
from pipeline.comparison.tables.rows import ComparisonRow, MetricScore
from pipeline.data.dataset.dataset import SCANS
from pipeline.files.spreadsheets import with_apostrophe

_UNITS = {SCANS: "mm"}


def comparison_csv(comparison: Comparison, rows: Sequence[ComparisonRow]) -> str:
    """Return all figures as CSV, one row for each arm; text that a spreadsheet would run gets a leading apostrophe.

    Numbers have ten significant digits, inf is `inf`, and figures that do not apply are empty cells.
    """
    contents = [_csv_content(comparison, row) for row in rows]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(with_apostrophe, contents[0]))
    writer.writerows([_csv_cell(value) for value in content.values()] for content in contents)
    return text.getvalue()


def control_names(comparison: Comparison) -> list[str]:
    """Return the names of the controls, such as "alone", of students that have several."""
    networks = dict.fromkeys(arm.network for arm in comparison.arms)
    several = [controls for network in networks if len(controls := comparison.controls(network)) > 1]
    return list(dict.fromkeys(arm.method or ALONE for controls in several for arm in controls))


def _csv_content(comparison: Comparison, row: ComparisonRow) -> dict[str, Any]:
    arm, hd95, control = row.arm, HD95[comparison.kind], comparison.control(row.arm.network)
    content: dict[str, Any] = {
        "label": arm.label,
        "role": arm.role,
        "network": arm.network,
        "method": arm.method,
        "n_seeds": len(arm.runs),
        "seeds": " ".join(str(run.seed) for run in arm.runs),
        "epochs": " ".join(dict.fromkeys(str(run.epochs) for run in arm.runs)),
        "n_cases": row.cases,
        "n_folds": max(1, len(arm.runs[0].folds)),
        "validation": arm.validation,
        "control": control and control.label,
        "parameters": row.cost.parameters,
        "multiply_adds": row.cost.multiply_adds,
        "latency_ms_cpu_1thread": row.cost.latency_ms_cpu_1thread,
        "n_missed": row.n_missed,
        f"{hd95}_median": row.hd95_median,
    }
    for metric in METRICS[comparison.kind]:
        content.update(_csv_metric(metric.name, row.metrics[metric.name], control_names(comparison)))
    reasons_of = {"gap_note": lambda score: score.gap.note, "test_note": lambda score: score.test_note}
    for key in reasons_of:
        reasons: dict[str, list[str]] = {}
        for metric in METRICS[comparison.kind]:
            reasons.setdefault(reasons_of[key](row.metrics[metric.name]), []).append(metric.title)
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


def _csv_metric(name: str, score: MetricScore, controls: Sequence[str]) -> dict[str, Any]:
    change = score.difference
    content = {
        f"{name}_mean": score.mean,
        f"{name}_sd": score.sd,
        f"{name}_difference": change and change.value,
        f"{name}_difference_ci95_low": change and change.low,
        f"{name}_difference_ci95_high": change and change.high,
        f"{name}_interval_includes_zero": change and change.includes_zero,
        f"{name}_wilcoxon_p": change and change.p,
        f"{name}_wilcoxon_p_holm": score.p_holm,
        f"{name}_gap_closed": score.gap.share,
        f"{name}_gap_closed_ci95_low": score.gap.low,
        f"{name}_gap_closed_ci95_high": score.gap.high,
        f"{name}_last_epoch_mean": score.last,
    }
    for control in controls:
        other = score.others.get(control)
        content |= {
            f"{name}_difference_to_{control}": other and other.value,
            f"{name}_difference_to_{control}_ci95_low": other and other.low,
            f"{name}_difference_to_{control}_ci95_high": other and other.high,
        }
    return content


def _csv_cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.10g}"
    return with_apostrophe(str(value))
