# SPDX-License-Identifier: Apache-2.0
"""The two protocols of slides: the pooled figures of pathology papers, and also Dice and HD95 of each image.

Protocol `full` scores whole images at full resolution. Protocol `paper` scores what `CentreCropInferer` makes of image
and label: the central quarters of overlapping crops at the network's resolution, the test protocol behind the published
gastric figures. Both count alike. One confusion matrix over all pixels of all images gives ACC, mIoU, precision,
recall, specificity and F1. So a large image weighs more than a small one, and in an image without tumour only false
alarms count. Dice and HD95 are computed for each image. The two protocols never share a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.data.dataset.dataset import SLIDES
from pipeline.evaluation.protocol import Protocol
from pipeline.evaluation.provenance import json_number
from pipeline.evaluation.slides.image_scores import (
    PER_IMAGE_COLUMNS,
    ClassSummary,
    ImageScore,
    image_matrices,
    score_image,
    summarise_classes,
)
from pipeline.evaluation.tables import ShownTable, text_interval, text_number


def pooled_summary(scores: Sequence[ImageScore], rows: Sequence[ClassSummary]) -> dict[str, Any]:
    """Return the figures of all images together as JSON primitives, and the matrix that they come from.

    `rows` are the summary rows of `scores`.
    """
    mean, pooled = rows[-1], image_matrices(scores).sum(axis=0)
    numbers = {name: json_number(getattr(mean, name)) for name in ("precision", "recall", "specificity", "f1")}
    return {
        "accuracy": json_number(mean.accuracy),
        "accuracy_ci95": [json_number(mean.accuracy_ci95_low), json_number(mean.accuracy_ci95_high)],
        "miou": json_number(mean.iou),
        "miou_ci95": [json_number(mean.iou_ci95_low), json_number(mean.iou_ci95_high)],
        **numbers,
        "images": mean.n_images,
        "pixels": int(pooled.sum()),
        "confusion_matrix": pooled.tolist(),
    }


def class_table(rows: Sequence[ClassSummary]) -> ShownTable:
    """Return the summary rows of a report of slides as a table for people, with all counts."""
    header = ("class", "images", "ok", "missed", "false pos", "absent", "accuracy", "IoU", "precision", "recall")
    header += ("specificity", "F1", "Dice", "95% interval", "HD95 px", "median", "penalised")
    mean = rows[-1]
    return ShownTable(
        header,
        tuple(_cells(row) for row in rows),
        (
            f"ACC {text_number(mean.accuracy, 4)} (95% interval "
            f"{text_interval(mean.accuracy_ci95_low, mean.accuracy_ci95_high, 4)}), mIoU {text_number(mean.iou, 4)} "
            f"({text_interval(mean.iou_ci95_low, mean.iou_ci95_high, 4)}): one confusion matrix over all images.",
            "Dice and HD95 are per image, in pixels of the map scored; HD95 is inf where a class was missed or "
            "invented, and the penalised mean takes the map's diagonal there.",
        ),
    )


def unscored_px(height: int, width: int, stride_px: int) -> int:
    """Return how many pixels of an image the protocol `paper` leaves out, since no centre of a crop covers them."""
    return height * width - (height - height % stride_px) * (width - width % stride_px)


def _cells(row: ClassSummary) -> tuple[str, ...]:
    counts = (row.n_images, row.n_ok, row.n_missed, row.n_false_positive, row.n_absent)
    pooled = (row.accuracy, row.iou, row.precision, row.recall, row.specificity, row.f1, row.dice_mean)
    distances = (row.hd95_px_mean, row.hd95_px_median, row.hd95_penalised_px_mean)
    return (
        row.class_,
        *map(str, counts),
        *(text_number(figure, 3) for figure in pooled),
        text_interval(row.dice_ci95_low, row.dice_ci95_high, 3),
        *(text_number(distance, 2) for distance in distances),
    )


_DEFINITIONS = {
    "accuracy": "(TP + TN) / all, from one confusion matrix over all images; in the row mean the share of all pixels "
    "that are right (ACC)",
    "iou": "TP / (TP + FP + FN) from that matrix; in the row mean the mean of all classes that occur, background "
    "included (mIoU)",
    "precision, recall, specificity, f1": "each class against the rest, from that matrix; 0 where one side alone has "
    "the class; in the row mean over the classes without the background",
    "dice": "per image and class; 0 where one side alone has the class; absent classes do not count",
    "hd95_px": "per image and class, larger of the directed 95th percentiles of contour distance, in pixels of the map "
    "scored; inf where one side is empty",
    "hd95_pooled_px": "95th percentile of both directions pooled (medpy), in pixels of the map scored",
    "hd95_penalised_px": "hd95_px with the diagonal of the map in place of inf",
    "confusion_matrix": "pixels, by label value from 0: row = class in the label, column = class in the prediction",
    "ci95": "percentile bootstrap over whole images",
}
_COMMON = {
    "kind": SLIDES,
    "score": score_image,
    "summarise": summarise_classes,
    "shown": class_table,
    "summary_row": ClassSummary,
    "per_case_columns": PER_IMAGE_COLUMNS,
    "files": ("per_image", "per_class"),
    "pooled": pooled_summary,
}
FULL = Protocol(
    name="full",
    definitions={"map scored": "the whole image; its pixels are those of the image itself", **_DEFINITIONS},
    **_COMMON,
)
PAPER = Protocol(
    name="paper",
    suffix="_paper",
    definitions={
        "map scored": "central quarters (in width and in height) of crops of tile_px pixels at a stride of a quarter "
        "of that, each resized to the network's size and placed edge to edge; one pixel spans tile_px / size of the "
        "image's",
        "not scored": "height mod stride_px rows at the bottom and width mod stride_px columns at the right of each "
        "image, where no centre lies; unscored_px is how many pixels that is",
        **_DEFINITIONS,
    },
    **_COMMON,
)
