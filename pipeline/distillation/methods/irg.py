# SPDX-License-Identifier: Apache-2.0
"""Relationship graphs of regions: their logits, the distances between them, and their change between layers.

Liu et al., "Knowledge Distillation via Instance Relationship Graph", CVPR 2019:

    vertices   mean_i |z_i(student) - z_i(teacher)|^2 / K,                z_i  the logits of region i
    edges      mean_ij (d_ij(student) - d_ij(teacher))^2,                 d_ij = |f_i - f_j|^2 / max
    transform  mean_i (t_i(student) - t_i(teacher))^2,                    t_i  = |f_i(deep) - f_i(shallow)|^2 / max

The original's graph has the images of a batch as vertices. Here they are regions, the means over squares of a grid in
all images of the batch; the edges term is the mean over the taps. Distances don't depend on the number of
channels, so no adapter is needed.
Where a network's two layers differ in channels, neighbouring channels of the wider one are averaged.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from pipeline.distillation.method import DistillationMethod, NetworkPair, Tapped
from pipeline.distillation.methods.relations import NEGLIGIBLE, batch_regions, check_regions, squared_distances


def by_largest(values: torch.Tensor) -> torch.Tensor:
    """Return values >= 0, of any shape, divided by the largest, which keeps its gradient; 0 if all are 0."""
    largest = values.max()
    there = largest > NEGLIGIBLE
    return torch.where(there, values / torch.where(there, largest, 1.0), 0.0)


def edges(vectors: torch.Tensor) -> torch.Tensor:
    """Return the squared distances between rows (N, C), divided by the largest of them, (N, N)."""
    return by_largest(squared_distances(vectors))


def transform(shallow: torch.Tensor, deep: torch.Tensor) -> torch.Tensor:
    """Return the squared distance of each row in two layers, (N, C) and (N, C'), divided by the largest, (N,)."""
    channels = min(shallow.shape[1], deep.shape[1])
    first, second = (F.adaptive_avg_pool1d(layer, channels) for layer in (shallow, deep))
    return by_largest((second - first).square().sum(dim=1))


class RelationshipGraph(DistillationMethod):
    """The terms `irg_vertices`, `irg_edges` and `irg_transform` as a method.

    Args:
        pair: the two networks.
        weight: factor on all three weights.
        vertices: weight of the vertices, which start at about 3 to 30 with the square of the teacher's logits. The
            weights of a well-known collection of methods are 0.1, 5 and 5.
        edges: weight of the edges, which start at about 0.02.
        transform: weight of the change from the first to the last tap, which starts at about 0.02 to 0.05.
        grid: regions per axis.
        regions: at most so many regions of the whole batch are compared.
    """

    needs_global_batch = True

    def __init__(
        self,
        pair: NetworkPair,
        *,
        weight: float = 1.0,
        vertices: float = 0.05,
        edges: float = 2.0,
        transform: float = 2.0,
        grid: int = 4,
        regions: int = 512,
    ) -> None:
        parts = {"irg_vertices": vertices, "irg_edges": edges, "irg_transform": transform}
        super().__init__({term: weight * part for term, part in parts.items()})
        self.grid, self.regions = check_regions("irg", grid, regions)

    def forward(self, student: Tapped, teacher: Tapped, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the scalar terms `irg_vertices`, `irg_edges` and `irg_transform`.

        Shapes as in `DistillationMethod`.
        """
        teacher = teacher.detach()
        mine, theirs = ((*view.features, view.logits) for view in (student, teacher))
        vectors = batch_regions(*mine, *theirs, grid=self.grid, most=self.regions)
        of_student, of_teacher = vectors[: len(mine)], vectors[len(mine) :]
        taps = zip(of_student[:-1], of_teacher[:-1], strict=True)
        return {
            "irg_vertices": F.mse_loss(of_student[-1], of_teacher[-1]),
            "irg_edges": torch.stack([F.mse_loss(*map(edges, both)) for both in taps]).mean(),
            "irg_transform": F.mse_loss(*(transform(of[0], of[-2]) for of in (of_student, of_teacher))),
        }
