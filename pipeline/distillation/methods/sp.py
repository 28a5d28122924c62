# SPDX-License-Identifier: Apache-2.0
"""Similarity preserving distillation: regions that are similar in the teacher are similar in the student.

Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, arXiv 1907.09682, with the vectors of a batch
as rows of X:

    G = X X^T,  rows scaled to length 1
    L = sum_j (G_student - G_teacher)_ij^2     (the mean over rows i), from 0 to 4

The original's rows are whole images with all their activations; ours are the regions of all images of a batch, so that
the place within an image counts too. The original divides by the squared number of rows; the mean of the rows' squared
distances does not shrink as rows are added.
"""

from __future__ import annotations

import torch

from pipeline.distillation.method import NetworkPair
from pipeline.distillation.methods.relations import RegionLoss, unit_vectors


def similarity_matrix(vectors: torch.Tensor) -> torch.Tensor:
    """Return the products of any two of the vectors (N, C), as (N, N) with rows of length 1."""
    return unit_vectors(vectors @ vectors.T)


def similarity_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the mean squared distance between the rows of two similarity matrices.

    Args:
        student: vectors (N, C), any C.
        teacher: vectors (N, C'), any C'; no gradient reaches them.
    """
    difference = similarity_matrix(student) - similarity_matrix(teacher.detach())
    return difference.square().sum(dim=1).mean()


class SimilarityPreserving(RegionLoss):
    """`similarity_loss` of all taps as a method with the single term `sp`.

    Args:
        pair: only its networks' taps matter; channels and sizes may differ.
        weight: of the term, which starts at about 0.1 to 2. The authors' 3000 with their division by the squared number
            of rows N is 3000 / N here: 23 for their batches of 128, which would drown a mean cross-entropy.
        grid: regions per axis; of a batch with more than 1024, so many are taken, evenly spread.

    Raises:
        InputError: `grid` is not a whole number from 1.
    """

    def __init__(self, pair: NetworkPair, *, weight: float = 1.0, grid: int = 4) -> None:
        super().__init__("sp", similarity_loss, weight, grid)
