# SPDX-License-Identifier: Apache-2.0
"""Contrastive representation distillation: a region's embedding in the student picks its own in the teacher.

Tian et al., "Contrastive Representation Distillation", ICLR 2020, arXiv 1910.10699, with the loss of InfoNCE (van den
Oord et al., arXiv 1807.03748) and without its memory of embeddings:

    u_i = W_s s_i / ||.||_2,   v_i = W_t t_i / ||.||_2      (W trained, to `dimensions` values)
    L   = mean_i -log( exp(u_i . v_i / T) / sum_j exp(u_i . v_j / T) ),   and the same with u and v exchanged, halved

The original has one embedding for each image and draws 16,384 others from a memory. Here the embeddings are those of
regions, the squares of a grid over the deep taps; the other regions of the image and of the batch are the negatives.
Many regions of a scan look alike (air, background). The part of the loss that would tell them apart cannot be learned.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.distillation.method import DistillationMethod, NetworkPair, Tapped
from pipeline.distillation.methods.relations import batch_regions, check_regions, unit_vectors
from pipeline.distillation.settings import check_number, check_whole


def contrast(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 0.1) -> torch.Tensor:
    """Return InfoNCE of paired embeddings, the mean of both directions; log N where all embeddings are alike.

    Args:
        student: (N, D), of any length.
        teacher: (N, D); row i belongs to row i of `student`.
        temperature: T > 0.
    """
    similarities = unit_vectors(student) @ unit_vectors(teacher).T / temperature
    places = torch.arange(len(student), device=student.device)
    return (F.cross_entropy(similarities, places) + F.cross_entropy(similarities.T, places)) / 2


class ContrastiveRepresentation(DistillationMethod):
    """`contrast` of the regions of the deep taps as a method with the single term `crd`.

    Args:
        pair: channels and sizes of the taps may differ; the embeddings of both networks train beside the student.
        weight: of the term, which starts near the logarithm of the number of regions (5.5 for 256): 0.2 brings it to
            the cross-entropy's size. The authors use 0.8, comparisons on small class images 0.2.
        temperature: T; 0.07 in the authors' code, 0.1 in later comparisons.
        dimensions: of the embeddings, 128 as in the authors' code.
        grid: regions per axis.
        regions: at most so many regions of the whole batch are compared.

    Raises:
        InputError: a setting that is not positive, or a grid or number of regions out of range.
    """

    needs_global_batch = True

    def __init__(
        self,
        pair: NetworkPair,
        *,
        weight: float = 0.2,
        temperature: float = 0.1,
        dimensions: int = 128,
        grid: int = 4,
        regions: int = 512,
    ) -> None:
        super().__init__({"crd": weight})
        self.temperature = check_number("crd", "temperature", temperature)
        self.grid, self.regions = check_regions("crd", grid, regions)
        check_whole("crd", "dimensions", dimensions, 1)
        self.of_student = nn.Linear(pair.student_channels[-1], dimensions)
        self.of_teacher = nn.Linear(pair.teacher_channels[-1], dimensions)

    def forward(self, student: Tapped, teacher: Tapped, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the scalar term `crd`; shapes as in `DistillationMethod`."""
        deep = student.features[-1], teacher.features[-1].detach()
        mine, theirs = batch_regions(*deep, grid=self.grid, most=self.regions)
        return {"crd": contrast(self.of_student(mine), self.of_teacher(theirs), self.temperature)}
