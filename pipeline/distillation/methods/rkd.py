# SPDX-License-Identifier: Apache-2.0
"""Relational distillation: distances and angles between regions are the same in both networks.

Park et al., "Relational Knowledge Distillation", CVPR 2019, arXiv 1904.05068, with h the Huber loss of threshold 1:

    distance  mean_ij  h(d_ij(student), d_ij(teacher)),    d_ij  = |f_i - f_j| / (mean of those above 0)
    angle     mean_ijk h(c_ijk(student), c_ijk(teacher)),  c_ijk = e_ij . e_kj,  e_ij = (f_i - f_j) / |f_i - f_j|

The original compares the images of a batch by one vector each. Here the vectors are those of regions, the means of the
last tap over the squares of a grid in all images of the batch. Neither depends on the number of channels, so no
adapter is needed.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from pipeline.distillation.method import DistillationMethod, NetworkPair, Tapped
from pipeline.distillation.methods.relations import batch_regions, check_regions, unit_vectors

# A share of the root mean square distance, above what rounding leaves between equal regions.
SMALLEST_DISTANCE = 1e-3


def differences(vectors: torch.Tensor) -> torch.Tensor:
    """Return f_i - f_j of rows (N, C) as (N, N, C), indexed [j, i]; zero, without a gradient, for almost equal rows.

    Regions of air or glass differ only by rounding: below `SMALLEST_DISTANCE` of the usual distance, their difference
    has no meaningful direction.
    """
    found = vectors[None] - vectors[:, None]
    squared = found.detach().square().sum(dim=-1, keepdim=True)
    return found * (squared > SMALLEST_DISTANCE**2 * squared.mean())


def relative_distances(apart: torch.Tensor) -> torch.Tensor:
    """Return the lengths of `differences` (N, N, C), divided by the mean of those that are not 0, (N, N)."""
    squared = apart.square().sum(dim=-1)
    there = squared > 0
    lengths = torch.where(there, torch.where(there, squared, 1.0).sqrt(), 0.0)
    return lengths * there.sum() / torch.where(there.any(), lengths.sum(), 1.0)


def angles(apart: torch.Tensor) -> torch.Tensor:
    """Return the cosines of the angles at j between i and k, (N, N, N) indexed [j, i, k]; 0 for equal rows.

    Args:
        apart: `differences` (N, N, C).
    """
    directions = unit_vectors(apart)
    return directions @ directions.transpose(1, 2)


class RelationalDistillation(DistillationMethod):
    """The terms `rkd_distance` and `rkd_angle` as a method.

    Args:
        pair: the two networks.
        weight: factor on both weights.
        distance: weight of the distances, which start at about 0.1 to 0.2; 25 in the paper.
        angle: weight of the angles, which start at about 0.1; 50 in the paper.
        grid: regions per axis.
        regions: at most so many regions N of the whole batch are compared; angles take N^3 values.
    """

    needs_global_batch = True

    def __init__(
        self,
        pair: NetworkPair,
        *,
        weight: float = 1.0,
        distance: float = 0.5,
        angle: float = 2.0,
        grid: int = 4,
        regions: int = 128,
    ) -> None:
        super().__init__({"rkd_distance": weight * distance, "rkd_angle": weight * angle})
        self.grid, self.regions = check_regions("rkd", grid, regions, most=256)

    def forward(self, student: Tapped, teacher: Tapped, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the scalar terms `rkd_distance` and `rkd_angle`; shapes as in `DistillationMethod`."""
        both = batch_regions(student.features[-1], teacher.features[-1].detach(), grid=self.grid, most=self.regions)
        apart = [differences(vectors) for vectors in both]
        return {
            "rkd_distance": F.smooth_l1_loss(*map(relative_distances, apart)),
            "rkd_angle": F.smooth_l1_loss(*map(angles, apart)),
        }
