# SPDX-License-Identifier: Apache-2.0
"""Efficient medical segmentation distillation: predictions, importance maps and the affinity of class regions.

Qin et al., "Efficient Medical Image Segmentation Based on Knowledge Distillation", IEEE TMI 2021, arXiv 2108.09987:

    prediction  tau^2 KL(softmax(teacher / tau) || softmax(student / tau)), the mean over pixels
    importance  || I(student) - I(teacher) ||^2,  I = A / ||A|| over all places of one image,  A = mean_c |f_c|^p
    region      mean over pairs of classes (a, b) of (cos(m_a, m_b; student) - cos(m_a, m_b; teacher))^2,
                m_c the mean of f over the pixels of class c in one image

All three fit dense prediction as they are; none needs an adapter. Importance and region are sums over the taps, as in
the authors' code: a low and a high one.
"""

from __future__ import annotations

import torch
from torch import nn

from pipeline.distillation.adapters import resized
from pipeline.distillation.method import DistillationMethod, NetworkPair, Tapped
from pipeline.distillation.methods.at import attention_loss
from pipeline.distillation.methods.class_regions import class_masks, class_means
from pipeline.distillation.methods.kd import BALANCE, TEMPERATURE, KnowledgeDistillationLoss
from pipeline.distillation.methods.relations import unit_vectors
from pipeline.distillation.settings import check_number
from pipeline.unlabelled import with_teachers_classes


class RegionAffinityLoss(nn.Module):
    """Mean squared difference of the cosines between the class means of an image, over all pairs that images have.

    Args:
        classes: K.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss; 0 where no image has two classes.

        Args:
            student: (B, C, ...), any C and size; brought to the size of the teacher's.
            teacher: (B, C', ...); no gradient reaches it.
            labels: (B, 1, ...) of the images.
        """
        masks = class_masks(labels, self.classes, teacher.shape[2:])
        of_student = _affinity(resized(student, teacher.shape[2:]), masks)
        of_teacher = _affinity(teacher.detach(), masks)
        there = masks.amax(dim=2)
        pairs = (there[:, :, None] * there[:, None]).triu(diagonal=1)
        return (pairs * (of_student - of_teacher).square()).sum() / pairs.sum().clamp(min=1)


def _affinity(features: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Return the cosines of the class means to each other, (B, K, K)."""
    means = unit_vectors(class_means(features, masks))
    return means @ means.transpose(1, 2)


class EfficientMedical(DistillationMethod):
    """The terms `emkd_prediction`, `emkd_importance` and `emkd_region` as a method.

    Args:
        pair: the two networks.
        weight: factor on all three weights.
        prediction: weight of the predictions.
        importance: weight of the importance maps.
        region: weight of the affinities of regions.
        temperature: tau of the predictions; the authors have 4.
        balance: of the predictions, see `kd`; the authors have 0.
        confidence: likewise.
        p: power of the activations in the importance maps, from 1.
    """

    needs_global_batch = True

    def __init__(
        self,
        pair: NetworkPair,
        *,
        weight: float = 1.0,
        prediction: float = 0.1,
        importance: float = 0.15,
        region: float = 0.9,
        temperature: float = TEMPERATURE,
        balance: float = BALANCE,
        confidence: float = 0.0,
        p: float = 4.0,
    ) -> None:
        parts = {"emkd_prediction": prediction, "emkd_importance": importance, "emkd_region": region}
        super().__init__({term: weight * part for term, part in parts.items()})
        self.prediction = KnowledgeDistillationLoss(
            check_number("emkd", "temperature", temperature),
            balance,
            check_number("emkd", "confidence", confidence, least=0, most=1),
        )
        self.region = RegionAffinityLoss(pair.out_channels)
        self.p = check_number("emkd", "p", p, least=1)

    def forward(self, student: Tapped, teacher: Tapped, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the scalar terms `emkd_prediction`, `emkd_importance` and `emkd_region`.

        Shapes as in `DistillationMethod`.
        """
        taps = list(zip(student.features, teacher.features, strict=True))
        classes = with_teachers_classes(labels, teacher.logits)
        return {
            "emkd_prediction": self.prediction(student.logits, teacher.logits, labels),
            "emkd_importance": torch.stack([attention_loss(*both, self.p) for both in taps]).sum(),
            "emkd_region": torch.stack([self.region(*both, classes) for both in taps]).sum(),
        }
