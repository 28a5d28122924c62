# SPDX-License-Identifier: Apache-2.0
"""Correlation congruence: the similarities of regions to each other are the same in both networks.

Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019, arXiv 1904.01802. Its Gaussian kernel of
vectors of unit length, by the first terms of its Taylor series:

    k(x, y) = sum_{n=0}^{order} exp(-2 gamma) (2 gamma)^n / n! (x . y)^n
    L       = mean_ij (k(f_i, f_j; student) - k(f_i, f_j; teacher))^2

The original compares the images of a batch by one vector each. Here the vectors are those of regions, the means of the
last tap over the squares of a grid in all images of the batch. The kernel of two vectors is one number for any number
of channels, so no adapter is needed.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from pipeline.distillation.method import DistillationMethod, NetworkPair, Tapped
from pipeline.distillation.methods.relations import batch_regions, check_regions, unit_vectors
from pipeline.distillation.settings import check_number, check_whole


def taylor_kernel(vectors: torch.Tensor, gamma: float = 0.4, order: int = 2) -> torch.Tensor:
    """Return the kernel of the rows (N, C) with each other, (N, N), by `order` terms beside the constant one."""
    unit = unit_vectors(vectors)
    cosines = unit @ unit.T
    factors = [math.exp(-2 * gamma) * (2 * gamma) ** n / math.factorial(n) for n in range(order + 1)]
    total = torch.full_like(cosines, factors[-1])
    for factor in reversed(factors[:-1]):  # Horner's scheme
        total = total * cosines + factor
    return total


class CorrelationCongruence(DistillationMethod):
    """The mean squared difference of the kernels of regions as a method with the single term `cc`.

    Args:
        pair: the two networks.
        weight: weight of the term, which starts at about 0.01 to 0.15. A well-known collection of methods has 100.
        gamma: width of the kernel, above 0.
        order: terms of the Taylor series beside the constant one, from 1.
        grid: regions per axis.
        regions: at most so many regions of the whole batch are compared.
    """

    needs_global_batch = True

    def __init__(
        self,
        pair: NetworkPair,
        *,
        weight: float = 10.0,
        gamma: float = 0.4,
        order: int = 2,
        grid: int = 4,
        regions: int = 512,
    ) -> None:
        super().__init__({"cc": weight})
        self.gamma = check_number("cc", "gamma", gamma)
        self.order = check_whole("cc", "order", order, 1, 10)
        self.grid, self.regions = check_regions("cc", grid, regions)

    def forward(self, student: Tapped, teacher: Tapped, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the scalar term `cc`; shapes as in `DistillationMethod`."""
        both = batch_regions(student.features[-1], teacher.features[-1].detach(), grid=self.grid, most=self.regions)
        return {"cc": F.mse_loss(*(taylor_kernel(vectors, self.gamma, self.order) for vectors in both))}
