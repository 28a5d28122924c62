# SPDX-License-Identifier: Apache-2.0
"""What the methods that relate regions to each other share: regions of a map, directions, distances."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from pipeline.distillation.adapters import resized
from pipeline.distillation.method import DistillationMethod, Tapped
from pipeline.distillation.settings import check_whole

MOST_REGIONS = 1024
# Squared length below which a vector has no direction.
NEGLIGIBLE = 1e-12


def largest_grid(most_regions: int, spatial_dims: int) -> int:
    """Return the most regions per axis that make at most `most_regions` in all: 32 in 2D and 10 in 3D for 1024."""
    side = 1
    while (side + 1) ** spatial_dims <= most_regions:
        side += 1
    return side


def check_regions(method: str, grid: int, regions: int, most: int = 4096) -> tuple[int, int]:
    """Return the settings of a method that relates regions, checked.

    Raises:
        InputError: the grid is not from 1 to 32 regions per axis, or the regions are not from 2 to `most`.
    """
    return check_whole(method, "grid", grid, 1, 32), check_whole(method, "regions", regions, 2, most)


def common_grid(grid: int, *maps: torch.Tensor) -> tuple[int, ...]:
    """Return the regions per axis that all maps (B, C, ...) can be pooled to: `grid`, or fewer where one is smaller."""
    return tuple(min(grid, *sides) for sides in zip(*(one.shape[2:] for one in maps), strict=True))


def region_vectors(features: torch.Tensor, grid_shape: Sequence[int]) -> torch.Tensor:
    """Return the mean vector of each region of a map (B, C, ...), as (B, N, C) with N the product of `grid_shape`."""
    return resized(features, grid_shape).flatten(2).transpose(1, 2)


def evenly_spaced_rows(vectors: torch.Tensor, most: int) -> torch.Tensor:
    """Return at most `most` rows of (N, C), evenly taken from the first to the last, so always the same ones."""
    count = vectors.shape[0]
    if count <= most:
        return vectors
    return vectors[torch.linspace(0, count - 1, most, device=vectors.device).long()]


def batch_regions(*maps: torch.Tensor, grid: int, most: int) -> list[torch.Tensor]:
    """Return the vectors of the same regions of a whole batch in each map, (N, C) with the map's own C.

    Args:
        maps: (B, C, ...), of any sizes; the grid of regions is one that all can be pooled to.
        grid: regions per axis.
        most: at most so many regions, evenly taken from the batch: relations of N regions need N^2 values.
    """
    grid_shape = common_grid(grid, *maps)
    return [evenly_spaced_rows(region_vectors(features, grid_shape).flatten(0, 1), most) for features in maps]


class RegionLoss(DistillationMethod):
    """A method with one term: a loss between the regions of a batch in both networks, the mean over all taps.

    Args:
        term: its name.
        loss: of the student's vectors (N, C) and the teacher's (N, C') of the same regions, at most 1024 of a batch.
        weight: of the term.
        grid: regions per axis.

    Raises:
        InputError: `grid` is not a whole number from 1.
    """

    needs_global_batch = True

    def __init__(self, term: str, loss: Callable[..., torch.Tensor], weight: float, grid: int) -> None:
        super().__init__({term: weight})
        self.term, self.loss = term, loss
        self.grid = check_whole(term, "grid", grid, 1)

    def forward(self, student: Tapped, teacher: Tapped, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the scalar term; shapes as in `DistillationMethod`."""
        taps = zip(student.features, teacher.features, strict=True)
        losses = [self.loss(*batch_regions(*tap, grid=self.grid, most=MOST_REGIONS)) for tap in taps]
        return {self.term: torch.stack(losses).mean()}


def unit_vectors(vectors: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """Return vectors, of any shape, with length 1 along `dim`; a zero vector stays zero and passes no gradient.

    `F.normalize` divides the gradient at a zero vector by its epsilon instead, which throws a network far off.
    """
    squared = vectors.square().sum(dim=dim, keepdim=True)
    there = squared > NEGLIGIBLE
    return vectors * torch.where(there, torch.where(there, squared, 1.0).rsqrt(), 0.0)


def squared_distances(vectors: torch.Tensor) -> torch.Tensor:
    """Return the squared Euclidean distances of rows (N, C) to each other, (N, N), by their inner products."""
    centred = vectors - vectors.detach().mean(dim=0)  # the same distances with less cancellation
    squares = centred.square().sum(dim=1)
    found = (squares[:, None] + squares[None] - 2 * centred @ centred.T).clamp(min=0)
    return found * ~torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
