# SPDX-License-Identifier: Apache-2.0
"""Logits distillation: the student's class probabilities at each pixel follow the teacher's."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.distillation.method import DistillationMethod, Tapped
from pipeline.errors import InputError


class LogitsLoss(nn.Module):
    """tau^2 KL(softmax(teacher / tau) || softmax(student / tau)), the mean over pixels and batch.

    Hinton et al., arXiv 1503.02531, in its dense form. The factor tau^2 keeps the size of the gradient independent of
    the temperature.

    Args:
        temperature: tau > 0.
    """

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        if not 0 < temperature < float("inf"):
            raise InputError(f"the temperature of logits distillation is {temperature}; it must be finite and positive")
        self.temperature = temperature

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Return the loss of two logit maps (B, K, ...), float32; no gradient reaches `teacher`."""
        with torch.autocast(student.device.type, enabled=False):
            of_student = F.log_softmax(student.float() / self.temperature, dim=1)
            of_teacher = F.log_softmax(teacher.detach().float() / self.temperature, dim=1)
            divergence = F.kl_div(of_student, of_teacher, reduction="none", log_target=True).sum(dim=1)
            return self.temperature**2 * divergence.mean()


class LogitsDistillation(DistillationMethod):
    """`LogitsLoss` as a method with the single term `logits`."""

    def __init__(self, weight: float = 1.0, temperature: float = 4.0) -> None:
        super().__init__({"logits": weight})
        self.loss = LogitsLoss(temperature)

    def forward(self, student: Tapped, teacher: Tapped, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the term `logits`."""
        return {"logits": self.loss(student.logits, teacher.logits)}
