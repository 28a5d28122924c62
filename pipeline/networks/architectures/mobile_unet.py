# SPDX-License-Identifier: Apache-2.0
"""Mobile U-Net, a student: MobileNetV2 at width 1 as encoder under a light decoder of inverted residuals."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import InputError
from pipeline.networks.base import BatchNorm2d, SegmentationNetwork


def _conv_bn_relu6(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        BatchNorm2d(out_channels),
        nn.ReLU6(inplace=True),
    )


class InvertedResidual(nn.Module):
    """MobileNetV2's block: widen by `expansion`, 3 x 3 per channel, narrow without activation; a shortcut if it fits.

    (B, in_channels, H, W) -> (B, out_channels, H / stride, W / stride).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, expansion: int = 6) -> None:
        super().__init__()
        wide = in_channels * expansion
        self.body = nn.Sequential(
            *([] if expansion == 1 else _conv_bn_relu6(in_channels, wide, 1)),
            *_conv_bn_relu6(wide, wide, 3, stride, groups=wide),
            nn.Conv2d(wide, out_channels, 1, bias=False),
            BatchNorm2d(out_channels),
        )
        self.has_shortcut = stride == 1 and in_channels == out_channels

    def forward(self, features: Tensor) -> Tensor:
        """Return the block's output (B, out_channels, H / stride, W / stride)."""
        return features + self.body(features) if self.has_shortcut else self.body(features)


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> list[InvertedResidual]:
    """Return `blocks` inverted residuals of which the first has the stride and the change of channels."""
    first = InvertedResidual(in_channels, out_channels, stride)
    return [first, *(InvertedResidual(out_channels, out_channels) for _ in range(blocks - 1))]


def _up(in_channels: int, out_channels: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=1)


class MobileUNet(SegmentationNetwork):
    """Student: images (B, in_channels, H, W) -> logits (B, out_channels, H, W); H and W multiples of 32.

    4,682,323 parameters for one channel and two classes. The original also holds the classifier of MobileNetV2
    (1,281,000 parameters), which it never calls; the published 4.640 M are without it and without the 42,512 of batch
    normalisation.

    Args:
        in_channels: channels of the images.
        out_channels: number of classes, the background included.
        bottleneck_channels: channels between the two last 1 x 1 convolutions. The original has 3 and no activation
            there, so that the logits of all classes span three dimensions; None makes it a single convolution.

    Raises:
        InputError: `bottleneck_channels` is neither None nor a positive whole number.
    """

    size_divisor = 32
    taps = ("stage2", "fuse2")
    tap_channels = (24, 24)

    def __init__(self, in_channels: int = 1, out_channels: int = 2, *, bottleneck_channels: int | None = 3) -> None:
        super().__init__(in_channels, out_channels)
        self.stem = _conv_bn_relu6(in_channels, 32, 3, stride=2)
        self.stage1 = InvertedResidual(32, 16, expansion=1)
        self.stage2 = nn.Sequential(*_stage(16, 24, 2, stride=2))
        self.stage3 = nn.Sequential(*_stage(24, 32, 3, stride=2))
        self.stage4 = nn.Sequential(*_stage(32, 64, 4, stride=2), *_stage(64, 96, 3, stride=1))
        self.stage5 = nn.Sequential(
            *_stage(96, 160, 3, stride=2), *_stage(160, 320, 1, stride=1), *_conv_bn_relu6(320, 1280, 1)
        )
        self.up4, self.fuse4 = _up(1280, 96), InvertedResidual(192, 96)
        self.up3, self.fuse3 = _up(96, 32), InvertedResidual(64, 32)
        self.up2, self.fuse2 = _up(32, 24), InvertedResidual(48, 24)
        self.up1, self.fuse1 = _up(24, 16), InvertedResidual(32, 16)
        self.head = _head(16, bottleneck_channels, out_channels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                _init(module)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, out_channels, H, W). Raises `ValueError` for sizes that are not multiples of 32."""
        if not torch.jit.is_scripting():
            self.check_images(images)
        half = self.stage1(self.stem(images))
        quarter = self.stage2(half)
        eighth = self.stage3(quarter)
        sixteenth = self.stage4(eighth)
        decoded = self.fuse4(torch.cat([sixteenth, self.up4(self.stage5(sixteenth))], dim=1))
        decoded = self.fuse3(torch.cat([eighth, self.up3(decoded)], dim=1))
        decoded = self.fuse2(torch.cat([quarter, self.up2(decoded)], dim=1))
        decoded = self.fuse1(torch.cat([half, self.up1(decoded)], dim=1))
        return F.interpolate(self.head(decoded), scale_factor=2.0, mode="bilinear", align_corners=False)


def _head(in_channels: int, bottleneck_channels: int | None, out_channels: int) -> nn.Sequential:
    if bottleneck_channels is None:
        return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1))
    if isinstance(bottleneck_channels, bool) or not isinstance(bottleneck_channels, int) or bottleneck_channels < 1:
        raise InputError(
            f"mobile_unet's bottleneck_channels is {bottleneck_channels!r}; give a whole number from 1, or null"
        )
    return nn.Sequential(
        nn.Conv2d(in_channels, bottleneck_channels, 1), nn.Conv2d(bottleneck_channels, out_channels, 1)
    )


def _init(module: nn.Conv2d | nn.ConvTranspose2d) -> None:
    """Draw the weights from a normal distribution of variance 2 / (kernel area x output channels); biases are 0."""
    nn.init.normal_(module.weight, std=math.sqrt(2 / (math.prod(module.kernel_size) * module.out_channels)))
    if module.bias is not None:
        nn.init.zeros_(module.bias)
