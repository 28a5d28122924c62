# SPDX-License-Identifier: Apache-2.0
"""Adversarial distillation: a discriminator tells teacher from student logits, and the student learns to mislead it.

The scheme is that of structured knowledge distillation (Liu et al., arXiv 1903.04197), which Graph Flow takes up with a
SAGAN discriminator on the logits alone: the teacher's prediction is "real", the student's is "fake".
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.distillation.method import DistillationMethod, Tapped
from pipeline.errors import InputError
from pipeline.processes.distributed import average_gradients

KINDS = ("wgan-gp", "hinge")
# Adam's betas, the rate and the power of its decay in the original training script.
BETAS, LEARNING_RATE, POWER = (0.9, 0.99), 3e-5, 0.9
PENALTY_WEIGHT = 10.0


def gradient_penalty(discriminator: nn.Module, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """Return mean_b (||grad D(x_b)||_2 - 1)^2 at x_b = a_b real_b + (1 - a_b) fake_b, a_b uniform in [0, 1].

    Gulrajani et al., arXiv 1704.00028, eq. 3; D's map of scores is summed. Inputs are (B, K, H, W).
    """
    mix = torch.rand(real.shape[0], 1, 1, 1, device=real.device, dtype=real.dtype)
    between = (mix * real + (1 - mix) * fake).detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(discriminator(between).sum(), between, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()


def discriminator_loss(discriminator: nn.Module, real: torch.Tensor, fake: torch.Tensor, kind: str) -> torch.Tensor:
    """Return what the discriminator minimises on teacher logits `real` and student logits `fake`, both (B, K, H, W)."""
    on_real, on_fake = discriminator(real), discriminator(fake)
    if kind == "hinge":
        return F.relu(1 - on_real).mean() + F.relu(1 + on_fake).mean()
    return on_fake.mean() - on_real.mean() + PENALTY_WEIGHT * gradient_penalty(discriminator, real, fake)


class AdversarialDistillation(DistillationMethod):
    """Adversarial distillation with the single term `adversarial` = -mean D(student logits).

    The discriminator is frozen during the student's step and takes one step of its own after it (Adam, rate decaying
    as (1 - step / total_steps)^0.9). It runs in float32: the penalty differentiates twice. Several processes average
    its gradients by hand: the wrapper for that cannot differentiate twice.

    Args:
        discriminator: maps logits (B, K, H, W) to a map of scores.
        total_steps: training steps over which the discriminator's rate decays.
        weight: weight of the student's term.
        kind: "wgan-gp" or "hinge".
    """

    def __init__(self, discriminator: nn.Module, total_steps: int, weight: float = 0.1, kind: str = "wgan-gp") -> None:
        super().__init__({"adversarial": weight})
        if kind not in KINDS:
            raise InputError(f"the adversarial loss is '{kind}'; choose one of {', '.join(KINDS)}")
        self.discriminator, self.kind = discriminator, kind
        self.optimizer = torch.optim.Adam(discriminator.parameters(), lr=LEARNING_RATE, betas=BETAS)
        self.schedule = torch.optim.lr_scheduler.PolynomialLR(self.optimizer, max(total_steps, 1), POWER)

    def forward(self, student: Tapped, teacher: Tapped, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the scalar term `adversarial`; the discriminator collects no gradient.

        Shapes as in `DistillationMethod`.
        """
        self.discriminator.requires_grad_(False)
        with torch.autocast(student.logits.device.type, enabled=False):
            return {"adversarial": -self.discriminator(student.logits.float()).mean()}

    def adapter_parameters(self) -> list[nn.Parameter]:
        """Return none: the discriminator has an optimizer of its own."""
        return []

    def after_step(self, student: Tapped, teacher: Tapped) -> dict[str, torch.Tensor]:
        """Take one step of the discriminator; return its loss, a scalar, as `discriminator`."""
        self.discriminator.requires_grad_(True)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(student.logits.device.type, enabled=False):
            real, fake = teacher.logits.detach().float(), student.logits.detach().float()
            loss = discriminator_loss(self.discriminator, real, fake, self.kind)
            loss.backward()
        average_gradients(self.discriminator.parameters())
        self.optimizer.step()
        self.schedule.step()
        return {"discriminator": loss.detach()}

    def training_state(self) -> dict[str, Any]:
        """Return the discriminator (with its spectral norm vectors), its optimizer and its schedule."""
        parts = (self.discriminator, self.optimizer, self.schedule)
        return dict(zip(("discriminator", "optimizer", "schedule"), (part.state_dict() for part in parts), strict=True))

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Take up the discriminator, its optimizer and its schedule."""
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
