# SPDX-License-Identifier: Apache-2.0
"""The mean teacher: its average, its ramp and its loss by hand, and what it leaves alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pipeline.distillation import NetworkPair, Tapped
from pipeline.distillation.methods.mean_teacher import MeanTeacher, consistency, ramp_up
from pipeline.errors import InputError


def pair_of(student: nn.Module, steps: int = 10) -> NetworkPair:
    return NetworkPair(student, student, (1, 1), (1, 1), 2, total_steps=steps)


def constant(value: float) -> nn.Module:
    network = nn.Conv2d(1, 2, 1)
    for parameter in network.parameters():
        nn.init.constant_(parameter, value)
    return network


@pytest.mark.parametrize(("progress", "factor"), [(0, math.exp(-5)), (0.2, math.exp(-1.25)), (0.4, 1), (0.9, 1)])
def test_ramp_by_hand(progress, factor):
    assert ramp_up(progress) == pytest.approx(factor)


def test_consistency_by_hand():
    """Probabilities (3/4, 1/4) and (1/2, 1/2): each class is off by 1/4."""
    student = torch.tensor([math.log(3), 0.0]).reshape(1, 2, 1, 1)
    assert float(consistency(student, torch.zeros(1, 2, 1, 1))) == pytest.approx(1 / 16)


def test_average_by_hand():
    """Weights 0, then 1, 1, 1 with alpha 1/2, 2/3, 3/4 and 0.75 at most: 1/2, 2/3, 3/4, 13/16."""
    student = constant(0.0)
    method = MeanTeacher(pair_of(student), decay=0.75)
    nn.init.ones_(student.weight)
    seen = Tapped((), torch.zeros(1, 2, 1, 1), torch.zeros(1, 1, 1, 1))
    for expected in (1 / 2, 2 / 3, 3 / 4, 13 / 16):
        method.after_step(seen, seen)
        assert method.average.weight.detach().flatten().tolist() == pytest.approx([expected, expected])
    assert student.weight.detach().flatten().tolist() == [1, 1]


def test_term_compares_the_student_with_the_average_of_the_uncut_images():
    student = constant(1.0)
    method = MeanTeacher(pair_of(student))
    images = torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1)
    swapped = Tapped((), torch.zeros(2, 2, 1, 1), images, cut=lambda maps: maps.flip(0))
    with torch.no_grad():
        logits = torch.stack([student(images)[1], torch.zeros(2, 1, 1)])
    term = method(Tapped((), logits, images), swapped, torch.zeros(2, 1, 1, 1))["mean_teacher"]
    averages = method.average(images).flip(0)
    torch.testing.assert_close(term, ramp_up(0) * consistency(logits, averages))


def test_gradient_is_the_students_alone_and_nothing_is_trained_beside_it():
    student = constant(1.0)
    method = MeanTeacher(pair_of(student))
    images = torch.rand(2, 1, 4, 4)
    view = Tapped((), 3 * student(images) * torch.tensor([1.0, -1.0]).reshape(1, 2, 1, 1), images)
    method(view, view.detach(), torch.zeros(2, 1, 4, 4))["mean_teacher"].backward()
    assert student.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in method.average.parameters())
    assert method.adapter_parameters() == []


def test_state_brings_average_and_ramp_back():
    student = constant(0.0)
    method, other = MeanTeacher(pair_of(student)), MeanTeacher(pair_of(constant(5.0)))
    nn.init.ones_(student.weight)
    seen = Tapped((), torch.zeros(1, 2, 1, 1), torch.zeros(1, 1, 1, 1))
    method.after_step(seen, seen)
    other.load_training_state(method.training_state())
    assert other.steps == 1
    torch.testing.assert_close(other.average.weight, method.average.weight)


@pytest.mark.parametrize("decay", [-0.1, 1.0, "much"])
def test_decay_out_of_range_is_refused(decay):
    with pytest.raises(InputError, match="mean_teacher: decay is"):
        MeanTeacher(pair_of(constant(0.0)), decay=decay)
