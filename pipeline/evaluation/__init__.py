# SPDX-License-Identifier: Apache-2.0
"""Scores of label maps: overlap, surface distances, statistics and the report, organ by organ or class by class."""

from pipeline.evaluation.engine.metrics import OrganDice, OrganHD95, PooledIoU
from pipeline.evaluation.engine.report import PerOrganReport
from pipeline.evaluation.overlap import confusion_matrix, dice, iou, label_voxels, prediction_voxels
from pipeline.evaluation.protocol import Protocol
from pipeline.evaluation.report import PROTOCOLS, protocol_named, refuse_older_report, write_report
from pipeline.evaluation.scans.protocols import MM, TRANSUNET
from pipeline.evaluation.scans.transunet import (
    TransUNetScore,
    TransUNetSummary,
    score_case_transunet,
    summarise_transunet,
)
from pipeline.evaluation.scores import STATUSES, OrganScore, score_case
from pipeline.evaluation.slides.image_scores import ClassSummary, ImageScore, score_image, summarise_classes
from pipeline.evaluation.slides.pixel_scores import PixelCounts, mean_iou, overall_accuracy, pixel_counts
from pipeline.evaluation.slides.protocols import FULL, PAPER
from pipeline.evaluation.statistics import bootstrap_ci, macro_mean
from pipeline.evaluation.summaries import OrganSummary, dice_table, summarise_organs
from pipeline.evaluation.surface import (
    SurfaceDistances,
    assd_mm,
    hausdorff_mm,
    hd95_mm,
    hd95_pooled_mm,
    organ_surface_distances,
    surface_distances,
)

__all__ = [
    "FULL",
    "MM",
    "PAPER",
    "PROTOCOLS",
    "STATUSES",
    "TRANSUNET",
    "ClassSummary",
    "ImageScore",
    "OrganDice",
    "OrganHD95",
    "OrganScore",
    "OrganSummary",
    "PerOrganReport",
    "PixelCounts",
    "PooledIoU",
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
    "mean_iou",
    "organ_surface_distances",
    "overall_accuracy",
    "pixel_counts",
    "prediction_voxels",
    "protocol_named",
    "refuse_older_report",
    "score_case",
    "score_case_transunet",
    "score_image",
    "summarise_classes",
    "summarise_organs",
    "summarise_transunet",
    "surface_distances",
    "write_report",
]
