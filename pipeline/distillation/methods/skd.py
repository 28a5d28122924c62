# SPDX-License-Identifier: Apache-2.0
"""Structured knowledge distillation: class probabilities of pixels, similarities of regions, and an adversary.

Liu et al., "Structured Knowledge Distillation for Semantic Segmentation", CVPR 2019, arXiv 1903.04197:

    pixel-wise  -mean_x [ w(x) sum_k q_k(x; teacher) log q_k(x; student) ],  q the softmax of the logits
    pair-wise   mean_ij (a_ij(student) - a_ij(teacher))^2,  a_ij = f_i . f_j / (|f_i| |f_j|), f_i the maxima of region i
    holistic    -mean D(student's prediction), with D trained to tell it from the teacher's

The authors' weights are 10, 1 and 0.1, and their pixel-wise term is a sum over the batch. Here all are means over the
batch, and the weights are 1, 10 and 0, set by gradients. The gradient of the pixel-wise term is 0.7 to 1.8 times as
long as the segmentation loss's. That of the pair-wise term of 2 x 2 regions, whose value starts at about 0.001, is 0.06
to 0.4 of it (medians of a student, CHAOS MR and EBHI-Seg). The adversary is left out by default, because it takes two
thirds of a step's time. The pull of a weight depends on the image size and grows in training, see `adversary.py`. So
rather give a share. The authors count all pixels the same, w = 1; we weight them by their class, as in `kd`. Their code
holds |f_i| constant; here it is differentiated, as in their formula.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.class_balance import check_balance, known_classes, pixel_weights
from pipeline.distillation.discriminator import Discriminator
from pipeline.distillation.method import DistillationMethod, NetworkPair, Tapped
from pipeline.distillation.methods.adversarial import AdversarialDistillation
from pipeline.distillation.methods.adversary import check_adversary, weight_and_share
from pipeline.distillation.methods.kd import BALANCE, labelled_or_sure
from pipeline.distillation.methods.relations import common_grid, largest_grid, unit_vectors
from pipeline.distillation.settings import check_number
from pipeline.errors import InputError

MOST_REGIONS = 1024


def pixel_cross_entropy(
    student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, balance: float = 0.0, confidence: float = 0.0
) -> torch.Tensor:
    """Return the cross-entropy of two logit maps, the weighted mean over pixels and batch; collective.

    It is least, the weighted mean of the entropy of the teacher's probabilities, where the student's are equal.

    Args:
        student: (B, K, ...).
        teacher: (B, K, ...); no gradient reaches it.
        labels: (B, 1, ...), for the class of each pixel; the teacher's likeliest class counts where there is none.
        balance: see `pixel_weights`; 0 is the plain mean over pixels.
        confidence: see `KnowledgeDistillationLoss`.
    """
    teacher = teacher.detach()
    entropy = -(teacher.softmax(dim=1) * student.log_softmax(dim=1)).sum(dim=1)
    entropy = entropy * pixel_weights(known_classes(labels, teacher), teacher.shape[1], balance)
    return (entropy * labelled_or_sure(labels, teacher, confidence)).mean()


def pairwise_similarity(features: torch.Tensor, grid_shape: tuple[int, ...]) -> torch.Tensor:
    """Return the cosines (B, N, N) between the channel-wise maxima of the N regions of a map (B, C, ...)."""
    pool = {2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d}[len(grid_shape)]
    nodes = unit_vectors(pool(features, grid_shape).flatten(2), dim=1)
    return nodes.transpose(1, 2) @ nodes


class PairwiseLoss(nn.Module):
    """Mean squared difference of two maps' pair-wise similarities; channels and sizes may differ.

    Args:
        nodes: regions per axis, fewer where a map is smaller.
    """

    def __init__(self, nodes: int = 2) -> None:
        super().__init__()
        self.nodes = nodes

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Return the loss of two maps (B, C, ...); no gradient reaches `teacher`."""
        grid_shape = common_grid(self.nodes, student, teacher)
        of_student, of_teacher = (pairwise_similarity(features, grid_shape) for features in (student, teacher.detach()))
        return F.mse_loss(of_student, of_teacher)


class PixelPairDistillation(DistillationMethod):
    """The terms `skd_pixel` and `skd_pair`; the pair-wise one is the mean over the taps.

    Args:
        pair: the two networks.
        pixel: weight of the pixel-wise term.
        pairwise: weight of the pair-wise term.
        scale: side of a region as a share of the map's: the published 0.5 gives 2 x 2 regions.
        balance: of the pixel-wise term, see `kd`; the authors have 0.
        confidence: likewise.
    """

    def __init__(
        self,
        pair: NetworkPair,
        *,
        pixel: float = 1.0,
        pairwise: float = 10.0,
        scale: float = 0.5,
        balance: float = BALANCE,
        confidence: float = 0.0,
    ) -> None:
        super().__init__({"skd_pixel": pixel, "skd_pair": pairwise})
        nodes = math.ceil(1 / check_number("skd", "scale", scale, most=0.5) - 1e-9)
        most = largest_grid(MOST_REGIONS, pair.spatial_dims)  # similarities of N regions take N^2 values
        if nodes > most:
            raise InputError(f"skd: scale is {scale}; it must be at least 1/{most}, for at most {most} regions an axis")
        self.loss, self.balance = PairwiseLoss(nodes), check_balance("skd", balance)
        self.confidence = check_number("skd", "confidence", confidence, least=0, most=1)

    def forward(self, student: Tapped, teacher: Tapped, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the scalar terms `skd_pixel` and `skd_pair`; shapes as in `DistillationMethod`."""
        pairs = zip(student.features, teacher.features, strict=True)
        logits = student.logits, teacher.logits
        return {
            "skd_pixel": pixel_cross_entropy(*logits, labels, self.balance, self.confidence),
            "skd_pair": torch.stack([self.loss(*taps) for taps in pairs]).mean(),
        }


class HolisticDistillation(AdversarialDistillation):
    """Adversarial distillation with the single term `skd_holistic`.

    The paper's discriminator judges a prediction together with its image; like the authors' code, ours sees the logits
    alone. It logs its own loss as `skd_discriminator`.
    """

    def __init__(self, discriminator: nn.Module, total_steps: int, weight: float = 0.1, kind: str = "wgan-gp") -> None:
        super().__init__(discriminator, total_steps, weight, kind)
        self.weights = {"skd_holistic": weight}

    def forward(self, student: Tapped, teacher: Tapped, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the scalar term `skd_holistic`; the discriminator collects no gradient.

        Shapes as in `DistillationMethod`.
        """
        return {"skd_holistic": super().forward(student, teacher, labels)["adversarial"]}

    def after_step(self, student: Tapped, teacher: Tapped) -> dict[str, torch.Tensor]:
        """Take one step of the discriminator; return its loss, a scalar, as `skd_discriminator`."""
        return {"skd_discriminator": super().after_step(student, teacher)["discriminator"]}


def build_skd(
    pair: NetworkPair,
    *,
    weight: float = 1.0,
    pixel: float = 1.0,
    pairwise: float = 10.0,
    holistic: float | Mapping[str, float] = 0.0,
    scale: float = 0.5,
    balance: float = BALANCE,
    confidence: float = 0.0,
    adversarial_kind: str = "wgan-gp",
) -> dict[str, DistillationMethod]:
    """Return structured knowledge distillation whole.

    Args:
        pair: the two networks.
        weight: factor on all three weights.
        pixel: weight of the pixel-wise term.
        pairwise: weight of the pair-wise term.
        holistic: weight of the adversary; 0 leaves it out. The authors' is a hundredth of that of the pixel-wise term.
            Or a share of the gradient, `{"share": 0.1}`.
        scale: see `PixelPairDistillation`.
        balance: likewise.
        confidence: likewise.
        adversarial_kind: "wgan-gp" or "hinge".

    Raises:
        InputError: a setting is wrong, or the images are too small for the discriminator.
    """
    methods: dict[str, DistillationMethod] = {
        "skd": PixelPairDistillation(
            pair,
            pixel=weight * pixel,
            pairwise=weight * pairwise,
            scale=scale,
            balance=balance,
            confidence=confidence,
        )
    }
    holistic_weight, share = weight_and_share("skd", "holistic", holistic)
    if weight * holistic_weight != 0:
        check_adversary("skd", "holistic", pair)
        methods["skd_adversary"] = HolisticDistillation(
            Discriminator(pair.out_channels), pair.total_steps, weight * holistic_weight, adversarial_kind
        )
        methods["skd_adversary"].gradient_share = share
    return methods
