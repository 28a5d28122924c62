# SPDX-License-Identifier: Apache-2.0
"""Regions of a feature map by the class in the label, for the methods that compare what classes look like."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F


def class_masks(labels: torch.Tensor, classes: int, size: Sequence[int]) -> torch.Tensor:
    """Return which places of a map belong to which class, (B, K, N), 1.0 or 0.0.

    Args:
        labels: (B, 1, ...) integer classes; what is none of 0 .. K - 1 belongs to no class.
        classes: K.
        size: spatial size of the map, of N places; the label is brought to it by its nearest pixels.
    """
    near = F.interpolate(labels.float(), tuple(size), mode="nearest-exact").flatten(2)
    return (near == torch.arange(classes, device=labels.device)[:, None]).float()


def class_means(features: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Return the mean vector of each class, (B, K, C), zero for a class that an image lacks.

    Args:
        features: (B, C, ...).
        masks: (B, K, N) of `class_masks`.
    """
    masks = masks.to(features.dtype)
    return masks @ features.flatten(2).transpose(1, 2) / masks.sum(dim=2, keepdim=True).clamp(min=1)
