# SPDX-License-Identifier: Apache-2.0
"""The paraphraser: an auto-encoder that codes a teacher's feature map in fewer channels."""

from __future__ import annotations

from torch import Tensor, nn

SLOPE = 0.1
_CONVOLUTIONS = {2: (nn.Conv2d, nn.ConvTranspose2d), 3: (nn.Conv3d, nn.ConvTranspose3d)}


class Paraphraser(nn.Module):
    """Auto-encoder over channels; resolution stays (Zou et al., IEEE TMI 2022, after factor transfer).

    Three convolutions of kernel 3 to the factor and three transposed ones back, each with a bias and followed by
    LeakyReLU(0.1), the last one too; no normalisation.

    Args:
        in_channels: channels of the teacher's tap.
        factor_channels: channels of the factor, those of the student's tap.
        spatial_dims: 2 for taps (B, C, H, W), 3 for those of volumes (B, C, D, H, W).
    """

    def __init__(self, in_channels: int, factor_channels: int, spatial_dims: int = 2) -> None:
        super().__init__()
        self.in_channels, self.factor_channels, self.spatial_dims = in_channels, factor_channels, spatial_dims
        forth, back = _CONVOLUTIONS[spatial_dims]
        down = [(in_channels, in_channels), (in_channels, factor_channels), (factor_channels, factor_channels)]
        self.encoder = _layers(forth, down)
        self.decoder = _layers(back, [(last, first) for first, last in reversed(down)])

    def encode(self, features: Tensor) -> Tensor:
        """Return the factor (B, factor_channels, ...) of a tap (B, in_channels, ...)."""
        return self.encoder(features)

    def forward(self, features: Tensor) -> Tensor:
        """Return the reconstruction of a tap, both (B, in_channels, ...)."""
        return self.decoder(self.encode(features))


def _layers(convolution: type[nn.Module], channels: list[tuple[int, int]]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for first, last in channels:
        layers += [convolution(first, last, 3, padding=1), nn.LeakyReLU(SLOPE, inplace=True)]
    return nn.Sequential(*layers)
