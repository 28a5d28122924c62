# SPDX-License-Identifier: Apache-2.0
"""The discriminator of adversarial distillation: it tells the teacher's logits from the student's."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

SLOPE = 0.1
SMALLEST = 64


class SelfAttention(nn.Module):
    """Self-attention over all positions of a map, added to it with a learned weight that starts at 0.

    (B, C, H, W) -> (B, C, H, W). It is written as matrix products: the gradient penalty differentiates twice, which
    fused attention cannot do. Memory grows with (H W)^2.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query, self.key = (nn.Conv2d(channels, channels // 8, 1) for _ in range(2))
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, features: Tensor) -> Tensor:
        """Return the map (B, C, H, W) with the attended values added."""
        query, key, value = (part(features).flatten(2) for part in (self.query, self.key, self.value))
        attention = torch.bmm(query.transpose(1, 2), key).softmax(dim=-1)
        attended = torch.bmm(value, attention.transpose(1, 2)).view_as(features)
        return self.gamma * attended + features


class Discriminator(nn.Module):
    """Scores logits patch by patch (Zou et al., IEEE TMI 2022; in the manner of self-attention GANs).

    Logits (B, in_channels, H, W), squashed by tanh, -> scores (B, 1, H / 16 - 3, W / 16 - 3), rounded down: 13 x 13 at
    256, 11 x 11 at 224. All convolutions but the attention's and the last have spectral norm. Its estimate is
    updated once in each forward pass in training mode.

    Args:
        in_channels: number of classes K.
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Tanh(),
            *_halve(in_channels, 64),
            *_halve(64, 128),
            *_halve(128, 256),
            SelfAttention(256),
            *_halve(256, 512),
            SelfAttention(512),
            nn.Conv2d(512, 1, 4),
        )

    def forward(self, logits: Tensor) -> Tensor:
        """Return the scores (B, 1, h, w) of logits (B, K, H, W); `ValueError` for logits below 64 x 64 pixels."""
        if min(logits.shape[-2:]) < SMALLEST:
            raise ValueError(
                f"the discriminator takes logits of {SMALLEST} x {SMALLEST} or more, not {tuple(logits.shape)}"
            )
        return self.layers(logits)


def _halve(in_channels: int, out_channels: int) -> list[nn.Module]:
    convolution = nn.Conv2d(in_channels, out_channels, 4, stride=2, padding=1)
    return [spectral_norm(convolution), nn.LeakyReLU(SLOPE)]
