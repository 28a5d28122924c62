# SPDX-License-Identifier: Apache-2.0
"""What every distillation method is: a module that compares what the student and the teacher made of one batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pipeline.errors import InputError


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Return half precision as float32; float32 and float64 stay."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@dataclass(frozen=True)
class Tapped:
    """One network's view of a batch.

    Attributes:
        features: tapped feature maps, shallow to deep, each (B, C, h, w).
        logits: (B, K, H, W), no softmax.
    """

    features: tuple[torch.Tensor, ...]
    logits: torch.Tensor

    def detach(self) -> Tapped:
        """Return the same view without its graph."""
        return Tapped(tuple(feature.detach() for feature in self.features), self.logits.detach())


class DistillationMethod(nn.Module):
    """One method of distillation: named loss terms and the weight of each.

    A method computes its terms in float32 whatever the precision of the networks, detaches the teacher, and returns
    them unweighted; `Distiller` applies `weights`. Trainable parts that the student's optimizer must not touch (a
    discriminator) are updated in `after_step`.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__()
        for term, weight in weights.items():
            if not 0 <= weight < float("inf"):  # also refuses NaN
                raise InputError(
                    f"the weight of the loss term '{term}' is {weight}; it must be finite and not negative"
                )
        self.weights = dict(weights)

    def forward(self, student: Tapped, teacher: Tapped, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the unweighted scalar terms by name; `labels` is (B, 1, H, W)."""
        raise NotImplementedError

    def after_step(self, student: Tapped, teacher: Tapped) -> dict[str, torch.Tensor]:
        """Update what the method itself trains, after the student's step; return scalars to log."""
        return {}

    def training_state(self) -> dict[str, Any]:
        """Return what a resumed run needs of this method beyond its configuration: tensors and primitives only."""
        return {}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Take up a state that `training_state` returned."""
