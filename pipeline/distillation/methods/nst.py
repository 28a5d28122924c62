# SPDX-License-Identifier: Apache-2.0
"""Neuron selectivity transfer: the student's channels, as a set, prefer the places that the teacher's prefer.

Huang and Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", arXiv 1707.01219,
with channel maps x of length 1 over the positions of one image, and means over pairs of channels:

    k(x, y) = (x . y)^2                                       (polynomial kernel, d = 2, c = 0)
    L       = mean k(t, t') + mean k(s, s') - 2 mean k(s, t)  (squared maximum mean discrepancy), from 0

The formula fits dense prediction as it is and needs neither equal channels nor an order of them.
"""

from __future__ import annotations

import torch

from pipeline.distillation.adapters import resized
from pipeline.distillation.method import DistillationMethod, NetworkPair, Tapped
from pipeline.distillation.methods.relations import unit_vectors


def mean_kernel(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the mean of (x . y)^2 over pairs of rows x of `first` (B, M, n) and y of `second` (B, N, n)."""
    return torch.bmm(first, second.transpose(1, 2)).square().mean()


def selectivity_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the squared discrepancy between the channel maps of two networks, the mean over the batch.

    Args:
        student: (B, C, ...), any C; brought to the size of the teacher's.
        teacher: (B, C', ...), any C'; no gradient reaches it.
    """
    of_teacher = unit_vectors(teacher.detach().flatten(2))
    of_student = unit_vectors(resized(student, teacher.shape[2:]).flatten(2))
    within = mean_kernel(of_teacher, of_teacher) + mean_kernel(of_student, of_student)
    return within - 2 * mean_kernel(of_student, of_teacher)


class NeuronSelectivity(DistillationMethod):
    """`selectivity_loss` of all taps as a method with the single term `nst`.

    Args:
        pair: only its networks' taps matter; channels and sizes may differ.
        weight: of the term, which starts at about 0.2. The authors' lambda / 2 is 25, which
            would outweigh the cross-entropy.
    """

    def __init__(self, pair: NetworkPair, *, weight: float = 3.0) -> None:
        super().__init__({"nst": weight})

    def forward(self, student: Tapped, teacher: Tapped, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the scalar term `nst`; shapes as in `DistillationMethod`."""
        taps = zip(student.features, teacher.features, strict=True)
        return {"nst": torch.stack([selectivity_loss(*tap) for tap in taps]).mean()}
