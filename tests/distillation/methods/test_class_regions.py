# SPDX-License-Identifier: Apache-2.0
"""Methods that compare classes of the label, ifvd and emkd: values by hand, parity with loops, then bad input."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import nn

from pipeline.distillation.method import NetworkPair, Tapped
from pipeline.distillation.methods.class_regions import class_masks, class_means
from pipeline.distillation.methods.emkd import EfficientMedical, RegionAffinityLoss
from pipeline.distillation.methods.ifvd import IntraClassVariation, class_variation, variation_loss
from pipeline.distillation.methods.kd import KnowledgeDistillationLoss
from pipeline.errors import InputError


def pair(**changes: object) -> NetworkPair:
    return NetworkPair(nn.Identity(), nn.Identity(), (6, 6), (4, 4), 3, **changes)


def row(*vectors: tuple[float, ...]) -> torch.Tensor:
    """Return a map (1, C, 1, N) with these vectors at its places."""
    return torch.tensor(vectors).T[None, :, None]


def labels(*classes: int) -> torch.Tensor:
    """Return a label (1, 1, 1, N)."""
    return torch.tensor(classes)[None, None, None]


def test_masks_take_the_nearest_pixels_and_means_are_over_them():
    """Of six pixels in two places, the middles 1 and 4 count."""
    label = torch.tensor([1, 0, 1, 1, 2, 1])[None, None, None]
    masks = class_masks(label, 3, (1, 2))
    assert masks.tolist() == [[[1, 0], [0, 0], [0, 1]]]
    assert class_means(row((1.0, 3.0), (5.0, 7.0)), masks).tolist() == [[[1, 3], [0, 0], [5, 7]]]


def test_variation_by_hand():
    """One class of two pixels. Student (1, 0) and (0, 1): both 1 / sqrt 2 from the mean. Teacher: both on it, 1."""
    loss = variation_loss(row((1.0, 0.0), (0.0, 1.0)), row((4.0, 0.0), (2.0, 0.0)), labels(1, 1), classes=2)
    assert float(loss) == pytest.approx((1 - 0.5**0.5) ** 2)


def test_variation_equals_a_loop_over_pixels():
    torch.manual_seed(0)
    features, label = torch.randn(2, 4, 5, 5), torch.randint(0, 3, (2, 1, 5, 5))
    found = class_variation(features, class_masks(label, 3, (5, 5))).reshape(2, 5, 5)
    for image in range(2):
        for y in range(5):
            for x in range(5):
                own = label[image, 0] == label[image, 0, y, x]
                mean = features[image][:, own].mean(dim=1)
                expected = torch.cosine_similarity(features[image, :, y, x], mean, dim=0)
                torch.testing.assert_close(found[image, y, x], expected)


def test_pixels_of_no_class_do_not_count():
    student, teacher = row((1.0, 0.0), (0.0, 1.0), (9.0, 9.0)), row((4.0, 0.0), (2.0, 0.0), (-1.0, 5.0))
    assert float(variation_loss(student, teacher, labels(1, 1, 255), 2)) == pytest.approx((1 - 0.5**0.5) ** 2)


def test_region_affinity_by_hand():
    """Classes 0 and 2 of three. Student: means at right angles, cosine 0. Teacher: 60 degrees, cosine 1/2; one pair."""
    student, teacher = row((1.0, 0.0), (0.0, 1.0)), row((2.0, 0.0), (1.0, 3.0**0.5))
    assert float(RegionAffinityLoss(3)(student, teacher, labels(0, 2))) == pytest.approx(0.25)


def test_region_affinity_is_a_mean_over_the_pairs_that_images_have():
    torch.manual_seed(0)
    student, teacher = torch.randn(3, 2, 4, 4), torch.randn(3, 5, 4, 4)
    label = torch.randint(0, 4, (3, 1, 4, 4))
    label[1], label[2] = 3, label[2] % 2  # a single class, two classes
    found = []
    for image in range(3):
        for one, other in combinations(label[image].unique().tolist(), 2):
            cosines = [
                torch.cosine_similarity(*(of[image][:, label[image, 0] == c].mean(dim=1) for c in (one, other)), dim=0)
                for of in (student, teacher)
            ]
            found.append((cosines[0] - cosines[1]) ** 2)
    torch.testing.assert_close(RegionAffinityLoss(4)(student, teacher, label), torch.stack(found).mean())


def test_image_of_one_class_has_no_pair_and_a_gradient_of_zero():
    student = torch.randn(1, 2, 4, 4, requires_grad=True)
    loss = RegionAffinityLoss(3)(student, torch.randn(1, 2, 4, 4), torch.ones(1, 1, 4, 4))
    loss.backward()
    assert float(loss.detach()) == 0
    assert student.grad.abs().sum() == 0


def test_emkd_terms_by_hand():
    """One channel. A = f^4: student (1, 0), teacher (1, 1) / sqrt 2: importance (1 - 1/sqrt 2)^2 + 1/2 = 2 - sqrt 2.

    The fourth power does not see signs. Region: the student's second mean is zero and has no direction, cosine 0; the
    teacher's two point apart, cosine -1: the square of the difference is 1.
    """
    student = Tapped((row((2.0,), (0.0,)),), torch.zeros(1, 3, 1, 2))
    teacher = Tapped((row((3.0,), (-3.0,)),), torch.randn(1, 3, 1, 2))
    terms = EfficientMedical(pair())(student, teacher, labels(0, 1))
    assert float(terms["emkd_importance"]) == pytest.approx(2 - 2**0.5)
    assert float(terms["emkd_region"]) == pytest.approx(1)
    torch.testing.assert_close(
        terms["emkd_prediction"], KnowledgeDistillationLoss()(student.logits, teacher.logits, labels(0, 1))
    )


def test_emkd_adds_up_its_taps():
    """The taps of the test above give 2 - sqrt 2 and 1; equal ones beside them add 0 and halve nothing."""
    student, teacher = row((2.0,), (0.0,)), row((3.0,), (-3.0,))
    logits, label = torch.zeros(1, 3, 1, 2), labels(0, 1)
    for more, times in (((teacher, teacher), 1), ((student, teacher), 2)):
        views = (Tapped((one, other), logits) for one, other in zip((student, teacher), more, strict=True))
        terms = EfficientMedical(pair())(*views, label)
        assert float(terms["emkd_importance"]) == pytest.approx(times * (2 - 2**0.5))
        assert float(terms["emkd_region"]) == pytest.approx(times)


def test_weight_is_a_factor_on_all_three_terms():
    assert EfficientMedical(pair(), weight=2.0, prediction=0.1, importance=0.9, region=0.9).weights == {
        "emkd_prediction": 0.2,
        "emkd_importance": 1.8,
        "emkd_region": 1.8,
    }


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (IntraClassVariation, {"weight": -1.0}, "weight of the loss term 'ifvd'"),
        (EfficientMedical, {"temperature": 0}, "emkd: temperature is 0"),
        (EfficientMedical, {"p": 0.5}, "emkd: p is 0.5; it must be a finite number from 1"),
        (EfficientMedical, {"p": float("inf")}, "emkd: p is inf"),
        (EfficientMedical, {"region": float("nan")}, "weight of the loss term 'emkd_region'"),
    ],
)
def test_bad_settings_end_in_one_clear_line(method, settings, message):
    with pytest.raises(InputError, match=message):
        method(pair(), **settings)
