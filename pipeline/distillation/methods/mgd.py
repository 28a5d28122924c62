# SPDX-License-Identifier: Apache-2.0
"""Masked generation: a small network generates the teacher's features from the student's, most of them hidden.

Yang et al., "Masked Generative Distillation", ECCV 2022, arXiv 2205.01529:

    L = mean (G(m a(s)) - t)^2,   G = convolution, ReLU, convolution (3 x 3), trained beside the student

with a the adapter of the student's tap and m a random mask of places, drawn for each image and step: 0 with the
probability lambda, otherwise 1, the same for all channels. The formula fits dense prediction as it is.

The authors' segmentation code has lambda 0.75, adds up the squares of an image and weighs them by 2e-5. For C channels
of n places that is the mean with the weight 2e-5 C n: 168 for their 2048 channels of 64 x 64, 1 for 64 channels of
28 x 28. The mean depends on neither size nor batch.

Beside kd, at a share of 0.3, it gave ENet a Dice of 0.713 on CHAOS MR (kd 0.701, alone 0.700; two seeds) and a mean IoU
of 0.729 on a tenth of EBHI-Seg (kd 0.730, alone 0.721; three seeds). See docs/results.md.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.distillation.adapters import adapters_of
from pipeline.distillation.method import DistillationMethod, NetworkPair, Tapped
from pipeline.distillation.settings import check_number


class Generator(nn.Sequential):
    """Two 3 x 3 convolutions (3 x 3 x 3 in volumes) with a ReLU between them; channels and size stay.

    Args:
        channels: of the teacher's tap.
        spatial_dims: 2 or 3.
    """

    def __init__(self, channels: int, spatial_dims: int = 2) -> None:
        convolution = {2: nn.Conv2d, 3: nn.Conv3d}[spatial_dims]
        super().__init__(
            convolution(channels, channels, 3, padding=1), nn.ReLU(), convolution(channels, channels, 3, padding=1)
        )


def random_mask(features: torch.Tensor, hidden: float) -> torch.Tensor:
    """Return a mask (B, 1, ...) for features (B, C, ...): each place is 0 with probability `hidden`, otherwise 1.

    Torch's own generator draws it, whose state a checkpoint keeps.
    """
    return (torch.rand_like(features[:, :1]) >= hidden).to(features.dtype)


class MaskedGeneration(DistillationMethod):
    """The mean squared error of what is generated, over all taps, as a method with the single term `mgd`.

    Args:
        pair: adapters bring the student's taps to the teacher's channels and sizes.
        weight: of the term, which starts at about the mean square of the teacher's features.
        hidden: lambda, the share of places that are masked, from 0 to 0.95.

    Raises:
        InputError: `hidden` is out of its range.
    """

    def __init__(self, pair: NetworkPair, *, weight: float = 2.0, hidden: float = 0.75) -> None:
        super().__init__({"mgd": weight})
        self.hidden = check_number("mgd", "hidden", hidden, least=0, most=0.95)
        self.adapters = adapters_of(pair)
        self.generators = nn.ModuleList(Generator(channels, pair.spatial_dims) for channels in pair.teacher_channels)

    def forward(self, student: Tapped, teacher: Tapped, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the scalar term `mgd`; shapes as in `DistillationMethod`."""
        losses = []
        for adapter, generator, mine, theirs in zip(
            self.adapters, self.generators, student.features, teacher.features, strict=True
        ):
            aligned = adapter(mine, theirs)
            generated = generator(random_mask(aligned, self.hidden) * aligned)
            losses.append(F.mse_loss(generated, theirs.detach()))
        return {"mgd": torch.stack(losses).mean()}
