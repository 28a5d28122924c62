# SPDX-License-Identifier: Apache-2.0
"""Variational information distillation: the teacher's features can be predicted from the student's.

Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019, arXiv 1904.05835, the
negative logarithm of a Gaussian q(teacher | student) without its constant:

    L = 1/2 (log v_c + (t_c - m_c(s))^2 / v_c),   v_c = softplus(a_c) + 1e-6     (the mean over all values and taps)

m is a network of three trained pointwise convolutions, a one trained number per channel of the teacher's tap. The
formula is dense as it stands. L may become negative: it ends where v is the error of the prediction itself.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.distillation.adapters import pointwise, resized
from pipeline.distillation.method import DistillationMethod, NetworkPair, Tapped
from pipeline.distillation.settings import check_number

SMALLEST_VARIANCE = 1e-6


class VariationalLoss(nn.Module):
    """The loss of one tap, with the network that predicts the teacher's features from the student's.

    Args:
        in_channels: channels of the student's tap.
        out_channels: channels of the teacher's; the hidden layers have as many.
        spatial_dims: 2 or 3.
        variance: of each channel at the start.
    """

    def __init__(self, in_channels: int, out_channels: int, spatial_dims: int = 2, variance: float = 5.0) -> None:
        super().__init__()
        self.mean = nn.Sequential(
            pointwise(in_channels, out_channels, spatial_dims),
            nn.ReLU(),
            pointwise(out_channels, out_channels, spatial_dims),
            nn.ReLU(),
            pointwise(out_channels, out_channels, spatial_dims),
        )
        inverse_softplus = variance + math.log(-math.expm1(-variance))
        self.spread = nn.Parameter(torch.full((out_channels,), inverse_softplus))

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Return the loss of (B, in_channels, ...) and (B, out_channels, ...); no gradient reaches `teacher`."""
        teacher = teacher.detach()
        error = (self.mean(resized(student, teacher.shape[2:])) - teacher).square()
        variance = (F.softplus(self.spread) + SMALLEST_VARIANCE).reshape(-1, *[1] * (teacher.ndim - 2))
        return (variance.log() + error / variance).mean() / 2


class VariationalInformation(DistillationMethod):
    """`VariationalLoss` of all taps as a method with the single term `vid`.

    Args:
        pair: channels and sizes may differ.
        weight: of the term, which starts at about 0.9, with a small gradient: most of its value is the logarithm of the
            variance.
        variance: what each channel's variance is at the start, 5 as in the authors' code.

    Raises:
        InputError: `variance` is not positive or not finite.
    """

    def __init__(self, pair: NetworkPair, *, weight: float = 20.0, variance: float = 5.0) -> None:
        super().__init__({"vid": weight})
        check_number("vid", "variance", variance)
        channels = zip(pair.student_channels, pair.teacher_channels, strict=True)
        self.losses = nn.ModuleList(VariationalLoss(*both, pair.spatial_dims, variance) for both in channels)

    def forward(self, student: Tapped, teacher: Tapped, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the scalar term `vid`; shapes as in `DistillationMethod`."""
        taps = zip(self.losses, student.features, teacher.features, strict=True)
        return {"vid": torch.stack([loss(*tap) for loss, *tap in taps]).mean()}
