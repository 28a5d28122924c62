# SPDX-License-Identifier: Apache-2.0
"""The two protocols of scans: `mm`, this project's, which counts every missed organ, and `transunet`.

`transunet` is the convention behind the published Synapse figures, for comparison with them and for nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.data.dataset.dataset import SCANS
from pipeline.evaluation.protocol import Protocol
from pipeline.evaluation.scans.transunet import (
    TransUNetScore,
    TransUNetSummary,
    score_case_transunet,
    summarise_transunet,
)
from pipeline.evaluation.scores import score_case
from pipeline.evaluation.summaries import OrganSummary, summarise_organs
from pipeline.evaluation.tables import ShownTable, columns_of, text_interval, text_number

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


def _organ_table(rows: Sequence[OrganSummary]) -> ShownTable:
    header = ("Dice", "95% interval", "HD95 mm", "median", "penalised", "volume error ml")
    note = "Where an organ was missed or invented, HD95 is inf, and the penalised mean takes the volume's diagonal."
    return _table(rows, header, [_figures(row) for row in rows], note)


def _transunet_table(rows: Sequence[TransUNetSummary]) -> ShownTable:
    figures = [(text_number(row.dice_mean, 3), text_number(row.hd95_voxels_mean, 2)) for row in rows]
    note = "TransUNet convention: compare with published Synapse figures alone; a missed organ has HD95 0."
    return _table(rows, ("Dice", "HD95 voxels"), figures, note)


def _table(
    rows: Sequence[OrganSummary | TransUNetSummary],
    header: tuple[str, ...],
    figures: Sequence[tuple[str, ...]],
    note: str,
) -> ShownTable:
    return ShownTable(
        ("organ", "cases", "ok", "missed", "false pos", "absent", *header),
        tuple((row.organ, *map(str, _counts(row)), *cells) for row, cells in zip(rows, figures, strict=True)),
        (note,),
    )


def _figures(row: OrganSummary) -> tuple[str, ...]:
    return (
        text_number(row.dice_mean, 3),
        text_interval(row.dice_ci95_low, row.dice_ci95_high, 3),
        text_number(row.hd95_mm_mean, 2),
        text_number(row.hd95_mm_median, 2),
        text_number(row.hd95_penalised_mm_mean, 2),
        text_number(row.volume_error_ml_mean, 2),
    )


def _counts(row: OrganSummary | TransUNetSummary) -> tuple[int, ...]:
    return row.n_cases, row.n_ok, row.n_missed, row.n_false_positive, row.n_absent


MM = Protocol(
    name="mm",
    kind=SCANS,
    score=score_case,
    summarise=summarise_organs,
    shown=_organ_table,
    summary_row=OrganSummary,
    per_case_columns=PER_CASE_COLUMNS,
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
    kind=SCANS,
    suffix="_transunet",
    score=score_case_transunet,
    summarise=summarise_transunet,
    shown=_transunet_table,
    summary_row=TransUNetSummary,
    per_case_columns=columns_of(TransUNetScore),
    definitions={
        "hd95_voxels": "95th percentile of both directions pooled (medpy), in voxels, spacing ignored",
        "missed, absent": "Dice 0, HD95 0",
        "false_positive": "Dice 1, HD95 0",
        "mean": "over organs, of the mean over all cases",
    },
)
