# SPDX-License-Identifier: Apache-2.0
"""FANet, the teacher: a U-Net of selective kernel blocks with dual-direction attention in its decoder.

Built from the layer table of the Graph Flow paper's code (Zou et al., IEEE TMI 2022, arXiv 2203.08667). Two parts that
this code computes but never uses are left out: an auxiliary head, and a scale of each attention module.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import InputError
from pipeline.networks.base import BatchNorm2d, SegmentationNetwork

BASE_CHANNELS = 64


def _conv_bn(in_channels: int, out_channels: int, kernel: int | tuple[int, int]) -> nn.Sequential:
    """Return a convolution without bias that keeps the size of the map, and its normalisation."""
    padding = tuple(side // 2 for side in ((kernel, kernel) if isinstance(kernel, int) else kernel))
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=padding, bias=False)
    return nn.Sequential(conv, BatchNorm2d(out_channels))


def _conv_bn_relu(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    return _conv_bn(in_channels, out_channels, kernel).append(nn.ReLU(inplace=True))


class SelectiveKernel(nn.Module):
    """A weighted sum of a 5 x 5 and a 3 x 3 convolution, with weights for each channel that depend on the whole map.

    (B, C, H, W) -> (B, C, H, W). The weights come from the pooled sum of both branches through a bottleneck of C / 2,
    whose normalisation sees maps of 1 x 1: a batch of one trains there with the running statistics (see `BatchNorm2d`).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = channels // 2
        self.branch5, self.branch3 = (
            nn.Sequential(
                nn.Conv2d(channels, channels, kernel, padding=kernel // 2),
                BatchNorm2d(channels),
                nn.ReLU(inplace=True),
            )
            for kernel in (5, 3)
        )
        self.squeeze = nn.Sequential(nn.Conv2d(channels, squeezed, 1), BatchNorm2d(squeezed), nn.ReLU(inplace=True))
        self.attend5, self.attend3 = (nn.Conv2d(squeezed, channels, 1) for _ in range(2))

    def forward(self, features: Tensor) -> Tensor:
        """Return the weighted sum of both branches, (B, C, H, W); the two weights of a channel add up to 1."""
        wide, narrow = self.branch5(features), self.branch3(features)
        # The mean of the sum is the sum of the means: no third map of full size.
        squeezed = self.squeeze(wide.mean((2, 3), keepdim=True) + narrow.mean((2, 3), keepdim=True))
        # A softmax over two is the sigmoid of their difference.
        share_of_wide = torch.sigmoid(self.attend5(squeezed) - self.attend3(squeezed))
        return torch.lerp(narrow, wide, share_of_wide)


class SelectiveKernelBlock(nn.Module):
    """Residual block of 1 x 1, selective kernel and 1 x 1; `project` puts a 1 x 1 convolution in the shortcut."""

    def __init__(self, in_channels: int, out_channels: int, project: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_conv_bn_relu(in_channels, out_channels, 1),
            SelectiveKernel(out_channels),
            BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            *_conv_bn(out_channels, out_channels, 1),
        )
        self.shortcut = _conv_bn(in_channels, out_channels, 1) if project else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, out_channels, H, W)."""
        return F.relu(self.body(features) + self.shortcut(features), inplace=True)


def _two_blocks(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        SelectiveKernelBlock(in_channels, out_channels, project=True),
        SelectiveKernelBlock(out_channels, out_channels, project=False),
    )


def grid_of_means(features: Tensor, side: int) -> Tensor:
    """Return the means of a map (B, C, H, W) over the cells of a grid, (B, C, side, side).

    Torch rounds a cell's first row down and its last one up, so that cells may overlap. ONNX has no such pooling, so
    there the means are two products with matrices, and images may have other sizes than the exporter's example.
    """
    if not torch.jit.is_scripting():  # noqa: SIM102 -- torch.jit.script leaves out what stands under this alone
        if torch.onnx.is_in_onnx_export():
            rows, columns = (averaging(length, side, features) for length in features.shape[-2:])
            return rows @ features @ columns.T
    return F.adaptive_avg_pool2d(features, side)


def averaging(length: int, side: int, like: Tensor) -> Tensor:
    """Return the matrix (side, length) that takes a line to the means of its cells, in the type and place of `like`."""
    place, cell = torch.arange(length, device=like.device), torch.arange(side, device=like.device)[:, None]
    inside = (place >= cell * length // side) & (place < ((cell + 1) * length + side - 1) // side)
    inside = inside.to(like.dtype)
    return inside / inside.sum(dim=1, keepdim=True)


class DualDirectionAttention(nn.Module):
    """Adds context to a map: from two pooled grids (local) and from its pooled rows and columns (strips).

    (B, C, H, W) -> (B, C, H, W) for maps of any size. Inner width is C throughout.

    Args:
        channels: C.
        grids: sides of the two grids of the local branch.
        gated: the form of the last stage: the grids have C / 2 channels each and are concatenated with the map instead
            of added to it, and the strips multiply the input.
    """

    def __init__(self, channels: int, grids: tuple[int, int], gated: bool = False) -> None:
        super().__init__()
        self.grids, self.gated = grids, gated
        pooled_channels = channels // 2 if gated else channels
        self.reduce_local, self.reduce_strips = (_conv_bn_relu(channels, channels, 1) for _ in range(2))
        self.full = _conv_bn(channels, channels, 3)
        self.pooled = nn.ModuleList(_conv_bn(channels, pooled_channels, 3) for _ in grids)
        self.fuse_local = _conv_bn_relu(channels + 2 * pooled_channels if gated else channels, channels, 3)
        self.along_width, self.along_height = _conv_bn(channels, channels, (1, 3)), _conv_bn(channels, channels, (3, 1))
        self.fuse_strips = _conv_bn_relu(channels, channels, 3)
        self.fuse = _conv_bn(2 * channels, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return the map (B, C, H, W) with its context added."""
        strips = self._strips(features)
        if self.gated:
            strips = features * strips
        return F.relu(features + self.fuse(torch.cat([self._local(features), strips], dim=1)), inplace=True)

    def _local(self, features: Tensor) -> Tensor:
        reduced = self.reduce_local(features)
        maps = [self.full(reduced)]
        for index, conv in enumerate(self.pooled):
            grid = conv(grid_of_means(reduced, self.grids[index]))
            maps.append(F.interpolate(grid, size=reduced.shape[-2:]))
        context = torch.cat(maps, dim=1) if self.gated else maps[0] + maps[1] + maps[2]
        return self.fuse_local(F.relu(context, inplace=True))

    def _strips(self, features: Tensor) -> Tensor:
        reduced = self.reduce_strips(features)
        row = self.along_width(reduced.mean(2, keepdim=True))
        column = self.along_height(reduced.mean(3, keepdim=True))
        # A sum of (B, C, 1, W) and (B, C, H, 1) is what nearest up-sampling of both to H x W would add up to.
        return self.fuse_strips(F.relu(row + column, inplace=True))


class FANet(SegmentationNetwork):
    """Teacher: images (B, in_channels, H, W) -> logits (B, out_channels, H, W); H and W multiples of 8.

    With one input channel, two classes and width 1 it has 38,292,162 parameters. The published number of 38.250 M
    (38,249,668) includes the 130 of the auxiliary head (64 x 2 + 2), but not the 42,624 of batch normalisation.

    In training, a batch of one uses the running statistics where a feature map is 1 x 1 (see `BatchNorm2d`).

    Args:
        in_channels: channels of the images.
        out_channels: number of classes, the background included.
        width: factor on all channel counts; 64 x width is rounded to a multiple of 4, at least 4. None means 1.

    Raises:
        InputError: `width` is not a positive number.
    """

    size_divisor = 8
    taps = ("encoder3", "up3")

    def __init__(self, in_channels: int = 1, out_channels: int = 2, *, width: float | None = None) -> None:
        super().__init__(in_channels, out_channels)
        c1 = _base_channels(1.0 if width is None else width)
        c2, c3, c4 = 2 * c1, 4 * c1, 8 * c1
        self.tap_channels = (c3, c3)
        self.encoder1, self.encoder2 = _two_blocks(in_channels, c1), _two_blocks(c1, c2)
        self.encoder3, self.encoder4 = _two_blocks(c2, c3), _two_blocks(c3, c4)
        self.up3, self.decoder3 = nn.ConvTranspose2d(c4, c3, 2, stride=2), _two_blocks(c4, c3)
        self.attention3 = DualDirectionAttention(c3, (3, 6))
        self.up2, self.decoder2 = nn.ConvTranspose2d(c3, c2, 2, stride=2), _two_blocks(c3, c2)
        self.attention2 = DualDirectionAttention(c2, (12, 18))
        self.up1, self.decoder1 = nn.ConvTranspose2d(c2, c1, 2, stride=2), _two_blocks(c2, c1)
        self.attention1 = DualDirectionAttention(c1, (3, 6), gated=True)
        self.head = nn.Sequential(nn.Dropout2d(0.5), nn.Conv2d(c1, out_channels, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, out_channels, H, W). Raises `ValueError` for sizes that are not multiples of 8."""
        if not torch.jit.is_scripting():
            self.check_images(images)
        level1 = self.encoder1(images)
        level2 = self.encoder2(F.max_pool2d(level1, 2))
        level3 = self.encoder3(F.max_pool2d(level2, 2))
        level4 = self.encoder4(F.max_pool2d(level3, 2))
        level3 = self.attention3(self.decoder3(torch.cat([self.up3(level4), level3], dim=1)))
        level2 = self.attention2(self.decoder2(torch.cat([self.up2(level3), level2], dim=1)))
        level1 = self.attention1(self.decoder1(torch.cat([self.up1(level2), level1], dim=1)))
        return self.head(level1)


def _base_channels(width: float) -> int:
    """Return the channels of the first level: a multiple of 4, so that half of them is even."""
    if isinstance(width, bool) or not isinstance(width, int | float) or not 0 < width < float("inf"):
        raise InputError(f"fanet's width is {width!r}; give a positive number, 1 for the published teacher")
    return max(4, 4 * round(BASE_CHANNELS * width / 4))
