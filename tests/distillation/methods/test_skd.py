# SPDX-License-Identifier: Apache-2.0
"""Structured knowledge distillation: values derived by hand, parity with loops, the whole method, then bad input."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.distillation import build_distiller
from pipeline.distillation.gradient_shares import gradient_shares
from pipeline.distillation.method import NetworkPair, Tapped
from pipeline.distillation.methods.kd import BALANCE
from pipeline.distillation.methods.skd import (
    HolisticDistillation,
    PairwiseLoss,
    PixelPairDistillation,
    build_skd,
    pairwise_similarity,
    pixel_cross_entropy,
)
from pipeline.errors import InputError
from pipeline.networks import build_network
from pipeline.training import segmentation_loss

NOBODY = torch.full((1, 1, 1, 1), -1)  # has labelled the pixel


def pair(**changes: object) -> NetworkPair:
    return NetworkPair(nn.Identity(), nn.Identity(), (6, 6), (4, 4), 2, **changes)


def test_pixel_term_by_hand():
    """One pixel, teacher (0.8, 0.2), student (0.6, 0.4): -.8 ln .6 - .2 ln .4."""
    teacher, student = (torch.tensor(q).log().reshape(1, 2, 1, 1) for q in ((0.8, 0.2), (0.6, 0.4)))
    expected = -0.8 * torch.tensor(0.6).log() - 0.2 * torch.tensor(0.4).log()
    torch.testing.assert_close(pixel_cross_entropy(student, teacher, NOBODY), expected)


def test_pixels_of_a_rare_class_count_more_by_hand():
    """Of four pixels one is of class 1. At balance 1 both classes count as much: its own loss has weight 4 / 2 = 2.

    The teacher is sure (1, 0 or 0, 1) and the student says (0.5, 0.5) but at the rare pixel (0.75, 0.25).
    """
    teacher = torch.full((1, 2, 1, 4), -1e4)
    teacher[0, 0, 0, :3] = teacher[0, 1, 0, 3] = 0
    student = torch.full((1, 2, 1, 4), 0.5)
    student[0, :, 0, 3] = torch.tensor([0.75, 0.25])
    labels = torch.tensor([0, 0, 0, 1]).reshape(1, 1, 1, 4)
    log2 = torch.tensor(2.0).log()
    for balance, expected in ((0.0, 3 * log2 / 4 + 2 * log2 / 4), (1.0, log2 / 2 + 2 * log2 / 2)):
        for known in (labels, torch.full_like(labels, -1)):  # the teacher says the same
            torch.testing.assert_close(pixel_cross_entropy(student.log(), teacher, known, balance), expected)


def test_default_weights_and_the_balance_of_kd():
    method = PixelPairDistillation(pair())
    assert method.weights == {"skd_pixel": 1.0, "skd_pair": 10.0}
    assert method.balance == BALANCE


def test_the_pixel_term_leads_by_its_gradient():
    """With the default weights it pulls an ENet 3.6 to 11 times as hard as the pair-wise term (seeds 0 to 3).

    The values alone don't tell: they differ by a factor of some hundreds.
    """
    torch.manual_seed(0)
    teacher, student = build_network("mobile_unet", 1, 3), build_network("enet", 1, 3).train()
    distiller = build_distiller("skd", teacher, student, 3, 10, size=64)
    images, labels = torch.rand(2, 1, 64, 64), torch.randint(3, (2, 1, 64, 64))
    logits = student(images)
    weighted = distiller.weighted(distiller(images, labels, logits))
    shares = gradient_shares(weighted, segmentation_loss("ce")(logits, labels), list(student.parameters()))
    assert float(shares["skd_pixel"]) > float(shares["skd_pair"]) > 0


def test_pixel_term_is_least_and_flat_where_both_are_equal():
    torch.manual_seed(0)
    teacher = torch.randn(2, 3, 4, 4)
    student = teacher.clone().requires_grad_()
    labels = torch.randint(0, 3, (2, 1, 4, 4))
    loss = pixel_cross_entropy(student, teacher, labels, 0.5)
    loss.backward()
    assert student.grad.abs().max() < 1e-7
    assert pixel_cross_entropy(teacher + torch.randn_like(teacher), teacher, labels, 0.5) > loss


def test_pair_term_by_hand():
    """2 x 2 regions of one pixel: the student's left are at right angles to its right, the teacher's all alike.

    All 16 cosines of the teacher are 1; 8 of the student's are 0: the mean square is 1 / 2.
    """
    student = torch.zeros(1, 2, 2, 2)
    student[0, 0, :, 0] = student[0, 1, :, 1] = 5
    assert float(PairwiseLoss(2)(student, torch.ones(1, 3, 2, 2))) == pytest.approx(0.5)


def test_similarities_equal_a_loop_over_regions():
    torch.manual_seed(0)
    features = torch.randn(2, 3, 6, 4)
    found = pairwise_similarity(features, (2, 2))
    for image, cosines in zip(features, found, strict=True):
        nodes = [image[:, r : r + 3, c : c + 2].amax(dim=(1, 2)) for r in (0, 3) for c in (0, 2)]
        expected = [[torch.cosine_similarity(one, other, dim=0) for other in nodes] for one in nodes]
        torch.testing.assert_close(cosines, torch.tensor(expected))


@pytest.mark.parametrize(("scale", "nodes"), [(0.5, 2), (0.25, 4), (1 / 3, 3), (0.3, 4), (1 / 32, 32)])
def test_scale_is_the_share_of_a_region(scale, nodes):
    assert PixelPairDistillation(pair(), scale=scale).loss.nodes == nodes


def test_whole_method_has_three_terms_with_their_weights():
    methods = build_skd(pair(), weight=0.5, pixel=2.0, pairwise=10.0, holistic=0.4)
    weights = {term: weight for method in methods.values() for term, weight in method.weights.items()}
    assert weights == {"skd_pixel": 1.0, "skd_pair": 5.0, "skd_holistic": pytest.approx(0.2)}


def test_holistic_term_and_its_discriminator_have_names_of_their_own():
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope = nn.Parameter(torch.tensor(2.0))

        def forward(self, logits: torch.Tensor) -> torch.Tensor:
            return self.slope * logits

    method = HolisticDistillation(Sum(), total_steps=5, kind="hinge")
    student, teacher = Tapped((), torch.full((1, 2, 2, 2), 0.25)), Tapped((), torch.full((1, 2, 2, 2), 3.0))
    assert {name: float(term) for name, term in method(student, teacher, torch.zeros(1)).items()} == {
        "skd_holistic": -0.5
    }
    # relu(1 - 2 * 3) + relu(1 + 2 * 0.25) = 1.5
    assert {name: float(loss) for name, loss in method.after_step(student, teacher).items()} == {
        "skd_discriminator": 1.5
    }
    assert method.discriminator.slope != 2
    assert method.adapter_parameters() == []


@pytest.mark.parametrize("settings", [{}, {"holistic": 0.01, "weight": 0}])
def test_weight_zero_leaves_the_adversary_out(settings):
    assert set(build_skd(pair(size=16), **settings)) == {"skd"}


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({}, {"scale": 0}, "skd: scale is 0"),
        ({}, {"scale": 1}, "skd: scale is 1; .* above 0 to 0.5"),
        ({}, {"scale": float("nan")}, "skd: scale is nan"),
        ({}, {"scale": 1 / 33}, "at least 1/32"),
        ({"spatial_dims": 3}, {"scale": 1 / 11}, "at least 1/10"),
        ({}, {"balance": 1.5}, "skd: balance is 1.5"),
        ({}, {"pairwise": -1.0}, "weight of the loss term 'skd_pair'"),
        ({}, {"holistic": 0.01, "adversarial_kind": "lsgan"}, "choose one of wgan-gp, hinge"),
        ({"size": 32}, {"holistic": 0.01}, "discriminator of skd needs slices of 64 pixels.*'holistic': 0"),
        ({"spatial_dims": 3}, {"holistic": 0.01}, "discriminator of skd judges slices.*'holistic': 0"),
    ],
)
def test_bad_settings_end_in_one_clear_line(changes, settings, message):
    with pytest.raises(InputError, match=message):
        build_skd(pair(**changes), **settings)
