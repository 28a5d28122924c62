# SPDX-License-Identifier: Apache-2.0
"""CoCo: the student learns how the teacher's spatial similarities of a shallow and a deep layer correlate.

Zou et al., "CoCo DistillNet: a cross-layer correlation distillation network for pathological gastric cancer
segmentation", IEEE BIBM 2021, arXiv 2108.12173. The authors' loss file is not public; the formula follows their words:

    F_l = the tap l, averaged over N regions, each region's vector of unit length   (C x N)
    G_l = F_l^T F_l, each row of unit length                       (channel-mixed spatial similarity, N x N)
    M   = G_shallow G_deep                                         (cross-layer correlation, N x N)
    L   = mean((M_student - M_teacher)^2)

M doesn't depend on the number of channels, so no paraphraser and no adapter is needed. A factor 1 / N before M would
only tie the weight to the number of regions; without it the values of M are about 1.

On a tenth of EBHI-Seg, ENet with coco and kd together had a mean IoU of 0.705 where it has 0.698 alone: +0.007 (0.001
to 0.012; three seeds). With `kd` alone it had 0.720, so the correlation took away from kd there. With all labels it was
no better than ENet alone: 0.770 and 0.774, a difference within chance (kd 0.783). On CHAOS MR it had a Dice of 0.712,
where ENet has 0.700 alone and 0.701 with kd (two seeds; within chance). At the learning rate at which ENet does best
alone on a tenth of EBHI-Seg, it has 0.709 with coco, 0.721 alone and 0.730 with kd: a loss beyond chance. Other
students were not tried. See docs/results.md and docs/experiments.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn

from pipeline.distillation.method import DistillationMethod, NetworkPair, Tapped
from pipeline.distillation.methods.adversary import build_adversary
from pipeline.distillation.methods.kd import BALANCE, TEMPERATURE, KnowledgeDistillation
from pipeline.distillation.methods.relations import NEGLIGIBLE, common_grid, largest_grid, region_vectors, unit_vectors
from pipeline.distillation.settings import check_whole

MOST_REGIONS = 1024


class Correlation(NamedTuple):
    """M = left middle right^T of a batch, in factors: (B, N, C), (B, C, C') and (B, N, C')."""

    left: torch.Tensor
    middle: torch.Tensor
    right: torch.Tensor


def cross_layer_correlation(shallow: torch.Tensor, deep: torch.Tensor) -> Correlation:
    """Return M = G_shallow G_deep of two layers' regions, (B, N, C) and (B, N, C') of any channels, in factors.

    With R the inverse lengths of the rows of G, G_1 G_2 = (R_1 F_1^T) (F_1 R_2 F_2^T) F_2, and the length of row i is
    sqrt(f_i^T (F F^T) f_i): the factors take N C^2 steps where G takes N^2 C and M itself N^3.
    """
    first, second = unit_vectors(shallow), unit_vectors(deep)
    middle = first.transpose(1, 2) @ (_inverse_row_lengths(second) * second)
    return Correlation(_inverse_row_lengths(first) * first, middle, second)


def _inverse_row_lengths(vectors: torch.Tensor) -> torch.Tensor:
    """Return one over the length of each row of vectors vectors^T, (B, N, 1); 0 for a vector without a direction."""
    squared = ((vectors @ (vectors.transpose(1, 2) @ vectors)) * vectors).sum(dim=-1, keepdim=True)
    there = squared > NEGLIGIBLE
    return torch.where(there, torch.where(there, squared, 1.0).rsqrt(), 0.0)


def inner_product(one: Correlation, other: Correlation) -> torch.Tensor:
    """Return the sum over all N x N places of the product of two correlations, (B,), in N C^2 steps."""
    lefts = one.left.transpose(1, 2) @ other.left
    rights = one.right.transpose(1, 2) @ other.right
    return ((lefts @ other.middle) * (one.middle @ rights)).sum(dim=(1, 2))


class CoCoLoss(nn.Module):
    """Mean squared difference of the student's and the teacher's cross-layer correlations.

    Args:
        grid: regions per axis that all four maps are averaged over, fewer where one of them is smaller.
    """

    def __init__(self, grid: int = 32) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, student: tuple[torch.Tensor, ...], teacher: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Return the loss of (shallow, deep) maps (B, C, ...) of any channels and sizes.

        No gradient reaches `teacher`.
        """
        grid_shape = common_grid(self.grid, *student, *teacher)
        of_student = cross_layer_correlation(*(region_vectors(tap, grid_shape) for tap in student))
        with torch.no_grad():
            of_teacher = cross_layer_correlation(*(region_vectors(tap, grid_shape) for tap in teacher))
        # |a - b|^2 by inner products, which need no N x N matrix; rounding may leave -1e-7 where both are equal.
        squares = inner_product(of_student, of_student) + inner_product(of_teacher, of_teacher)
        distance = squares - 2 * inner_product(of_student, of_teacher)
        return (distance / math.prod(grid_shape) ** 2).mean().clamp(min=0)


class CoCo(DistillationMethod):
    """`CoCoLoss` of the first and the last tap as a method with the single term `coco`.

    Args:
        pair: the two networks.
        weight: weight of the term, which starts at about 0.03 to 1. The authors' is 1, for a form that is not known.
        grid: regions per axis, at most 1024 in all: by default 32 for images and 10 for volumes.
    """

    def __init__(self, pair: NetworkPair, *, weight: float = 2.0, grid: int | None = None) -> None:
        super().__init__({"coco": weight})
        most = largest_grid(MOST_REGIONS, pair.spatial_dims)
        self.loss = CoCoLoss(most if grid is None else check_whole("coco", "grid", grid, 2, most))

    def forward(self, student: Tapped, teacher: Tapped, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the scalar term `coco`; shapes as in `DistillationMethod`."""
        ends = ((view.features[0], view.features[-1]) for view in (student, teacher))
        return {"coco": self.loss(*ends)}


def build_coco(
    pair: NetworkPair,
    *,
    weight: float = 2.0,
    kd: float = 1.0,
    adversarial: float | Mapping[str, float] = 0.0,
    grid: int | None = None,
    temperature: float = TEMPERATURE,
    balance: float = BALANCE,
    confidence: float = 0.0,
    adversarial_kind: str = "wgan-gp",
) -> dict[str, DistillationMethod]:
    """Return CoCo: the correlation term, knowledge distillation and, if wanted, the paper's adversary.

    The adversary is left out by default, because it takes two thirds of a step's time. The pull of a weight depends on
    the image size and grows in training, see `adversary.py`. So rather give a share.

    The parts other than the correlation have the weights that they have in Graph Flow, so that the two can be compared.

    Args:
        pair: the two networks.
        weight: weight of the correlation.
        kd: weight of knowledge distillation; 0 leaves it out.
        adversarial: weight of the adversary, 0.1 as in Graph Flow's paper; 0 leaves it out. Or a share of the
            gradient, `{"share": 0.1}`.
        grid: see `CoCo`.
        temperature: of knowledge distillation.
        balance: likewise, see `kd`.
        confidence: likewise.
        adversarial_kind: "wgan-gp" or "hinge".

    Raises:
        InputError: a setting is wrong, or the images are too small for the discriminator.
    """
    methods: dict[str, DistillationMethod] = {"coco": CoCo(pair, weight=weight, grid=grid)}
    if kd != 0:
        methods["kd"] = KnowledgeDistillation(
            pair, weight=kd, temperature=temperature, balance=balance, confidence=confidence
        )
    if adversarial != 0:  # a discriminator of weight 0 would only cost time
        methods["adversary"] = build_adversary("coco", "adversarial", pair, adversarial, adversarial_kind)
    return methods
