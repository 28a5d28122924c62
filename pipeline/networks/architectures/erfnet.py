# SPDX-License-Identifier: Apache-2.0
"""ERFNet, a student: residual blocks of factorised 3 x 1 and 1 x 3 convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import InputError
from pipeline.networks.base import BatchNorm2d, SegmentationNetwork

NORM_EPS = 1e-3
FIRST_CHANNELS = 16


def _norm(channels: int) -> BatchNorm2d:
    return BatchNorm2d(channels, eps=NORM_EPS)


class Downsampler(nn.Module):
    """Halves the map: learned channels beside the pooled input, `out_channels` together."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels - in_channels, 3, stride=2, padding=1)
        self.norm = _norm(out_channels)

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, out_channels, H / 2, W / 2)."""
        pooled = F.max_pool2d(features, 2)
        return F.relu(self.norm(torch.cat([self.conv(features), pooled], dim=1)), inplace=True)


def _factorised(channels: int, dilation: int = 1) -> list[nn.Module]:
    """Return 3 x 1, ReLU, 1 x 3 and a normalisation."""
    return [
        nn.Conv2d(channels, channels, (3, 1), padding=(dilation, 0), dilation=(dilation, 1)),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, channels, (1, 3), padding=(0, dilation), dilation=(1, dilation)),
        _norm(channels),
    ]


class FactorisedResidual(nn.Module):
    """Residual block of two factorised 3 x 3 convolutions, of which only the second is dilated."""

    def __init__(self, channels: int, dropout: float = 0.0, dilation: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_factorised(channels),
            nn.ReLU(inplace=True),
            *_factorised(channels, dilation),
            nn.Dropout2d(dropout) if dropout else nn.Identity(),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, channels, H, W)."""
        return F.relu(features + self.body(features), inplace=True)


class Upsampler(nn.Sequential):
    """Doubles the map by a transposed convolution, normalised and rectified."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.ConvTranspose2d(in_channels, out_channels, 3, stride=2, padding=1, output_padding=1),
            _norm(out_channels),
            nn.ReLU(inplace=True),
        )


class ERFNet(SegmentationNetwork):
    """Student: images (B, in_channels, H, W) -> logits (B, out_channels, H, W); H and W multiples of 8.

    2,062,872 parameters for one channel and two classes; the original also holds the classifier of the encoder's own
    pre-training (128 x 2 + 2), which it never calls, and so publishes 2.063 M.

    Args:
        in_channels: channels of the images, fewer than 16: they are part of the first block's 16 channels.
        out_channels: number of classes, the background included.

    Raises:
        InputError: too many input channels.
    """

    size_divisor = 8
    taps = ("down2", "decoder1")
    tap_channels = (64, 64)

    def __init__(self, in_channels: int = 1, out_channels: int = 2) -> None:
        super().__init__(in_channels, out_channels)
        if in_channels >= FIRST_CHANNELS:
            raise InputError(
                f"erfnet takes at most {FIRST_CHANNELS - 1} channels, not {in_channels}; choose mobile_unet"
            )
        self.down1 = Downsampler(in_channels, FIRST_CHANNELS)
        # The shallow tap is the down-sampler itself, before the residual blocks.
        self.down2 = Downsampler(FIRST_CHANNELS, 64)
        self.encoder2 = nn.Sequential(*(FactorisedResidual(64, 0.1) for _ in range(5)))
        self.down3 = Downsampler(64, 128)
        self.encoder3 = nn.Sequential(*(FactorisedResidual(128, 0.1, dilation) for dilation in (2, 4, 8, 16) * 2))
        self.decoder1 = nn.Sequential(Upsampler(128, 64), FactorisedResidual(64), FactorisedResidual(64))
        self.decoder2 = nn.Sequential(Upsampler(64, 16), FactorisedResidual(16), FactorisedResidual(16))
        self.head = nn.ConvTranspose2d(16, out_channels, 2, stride=2)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, out_channels, H, W). Raises `ValueError` for sizes that are not multiples of 8."""
        if not torch.jit.is_scripting():
            self.check_images(images)
        features = self.encoder2(self.down2(self.down1(images)))
        features = self.encoder3(self.down3(features))
        return self.head(self.decoder2(self.decoder1(features)))
