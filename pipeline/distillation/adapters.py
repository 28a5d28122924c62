# SPDX-License-Identifier: Apache-2.0
"""Adapters: they bring a student's feature maps to the channels and size of a teacher's, to compare the two."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.distillation.method import DistillationMethod, NetworkPair


def resized(features: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Return feature maps (B, C, ...) at a spatial size: means where they shrink, linear interpolation where they grow.

    With axes of both kinds, all are interpolated. Maps of the right size come back as they are.
    """
    given, size = tuple(features.shape[2:]), tuple(size)
    if given == size:
        return features
    if all(wanted <= have for wanted, have in zip(size, given, strict=True)):
        return F.interpolate(features, size, mode="area")
    return F.interpolate(features, size, mode={1: "linear", 2: "bilinear", 3: "trilinear"}[len(size)])


def pointwise(in_channels: int, out_channels: int, spatial_dims: int, bias: bool = True) -> nn.Module:
    """Return a convolution of kernel 1 in two or three dimensions."""
    convolution = {2: nn.Conv2d, 3: nn.Conv3d}[spatial_dims]
    return convolution(in_channels, out_channels, 1, bias=bias)


def identity_adapter(channels: int, spatial_dims: int) -> nn.Module:
    """Return a trained convolution of kernel 1 from `channels` to as many, which changes nothing at first."""
    convolution = pointwise(channels, channels, spatial_dims)
    nn.init.dirac_(convolution.weight)
    nn.init.zeros_(convolution.bias)
    return convolution


class Adapter(nn.Module):
    """Brings one tap of the student to the channels and the size of the teacher's: a trained pointwise convolution.

    Romero et al., arXiv 1412.6550, call it the regressor. Equal channels need none and train nothing.

    Args:
        in_channels: channels of the student's tap.
        out_channels: channels of the teacher's.
        spatial_dims: 2 or 3.
        bias: whether a trained number is added to each channel.
    """

    def __init__(self, in_channels: int, out_channels: int, spatial_dims: int = 2, bias: bool = True) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        equal = in_channels == out_channels
        self.convolution = nn.Identity() if equal else pointwise(in_channels, out_channels, spatial_dims, bias)

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Return the student's map (B, in_channels, ...) with the channels and the size of the teacher's."""
        return resized(self.convolution(student), teacher.shape[2:])


def adapters_of(pair: NetworkPair) -> nn.ModuleList:
    """Return an adapter for each tap of a pair, shallow to deep."""
    return nn.ModuleList(
        Adapter(of_student, of_teacher, pair.spatial_dims)
        for of_student, of_teacher in zip(pair.student_channels, pair.teacher_channels, strict=True)
    )


def describe_adapters(method: DistillationMethod) -> str:
    """Return what a method's adapters do and how many parameters train beside the student, or an empty text."""
    found = [part for part in method.modules() if isinstance(part, Adapter) and part.in_channels != part.out_channels]
    trained = sum(parameter.numel() for parameter in method.adapter_parameters())
    if not trained:
        return ""
    turns = ", ".join(f"{part.in_channels} to {part.out_channels} channels" for part in found)
    return f"{trained:,} parameters train beside the student" + (f" ({turns})" if turns else "")
