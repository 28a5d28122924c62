# SPDX-License-Identifier: Apache-2.0
"""FitNets: the student's features, through a regressor, equal the teacher's.

Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, arXiv 1412.6550, eq. 3:

    L = 1/2 ||F_teacher - r(F_student)||^2,   r a trained convolution

The formula fits dense prediction as it is. We leave out the 1/2 and take the mean over all values and taps, so that
neither the size of the maps nor the number of channels counts. The authors train the student's lower half on L first
and go on without it; here L runs beside the other losses (a schedule that ends early comes near to the original).
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from pipeline.distillation.adapters import adapters_of
from pipeline.distillation.method import DistillationMethod, NetworkPair, Tapped


class FitNet(DistillationMethod):
    """The mean squared difference of all taps as a method with the single term `fitnet`.

    Args:
        pair: where channels differ, a trained pointwise convolution brings the student's to the teacher's, and a map of
            another size is brought to the teacher's.
        weight: of the term, which starts at about the mean square of the features, 1.5 to 4 in our networks.
    """

    def __init__(self, pair: NetworkPair, *, weight: float = 0.3) -> None:
        super().__init__({"fitnet": weight})
        self.adapters = adapters_of(pair)

    def forward(self, student: Tapped, teacher: Tapped, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the scalar term `fitnet`; shapes as in `DistillationMethod`."""
        taps = zip(self.adapters, student.features, teacher.features, strict=True)
        losses = [F.mse_loss(adapter(mine, hint), hint.detach()) for adapter, mine, hint in taps]
        return {"fitnet": torch.stack(losses).mean()}
