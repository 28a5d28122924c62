# SPDX-License-Identifier: Apache-2.0
"""Matching of logits: the student's logits at each pixel equal the teacher's.

Ba and Caruana, "Do Deep Nets Really Need to be Deep?", NeurIPS 2014, arXiv 1312.6184:

    L = mean (o_student - o_teacher)^2        (over batch, classes and pixels)

The original sums over classes and halves, with one vector of logits for each sample; here each pixel has one.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from pipeline.distillation.method import DistillationMethod, NetworkPair, Tapped


class LogitsMatching(DistillationMethod):
    """The mean squared difference of logits as a method with the single term `logits_mse`.

    Args:
        pair: the two networks; only their logits are used.
        weight: of the term. Logits of a trained network lie some units apart and the term starts at 10 to 50: 0.05
            brings it to the cross-entropy's size. Comparisons on small class images use 0.1.
    """

    def __init__(self, pair: NetworkPair, *, weight: float = 0.05) -> None:
        super().__init__({"logits_mse": weight})

    def forward(self, student: Tapped, teacher: Tapped, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the scalar term `logits_mse`; shapes as in `DistillationMethod`."""
        return {"logits_mse": F.mse_loss(student.logits, teacher.logits.detach())}
