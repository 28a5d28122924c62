# SPDX-License-Identifier: Apache-2.0
"""Knowledge review: each tap of the teacher is predicted from the student's tap at its place and all deeper ones.

Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021, arXiv 2104.09044. From the deepest tap i = n on:

    x_i = N(c_i(s_i)),  c_i of kernel 1                                 (N batch normalisation)
    u_i = a_i x_i + b_i up(u_i+1),  a_i, b_i = sigmoid(e_i([x_i, up(u_i+1)])) at each place,  u_n = x_n
    r_i = N(d_i(u_i)),  d_i of kernel 3, with the channels of the teacher's tap t_i
    L   = mean over taps of sum_l w_l mean (pool_l(r_i) - pool_l(t_i))^2 / sum_l w_l

The levels of the hierarchical context loss, the last line: the map as it is, w = 1, then the means over 4, 2 and 1
regions per axis, each with half the weight of the one before. Levels no smaller than the map are left out.

Beside kd, at a share of 0.3, it is the default of distill.yaml. On a tenth of EBHI-Seg (320 steps, three seeds) kd and
review gave ENet a mean IoU of 0.740 (better control 0.721, kd 0.730), Mobile U-Net 0.747 (0.732, 0.740) and ERFNet
0.651 (0.605, 0.610). On CHAOS MR (about 540 steps) they gave ENet a Dice of 0.730 (0.700, 0.701; two seeds), ERFNet
0.703 (0.688, 0.708; one seed) and Mobile U-Net 0.786, as it has alone (kd 0.781; one seed). With all labels of EBHI-Seg
(522 steps, three seeds) they gave ENet 0.795 (alone 0.778), Mobile U-Net 0.801 (0.785) and ERFNet 0.773 (0.729). In the
time of these short trainings, the students alone often get further. After 1,600 steps with 10 % of the labels, ENet has
0.790 with kd and review, 0.803 if they also see the tiles without labels, and 0.781 alone in the same time (two seeds).
See docs/results.md and docs/results-few-labels.md.

The formula fits dense prediction as it is. The authors add up the taps, we take the mean. All c, d and e train beside
the student.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.distillation.adapters import pointwise, resized
from pipeline.distillation.method import DistillationMethod, NetworkPair, Tapped

LEVELS = (4, 2, 1)
MOST_CHANNELS = 512  # of the fused maps, as in the authors' code


def hierarchical_context_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the weighted mean of the squared differences of two maps and of their means over 4, 2 and 1 regions.

    Args:
        student: (B, C, ...).
        teacher: the same shape; no gradient reaches it.
    """
    teacher = teacher.detach()
    loss, weight, total = F.mse_loss(student, teacher), 1.0, 1.0
    for per_axis in LEVELS:
        if per_axis >= min(teacher.shape[2:]):
            continue
        weight /= 2
        grid = (per_axis,) * (teacher.ndim - 2)
        loss = loss + weight * F.mse_loss(resized(student, grid), resized(teacher, grid))
        total += weight
    return loss / total


class AttentionFusion(nn.Module):
    """Joins one tap of the student with the fused map of the deeper ones, and brings it to the teacher's channels.

    Args:
        in_channels: of the student's tap.
        fused_channels: of the fused maps, the same for all taps.
        out_channels: of the teacher's tap.
        deepest: there is nothing deeper to join.
        spatial_dims: 2 or 3.
    """

    def __init__(
        self, in_channels: int, fused_channels: int, out_channels: int, deepest: bool, spatial_dims: int = 2
    ) -> None:
        super().__init__()
        convolution = {2: nn.Conv2d, 3: nn.Conv3d}[spatial_dims]
        norm = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[spatial_dims]
        self.entry = nn.Sequential(
            pointwise(in_channels, fused_channels, spatial_dims, bias=False), norm(fused_channels)
        )
        self.attention = None if deepest else pointwise(2 * fused_channels, 2, spatial_dims)
        self.exit = nn.Sequential(
            convolution(fused_channels, out_channels, 3, padding=1, bias=False), norm(out_channels)
        )

    def forward(
        self, student: torch.Tensor, deeper: torch.Tensor | None, teacher: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the map to compare with the teacher's tap, and the fused one for the next shallower tap.

        Args:
            student: (B, in_channels, ...).
            deeper: (B, fused_channels, ...) of the next deeper tap, of any size; None for the deepest.
            teacher: (B, out_channels, ...), for its size alone.
        """
        fused = self.entry(student)
        if self.attention is not None:
            deeper = F.interpolate(deeper, fused.shape[2:], mode="nearest")
            own, others = self.attention(torch.cat([fused, deeper], dim=1)).sigmoid().split(1, dim=1)
            fused = own * fused + others * deeper
        return self.exit(F.interpolate(fused, teacher.shape[2:], mode="nearest")), fused


class KnowledgeReview(DistillationMethod):
    """`hierarchical_context_loss` of all reviewed taps as a method with the single term `review`.

    Args:
        pair: channels and sizes may differ.
        weight: of the term, which starts below the teacher's mean square plus 1, the student's after normalisation.
            The authors choose it for each pair of networks, 0.6 from ResNet-56 to ResNet-20, for the sum over taps,
            and let it rise over the first epochs (`ramp` in a mix does).
    """

    def __init__(self, pair: NetworkPair, *, weight: float = 0.5) -> None:
        super().__init__({"review": weight})
        fused, deepest = min(MOST_CHANNELS, pair.student_channels[-1]), len(pair.student_channels) - 1
        self.fusions = nn.ModuleList(
            AttentionFusion(mine, fused, theirs, number == deepest, pair.spatial_dims)
            for number, (mine, theirs) in enumerate(zip(pair.student_channels, pair.teacher_channels, strict=True))
        )

    def forward(self, student: Tapped, teacher: Tapped, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the scalar term `review`; shapes as in `DistillationMethod`."""
        losses, deeper = [], None
        taps = list(zip(self.fusions, student.features, teacher.features, strict=True))
        for fusion, mine, theirs in reversed(taps):
            reviewed, deeper = fusion(mine, deeper, theirs)
            losses.append(hierarchical_context_loss(reviewed, theirs))
        return {"review": torch.stack(losses).mean()}
