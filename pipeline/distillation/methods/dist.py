# SPDX-License-Identifier: Apache-2.0
"""DIST: the student's probabilities correlate with the teacher's, over classes and over pixels.

Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, arXiv 2205.10536, with p the
softmax of the logits over the K classes and r Pearson's correlation:

    inter = mean over pixels  of (1 - r over classes of p(x; student) and p(x; teacher))
    intra = mean over classes of (1 - r over pixels  of p_k(student)  and p_k(teacher))

As in the authors' code for segmentation, a sample is a pixel, and `intra` takes all pixels of the batch at once. Then a
class is rarely absent, and differences between images in the amount of a class count too. r is computed by

    1 - r = 1/2 mean (z_student - z_teacher)^2,   z = (p - mean p) / sqrt(var p + 0.01^2)

The 0.01 is ours. Without it, the gradient is infinite where all probabilities are alike, such as those of a class that
no pixel has. With it, equal networks still have a loss of zero. Where the teacher's probabilities are alike, the
student learns to make its own alike.

Beside kd, at a share of 0.3, it added nothing to kd that could be shown in ENet: a Dice of 0.710 on CHAOS MR (kd 0.701,
alone 0.700; two seeds), a mean IoU of 0.728 on a tenth of EBHI-Seg (kd 0.730, alone 0.721; three seeds) and 0.781 with
all its labels (kd 0.783, alone 0.774). See docs/results.md and docs/experiments.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipeline.distillation.method import DistillationMethod, NetworkPair, Tapped

# Standard deviation of probabilities below which they count as alike. Those of a confident pixel have 0.3 to 0.5, those
# of an organ on a thousandth of all pixels 0.03.
ALIKE = 0.01


def standardised(values: torch.Tensor, dim: int | Sequence[int]) -> torch.Tensor:
    """Return values, of any shape, with mean 0 and variance 1 along `dim`; a smaller variance if nearly alike."""
    variance, mean = torch.var_mean(values, dim, correction=0, keepdim=True)
    return (values - mean) * (variance + ALIKE**2).rsqrt()


def correlation_distance(student: torch.Tensor, teacher: torch.Tensor, dim: int | Sequence[int]) -> torch.Tensor:
    """Return 1 - Pearson's correlation along `dim`, the mean over all other axes, from 0 to 2.

    Args:
        student: probabilities (B, K, ...).
        teacher: likewise; no gradient reaches it.
        dim: axis or axes along which they are correlated.
    """
    return (standardised(student, dim) - standardised(teacher.detach(), dim)).square().mean() / 2


class StrongerTeacher(DistillationMethod):
    """The terms `dist_inter` and `dist_intra`.

    It needs the batch of all processes, since the correlation over pixels is no mean over images. With two classes, the
    probabilities of a pixel correlate by +1 or -1, so that only `intra` teaches.

    Args:
        pair: the two networks; only their logits are used.
        weight: factor on both weights.
        inter: weight of the term over classes; 1 in the authors' code for segmentation.
        intra: weight of the term over pixels; likewise. Both terms start at about 1 or below.
    """

    needs_global_batch = True

    def __init__(self, pair: NetworkPair, *, weight: float = 1.0, inter: float = 1.0, intra: float = 1.0) -> None:
        super().__init__({"dist_inter": weight * inter, "dist_intra": weight * intra})

    def forward(self, student: Tapped, teacher: Tapped, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the scalar terms `dist_inter` and `dist_intra`; shapes as in `DistillationMethod`."""
        of_student, of_teacher = student.logits.softmax(dim=1), teacher.logits.softmax(dim=1)
        pixels = [axis for axis in range(of_student.ndim) if axis != 1]
        return {
            "dist_inter": correlation_distance(of_student, of_teacher, 1),
            "dist_intra": correlation_distance(of_student, of_teacher, pixels),
        }
