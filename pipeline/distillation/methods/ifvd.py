# SPDX-License-Identifier: Apache-2.0
"""Intra-class feature variation: how far each pixel is from the mean of its class is the same in both networks.

Wang et al., "Intra-class Feature Variation Distillation for Semantic Segmentation", ECCV 2020:

    m_c  = mean of f(x) over the pixels x of class c in one image
    V(x) = cos(f(x), m_c(x))
    L    = mean over pixels of (V(x; student) - V(x; teacher))^2

The formula fits dense prediction as it is. A cosine is one number for any number of channels, so
no adapter is needed.
"""

from __future__ import annotations

import torch

from pipeline.distillation.adapters import resized
from pipeline.distillation.method import DistillationMethod, NetworkPair, Tapped
from pipeline.distillation.methods.class_regions import class_masks, class_means
from pipeline.distillation.methods.relations import unit_vectors
from pipeline.unlabelled import with_teachers_classes


def class_variation(features: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Return the cosine of each place with the mean of its class in its image, (B, N); 0 where it has no class.

    Args:
        features: (B, C, ...).
        masks: (B, K, N) of `class_masks`.
    """
    cosines = unit_vectors(class_means(features, masks)) @ unit_vectors(features.flatten(2), dim=1)
    return (masks.to(cosines.dtype) * cosines).sum(dim=1)


def variation_loss(student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Return the mean squared difference of two maps' class variations over all places that have a class.

    Args:
        student: (B, C, ...), any C and size; brought to the size of the teacher's.
        teacher: (B, C', ...); no gradient reaches it.
        labels: (B, 1, ...) of the images.
        classes: K.
    """
    masks = class_masks(labels, classes, teacher.shape[2:])
    of_student = class_variation(resized(student, teacher.shape[2:]), masks)
    of_teacher = class_variation(teacher.detach(), masks)
    return (of_student - of_teacher).square().sum() / masks.sum().clamp(min=1)


class IntraClassVariation(DistillationMethod):
    """`variation_loss` of the last tap as a method with the single term `ifvd`.

    Args:
        pair: the two networks.
        weight: weight of the term, which starts at about 0.05 to 0.3. The authors' 50 would drown a mean cross-entropy.
    """

    def __init__(self, pair: NetworkPair, *, weight: float = 5.0) -> None:
        super().__init__({"ifvd": weight})
        self.classes = pair.out_channels

    def forward(self, student: Tapped, teacher: Tapped, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the scalar term `ifvd`; shapes as in `DistillationMethod`."""
        classes = with_teachers_classes(labels, teacher.logits)
        return {"ifvd": variation_loss(student.features[-1], teacher.features[-1], classes, self.classes)}
