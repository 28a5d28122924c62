# SPDX-License-Identifier: Apache-2.0
"""Overhaul of feature distillation: the student follows the teacher's features where they matter to the next layer.

Heo et al., "A Comprehensive Overhaul of Feature Distillation", ICCV 2019, arXiv 1904.01866:

    t' = max(t, m_c)                            (margin ReLU, m_c the mean negative value of channel c)
    L  = mean (r(s) - t')^2, but 0 where r(s) <= t' <= 0

with r a trained connector (convolution of kernel 1 and batch normalisation). The formula fits dense prediction as it
is.
"""

from __future__ import annotations

import torch
from torch import nn

from pipeline.distillation.method import DistillationMethod, NetworkPair, Tapped
from pipeline.distillation.methods.connector import connectors_of
from pipeline.distillation.settings import check_number
from pipeline.processes.global_batch import gather_batch


def partial_distance(student: torch.Tensor, teacher: torch.Tensor, margins: torch.Tensor) -> torch.Tensor:
    """Return the mean squared distance to the margin ReLU of the teacher.

    Where the margin ReLU is not positive and the student not above it, the distance counts as 0.

    Args:
        student: (B, C, ...), before an activation.
        teacher: the same shape; no gradient reaches it.
        margins: (C,), none positive.
    """
    target = torch.maximum(teacher.detach(), margins.reshape(1, -1, *[1] * (teacher.ndim - 2)))
    counts = (student > target) | (target > 0)
    return ((student - target).square() * counts).mean()


class NegativeMeans(nn.Module):
    """The mean of each channel's negative values, over the batches of all processes in training (a moving mean).

    The authors derive it from the batch normalisation before the tap, whose output they take as Gaussian. A tap need
    not have one before it, so we measure. A channel that was never negative, as after a ReLU, has margin 0.

    Args:
        channels: C.
        momentum: share of a new batch.
    """

    def __init__(self, channels: int, momentum: float = 0.1) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("means", torch.zeros(channels))
        self.register_buffer("known", torch.zeros(channels, dtype=torch.bool))

    @torch.no_grad()
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the means (C,) after taking in features (B, C, ...); in evaluation mode they stay as they are."""
        if self.training:
            values = features.transpose(0, 1).flatten(1)
            mine = torch.stack([values.clamp(max=0).sum(dim=1), (values < 0).sum(dim=1).to(values.dtype)])
            sums, counts = gather_batch(mine[None]).sum(dim=0)
            batch = sums / counts.clamp(min=1)
            moved = torch.where(self.known, self.means + self.momentum * (batch - self.means), batch)
            self.means.copy_(torch.where(counts > 0, moved, self.means))
            self.known |= counts > 0
        return self.means


class FeatureOverhaul(DistillationMethod):
    """`partial_distance` of all taps as a method with the single term `ofd`.

    The authors tap before the activation. A tap after a ReLU has t >= 0 and margins 0: where the teacher is 0, the
    student may then have any value of at most 0. The authors sum over a map, divide by 1000 and count a tap half as
    much as the next deeper one; the mean needs no such factors.

    Args:
        pair: the connectors bring the student's taps to the teacher's channels and sizes.
        weight: of the term, which starts at about 1 to 2 (the connector's and the teacher's variance).
        momentum: share of a new batch in the margins.

    Raises:
        InputError: the momentum is outside (0, 1].
    """

    def __init__(self, pair: NetworkPair, *, weight: float = 0.5, momentum: float = 0.1) -> None:
        super().__init__({"ofd": weight})
        check_number("ofd", "momentum", momentum, most=1)
        self.connectors = connectors_of(pair)
        self.margins = nn.ModuleList(NegativeMeans(channels, momentum) for channels in pair.teacher_channels)

    def forward(self, student: Tapped, teacher: Tapped, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the scalar term `ofd`; shapes as in `DistillationMethod`."""
        taps = zip(self.connectors, self.margins, student.features, teacher.features, strict=True)
        losses = [
            partial_distance(connector(mine, theirs), theirs, margins(theirs))
            for connector, margins, mine, theirs in taps
        ]
        return {"ofd": torch.stack(losses).mean()}
