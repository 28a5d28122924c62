# SPDX-License-Identifier: Apache-2.0
"""Factor transfer: the student's translated features equal the teacher's paraphrased ones.

Kim et al., "Paraphrasing Complex Network: Network Compression via Factor Transfer", NeurIPS 2018, arXiv 1802.04977,
with p = 1, for the factors f of one image flattened to n values:

    L = || f_student / ||f_student||_2 - f_teacher / ||f_teacher||_2 ||_1 / sqrt(n)     (the mean over images and taps)

f_teacher is the tap after its trained and frozen paraphraser, f_student the student's tap after a translator that
learns with it. The formula fits dense prediction as it is. The division by sqrt(n), ours, keeps L between 0 and 2 at
any size.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from pipeline.distillation.adapters import resized
from pipeline.distillation.method import DistillationMethod, NetworkPair, Tapped
from pipeline.distillation.methods.relations import unit_vectors
from pipeline.distillation.paraphrased import FrozenParaphrasers, check_paraphrasers

SLOPE = 0.1  # of the leaky ReLU, as in the paraphraser


def factor_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the scaled L1 distance of two factors of unit length, the mean over the batch.

    Args:
        student: (B, C, ...).
        teacher: of the same shape; no gradient reaches it.
    """
    student, teacher = student.flatten(1), teacher.detach().flatten(1)
    distance = (unit_vectors(student) - unit_vectors(teacher)).abs().sum(dim=1)
    return distance.mean() / math.sqrt(teacher.shape[1])


class Translator(nn.Sequential):
    """Three 3 x 3 convolutions (3 x 3 x 3 in volumes) with leaky ReLUs, the shape of the paraphraser's encoder.

    Args:
        in_channels: of the student's tap.
        factor_channels: of the teacher's factor.
        spatial_dims: 2 or 3.
    """

    def __init__(self, in_channels: int, factor_channels: int, spatial_dims: int = 2) -> None:
        convolution = {2: nn.Conv2d, 3: nn.Conv3d}[spatial_dims]
        layers: list[nn.Module] = []
        for first, last in ((in_channels, in_channels), (in_channels, factor_channels), (factor_channels,) * 2):
            layers += [convolution(first, last, 3, padding=1), nn.LeakyReLU(SLOPE)]
        super().__init__(*layers)


class FactorTransfer(DistillationMethod):
    """`factor_loss` of all taps as a method with the single term `ft`.

    Args:
        pair: with paraphrasers that give as many channels as the student's taps have. Without paraphrasers, the
            teacher's taps are the factors and must have the student's channels.
        weight: of the term, which starts at about 0.9. Common code weighs the mean over the n values by 200 to 1000,
            and a weight w there is w / sqrt(n) here: 600 is 3 for n = 40,000.

    Raises:
        InputError: paraphrasers are missing or belong to other networks.
    """

    def __init__(self, pair: NetworkPair, *, weight: float = 3.0) -> None:
        super().__init__({"ft": weight})
        check_paraphrasers("ft", pair)
        self.paraphrasers = FrozenParaphrasers(pair.paraphrasers)
        self.translators = nn.ModuleList(
            Translator(channels, channels, pair.spatial_dims) for channels in pair.student_channels
        )

    def forward(self, student: Tapped, teacher: Tapped, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the scalar term `ft`; shapes as in `DistillationMethod`."""
        factors = self.paraphrasers(teacher.features)
        taps = zip(self.translators, student.features, factors, strict=True)
        losses = [factor_loss(resized(translator(mine), factor.shape[2:]), factor) for translator, mine, factor in taps]
        return {"ft": torch.stack(losses).mean()}
