# SPDX-License-Identifier: Apache-2.0
"""Scores of label maps: overlap, surface distances, statistics and the report, organ by organ or class by class."""

from pipeline.lazy_names import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "engine.metrics": ("OrganDice", "OrganHD95", "PooledIoU"),
        "engine.report": ("PerOrganReport",),
        "overlap": ("confusion_matrix", "dice", "iou", "label_voxels", "prediction_voxels"),
        "protocol": ("Protocol",),
        "report": ("PROTOCOLS", "protocol_named", "refuse_older_report", "write_report"),
        "scans.protocols": ("MM", "TRANSUNET"),
        "scans.transunet": ("TransUNetScore", "TransUNetSummary", "score_case_transunet", "summarise_transunet"),
        "scores": ("STATUSES", "OrganScore", "score_case"),
        "slides.image_scores": ("ClassSummary", "ImageScore", "score_image", "summarise_classes"),
        "slides.pixel_scores": ("PixelCounts", "mean_iou", "overall_accuracy", "pixel_counts"),
        "slides.protocols": ("FULL", "PAPER"),
        "statistics": ("bootstrap_ci", "macro_mean"),
        "summaries": ("OrganSummary", "dice_table", "summarise_organs"),
        "surface": (
            "SurfaceDistances",
            "assd_mm",
            "hausdorff_mm",
            "hd95_mm",
            "hd95_pooled_mm",
            "organ_surface_distances",
            "surface_distances",
        ),
    },
)
