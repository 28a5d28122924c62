# SPDX-License-Identifier: Apache-2.0
"""Activation boundaries: the student's neurons are active where the teacher's are, by a margin.

Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons", AAAI 2019,
arXiv 1811.03233 (the loss with a margin m that stands in for the difference of the signs):

    L = mean [t <= 0] max(0, m + r(s))^2 + [t > 0] max(0, m - r(s))^2

with r a trained connector (convolution of kernel 1 and batch normalisation). The formula fits dense prediction as it
is. Only the sign of the teacher's values counts, so that a tap after a ReLU serves as well as one before it: zero is
inactive.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from pipeline.distillation.method import DistillationMethod, NetworkPair, Tapped
from pipeline.distillation.methods.connector import connectors_of
from pipeline.distillation.settings import check_number


def boundary_loss(student: torch.Tensor, teacher: torch.Tensor, margin: float = 1.0) -> torch.Tensor:
    """Return the mean squared lack of margin of the student's values on the teacher's side of zero.

    Args:
        student: (B, C, ...), before an activation.
        teacher: the same shape, before or after a ReLU; no gradient reaches it.
        margin: m > 0.
    """
    side = torch.where(teacher.detach() > 0, 1.0, -1.0)
    return F.relu(margin - side * student).square().mean()


class ActivationBoundaries(DistillationMethod):
    """`boundary_loss` of all taps as a method with the single term `ab`.

    The authors sum over a map, divide by 1000, count a tap half as much as the next deeper one, and train with this
    loss alone before distillation begins: `--methods "{'ab': {'weight': 1, 'end': 0.3}, ...}"` comes near to that. The
    mean needs no such factors.

    Args:
        pair: the connectors bring the student's taps to the teacher's channels and sizes.
        weight: of the term, which starts at about 2 margin^2.
        margin: m, 1 in the authors' code; connectors give values of about unit variance.

    Raises:
        InputError: the margin is not positive.
    """

    def __init__(self, pair: NetworkPair, *, weight: float = 0.5, margin: float = 1.0) -> None:
        super().__init__({"ab": weight})
        self.margin = check_number("ab", "margin", margin)
        self.connectors = connectors_of(pair)

    def forward(self, student: Tapped, teacher: Tapped, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the scalar term `ab`; shapes as in `DistillationMethod`."""
        taps = zip(self.connectors, student.features, teacher.features, strict=True)
        losses = [boundary_loss(connector(mine, theirs), theirs, self.margin) for connector, mine, theirs in taps]
        return {"ab": torch.stack(losses).mean()}
