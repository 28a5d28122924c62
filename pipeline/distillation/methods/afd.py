# SPDX-License-Identifier: Apache-2.0
"""Attentive feature distillation: the student follows the teacher's channels, some more than others.

Wang et al., "Pay Attention to Features, Transfer Learn Faster CNNs", ICLR 2020 (openreview ryxyCeHtPB):

    rho  = sigmoid(W2 relu(W1 mean_pixels(t))),  divided by its sum over channels
    L    = sum_c rho_c ||s_c / ||s_c||_2 - t_c / ||t_c||_2||_2^2      (the mean over images and taps), from 0 to 4

with s_c, t_c the maps of one channel over all positions. The formula fits dense prediction as it is. W1 and W2 learn
with the student: they may prefer channels that it follows easily, and the sigmoid bounds by how much.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.distillation.adapters import adapters_of
from pipeline.distillation.method import DistillationMethod, NetworkPair, Tapped
from pipeline.distillation.methods.relations import unit_vectors
from pipeline.distillation.settings import check_number


class ChannelAttention(nn.Module):
    """Weights of the teacher's channels for each image, positive and of sum 1.

    Args:
        channels: C of the teacher's tap.
        hidden: width of the layer between.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return weights (B, C) for features (B, C, ...)."""
        return F.normalize(self.layers(features.flatten(2).mean(dim=2)).sigmoid(), p=1.0, dim=1)


def attentive_distance(student: torch.Tensor, teacher: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the squared distances of channel maps of unit length, weighted over channels, the mean over images.

    Args:
        student: (B, C, ...).
        teacher: the same shape; no gradient reaches it.
        weights: (B, C), of sum 1 for each image.
    """
    difference = unit_vectors(student.flatten(2)) - unit_vectors(teacher.detach().flatten(2))
    return (weights * difference.square().sum(dim=2)).sum(dim=1).mean()


class AttentiveFeatures(DistillationMethod):
    """`attentive_distance` of all taps as a method with the single term `afd`.

    The code that made the method known takes the mean over the n positions and weighs it by 500: 500 / n of our sum,
    0.49 for maps of 32 x 32 and 0.16 for 56 x 56. The sum does not shrink as maps grow, so that one weight serves any
    size; ours is theirs for 32 x 32.

    Args:
        pair: adapters bring the student's taps to the teacher's channels and sizes.
        weight: of the term, which starts at about 1.5 to 2.
        ratio: width of the layer in the attention, as a share of the teacher's channels; 1 as in that code.

    Raises:
        InputError: the ratio is not positive.
    """

    def __init__(self, pair: NetworkPair, *, weight: float = 0.5, ratio: float = 1.0) -> None:
        super().__init__({"afd": weight})
        check_number("afd", "ratio", ratio)
        self.adapters = adapters_of(pair)
        self.attention = nn.ModuleList(
            ChannelAttention(channels, max(1, round(ratio * channels))) for channels in pair.teacher_channels
        )

    def forward(self, student: Tapped, teacher: Tapped, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the scalar term `afd`; shapes as in `DistillationMethod`."""
        taps = zip(self.adapters, self.attention, student.features, teacher.features, strict=True)
        losses = [
            attentive_distance(adapter(mine, theirs), theirs, attention(theirs.detach()))
            for adapter, attention, mine, theirs in taps
        ]
        return {"afd": torch.stack(losses).mean()}
