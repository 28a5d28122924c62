# SPDX-License-Identifier: Apache-2.0
"""Attention transfer: the student's features are strong at the places where the teacher's are.

Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017, arXiv 1612.03928, eq. 2 with the
squared distance of the authors' code:

    A(F)  = sum_c |F_c|^p                      (one value per position)
    Q(F)  = A / ||A||_2                        (over all positions of one image)
    L     = ||Q(student) - Q(teacher)||_2^2    (the mean over images and taps), from 0 to 2

The formula fits dense prediction as it is: maps of any number of channels and axes are compared position by position.
"""

from __future__ import annotations

import torch

from pipeline.distillation.adapters import resized
from pipeline.distillation.method import DistillationMethod, NetworkPair, Tapped
from pipeline.distillation.methods.relations import unit_vectors
from pipeline.errors import InputError


def attention_map(features: torch.Tensor, power: float = 2.0) -> torch.Tensor:
    """Return the sum over channels of |features|^power, (B, 1, ...) of (B, C, ...)."""
    return features.abs().pow(power).sum(dim=1, keepdim=True)


def attention_loss(student: torch.Tensor, teacher: torch.Tensor, power: float = 2.0) -> torch.Tensor:
    """Return the squared distance of two attention maps of unit length, the mean over the batch.

    Args:
        student: (B, C, ...), any C and size; its attention map is brought to the size of the teacher's.
        teacher: (B, C', ...); no gradient reaches it.
        power: p >= 1.
    """
    of_teacher = attention_map(teacher.detach(), power)
    of_student = resized(attention_map(student, power), of_teacher.shape[2:])
    difference = unit_vectors(of_student.flatten(1)) - unit_vectors(of_teacher.flatten(1))
    return difference.square().sum(dim=1).mean()


class AttentionTransfer(DistillationMethod):
    """`attention_loss` of all taps as a method with the single term `at`.

    The authors' code takes the mean over the n positions, weighs it by 1000 and adds up the taps: 1000 / n of our sum
    for each tap, 0.98 for maps of 32 x 32 and 0.32 for 56 x 56. The sum does not shrink as maps grow. As we take the
    mean of the taps, weight 2 is theirs for two taps of 32 x 32.

    Args:
        pair: only its networks' taps matter; channels and sizes may differ.
        weight: of the term, which starts at about 0.3 to 1.
        p: power of the activations, 2 as in the authors' experiments; from 1.

    Raises:
        InputError: p is below 1 or not finite.
    """

    def __init__(self, pair: NetworkPair, *, weight: float = 0.5, p: float = 2.0) -> None:
        super().__init__({"at": weight})
        if not isinstance(p, int | float) or not 1 <= p < float("inf"):  # below 1 the gradient at 0 is infinite
            raise InputError(f"at: p is {p!r}; it must be a finite number from 1")
        self.p = p

    def forward(self, student: Tapped, teacher: Tapped, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the scalar term `at`; shapes as in `DistillationMethod`."""
        taps = zip(student.features, teacher.features, strict=True)
        return {"at": torch.stack([attention_loss(*tap, self.p) for tap in taps]).mean()}
