# SPDX-License-Identifier: Apache-2.0
"""Scores of label maps: overlap, surface distances, statistics and the per-organ report."""

from pipeline.evaluation.handlers import OrganDice, PerOrganReport
from pipeline.evaluation.overlap import confusion_matrix, dice, iou, label_voxels, prediction_voxels
from pipeline.evaluation.report import (
    MM,
    PROTOCOLS,
    TRANSUNET,
    Protocol,
    protocol_named,
    refuse_older_report,
    report_table,
    write_report,
)
from pipeline.evaluation.scores import STATUSES, OrganScore, score_case
from pipeline.evaluation.statistics import bootstrap_ci, macro_mean
from pipeline.evaluation.summaries import OrganSummary, dice_table, summarise_organs
from pipeline.evaluation.surface import (
    SurfaceDistances,
    assd_mm,
    hausdorff_mm,
    hd95_mm,
    hd95_pooled_mm,
    masd_mm,
    organ_surface_distances,
    surface_distances,
)
from pipeline.evaluation.transunet import TransUNetScore, TransUNetSummary, score_case_transunet, summarise_transunet

__all__ = [
    "MM",
    "PROTOCOLS",
    "STATUSES",
    "TRANSUNET",
    "OrganDice",
    "OrganScore",
    "OrganSummary",
    "PerOrganReport",
    "Protocol",
    "SurfaceDistances",
    "TransUNetScore",
    "TransUNetSummary",
    "assd_mm",
    "bootstrap_ci",
    "confusion_matrix",
    "dice",
    "dice_table",
    "hausdorff_mm",
    "hd95_mm",
    "hd95_pooled_mm",
    "iou",
    "label_voxels",
    "macro_mean",
    "masd_mm",
    "organ_surface_distances",
    "prediction_voxels",
    "protocol_named",
    "refuse_older_report",
    "report_table",
    "score_case",
    "score_case_transunet",
    "summarise_organs",
    "summarise_transunet",
    "surface_distances",
    "write_report",
]
