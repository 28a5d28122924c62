# SPDX-License-Identifier: Apache-2.0
"""Probabilistic knowledge transfer: regions that are neighbours in the teacher's feature space are so in the student's.

Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018, arXiv 1803.10837,
with the cosine kernel:

    K_ij   = (cos(x_i, x_j) + 1) / 2
    p(j|i) = K_ij / sum_k K_ik
    L      = sum_j p_teacher(j|i) log(p_teacher(j|i) / p_student(j|i))     (the mean over i)

The original's x_i are whole images of a batch; ours are the regions of all images of a batch. A region's likeness to
itself, 1, is left in, as in the authors' code: one region alone then gives 0.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from pipeline.distillation.method import NetworkPair
from pipeline.distillation.methods.relations import RegionLoss, unit_vectors

SMALLEST = 1e-7  # of the kernel, which rounding may push below 0; the authors' value


def conditional_probabilities(vectors: torch.Tensor) -> torch.Tensor:
    """Return p(j|i) of vectors (N, C) by the cosine kernel, (N, N) with rows that sum to 1."""
    directions = unit_vectors(vectors)
    kernel = ((directions @ directions.T + 1) / 2).clamp_min(SMALLEST)
    return kernel / kernel.sum(dim=1, keepdim=True)


def probabilistic_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the mean divergence of the student's rows from the teacher's.

    Args:
        student: vectors (N, C), any C.
        teacher: vectors (N, C'), any C'; no gradient reaches them.
    """
    of_student, of_teacher = conditional_probabilities(student), conditional_probabilities(teacher.detach())
    return F.kl_div(of_student.log(), of_teacher, reduction="batchmean")


class ProbabilisticTransfer(RegionLoss):
    """`probabilistic_loss` of all taps as a method with the single term `pkt`.

    Args:
        pair: only its networks' taps matter; channels and sizes may differ.
        weight: of the term, which starts at about 0.005 to 0.2: the probabilities of N regions are all about 1 / N.
            Common code weighs the mean over all N^2 pairs by 10000, which is 10000 / N here: 10 for N = 1000.
        grid: regions per axis; of a batch with more than 1024, so many are taken, evenly spread.

    Raises:
        InputError: `grid` is not a whole number from 1.
    """

    def __init__(self, pair: NetworkPair, *, weight: float = 10.0, grid: int = 4) -> None:
        super().__init__("pkt", probabilistic_loss, weight, grid)
