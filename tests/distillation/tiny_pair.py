# SPDX-License-Identifier: Apache-2.0
"""A student and a teacher small enough for tests in double precision, and what a run of both gives."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.distillation.method import NetworkPair, Tapped


class TinyNetwork(nn.Module):
    """Two blocks with batch normalisation, each tapped, and a head; in two or three dimensions."""

    taps = ("shallow", "deep")

    def __init__(self, channels: tuple[int, int], out_channels: int = 3, spatial_dims: int = 2) -> None:
        super().__init__()
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[spatial_dims]
        norm = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[spatial_dims]
        shallow, deep = channels
        self.tap_channels = channels
        self.shallow = nn.Sequential(conv(1, shallow, 3, stride=2, padding=1), norm(shallow), nn.Softplus())
        self.deep = nn.Sequential(conv(shallow, deep, 3, padding=1), norm(deep), nn.Softplus())
        self.activation = nn.Hardtanh(-9.0, 9.0, inplace=True)  # what follows a tap may change it in place
        self.head = conv(deep, out_channels, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.head(self.activation(self.deep(self.shallow(images))))
        return F.interpolate(logits, images.shape[2:])


class Pointwise(nn.Module):
    """Logits weight_k * image for one-channel images: every gradient can be written down."""

    taps = ("image",)

    def __init__(self, *weights: float) -> None:
        super().__init__()
        self.tap_channels = (1,)
        self.image = nn.Identity()
        self.weights = nn.Parameter(torch.tensor(weights, dtype=torch.float64))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.image(images) * self.weights.reshape(1, -1, *[1] * (images.ndim - 2))


def pair_of(
    student: nn.Module, teacher: nn.Module, out_channels: int, spatial_dims: int = 2, **given: Any
) -> NetworkPair:
    channels = tuple(teacher.tap_channels), tuple(student.tap_channels)
    teacher.eval().requires_grad_(False)
    return NetworkPair(teacher, student, *channels, out_channels, spatial_dims=spatial_dims, **given)


def tiny_pair(
    spatial_dims: int = 2, student: tuple[int, int] = (3, 4), teacher: tuple[int, int] = (4, 5), seed: int = 0
) -> NetworkPair:
    torch.manual_seed(seed)
    networks = [TinyNetwork(channels, 3, spatial_dims).double() for channels in (student, teacher)]
    return pair_of(*networks, 3, spatial_dims)


def equal_pair(spatial_dims: int = 2) -> NetworkPair:
    """A teacher and its exact copy, both in evaluation mode."""
    torch.manual_seed(1)
    teacher = TinyNetwork((3, 4), 3, spatial_dims).double()
    return pair_of(copy.deepcopy(teacher).eval(), teacher, 3, spatial_dims)


def tiny_batch(spatial_dims: int = 2, batch: int = 2, side: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and their labels 0, 1 and 2 by brightness."""
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(batch, 1, *[side] * spatial_dims, generator=generator, dtype=torch.float64)
    return images, (3 * images).long().clamp(max=2)


def views(pair: NetworkPair, images: torch.Tensor) -> tuple[Tapped, Tapped]:
    """What both networks make of the images, the student with its graph."""
    found = []
    for network in (pair.student, pair.teacher):
        features = network.shallow(images) if hasattr(network, "shallow") else network.image(images)
        taps = (features, network.deep(features)) if hasattr(network, "deep") else (features,)
        found.append(Tapped(taps, network(images), images))
    return found[0], found[1].detach()
