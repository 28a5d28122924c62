# SPDX-License-Identifier: Apache-2.0
"""Knowledge distillation: the student's class probabilities at each pixel follow the teacher's.

Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, in its dense form:

    L = tau^2 mean_x [ w(x) KL(softmax(teacher(x) / tau) || softmax(student(x) / tau)) ]

The factor tau^2 keeps the size of the gradient independent of the temperature. The plain mean over pixels, w = 1, is
the usual form. The background dominates it: on abdominal slices 85 % of its gradient falls there, and small organs are
lost. So here each pixel is weighted by its class, see `pipeline.class_balance.pixel_weights`.

Balance 0.5 was chosen on two validation patients of CHAOS MR, in a plain training loop outside the bundles: 500 steps,
scored at 64 x 64 after the last one. Mean Dice of the student alone, alone with a balanced loss, and with kd: ENet
0.670, 0.721 and 0.764 (a second seed: 0.703, not run, 0.760); Mobile U-Net 0.858, 0.819 and 0.865; ERFNet 0.718, not
run, 0.729. Balance 1 gave ENet 0.641. Only ENet has two seeds, and seeds differ by more than the gains of the other two
students.

Two other forms were compared later, by the recipe of chaos_mr.yaml, on the same two patients with seeds 0 and 1: a
temperature of 1, and balance 0.5 in the first half of the training with the plain mean in the second. Dice with the
default, temperature 1 and the change of balance: ENet 0.778, 0.781 and 0.731; Mobile U-Net 0.829, 0.831 and 0.825;
ERFNet 0.719, 0.722 and 0.720. Seeds of the same form differ by 0.002 to 0.113, so the default stays.

In the bundles, with better controls in brackets: on CHAOS MR kd gave ENet a Dice of 0.701 (0.700; two seeds), ERFNet
0.708 (0.688; one seed) and Mobile U-Net 0.781 (0.778, alone 0.786; one seed), all within chance. The usual form gave
ENet 0.345: both kidneys were lost. On a tenth of EBHI-Seg kd gave ENet a mean IoU of 0.730 (0.721; the usual form
0.728), Mobile U-Net 0.740 (0.732) and ERFNet 0.610 (0.605; within chance; three seeds). With all labels of EBHI-Seg it
gave ENet 0.783 (0.772; the usual form 0.777), ERFNet 0.760 (0.709), and Mobile U-Net 0.771 (0.769; within chance; in a
second grid 0.780 and 0.765). After four times as many steps, ENet had 0.822 with kd and alone (one seed). distill.yaml
adds `review`. See docs/results.md and docs/experiments.md.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.class_balance import check_balance, known_classes, pixel_weights
from pipeline.distillation.method import DistillationMethod, NetworkPair, Tapped
from pipeline.distillation.settings import check_number
from pipeline.unlabelled import UNLABELLED

TEMPERATURE, BALANCE = 2.0, 0.5


def labelled_or_sure(labels: torch.Tensor, teacher: torch.Tensor, confidence: float) -> torch.Tensor:
    """Return which pixels (B, ...) have a label, or a class whose probability is at least `confidence`.

    Args:
        labels: (B, 1, ...).
        teacher: (B, K, ...), its logits; the probabilities are those at temperature 1.
        confidence: from 0 to 1.
    """
    return (labels.squeeze(1) != UNLABELLED) | (teacher.softmax(dim=1).amax(dim=1) >= confidence)


class KnowledgeDistillationLoss(nn.Module):
    """tau^2 KL(softmax(teacher / tau) || softmax(student / tau)), the weighted mean over pixels and batch.

    Args:
        temperature: tau > 0.
        balance: from 0 (each pixel counts the same) to 1 (each class counts the same).
        confidence: a pixel without a label counts only if the teacher's likeliest class has at least this probability
            (at temperature 1); with 0 all pixels count. The mean is still over all pixels, as in FixMatch (arXiv
            2001.07685), so that a teacher that is rarely sure counts less.
    """

    def __init__(self, temperature: float = TEMPERATURE, balance: float = BALANCE, confidence: float = 0.0) -> None:
        super().__init__()
        self.confidence = check_number("kd", "confidence", confidence, least=0, most=1)
        self.temperature = check_number("kd", "temperature", temperature)
        self.balance = check_balance("kd", balance)

    def forward(self, student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Return the loss of two logit maps (B, K, ...), float32; no gradient reaches `teacher`.

        Args:
            student: (B, K, ...).
            teacher: (B, K, ...).
            labels: (B, 1, ...), for the class of each pixel; without them the teacher's likeliest class counts.
        """
        with torch.autocast(student.device.type, enabled=False):
            of_student = F.log_softmax(student.float() / self.temperature, dim=1)
            of_teacher = F.log_softmax(teacher.detach().float() / self.temperature, dim=1)
            divergence = F.kl_div(of_student, of_teacher, reduction="none", log_target=True).sum(dim=1)
            if self.balance:
                classes = teacher.argmax(dim=1) if labels is None else known_classes(labels, teacher)
                divergence = divergence * pixel_weights(classes, teacher.shape[1], self.balance)
            if self.confidence and labels is not None:
                divergence = divergence * labelled_or_sure(labels, teacher, self.confidence)
            return self.temperature**2 * divergence.mean()


class KnowledgeDistillation(DistillationMethod):
    """`KnowledgeDistillationLoss` as a method with the single term `kd`.

    Args:
        pair: the two networks; only their logits are used.
        weight: of the term.
        temperature: see `KnowledgeDistillationLoss`. The first release of this project had 4.
        balance: likewise; 0 is the plain mean over pixels.
        confidence: likewise.
    """

    def __init__(
        self,
        pair: NetworkPair,
        *,
        weight: float = 1.0,
        temperature: float = TEMPERATURE,
        balance: float = BALANCE,
        confidence: float = 0.0,
    ) -> None:
        super().__init__({"kd": weight})
        self.loss = KnowledgeDistillationLoss(temperature, balance, confidence)

    def forward(self, student: Tapped, teacher: Tapped, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the scalar term `kd`; shapes as in `DistillationMethod`."""
        return {"kd": self.loss(student.logits, teacher.logits, labels)}
