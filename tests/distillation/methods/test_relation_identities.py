# SPDX-License-Identifier: Apache-2.0
"""What holds for every method that relates places, classes or regions instead of channels, whatever the features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from pipeline.distillation.method import DistillationMethod, NetworkPair, Tapped
from pipeline.distillation.methods.cc import CorrelationCongruence
from pipeline.distillation.methods.coco import CoCo
from pipeline.distillation.methods.emkd import EfficientMedical
from pipeline.distillation.methods.ifvd import IntraClassVariation
from pipeline.distillation.methods.irg import RelationshipGraph
from pipeline.distillation.methods.rkd import RelationalDistillation
from pipeline.distillation.methods.skd import PixelPairDistillation

METHODS: dict[str, Callable[..., DistillationMethod]] = {
    "coco": CoCo,
    "skd": PixelPairDistillation,
    "ifvd": IntraClassVariation,
    "emkd": EfficientMedical,
    "cc": CorrelationCongruence,
    "rkd": RelationalDistillation,
    "irg": RelationshipGraph,
}
CLASSES = 3
every_method = pytest.mark.parametrize("name", METHODS)


def build(name: str, dims: int = 2) -> DistillationMethod:
    return METHODS[name](NetworkPair(nn.Identity(), nn.Identity(), (6, 6), (4, 4), CLASSES, spatial_dims=dims))


def view(seed: int, channels: int = 4, side: int = 8, batch: int = 2, dims: int = 2) -> Tapped:
    generator = torch.Generator().manual_seed(seed)
    taps = tuple(torch.randn(batch, channels, *[side] * dims, generator=generator) for _ in range(2))
    return Tapped(taps, torch.randn(batch, CLASSES, *[16] * dims, generator=generator))


def blocks(batch: int = 2, dims: int = 2) -> torch.Tensor:
    """Return labels (B, 1, 16, ...) with three classes in bands."""
    bands = (torch.arange(16) // 6).reshape(16, *[1] * (dims - 1))
    return bands.expand(batch, 1, *[16] * dims)


def values(name: str, student: Tapped, teacher: Tapped, labels: torch.Tensor, dims: int = 2) -> dict[str, float]:
    with torch.no_grad():
        return {term: float(value) for term, value in build(name, dims)(student, teacher, labels).items()}


def free(student: Tapped) -> Tapped:
    """Return the view as leaves that collect gradients."""
    taps = tuple(tap.clone().requires_grad_() for tap in student.features)
    return Tapped(taps, student.logits.clone().requires_grad_())


def gradients(tensors: Tapped) -> list[torch.Tensor]:
    return [tensor.grad for tensor in (*tensors.features, tensors.logits) if tensor.grad is not None]


@every_method
def test_zero_at_equality_and_a_finite_gradient_there(name):
    student = free(view(0))
    terms = build(name)(student, view(0), blocks())
    sum(terms.values()).backward()
    assert all(torch.isfinite(gradient).all() for gradient in gradients(student))
    # The pixel-wise term of skd is a cross-entropy: least there, but not 0.
    assert all(
        float(value.detach()) == pytest.approx(0, abs=1e-6) for term, value in terms.items() if term != "skd_pixel"
    )


@every_method
def test_no_gradient_reaches_the_teacher(name):
    student, teacher = free(view(0)), free(view(1, channels=6))
    sum(build(name)(student, teacher, blocks()).values()).backward()
    assert gradients(teacher) == []
    assert all(gradient.abs().sum() > 0 for gradient in gradients(student))


@every_method
def test_order_and_scale_of_the_students_channels_do_not_matter(name):
    student, teacher = view(0), view(1, channels=6)
    changed = replace(student, features=tuple(3 * tap.flip(1) for tap in student.features))
    assert values(name, changed, teacher, blocks()) == pytest.approx(
        values(name, student, teacher, blocks()), rel=1e-3, abs=1e-6
    )


@every_method
def test_a_batch_repeated_gives_the_same(name):
    student, teacher = view(0), view(1)
    twice = [
        Tapped(tuple(tap.repeat(2, 1, 1, 1) for tap in of.features), of.logits.repeat(2, 1, 1, 1))
        for of in (student, teacher)
    ]
    assert values(name, *twice, blocks(4)) == pytest.approx(values(name, student, teacher, blocks()), rel=1e-3)


@every_method
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("dims", [2, 3])
def test_volumes_single_images_and_maps_of_other_sizes(name, dims, batch):
    student = free(view(0, channels=4, side=8, batch=batch, dims=dims))
    teacher = view(1, channels=6, side=6, batch=batch, dims=dims)
    terms = build(name, dims)(student, teacher, blocks(batch, dims))
    assert list(terms) == list(build(name, dims).weights)
    sum(terms.values()).backward()
    assert all(torch.isfinite(term) and term > 0 for term in terms.values())
    assert all(torch.isfinite(gradient).all() for gradient in gradients(student))


@every_method
@pytest.mark.parametrize("constant", [0.0, 1.0])
def test_flat_maps_have_finite_gradients(name, constant):
    flat = free(Tapped(tuple(torch.full((2, 4, 8, 8), constant) for _ in range(2)), torch.zeros(2, CLASSES, 16, 16)))
    terms = build(name)(flat, view(1), blocks())
    sum(terms.values()).backward()
    assert all(torch.isfinite(term) for term in terms.values())
    assert all(gradient.abs().max() < 10 for gradient in gradients(flat))


@every_method
def test_steps_down_the_gradient_lower_every_term(name):
    student, teacher, method = free(view(0)), view(1, channels=6), build(name)
    optimizer = torch.optim.Adam([*student.features, student.logits], lr=0.05)
    history = []
    for _ in range(25):
        terms = method(student, teacher, blocks())
        history.append({term: float(value.detach()) for term, value in terms.items()})
        optimizer.zero_grad()
        sum(method.weights[term] * value for term, value in terms.items()).backward()
        optimizer.step()
    assert all(history[-1][term] < 0.9 * history[0][term] for term in history[0]), history[-1]


@every_method
def test_nothing_trains_beside_the_student(name):
    assert build(name).adapter_parameters() == []
    assert build(name).training_state() == {}
