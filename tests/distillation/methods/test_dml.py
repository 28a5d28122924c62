# SPDX-License-Identifier: Apache-2.0
"""Mutual learning: the peer's start, its step, and that neither learns through the other."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from pipeline.distillation import build_distiller, needs_teacher
from pipeline.distillation.methods.dml import MutualLearning, untrained_copy
from pipeline.errors import InputError
from pipeline.networks import build_network
from pipeline.training import segmentation_loss
from tests.distillation.tiny_pair import tiny_batch, tiny_pair, views

OPTIONS = {
    "fanet": {"width": 0.25},
    "monai.networks.nets.DynUNet": {"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2]},
}


def state_of(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(network.state_dict())


def test_the_peer_starts_elsewhere_and_leaves_the_student_alone():
    network, (images, _) = tiny_pair().student, tiny_batch()
    network(images)
    before = state_of(network)
    peer = untrained_copy(network.eval().requires_grad_(False))
    assert peer.training
    assert all(parameter.requires_grad for parameter in peer.parameters())
    assert not torch.equal(peer.head.weight, network.head.weight)
    assert float(peer.deep[1].running_mean.abs().max()) == 0
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


@pytest.mark.parametrize("name", ["mobile_unet", "fanet", "monai.networks.nets.DynUNet"])
def test_the_peer_of_a_network_by_name_starts_by_its_own_initialisation(name):
    """What is constant at a network's start is the same in its peer; all else is another draw of the same spread."""
    torch.manual_seed(0)
    network = build_network(name, **OPTIONS.get(name, {}))
    peer = untrained_copy(network)
    for mine, theirs in zip(network.parameters(), peer.parameters(), strict=True):
        if mine.numel() >= 2000:
            assert not torch.equal(mine, theirs)
            torch.testing.assert_close(theirs.std(), mine.std(), rtol=0.15, atol=0)
        elif mine.numel() > 1 and mine.min() == mine.max():
            assert torch.equal(mine, theirs)


def test_both_terms_are_those_written_down():
    """KL(peer || student) for the student, cross-entropy + KL(student || peer) for the peer, means over pixels."""
    pair, (images, labels) = tiny_pair(), tiny_batch()
    method, (student, teacher) = MutualLearning(pair), views(pair, images)
    twin = copy.deepcopy(method.peer)
    term = method(student, teacher, labels)["dml"]
    theirs, mine = twin(images).softmax(dim=1), student.logits.softmax(dim=1)
    torch.testing.assert_close(term.double(), (theirs * (theirs / mine).log()).sum(dim=1).mean(), rtol=1e-5, atol=0)
    expected = (mine * (mine / theirs).log()).sum(dim=1).mean() - theirs.gather(1, labels).log().mean()
    logged = method.after_step(student.detach(), teacher)["dml_peer"]
    torch.testing.assert_close(logged.double(), expected.detach(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("settings", [{}, {"learning_rate": 0.01}])
def test_the_peers_step_has_the_runs_loss_rate_and_decay(settings):
    run = {"segmentation_loss": segmentation_loss("dice_ce"), "learning_rate": 0.02, "weight_decay": 0.1}
    pair, (images, labels) = replace(tiny_pair(), **run), tiny_batch()
    method, (student, teacher) = MutualLearning(pair, **settings), views(pair, images)
    twin = copy.deepcopy(method.peer)
    optimizer = torch.optim.Adam(twin.parameters(), lr=settings.get("learning_rate", 0.02), weight_decay=0.1)
    logits = twin(images)
    loss = segmentation_loss("dice_ce")(logits, labels) + method.loss(logits, student.logits.detach())
    loss.backward()
    optimizer.step()
    method(student, teacher, labels)
    method.after_step(student.detach(), teacher)
    for found, expected in zip(method.peer.state_dict().values(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(found, expected)


def test_neither_learns_through_the_other():
    pair, (images, labels) = tiny_pair(), tiny_batch()
    method, (student, teacher) = MutualLearning(pair), views(pair, images)
    method(student, teacher, labels)["dml"].backward()
    assert all(parameter.grad is None for parameter in method.peer.parameters())
    gradients = [parameter.grad.clone() for parameter in pair.student.parameters()]
    method.after_step(student, teacher)
    assert all(torch.equal(*both) for both in zip(gradients, (p.grad for p in pair.student.parameters()), strict=True))
    assert method.adapter_parameters() == []
    assert not {id(part) for part in method.modules()} & {id(part) for part in pair.student.modules()}


def test_no_teacher_is_needed_and_none_is_run():
    pair, (images, labels) = tiny_pair(), tiny_batch()
    distiller = build_distiller("dml", None, pair.student, 3, 1)
    distiller.teacher.register_forward_hook(lambda *_: pytest.fail("the teacher was run"))
    terms = distiller(images, labels, pair.student(images))
    distiller.total(terms).backward()
    assert float(terms["dml"].detach()) > 0
    assert distiller.after_step()["dml_peer"] > 0
    assert not needs_teacher({"method": "dml"})
    assert needs_teacher({"methods": {"dml": 1, "kd": 1}})


def test_the_peer_learns_the_labels_and_its_rate_falls_to_zero():
    pair, (images, labels) = tiny_pair(), tiny_batch()
    pair = replace(pair, total_steps=30)
    method, (student, teacher) = MutualLearning(pair, learning_rate=0.03), views(pair, images)
    losses = []
    for _ in range(30):
        method(student, teacher, labels)
        losses.append(float(method.after_step(student.detach(), teacher)["dml_peer"]))
    assert losses[-1] < 0.9 * losses[0]
    assert method.optimizer.param_groups[0]["lr"] == 0


def test_a_step_without_a_forward_does_nothing():
    pair, (images, labels) = tiny_pair(), tiny_batch()
    method, (student, teacher) = MutualLearning(pair), views(pair, images)
    method(student, teacher, labels)
    assert method.after_step(student, teacher)
    before = state_of(method.peer)
    assert method.after_step(student, teacher) == {}
    assert all(torch.equal(before[name], value) for name, value in method.peer.state_dict().items())


def test_a_resumed_peer_goes_on_as_if_it_had_never_stopped():
    pair, (images, labels) = tiny_pair(), tiny_batch()
    methods = [MutualLearning(pair), MutualLearning(pair)]
    student, teacher = views(pair, images)

    def step(method: MutualLearning) -> float:
        method(student, teacher, labels)
        return float(method.after_step(student.detach(), teacher)["dml_peer"])

    step(methods[0])
    methods[1].load_training_state(copy.deepcopy(methods[0].training_state()))
    assert [step(methods[0]) for _ in range(2)] == [step(methods[1]) for _ in range(2)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"learning_rate": 0}, "dml: learning_rate is 0"), ({"weight": -1}, "'dml' is -1")],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        MutualLearning(tiny_pair(), **settings)
