# SPDX-License-Identifier: Apache-2.0
"""Connectors: trained maps from the student's taps to values that may be negative, as before an activation."""

from __future__ import annotations

import torch
from torch import nn

from pipeline.distillation.adapters import pointwise, resized
from pipeline.distillation.method import NetworkPair


class Connector(nn.Module):
    """A pointwise convolution and batch normalisation, then the size of the teacher's map.

    The methods about activation boundaries compare values before the activation; a tap may lie after one. Unlike an
    adapter a connector is there for equal channels too: its output has both signs whatever the tap's have.

    Args:
        in_channels: channels of the student's tap.
        out_channels: channels of the teacher's.
        spatial_dims: 2 or 3.
    """

    def __init__(self, in_channels: int, out_channels: int, spatial_dims: int = 2) -> None:
        super().__init__()
        self.convolution = pointwise(in_channels, out_channels, spatial_dims, bias=False)
        self.norm = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[spatial_dims](out_channels)

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Return the student's map (B, in_channels, ...) with the channels and the size of the teacher's."""
        return resized(self.norm(self.convolution(student)), teacher.shape[2:])


def connectors_of(pair: NetworkPair) -> nn.ModuleList:
    """Return a connector for each tap of a pair, shallow to deep."""
    return nn.ModuleList(
        Connector(of_student, of_teacher, pair.spatial_dims)
        for of_student, of_teacher in zip(pair.student_channels, pair.teacher_channels, strict=True)
    )
