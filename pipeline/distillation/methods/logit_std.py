# SPDX-License-Identifier: Apache-2.0
"""Standardised logits: the student ranks the classes of each pixel as the teacher does, on a scale of its own.

Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024, arXiv 2403.01427, algorithms 1 and 2:

    z(x) = (o(x) - mean_k o_k(x)) / std_k o_k(x)                 of the logits o at each pixel x
    L    = tau^2 mean_x [ w(x) KL(softmax(z_teacher(x) / tau) || softmax(z_student(x) / tau)) ]

A small student need not reach the size of its teacher's logits. The dense form is that of `kd`, with pixels that count
by their class. We take std = sqrt(var + 0.1^2), where the authors add 1e-7 to it: at a pixel whose logits are all
alike, as those of a student that has just begun, the gradient would grow by 1e7.
"""

from __future__ import annotations

import torch

from pipeline.class_balance import check_balance
from pipeline.distillation.method import DistillationMethod, NetworkPair, Tapped
from pipeline.distillation.methods.kd import BALANCE, TEMPERATURE, KnowledgeDistillationLoss
from pipeline.distillation.settings import check_number
from pipeline.errors import InputError

# Standard deviation of logits below which they say little of the class; those of trained networks have some units.
ALIKE = 0.1


def standardised_logits(logits: torch.Tensor) -> torch.Tensor:
    """Return logits (B, K, ...) with a mean of 0 and a variance of 1 over classes, less where they are nearly alike."""
    variance, mean = torch.var_mean(logits, dim=1, correction=0, keepdim=True)
    return (logits - mean) * (variance + ALIKE**2).rsqrt()


class StandardisedLogits(DistillationMethod):
    """`KnowledgeDistillationLoss` of standardised logits as a method with the single term `logit_std`.

    Args:
        pair: of networks for three classes or more.
        weight: of the term. The authors take 9 on CIFAR-100. The gradient is that of `kd` divided by the standard
            deviation of the student's logits, 2 to 4 in a trained network; hence 2.
        temperature: tau > 0; the authors take 2 or 3. The standardised logit of a sure teacher's class is only
            K / sqrt(K - 1) above the others, so sharp probabilities need a lower temperature.
        balance: as of `kd`; 0 is the plain mean over pixels, which is the authors'.

    Raises:
        InputError: two classes, or a setting is out of its range.
    """

    def __init__(
        self, pair: NetworkPair, *, weight: float = 2.0, temperature: float = TEMPERATURE, balance: float = BALANCE
    ) -> None:
        super().__init__({"logit_std": weight})
        if pair.out_channels < 3:
            raise InputError(
                "logit_std: standardised logits of two classes are 1 and -1 and teach nothing; take --method kd"
            )
        temperature = check_number("logit_std", "temperature", temperature)
        self.loss = KnowledgeDistillationLoss(temperature, check_balance("logit_std", balance))

    def forward(self, student: Tapped, teacher: Tapped, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the scalar term `logit_std`; shapes as in `DistillationMethod`."""
        logits = standardised_logits(student.logits), standardised_logits(teacher.logits)
        return {"logit_std": self.loss(*logits, labels)}
