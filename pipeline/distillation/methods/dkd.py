# SPDX-License-Identifier: Apache-2.0
"""Decoupled distillation: one term for the probability of a pixel's class, another for the other classes.

Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, arXiv 2203.08679, eq. 7, at each pixel with the class y:

    b  = (p_y, 1 - p_y),   q_k = p_k / (1 - p_y) for k != y,   p = softmax(logits / tau)
    L  = alpha tau^2 KL(b(teacher) || b(student)) + beta tau^2 KL(q(teacher) || q(student))

Plain distillation is the same with alpha = 1 and with 1 - p_y(teacher) in place of beta. So there, a sure teacher tells
next to nothing about the other classes. Here both terms are means over pixels, weighted by class as in `kd`, see
`pipeline.class_balance.pixel_weights`. With two classes there is only one other class: the second term is zero, and
the first is `kd`.

In place of kd it gave ENet a mean IoU of 0.713 on a tenth of EBHI-Seg (kd 0.705, better control 0.699; two seeds at
half of ENet's best learning rate). See docs/experiments.md.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.class_balance import check_balance, known_classes, pixel_weights
from pipeline.distillation.method import DistillationMethod, NetworkPair, Tapped
from pipeline.distillation.methods.kd import BALANCE, TEMPERATURE
from pipeline.distillation.settings import check_number


def target_log_probabilities(log_probabilities: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the logarithms of p_y and 1 - p_y, (B, 2, ...).

    Args:
        log_probabilities: (B, K, ...) of all classes.
        target: (B, K, ...) bool, true at the class y of each pixel.
    """
    of_target = log_probabilities.masked_fill(~target, 0.0).sum(dim=1)
    # 1 - p_y from the others: a difference from 1 would lose all digits where the network is sure.
    of_others = log_probabilities.masked_fill(target, -torch.inf).logsumexp(dim=1)
    return torch.stack([of_target, of_others], dim=1)


class DecoupledLoss(nn.Module):
    """Both divergences of the target class and of the others, the weighted mean over pixels and batch.

    Args:
        temperature: tau > 0.
        balance: from 0 (each pixel counts the same) to 1 (each class counts the same).
    """

    def __init__(self, temperature: float = TEMPERATURE, balance: float = BALANCE) -> None:
        super().__init__()
        self.temperature = check_number("dkd", "temperature", temperature)
        self.balance = check_balance("dkd", balance)

    def forward(
        self, student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the losses of the target class and of the others, scalars; no gradient reaches `teacher`.

        Args:
            student: (B, K, ...).
            teacher: (B, K, ...).
            labels: (B, 1, ...); where a value is no class, the teacher's likeliest is the target.
        """
        classes = known_classes(labels, teacher)
        target = classes.unsqueeze(1) == torch.arange(teacher.shape[1], device=teacher.device).reshape(
            1, -1, *[1] * (teacher.ndim - 2)
        )
        mine, hint = (F.log_softmax(logits / self.temperature, dim=1) for logits in (student, teacher.detach()))
        of_mine, of_hint = (target_log_probabilities(one, target) for one in (mine, hint))
        sureness = F.kl_div(of_mine, of_hint, reduction="none", log_target=True).sum(dim=1)
        others_hint = hint - of_hint[:, 1:]
        differences = others_hint - (mine - of_mine[:, 1:])
        ranking = (others_hint.masked_fill(target, -torch.inf).exp() * differences).sum(dim=1)
        factors = self.temperature**2 * pixel_weights(classes, teacher.shape[1], self.balance)
        return (factors * sureness).mean(), (factors * ranking).mean()


class DecoupledDistillation(DistillationMethod):
    """`DecoupledLoss` as a method with the terms `dkd_target` and `dkd_others`.

    Args:
        pair: the two networks; only their logits are used.
        weight: factor on both weights.
        alpha: weight of the target's term, 1 in all of the authors' runs, beside their cross-entropy over images.
        beta: weight of the others' term. The authors take 0.5 for a ResNet-18 on ImageNet, 0.25 on COCO, and
            up to 8 on CIFAR-100.
        temperature: tau > 0, as of `kd`. The authors take 1 on ImageNet and COCO, 4 on CIFAR-100.
        balance: as of `kd`; 0 is the plain mean over pixels, which is the authors'.

    Raises:
        InputError: a setting is out of its range.
    """

    def __init__(
        self,
        pair: NetworkPair,
        *,
        weight: float = 1.0,
        alpha: float = 0.5,
        beta: float = 0.25,
        temperature: float = TEMPERATURE,
        balance: float = BALANCE,
    ) -> None:
        super().__init__({"dkd_target": weight * alpha, "dkd_others": weight * beta})
        self.loss = DecoupledLoss(temperature, balance)

    def forward(self, student: Tapped, teacher: Tapped, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the scalar terms `dkd_target` and `dkd_others`; shapes as in `DistillationMethod`."""
        of_target, of_others = self.loss(student.logits, teacher.logits, labels)
        return {"dkd_target": of_target, "dkd_others": of_others}
