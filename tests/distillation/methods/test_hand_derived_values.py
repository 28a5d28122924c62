# SPDX-License-Identifier: Apache-2.0
"""Logits and adversarial distillation, taps, and the distiller that joins them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.distillation import (
    AdversarialDistillation,
    FeatureTaps,
    KnowledgeDistillation,
    KnowledgeDistillationLoss,
    Tapped,
    build_distiller,
    discriminator_loss,
    gradient_penalty,
    graph_flow_preset,
)
from pipeline.distillation.discriminator import Discriminator
from pipeline.errors import InputError
from pipeline.networks import Paraphraser, build_network


def test_kd_loss_by_hand():
    """One pixel, teacher (0.8, 0.2), student (0.5, 0.5), temperature 1: KL = .8 ln 1.6 + .2 ln .4."""
    teacher, student = torch.tensor([0.8, 0.2]).log().reshape(1, 2, 1, 1), torch.zeros(1, 2, 1, 1)
    expected = 0.8 * torch.tensor(1.6).log() + 0.2 * torch.tensor(0.4).log()
    torch.testing.assert_close(KnowledgeDistillationLoss(1.0, balance=0)(student, teacher), expected)


def test_kd_loss_is_a_mean_over_pixels_and_scaled_by_the_squared_temperature():
    teacher, student = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4)
    loss = KnowledgeDistillationLoss(1.0, balance=0)
    torch.testing.assert_close(loss(student.repeat(2, 1, 1, 2), teacher.repeat(2, 1, 1, 2)), loss(student, teacher))
    torch.testing.assert_close(
        KnowledgeDistillationLoss(4.0, balance=0)(student, teacher), 16 * loss(student / 4, teacher / 4)
    )
    assert float(loss(teacher, teacher)) == pytest.approx(0, abs=1e-7)


def test_kd_loss_leaves_the_teacher_without_gradient():
    teacher, student = torch.randn(1, 3, 2, 2, requires_grad=True), torch.randn(1, 3, 2, 2, requires_grad=True)
    KnowledgeDistillationLoss()(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(InputError, match="temperature"):
        KnowledgeDistillationLoss(temperature)


class Slope(nn.Module):
    """D(x) = a x summed over channels and pixels, so that its gradient and penalty are known."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return self.slope * logits.sum(dim=1, keepdim=True)


def test_gradient_penalty_by_hand():
    real, fake = (
        torch.randn(3, 2, 2, 2),
        torch.randn(3, 2, 2, 2),
    )  # the gradient is 2 in each of 8 places: norm 2 sqrt 8
    torch.testing.assert_close(gradient_penalty(Slope(2.0), real, fake), torch.tensor((2 * 8**0.5 - 1) ** 2))


def test_hinge_and_wasserstein_losses_by_hand():
    real, fake = torch.full((1, 1, 1, 1), 0.5), torch.full((1, 1, 1, 1), -2.0)
    assert float(discriminator_loss(Slope(1.0), real, fake, "hinge")) == pytest.approx(
        0.5
    )  # relu(1 - .5) + relu(1 - 2)
    assert float(discriminator_loss(Slope(1.0), real, fake, "wgan-gp")) == pytest.approx(-2.5)  # gradient 1: no penalty


@pytest.mark.parametrize("kind", ["wgan-gp", "hinge"])
def test_discriminator_learns_to_tell_teacher_from_student(kind):
    torch.manual_seed(0)
    method = AdversarialDistillation(Discriminator(2), total_steps=100, kind=kind)
    for group in method.optimizer.param_groups:
        group["lr"] = 1e-3
    student, teacher = (Tapped((), torch.randn(2, 2, 64, 64) + shift) for shift in (-1.0, 1.0))
    losses = [float(method.after_step(student, teacher)["discriminator"]) for _ in range(3)]
    assert losses[-1] < losses[0]


def test_discriminator_is_frozen_in_the_students_step():
    method = AdversarialDistillation(Discriminator(2), total_steps=10)
    logits = torch.randn(2, 2, 64, 64, requires_grad=True)
    view = Tapped((), logits)
    method(view, view, torch.zeros(1))["adversarial"].backward()
    assert logits.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in method.discriminator.parameters())


def test_adversary_state_survives_saving():
    torch.manual_seed(0)
    first, second = (AdversarialDistillation(Discriminator(2), total_steps=10) for _ in range(2))
    student, teacher = (Tapped((), torch.randn(2, 2, 64, 64)) for _ in range(2))
    first.after_step(student, teacher)
    second.load_training_state(first.training_state())
    losses = []
    for method in (first, second):
        torch.manual_seed(1)
        losses.append(float(method.after_step(student, teacher)["discriminator"]))
    assert losses[0] == losses[1]


def test_unknown_tap_lists_the_nearest_names():
    with pytest.raises(InputError, match="no module 'encoder9' to tap"):
        FeatureTaps(build_network("enet"), ["encoder9"])


def test_taps_are_taken_once_and_removed():
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU())
    taps = FeatureTaps(network, ["0"])
    output = network(torch.randn(1, 1, 4, 4))
    torch.testing.assert_close(taps.take()[0].relu(), output)
    with pytest.raises(RuntimeError, match="did not run"):
        taps.take()
    taps.remove()
    network(torch.randn(1, 1, 4, 4))
    with pytest.raises(RuntimeError, match="did not run"):
        taps.take()


def test_student_distilled_from_an_identical_teacher_has_zero_graph_and_kd_loss():
    torch.manual_seed(0)
    teacher, student = build_network("enet", out_channels=3), build_network("enet", out_channels=3)
    student.load_state_dict(teacher.state_dict())
    for preset in ("paper", "bounded"):
        distiller = build_distiller("graph_flow", teacher, student.eval(), 3, total_steps=1, preset=preset)
        images = torch.randn(2, 1, 64, 64)
        terms = distiller(images, torch.zeros(2, 1, 64, 64), student(images))
        assert terms["vertices"] == terms["edges"] == 0
        assert float(terms["kd"]) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("preset", ["paper", "bounded"])
def test_distillation_trains_the_student_and_nothing_of_the_teacher(preset):
    torch.manual_seed(0)
    teacher = build_network("fanet", out_channels=3, width=0.125)
    student = build_network("mobile_unet", out_channels=3)
    paraphrasers = tuple(Paraphraser(channels, 24) for channels in teacher.tap_channels)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    distiller = build_distiller("graph_flow", teacher, student, 3, 10, paraphrasers, preset).train()
    images = torch.randn(2, 1, 64, 64)
    terms = distiller(images, torch.zeros(2, 1, 64, 64), student(images))
    judged = {"adversarial"} if preset == "paper" else set()  # the other leaves the discriminator out
    assert set(terms) == {"kd", "vertices", "edges"} | judged
    assert all(torch.isfinite(term) for term in terms.values())
    distiller.total(terms).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is None for paraphraser in paraphrasers for parameter in paraphraser.parameters())
    assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in student.parameters())
    assert set(distiller.after_step()) == ({"discriminator"} if judged else set())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_total_is_the_weighted_sum():
    teacher, student = build_network("enet"), build_network("enet")
    distiller = build_distiller("graph_flow", teacher, student, 2, total_steps=1, preset="paper")
    terms = {name: torch.tensor(1.0) for name in ("vertices", "edges", "adversarial", "kd")}
    assert float(distiller.total(terms)) == pytest.approx(1e-5 + 1e-9 + 0.1 + 1)


def test_kd_alone_has_one_term():
    distiller = build_distiller("kd", build_network("enet"), build_network("erfnet"), 2, total_steps=1)
    assert list(distiller.weights) == ["kd"]


def test_weight_zero_of_the_adversary_leaves_it_out():
    networks = build_network("enet"), build_network("enet")
    distiller = build_distiller("graph_flow", *networks, 2, total_steps=1, settings={"adversarial": 0})
    assert "adversarial" not in distiller.weights


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "graphflow"}, "did you mean 'graph_flow'"),
        ({"preset": "papr"}, "unknown graph flow preset"),
        ({"settings": {"edgs": 1}}, "did you mean 'edges'"),
        ({"paraphrasers": None}, "train paraphrasers"),
        ({"paraphrasers": (Paraphraser(32, 24), Paraphraser(32, 24))}, "for this pair"),
    ],
)
def test_bad_settings_end_in_one_clear_line(change, message):
    teacher, student = build_network("fanet", width=0.125), build_network("enet")
    arguments = {
        "method": "graph_flow",
        "teacher": teacher,
        "student": student,
        "out_channels": 2,
        "total_steps": 1,
        "paraphrasers": (Paraphraser(teacher.tap_channels[0], 64), Paraphraser(teacher.tap_channels[1], 64)),
    }
    with pytest.raises(InputError, match=message):
        build_distiller(**{**arguments, **change})


def test_preset_weights_are_the_published_ones():
    paper = graph_flow_preset("paper")
    assert (paper.vertices, paper.edges, paper.adversarial, paper.kd) == (1e-5, 1e-9, 0.1, 1.0)
    assert (paper.edge, paper.reduction) == ("dot", "sum")


def test_kd_names_its_term():
    view = Tapped((), torch.randn(1, 2, 4, 4))
    assert list(KnowledgeDistillation(None)(view, view, torch.zeros(1, 1, 4, 4))) == ["kd"]


def test_balanced_kd_by_hand():
    """Three pixels of class 0 where both agree, one of class 1 with KL = d: the mean is d / 4, balanced d / 2."""
    teacher, student = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)
    teacher[0, 1, 1, 1] = 3.0
    labels = torch.tensor([0, 0, 0, 1]).reshape(1, 1, 2, 2)
    plain = KnowledgeDistillationLoss(1.0, balance=0)(student, teacher, labels)
    balanced = KnowledgeDistillationLoss(1.0, balance=1)(student, teacher, labels)
    torch.testing.assert_close(balanced, 2 * plain)
    halfway = KnowledgeDistillationLoss(1.0, balance=0.5)(student, teacher, labels)
    # Class 1 has sqrt(1/4) of sqrt(1/4) + sqrt(3/4), where the plain mean gives it 1/4.
    torch.testing.assert_close(halfway, 4 * plain / (1 + 3**0.5))


def test_balanced_kd_takes_the_teachers_classes_where_there_is_no_label():
    teacher, student = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    loss = KnowledgeDistillationLoss(balance=1)
    unlabelled = torch.full((2, 1, 4, 4), -1)
    torch.testing.assert_close(loss(student, teacher, unlabelled), loss(student, teacher))
    torch.testing.assert_close(loss(student, teacher), loss(student, teacher, teacher.argmax(dim=1, keepdim=True)))
