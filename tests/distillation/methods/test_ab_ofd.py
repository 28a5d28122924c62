# SPDX-License-Identifier: Apache-2.0
"""Activation boundaries and the overhaul of feature distillation: by hand, their identities, bad settings."""

from __future__ import annotations

import pytest
import torch

from pipeline.distillation.methods.ab import ActivationBoundaries, boundary_loss
from pipeline.distillation.methods.connector import Connector
from pipeline.distillation.methods.ofd import FeatureOverhaul, NegativeMeans, partial_distance
from pipeline.errors import InputError
from tests.distillation.tiny_pair import tiny_batch, tiny_pair, views


def channel(*values: float) -> torch.Tensor:
    """One image with one channel and a row of values."""
    return torch.tensor(values, dtype=torch.float64).reshape(1, 1, 1, -1)


def random_maps(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*(shape or (2, 3, 4, 4)), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_boundary_loss_by_hand():
    """Margin 1. Teacher silent: 0.5 lacks 1.5, -2 nothing. Teacher active: 3 lacks nothing, -1 lacks 2.

    The mean of 2.25, 0, 0 and 4 is 1.5625; a teacher's exact 0 is silent.
    """
    loss = boundary_loss(channel(0.5, -2, 3, -1), channel(-1, 0, 2, 0.1), margin=1)
    assert float(loss) == 1.5625


@pytest.mark.parametrize("margin", [0.5, 1.0, 2.0])
def test_boundary_loss_is_that_of_the_two_cases(margin):
    student, teacher = random_maps(0), random_maps(1)
    total = 0.0
    for mine, theirs in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True):
        if theirs <= 0 and mine > -margin:
            total += (mine + margin) ** 2
        elif theirs > 0 and mine <= margin:
            total += (mine - margin) ** 2
    assert float(boundary_loss(student, teacher, margin)) == pytest.approx(total / student.numel())


def test_boundary_loss_knows_only_the_teachers_sign():
    student, teacher = random_maps(0), random_maps(1)
    expected = boundary_loss(student, teacher)
    torch.testing.assert_close(boundary_loss(student, 100 * teacher), expected)
    torch.testing.assert_close(boundary_loss(student, teacher.relu()), expected)  # a tap after the activation


def test_boundary_loss_vanishes_a_margin_beyond_the_boundary():
    teacher = random_maps(1)
    assert float(boundary_loss(1.01 * teacher.sign(), teacher, margin=1)) == 0
    assert float(boundary_loss(0.99 * teacher.sign(), teacher, margin=1)) > 0


def test_partial_distance_by_hand():
    """Margin -0.5 makes the teacher's (-2, -2, 1, -0.3) into (-0.5, -0.5, 1, -0.3).

    The student's -3 is below a silent teacher: 0. -0.2 is above: 0.3^2. 2 against 1: 1. -0.4 is below -0.3: 0.
    """
    loss = partial_distance(channel(-3, -0.2, 2, -0.4), channel(-2, -2, 1, -0.3), torch.tensor([-0.5]))
    assert float(loss) == pytest.approx((0.3**2 + 1) / 4)


def test_partial_distance_is_that_of_a_loop_with_a_margin_for_each_channel():
    student, teacher, margins = random_maps(0), random_maps(1), torch.tensor([-0.1, -0.7, 0.0], dtype=torch.float64)
    total = 0.0
    for index in torch.cartesian_prod(*(torch.arange(side) for side in student.shape)).tolist():
        mine, target = float(student[tuple(index)]), max(float(teacher[tuple(index)]), float(margins[index[1]]))
        total += 0 if mine <= target <= 0 else (mine - target) ** 2
    assert float(partial_distance(student, teacher, margins)) == pytest.approx(total / student.numel())


def test_partial_distance_is_zero_at_equality_and_wherever_both_are_silent():
    teacher, margins = random_maps(1), torch.full((3,), -0.4, dtype=torch.float64)
    assert float(partial_distance(teacher, teacher, margins)) == 0
    lower = torch.where(teacher <= 0, teacher - 5, teacher)
    assert float(partial_distance(lower, teacher, margins)) == 0


def test_margins_are_moving_means_of_the_negative_values():
    """Channel 0: the mean of -1 and -3 is -2; a batch with -4 moves it by a tenth of -2. Channel 1 has -1 at last."""
    margins = NegativeMeans(2)
    first = torch.tensor([[-1.0, -3.0, 2.0], [1.0, 0.0, 5.0]]).reshape(1, 2, 1, 3)
    assert margins(first).tolist() == [-2, 0]
    second = torch.tensor([[-4.0, 1.0, 2.0], [-1.0, 0.0, 5.0]]).reshape(1, 2, 1, 3)
    torch.testing.assert_close(margins(second), torch.tensor([-2.2, -1.0]))
    torch.testing.assert_close(margins(first), torch.tensor([-2.18, -1.0]))  # channel 1 has nothing to add
    torch.testing.assert_close(margins.eval()(second), torch.tensor([-2.18, -1.0]))


def test_margins_survive_a_resume():
    pair, (images, labels) = tiny_pair(), tiny_batch()
    student, teacher = views(pair, images)
    teacher = type(teacher)(tuple(tap - 1 for tap in teacher.features), teacher.logits)
    method, fresh = (FeatureOverhaul(pair).double() for _ in range(2))
    method(student, teacher, labels)
    assert float(method.margins[0].means.max()) < 0
    fresh.load_training_state(method.training_state())
    torch.testing.assert_close(fresh.margins[1].means, method.margins[1].means)
    assert bool(fresh.margins[1].known.all())


def test_connectors_give_values_of_both_signs_after_a_relu_too():
    connected = Connector(3, 3).double()(random_maps(0).relu(), random_maps(1, 2, 3, 6, 2)).detach()
    assert connected.shape == (2, 3, 6, 2)
    assert float(connected.min()) < 0 < float(connected.max())


@pytest.mark.parametrize("loss", [boundary_loss, lambda mine, theirs: partial_distance(mine, theirs, torch.zeros(3))])
def test_losses_are_means_and_leave_the_teacher_alone(loss):
    student, teacher = random_maps(0).requires_grad_(True), random_maps(1).requires_grad_(True)
    torch.testing.assert_close(loss(torch.cat([student] * 3), torch.cat([teacher] * 3)), loss(student, teacher))
    loss(student, teacher).backward()
    assert teacher.grad is None
    assert float(student.grad.abs().max()) > 0


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (ActivationBoundaries, {"margin": 0}, "ab: margin is 0"),
        (ActivationBoundaries, {"margin": float("nan")}, "ab: margin is nan"),
        (ActivationBoundaries, {"weight": -1}, "'ab' is -1"),
        (FeatureOverhaul, {"momentum": 0}, "ofd: momentum is 0"),
        (FeatureOverhaul, {"momentum": 1.5}, "ofd: momentum is 1.5"),
        (FeatureOverhaul, {"weight": float("inf")}, "'ofd' is inf"),
    ],
)
def test_bad_settings_are_refused(method, settings, message):
    with pytest.raises(InputError, match=message):
        method(tiny_pair(), **settings)
