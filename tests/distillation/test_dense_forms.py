# SPDX-License-Identifier: Apache-2.0
"""What every method here must do in a run, whatever its formula: images and volumes, one image, learning, resume."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.distillation import Distiller
from pipeline.distillation.method import DistillationMethod, NetworkPair
from pipeline.distillation.methods.ab import ActivationBoundaries
from pipeline.distillation.methods.afd import AttentiveFeatures
from pipeline.distillation.methods.bss import BoundarySamples
from pipeline.distillation.methods.crd import ContrastiveRepresentation
from pipeline.distillation.methods.dml import MutualLearning
from pipeline.distillation.methods.logits_mse import LogitsMatching
from pipeline.distillation.methods.lwm import LearningWithoutMemorizing
from pipeline.distillation.methods.ofd import FeatureOverhaul
from pipeline.distillation.methods.sobolev import SobolevTraining
from tests.distillation.tiny_pair import TinyNetwork, equal_pair, tiny_batch, tiny_pair, views

METHODS: dict[str, type[DistillationMethod]] = {
    "ab": ActivationBoundaries,
    "afd": AttentiveFeatures,
    "bss": BoundarySamples,
    "crd": ContrastiveRepresentation,
    "dml": MutualLearning,
    "logits_mse": LogitsMatching,
    "lwm": LearningWithoutMemorizing,
    "ofd": FeatureOverhaul,
    "sobolev": SobolevTraining,
}
named = pytest.mark.parametrize("name", METHODS)


def term_of(method: DistillationMethod, pair: NetworkPair, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(0)  # of what lwm draws
    (term,) = method(*views(pair, images), labels).values()
    return term


@named
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_distiller_runs_it_and_the_student_alone_learns(name, spatial_dims):
    pair, (images, labels) = tiny_pair(spatial_dims), tiny_batch(spatial_dims)
    method = METHODS[name](pair).double()
    distiller = Distiller(pair.teacher, pair.student, {name: method}).train()
    terms = distiller(images, labels, pair.student(images))
    assert list(terms) == list(distiller.weights) == [name]
    distiller.total(terms).backward()
    gradients = [parameter.grad for parameter in (*pair.student.parameters(), *distiller.adapter_parameters())]
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients if gradient is not None)
    assert float(pair.student.shallow[0].weight.grad.abs().max()) > 0
    assert all(parameter.grad is not None for parameter in distiller.adapter_parameters())
    assert all(parameter.grad is None for parameter in pair.teacher.parameters())
    distiller.after_step()


@named
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_single_image_and_taps_of_another_size_serve(name, spatial_dims):
    pair, (images, labels) = tiny_pair(spatial_dims), tiny_batch(spatial_dims, batch=1)
    student, teacher = views(pair, images)
    halved = tuple(
        nn.functional.avg_pool2d(tap, 2) if spatial_dims == 2 else tap[:, :, ::2] for tap in student.features
    )
    term = METHODS[name](pair).double()(type(student)(halved, student.logits, images), teacher, labels)[name]
    term.backward()
    assert bool(torch.isfinite(term))
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in pair.student.parameters())


@named
def test_gradients_are_finite_where_student_and_teacher_are_equal(name):
    pair, (images, labels) = equal_pair(), tiny_batch()
    term_of(METHODS[name](pair).double(), pair, images, labels).backward()
    gradients = [parameter.grad for parameter in pair.student.parameters() if parameter.grad is not None]
    assert gradients
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


@named
def test_a_dead_student_gets_a_finite_gradient(name):
    """All weights zero: features without a direction, logits without a gradient by the image."""
    pair, (images, labels) = tiny_pair(), tiny_batch()
    for parameter in pair.student.parameters():
        nn.init.zeros_(parameter)
    term = term_of(METHODS[name](pair).double(), pair, images, labels)
    term.backward()
    assert bool(torch.isfinite(term))
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in pair.student.parameters())


@named
def test_learning_lowers_the_term(name):
    pair, (images, labels) = tiny_pair(), tiny_batch()
    method = METHODS[name](pair).double()
    optimizer = torch.optim.Adam([*pair.student.parameters(), *method.adapter_parameters()], lr=0.02)
    values = []
    for _ in range(20):
        optimizer.zero_grad()
        term = term_of(method, pair, images, labels)
        term.backward()
        optimizer.step()
        values.append(float(term.detach()))
    assert min(values[-3:]) < 0.9 * values[0]


@named
def test_a_resumed_method_gives_the_same_term(name):
    pair, (images, labels) = tiny_pair(), tiny_batch()
    first, second = (METHODS[name](pair).double() for _ in range(2))
    term_of(first, pair, images, labels)
    second.load_training_state(first.training_state())
    values = [term_of(method, pair, images, labels) for method in (first, second)]
    torch.testing.assert_close(values[0], values[1])


@named
def test_networks_are_no_part_of_the_method(name):
    pair = tiny_pair()
    method = METHODS[name](pair)
    parts = {id(part) for part in method.modules()}
    assert not parts & {id(part) for network in (pair.student, pair.teacher) for part in network.modules()}


def test_the_tiny_network_is_of_both_dimensions():
    assert TinyNetwork((2, 2), 3, 3)(torch.zeros(2, 1, 4, 4, 4)).shape == (2, 3, 4, 4, 4)
