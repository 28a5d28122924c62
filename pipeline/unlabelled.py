# SPDX-License-Identifier: Apache-2.0
"""How a batch marks what nobody has labelled, and how a loss leaves that out."""

from __future__ import annotations

from typing import Any

import torch

# Label maps are uint8, and classes count from 0 to 254 at most: this value is none of them.
UNLABELLED = 255


def labelled_items(labels: torch.Tensor) -> torch.Tensor:
    """Return which items of `labels` (B, 1, ...) have a label, as (B,) booleans.

    An item is labelled as a whole or not at all. One pixel of `UNLABELLED` tells, because an augmentation may have
    moved others of value 0 in from outside.
    """
    return ~(labels == UNLABELLED).flatten(1).any(dim=1)


def of_labelled_items(prediction: Any, labels: torch.Tensor) -> tuple[Any, torch.Tensor]:
    """Return what a segmentation loss may see: the predictions and labels of the labelled items.

    Args:
        prediction: (B, K, ...), or nested tuples of such tensors, as networks with deep supervision return.
        labels: (B, 1, ...), integers.
    """
    labelled = labelled_items(labels)
    if labelled.all():
        return prediction, labels
    return _chosen(prediction, labelled), labels[labelled]


def with_teachers_classes(labels: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """Return `labels` (B, 1, ...) with the likeliest of `teacher_logits` (B, K, ...) in items without a label."""
    labelled = labelled_items(labels).reshape(-1, *[1] * (labels.ndim - 1))
    return torch.where(labelled, labels, teacher_logits.argmax(dim=1, keepdim=True).to(labels.dtype))


def _chosen(prediction: Any, items: torch.Tensor) -> Any:
    if isinstance(prediction, torch.Tensor):
        return prediction[items]
    return tuple(_chosen(part, items) for part in prediction)
