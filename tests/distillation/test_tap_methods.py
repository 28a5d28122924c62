# SPDX-License-Identifier: Apache-2.0
"""What holds for every method that compares taps: equality, dimensions, batches, dead channels, learning."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.distillation.method import DistillationMethod, NetworkPair, Tapped
from pipeline.distillation.methods.at import AttentionTransfer
from pipeline.distillation.methods.fitnet import FitNet
from pipeline.distillation.methods.fsp import FlowOfSolution
from pipeline.distillation.methods.ft import FactorTransfer
from pipeline.distillation.methods.nst import NeuronSelectivity
from pipeline.distillation.methods.pkt import ProbabilisticTransfer
from pipeline.distillation.methods.sp import SimilarityPreserving
from pipeline.distillation.methods.vid import VariationalInformation
from pipeline.errors import InputError

METHODS = {
    "at": AttentionTransfer,
    "fitnet": FitNet,
    "fsp": FlowOfSolution,
    "ft": FactorTransfer,
    "nst": NeuronSelectivity,
    "pkt": ProbabilisticTransfer,
    "sp": SimilarityPreserving,
    "vid": VariationalInformation,
}
DISTANCES = sorted(METHODS.keys() - {"ft", "vid"})  # those two put trained layers before the comparison
LABELS = torch.zeros(1)


def pair(student: int = 4, teacher: int = 4, dims: int = 2) -> NetworkPair:
    return NetworkPair(nn.Identity(), nn.Identity(), (teacher, teacher), (student, student), 2, spatial_dims=dims)


def view(seed: int, channels: int = 4, size: int = 8, batch: int = 2, dims: int = 2) -> Tapped:
    generator = torch.Generator().manual_seed(seed)
    features = (torch.randn(batch, channels, *[size] * dims, generator=generator).relu() for _ in range(2))
    return Tapped(tuple(features), torch.zeros(batch, 2, *[size] * dims))


def leaves(view: Tapped) -> Tapped:
    return Tapped(tuple(feature.clone().requires_grad_() for feature in view.features), view.logits)


def built(name: str, *args: int, **settings: object) -> DistillationMethod:
    torch.manual_seed(0)
    return METHODS[name](pair(*args), **settings)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_one_term_under_the_name_of_the_method(name):
    method = built(name, weight=2.0)
    assert method.weights == {name: 2.0}
    assert list(method(view(0), view(1), LABELS)) == [name]


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("dims", [2, 3])
def test_zero_with_finite_gradient_where_student_and_teacher_are_equal(name, dims):
    student = leaves(view(0, dims=dims))
    term = built(name, 4, 4, dims)(student, view(0, dims=dims), LABELS)[name]
    term.backward()
    assert float(term.detach()) == pytest.approx(0, abs=1e-6)
    assert all(feature.grad.abs().max() < 1e-3 for feature in student.features)


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("sizes", [(8, 4), (4, 8), (3, 2)])
def test_other_channels_and_sizes_in_images_and_volumes(name, dims, sizes):
    channels = 4 if name == "ft" else 6
    student, teacher = leaves(view(0, 4, sizes[0], dims=dims)), leaves(view(1, channels, sizes[1], dims=dims))
    term = built(name, 4, channels, dims)(student, teacher, LABELS)[name]
    term.backward()
    assert term.shape == ()
    assert float(term.detach()) > 0
    for of_student, of_teacher in zip(student.features, teacher.features, strict=True):
        assert of_student.grad.isfinite().all()
        assert of_student.grad.abs().sum() > 0
        assert of_teacher.grad is None


@pytest.mark.parametrize("name", sorted(METHODS))
def test_batch_of_one_in_one_region(name):
    settings = {"grid": 1} if name in ("pkt", "sp") else {}
    student = leaves(view(0, batch=1))
    term = built(name, **settings)(student, view(1, batch=1), LABELS)[name]
    term.backward()
    assert term.isfinite()
    assert student.features[0].grad.isfinite().all()


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_batch_seen_twice_counts_once(name):
    method = built(name)
    twice = [
        Tapped(tuple(feature.repeat(2, 1, 1, 1) for feature in one.features), one.logits) for one in (view(0), view(1))
    ]
    torch.testing.assert_close(method(*twice, LABELS)[name], method(view(0), view(1), LABELS)[name])


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("dead", ["student", "teacher", "both"])
def test_dead_features_give_finite_terms_and_bounded_gradients(name, dead):
    student, teacher = view(0), view(1)
    zero = Tapped(tuple(torch.zeros_like(feature) for feature in student.features), student.logits)
    student, teacher = leaves(student if dead == "teacher" else zero), teacher if dead == "student" else zero
    term = built(name)(student, teacher, LABELS)[name]
    term.backward()
    assert term.isfinite()
    assert all(feature.grad.abs().max() < 10 for feature in student.features)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_dead_channel_beside_living_ones_gets_a_bounded_gradient(name):
    student = view(0)
    for feature in student.features:
        feature[:, 0] = 0
    student = leaves(student)
    built(name)(student, view(1), LABELS)[name].backward()
    assert all(feature.grad.abs().max() < 10 for feature in student.features)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_few_steps_lower_the_term(name):
    method, student, teacher = built(name), leaves(view(0)), view(1)
    optimizer = torch.optim.Adam([*student.features, *method.adapter_parameters()], lr=0.05)
    terms = []
    for _ in range(30):
        optimizer.zero_grad()
        term = method(student, teacher, LABELS)[name]
        term.backward()
        optimizer.step()
        terms.append(float(term.detach()))
    assert terms[-1] < 0.9 * terms[0]


@pytest.mark.parametrize("name", ["fitnet", "ft", "vid"])
def test_trained_parts_survive_saving(name):
    channels = 4 if name == "ft" else 6
    torch.manual_seed(0)
    first, second = (METHODS[name](pair(4, channels)) for _ in range(2))
    views = view(0), view(1, channels)
    assert first(*views, LABELS)[name] != second(*views, LABELS)[name]
    second.load_training_state(first.training_state())
    assert first(*views, LABELS)[name] == second(*views, LABELS)[name]


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("weight", [-1.0, float("nan")])
def test_bad_weight_is_refused(name, weight):
    with pytest.raises(InputError, match=f"'{name}'"):
        built(name, weight=weight)
