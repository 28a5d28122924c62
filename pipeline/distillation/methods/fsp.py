# SPDX-License-Identifier: Apache-2.0
"""FSP: the products between channels of neighbouring layers are the same in student and teacher.

Yim et al., "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer Learning", CVPR
2017, eq. 1 and 2, with h w positions x:

    G_ij = sum_x F1_i(x) F2_j(x) / (h w)            (from the shallow tap F1 to the deep tap F2 of one network)
    L    = mean_ij (G_student - G_teacher)_ij^2     (the mean over images and pairs of neighbouring taps)

The formula fits dense prediction as it is. We take the mean over i and j in place of the sum, so that the number of
channels does not matter. The authors train on L first and go on without it; here it runs beside the other losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch.nn import functional as F

from pipeline.distillation.adapters import adapters_of, resized
from pipeline.distillation.method import DistillationMethod, NetworkPair, Tapped
from pipeline.distillation.paraphrased import FrozenParaphrasers, check_paraphrasers
from pipeline.errors import InputError


def flow_matrix(shallow: torch.Tensor, deep: torch.Tensor) -> torch.Tensor:
    """Return the mean over positions of the products of any two channels, (B, C1, C2).

    Args:
        shallow: (B, C1, ...).
        deep: (B, C2, ...), brought to the size of the shallow one.
    """
    deep = resized(deep, shallow.shape[2:])
    return torch.einsum("bin,bjn->bij", shallow.flatten(2), deep.flatten(2)) / shallow[0, 0].numel()


def flow_loss(student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the mean squared difference of the flow matrices between neighbouring taps.

    Args:
        student: at least two taps, shallow to deep, each (B, C, ...) with the channels of the teacher's.
        teacher: the same of the teacher; no gradient reaches them.
    """
    losses = [
        F.mse_loss(flow_matrix(*mine), flow_matrix(*hint).detach())
        for mine, hint in zip(pairwise(student), pairwise(teacher), strict=True)
    ]
    return torch.stack(losses).mean()


class FlowOfSolution(DistillationMethod):
    """`flow_loss` as a method with the single term `fsp`.

    With paraphrasers, the teacher's taps pass through them and the student's stay as they are, as in the baselines of
    Graph Flow. Without paraphrasers, trained pointwise convolutions bring the student's taps to the teacher's channels
    where these differ.

    Args:
        pair: with at least two taps.
        weight: of the term. It grows with the fourth power of the activations and starts at 0.04 to 7 in our networks;
            where it starts beyond the cross-entropy, lower the weight.

    Raises:
        InputError: a single tap, or paraphrasers of other networks.
    """

    def __init__(self, pair: NetworkPair, *, weight: float = 0.3) -> None:
        super().__init__({"fsp": weight})
        if len(pair.teacher_channels) < 2:
            raise InputError("fsp: it compares flows between two layers, but the networks have one tap; give two")
        if pair.paraphrasers is not None:
            check_paraphrasers("fsp", pair)
        self.paraphrasers = FrozenParaphrasers(pair.paraphrasers)
        self.adapters = adapters_of(pair) if pair.paraphrasers is None else None

    def forward(self, student: Tapped, teacher: Tapped, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the scalar term `fsp`; shapes as in `DistillationMethod`."""
        hints, mine = self.paraphrasers(teacher.features), student.features
        if self.adapters is not None:
            mine = tuple(adapter(*tap) for adapter, *tap in zip(self.adapters, mine, hints, strict=True))
        return {"fsp": flow_loss(mine, hints)}
