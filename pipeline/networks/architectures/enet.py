# SPDX-License-Identifier: Apache-2.0
"""ENet, a student: early down-sampling, dilated and asymmetric bottlenecks, un-pooling by the positions of the maxima.

The form of the Graph Flow paper's code: one input channel beside 15 learned ones at the start, PReLU with one slope in
the encoder, ReLU in the decoder.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import InputError
from pipeline.networks.architectures.max_unpooling import max_pool, max_unpool
from pipeline.networks.base import BatchNorm2d, SegmentationNetwork

INITIAL_CHANNELS = 16
Activation = Callable[[], nn.Module]


def _relu() -> nn.Module:
    return nn.ReLU(inplace=True)


def _conv(
    in_channels: int,
    out_channels: int,
    kernel: int | tuple[int, int],
    activation: Activation,
    dilation: int = 1,
) -> list[nn.Module]:
    """Return a convolution that keeps the size, its normalisation and its activation."""
    sides = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = tuple(dilation * (side // 2) for side in sides)
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=padding, dilation=dilation, bias=False)
    return [conv, BatchNorm2d(out_channels), activation()]


class InitialBlock(nn.Module):
    """Halves the image: learned channels beside the pooled image itself, 16 together."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, INITIAL_CHANNELS - in_channels, 3, stride=2, padding=1, bias=False)
        self.norm, self.activation = BatchNorm2d(INITIAL_CHANNELS), nn.PReLU()

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, 16, H / 2, W / 2)."""
        pooled = F.max_pool2d(images, 3, stride=2, padding=1)
        return self.activation(self.norm(torch.cat([self.conv(images), pooled], dim=1)))


class RegularBottleneck(nn.Module):
    """Residual bottleneck at a quarter of the channels; its middle is 3 x 3, dilated, or a 5 x 1 and 1 x 5 pair."""

    def __init__(
        self,
        channels: int,
        dropout: float,
        activation: Activation = nn.PReLU,
        dilation: int = 1,
        asymmetric: bool = False,
    ) -> None:
        super().__init__()
        inner = channels // 4
        kernels = [(5, 1), (1, 5)] if asymmetric else [3]
        middle = [layer for kernel in kernels for layer in _conv(inner, inner, kernel, activation, dilation)]
        self.body = nn.Sequential(
            *_conv(channels, inner, 1, activation),
            *middle,
            *_conv(inner, channels, 1, activation),
            nn.Dropout2d(dropout),
        )
        self.activation = activation()

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, channels, H, W)."""
        return self.activation(features + self.body(features))


class DownBottleneck(nn.Module):
    """Halves the map; also returns where in each 2 x 2 window the maximum was, for `UpBottleneck`."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        inner = in_channels // 4
        self.added_channels = out_channels - in_channels
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, inner, 2, stride=2, bias=False),
            BatchNorm2d(inner),
            nn.PReLU(),
            *_conv(inner, inner, 3, nn.PReLU),
            *_conv(inner, out_channels, 1, nn.PReLU),
            nn.Dropout2d(dropout),
        )
        self.activation = nn.PReLU()

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the map (B, out_channels, H / 2, W / 2) and the maxima's places (B, in_channels, H / 2, W / 2)."""
        pooled, places = max_pool(features)
        pooled = F.pad(pooled, (0, 0, 0, 0, 0, self.added_channels))
        return self.activation(pooled + self.body(features)), places


class UpBottleneck(nn.Module):
    """Doubles the map: un-pooled values by the positions of the maxima, plus a learned up-sampling."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        inner = in_channels // 4
        self.reduce = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, bias=False), BatchNorm2d(out_channels))
        self.body = nn.Sequential(
            *_conv(in_channels, inner, 1, _relu),
            nn.ConvTranspose2d(inner, inner, 2, stride=2, bias=False),
            BatchNorm2d(inner),
            _relu(),
            # No activation here, unlike in the other bottlenecks: the original adds signed values to the un-pooled map.
            nn.Conv2d(inner, out_channels, 1, bias=False),
            BatchNorm2d(out_channels),
            nn.Dropout2d(dropout),
        )

    def forward(self, features: Tensor, places: Tensor) -> Tensor:
        """Return (B, out_channels, 2 H, 2 W)."""
        return F.relu(max_unpool(self.reduce(features), places) + self.body(features), inplace=True)


def _context(channels: int, dropout: float) -> list[RegularBottleneck]:
    """Return the eight bottlenecks of stages 2 and 3."""
    kinds = [{}, {"dilation": 2}, {"asymmetric": True}, {"dilation": 4}]
    kinds += [{}, {"dilation": 8}, {"asymmetric": True}, {"dilation": 16}]
    return [RegularBottleneck(channels, dropout, **kind) for kind in kinds]


class ENet(SegmentationNetwork):
    """Student: images (B, in_channels, H, W) -> logits (B, out_channels, H, W); H and W multiples of 8.

    348,996 parameters for one channel and two classes.

    Args:
        in_channels: channels of the images, fewer than 16: they are part of the first block's 16 channels.
        out_channels: number of classes, the background included.

    Raises:
        InputError: too many input channels.
    """

    size_divisor = 8
    taps = ("stage1", "stage4")
    tap_channels = (64, 64)

    def __init__(self, in_channels: int = 1, out_channels: int = 2) -> None:
        super().__init__(in_channels, out_channels)
        if in_channels >= INITIAL_CHANNELS:
            raise InputError(f"enet takes at most {INITIAL_CHANNELS - 1} channels, not {in_channels}; choose erfnet")
        self.initial = InitialBlock(in_channels)
        self.down1 = DownBottleneck(16, 64, 0.01)
        self.stage1 = nn.Sequential(*(RegularBottleneck(64, 0.01) for _ in range(4)))
        self.down2 = DownBottleneck(64, 128, 0.1)
        self.stage2 = nn.Sequential(*_context(128, 0.1))
        self.stage3 = nn.Sequential(*_context(128, 0.1))
        self.up4 = UpBottleneck(128, 64, 0.1)
        self.stage4 = nn.Sequential(*(RegularBottleneck(64, 0.1, _relu) for _ in range(2)))
        self.up5 = UpBottleneck(64, 16, 0.1)
        self.stage5 = RegularBottleneck(16, 0.1, _relu)
        self.head = nn.ConvTranspose2d(16, out_channels, 3, stride=2, padding=1, output_padding=1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, out_channels, H, W). Raises `ValueError` for sizes that are not multiples of 8."""
        if not torch.jit.is_scripting():
            self.check_images(images)
        features, places1 = self.down1(self.initial(images))
        features, places2 = self.down2(self.stage1(features))
        features = self.stage3(self.stage2(features))
        features = self.stage4(self.up4(features, places2))
        features = self.stage5(self.up5(features, places1))
        return self.head(features)
