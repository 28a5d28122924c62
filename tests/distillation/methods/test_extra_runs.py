# SPDX-License-Identifier: Apache-2.0
"""The methods that run the networks again: gradients of images, boundary samples and Grad-CAM, by hand and by rule."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from pipeline.distillation.method import Tapped
from pipeline.distillation.methods.bss import BoundarySamples, boundary_images, remaining_gap
from pipeline.distillation.methods.extra_runs import check_twice_differentiable, run_again, seen_images
from pipeline.distillation.methods.kd import KnowledgeDistillationLoss
from pipeline.distillation.methods.lwm import LearningWithoutMemorizing, class_maps, drawn_classes, map_distance
from pipeline.distillation.methods.sobolev import SobolevTraining, gradient_distance, image_gradient
from pipeline.errors import InputError
from pipeline.unlabelled import UNLABELLED
from tests.distillation.tiny_pair import Pointwise, equal_pair, pair_of, tiny_batch, tiny_pair, views

METHODS = (SobolevTraining, BoundarySamples, LearningWithoutMemorizing)


def row(*values: float) -> torch.Tensor:
    """One image with one channel and a row of values."""
    return torch.tensor(values, dtype=torch.float64).reshape(1, 1, 1, -1)


# --- running a network again ------------------------------------------------------------------------------------------


def test_another_run_gives_the_same_and_leaves_the_network_as_it_was():
    pair, (images, _) = tiny_pair(), tiny_batch()
    logits = pair.student(images)
    before = copy.deepcopy(pair.student.state_dict())
    torch.testing.assert_close(run_again(pair, pair.student, images), logits)  # by the batch's statistics, as at first
    assert all(torch.equal(before[name], value) for name, value in pair.student.state_dict().items())
    pair.student(images)
    assert not torch.equal(before["deep.1.running_mean"], pair.student.state_dict()["deep.1.running_mean"])


def test_batch_norms_without_statistics_stay_without_and_a_failure_undoes_the_change():
    pair, (images, _) = tiny_pair(), tiny_batch()
    pair.student.shallow[1].track_running_stats = False
    with pytest.raises(RuntimeError):
        run_again(pair, pair.student, images[:, :, 0])
    assert not pair.student.shallow[1].track_running_stats
    assert pair.student.deep[1].track_running_stats


@pytest.mark.parametrize("method", METHODS)
def test_no_method_changes_a_network_or_its_mode(method):
    pair, (images, labels) = tiny_pair(), tiny_batch()
    both = views(pair, images)
    before = [copy.deepcopy(network.state_dict()) for network in (pair.student, pair.teacher)]
    hooks = [len(module._forward_hooks) for module in pair.student.modules()]
    sum(method(pair)(*both, labels).values()).backward()
    for network, state in zip((pair.student, pair.teacher), before, strict=True):
        assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in pair.teacher.parameters())
    assert pair.student.training
    assert not pair.teacher.training
    assert hooks == [len(module._forward_hooks) for module in pair.student.modules()]
    assert not images.requires_grad


def test_views_without_images_are_refused():
    with pytest.raises(RuntimeError, match="images"):
        seen_images(Tapped((), torch.zeros(1)))


def test_shared_batch_norm_of_several_processes_is_refused(monkeypatch):
    network = nn.Sequential(nn.SyncBatchNorm(2))
    check_twice_differentiable("sobolev", network)
    monkeypatch.setattr("pipeline.distillation.methods.extra_runs.world_size", lambda: 2)
    with pytest.raises(InputError, match="sobolev differentiates the student twice"):
        check_twice_differentiable("sobolev", network)
    check_twice_differentiable("sobolev", nn.Sequential(nn.BatchNorm2d(2)))


# --- sobolev ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("weight", "cosine"), [(1, 6 / 68**0.5), (-1, -6 / 68**0.5)])
def test_sobolev_by_hand(weight, cosine):
    """Pixels 1, -1 and 2, teacher logits (3 x, -4 x): classes 0, 1 and 0, gradient (3, -4, 3) of length sqrt 34.

    The student's logits (x, 0) give (1, 0, 1) for the same classes, of length sqrt 2: the cosine is 6 / sqrt 68, and
    unit vectors are 2 - 2 cosine apart. Its logits (-x, 0) give the opposite, whatever its own classes would be.
    """
    pair = pair_of(Pointwise(weight, 0), Pointwise(3, -4), 2)
    both = views(pair, row(1, -1, 2))
    assert float(SobolevTraining(pair)(*both, torch.zeros(1))["sobolev"].detach()) == pytest.approx(2 - 2 * cosine)


def test_sobolev_differentiates_the_gradient():
    """The derivative by each of the student's weights is that of finite differences."""
    pair = pair_of(Pointwise(1, 0.5), Pointwise(3, -4), 2)
    both, method = views(pair, row(1, -1, 2)), SobolevTraining(pair)
    method(*both, torch.zeros(1))["sobolev"].backward()
    for index in range(2):
        values = []
        for change in (1e-5, -1e-5):
            moved = [1, 0.5]
            moved[index] += change
            other = pair_of(Pointwise(*moved), pair.teacher, 2)
            values.append(float(SobolevTraining(other)(*both, torch.zeros(1))["sobolev"].detach()))
        assert float(pair.student.weights.grad[index]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4)


def test_image_gradient_is_that_of_finite_differences():
    network, (images, classes) = tiny_pair().teacher, tiny_batch(batch=1, side=4)
    images.requires_grad_(True)
    found = image_gradient(network(images), images, classes, create_graph=False)
    for place in ((0, 0, 1, 2), (0, 0, 3, 0)):
        nudge = torch.zeros_like(images)
        nudge[place] = 1e-5
        difference = (network(images + nudge) - network(images - nudge)).gather(1, classes).sum() / 2e-5
        assert float(found[place]) == pytest.approx(float(difference), rel=1e-5)


def test_gradient_distance_knows_directions_and_counts_an_empty_gradient_as_zero():
    student, teacher = torch.randn(2, 1, 3, 3).double(), torch.randn(2, 1, 3, 3).double()
    torch.testing.assert_close(gradient_distance(9 * student, 0.1 * teacher), gradient_distance(student, teacher))
    assert float(gradient_distance(teacher, teacher)) == pytest.approx(0)
    assert float(gradient_distance(-teacher, teacher)) == pytest.approx(4)
    nothing = torch.zeros(2, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    loss = gradient_distance(nothing, teacher.requires_grad_(True))
    loss.backward()
    assert teacher.grad is None
    assert float(loss.detach()) == pytest.approx(1)
    assert bool(torch.isfinite(nothing.grad).all())


# --- bss --------------------------------------------------------------------------------------------------------------


def test_boundary_images_by_hand():
    """Logits (x / 2, -x / 2) at pixels 1 and -1, which have deviation 1: the gap is tanh(x / 2) at both.

    Its gradient points outwards equally, so that one step of 0.1 takes 0.1 tanh(0.5) off both.
    """
    network, images = Pointwise(0.5, -0.5).requires_grad_(False), row(1, -1)
    first = 1 - 0.1 * math.tanh(0.5)
    second = first - 0.1 * math.tanh(first / 2)
    for steps, expected in ((1, first), (2, second)):
        moved = boundary_images(network, images, network(images), steps, step=0.1)
        torch.testing.assert_close(moved, row(expected, -expected))


def test_boundary_images_stop_beyond_the_boundary_and_in_their_range():
    """A step of 10 passes the boundary and ends at the far end of the image's range; the next finds no gap."""
    network, images = Pointwise(0.5, -0.5).requires_grad_(False), row(1, -1)
    for steps in (1, 4):
        torch.testing.assert_close(boundary_images(network, images, network(images), steps, step=10), row(-1, 1))


def test_boundary_images_come_closer_to_the_boundary():
    network, (images, _) = tiny_pair().teacher, tiny_batch(batch=3)
    logits = network(images)
    sides = logits.topk(2, dim=1).indices.split(1, dim=1)
    gaps = [
        remaining_gap(network(boundary_images(network, images, logits, steps, step=0.05)), *sides).mean(dim=1)
        for steps in (1, 2, 4)
    ]
    gaps = torch.stack([remaining_gap(logits, *sides).mean(dim=1), *gaps])
    assert bool((gaps.diff(dim=0) < 0).all())


def test_constant_images_stay():
    network, images = tiny_pair().teacher, torch.full((1, 1, 8, 8), 0.3, dtype=torch.float64)
    torch.testing.assert_close(boundary_images(network, images, network(images)), images)


@pytest.mark.parametrize(("share", "count"), [(0.01, 2), (0.5, 3), (1.0, 6)])
def test_bss_is_the_divergence_on_the_moved_share_of_the_batch(share, count):
    pair, (images, labels) = tiny_pair(), tiny_batch(batch=6)
    pair.student.eval()
    student, teacher = views(pair, images)
    moved = boundary_images(pair.teacher, images[:count], teacher.logits[:count], steps=2, step=0.2)
    expected = KnowledgeDistillationLoss(3.0, balance=0)(pair.student(moved), pair.teacher(moved))
    method = BoundarySamples(pair, steps=2, step=0.2, share=share)
    torch.testing.assert_close(method(student, teacher, labels)["bss"], expected)


# --- lwm --------------------------------------------------------------------------------------------------------------


def test_class_maps_by_hand():
    """Two positions with features (1, 1) and (2, 1), a linear head with weights (1, 2) for class 0, (-1, 0) for 1.

    Class 0, labelled at the first position: its gradient is (1, 2) there, and the map is 1 * 1 + 2 * 1 = 3 and
    1 * 2 + 2 * 1 = 4. Class 1 has the negative map (-1, -2), cut to 0.
    """
    features = torch.tensor([[1.0, 2.0], [1.0, 1.0]]).reshape(1, 2, 1, 2).requires_grad_(True)
    head = torch.tensor([[1.0, 2.0], [-1.0, 0.0]]).reshape(2, 2, 1, 1)
    labels = torch.tensor([0, 1]).reshape(1, 1, 1, 2)
    for wanted, expected in ((0, [3.0, 4.0]), (1, [0.0, 0.0])):
        logits = nn.functional.conv2d(features, head)
        maps = class_maps(features, logits, labels, torch.full((1, 1, 1, 1), wanted), create_graph=False)
        assert maps.flatten().tolist() == expected


def test_map_distance_by_hand():
    """(3, 4) has direction (0.6, 0.8), the teacher's (1, 0): (0.4 + 0.8) / sqrt 2. An empty teacher does not count."""
    student = torch.tensor([[3.0, 4.0], [1.0, 1.0]]).reshape(2, 1, 1, 2)
    teacher = torch.tensor([[5.0, 0.0], [0.0, 0.0]]).reshape(2, 1, 1, 2)
    assert float(map_distance(student, teacher)) == pytest.approx(1.2 / 2**0.5)
    assert float(map_distance(student, torch.zeros_like(teacher))) == 0


def test_map_distance_knows_directions_and_sizes_alike():
    student, teacher = torch.rand(2, 1, 4, 4), torch.rand(2, 1, 4, 4)
    expected = map_distance(student, teacher)
    torch.testing.assert_close(map_distance(7 * student, teacher / 9), expected)
    enlarged = [maps.repeat_interleave(2, dim=2) for maps in (student, teacher)]
    torch.testing.assert_close(map_distance(*enlarged), expected)  # twice the positions, the same distance
    torch.testing.assert_close(map_distance(enlarged[0], teacher), expected)  # brought to the teacher's size


def test_classes_are_drawn_among_those_present_alike():
    labels = torch.tensor([[0, 0, 0, 2], [1, 1, 1, 1], [9, 9, 9, 9], [9, 9, 2, 9]]).reshape(4, 1, 2, 2)
    torch.manual_seed(0)
    drawn = torch.stack([drawn_classes(labels, 3).flatten() for _ in range(400)])
    assert drawn[:, 1].unique().tolist() == [1]
    assert drawn[:, 3].unique().tolist() == [2]
    counts = torch.bincount(drawn[:, 0], minlength=3).tolist()
    assert counts[1] == 0
    assert 150 < counts[0] < 250


def test_lwm_is_that_of_the_deep_features_of_both_networks():
    """The teacher's graph starts at the tap, the student's at its weights; the maps are those of plain runs."""
    pair, (images, labels) = tiny_pair(), tiny_batch()
    pair.student.eval()
    labels = torch.ones_like(labels)
    maps = []
    for network in (pair.student, pair.teacher):
        features = network.deep(network.shallow(images)).detach().requires_grad_(True)
        logits = nn.functional.interpolate(network.head(features), images.shape[2:])
        maps.append(class_maps(features, logits, labels, torch.ones(2, 1, 1, 1, dtype=torch.long), False))
    found = LearningWithoutMemorizing(pair)(*views(pair, images), labels)["lwm"]
    torch.testing.assert_close(found, map_distance(*maps))
    assert float(found) > 0


def test_lwm_differentiates_the_importance_of_features():
    """The head's weights count only through the gradients of the logits: their own gradient is a second derivative."""
    pair, (images, labels) = tiny_pair(), tiny_batch()
    method, labels = LearningWithoutMemorizing(pair), torch.ones_like(labels)
    both, weight = views(pair, images), pair.student.head.weight
    method(*both, labels)["lwm"].backward()
    values = []
    for change in (1e-6, -1e-6):
        with torch.no_grad():
            weight[1, 2] += change
        values.append(float(method(*both, labels)["lwm"].detach()))
        with torch.no_grad():
            weight[1, 2] -= change
    assert float(weight.grad[1, 2].sum()) == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4)
    assert float(weight.grad[1, 2].abs().sum()) > 1e-4


def test_lwm_without_any_class_is_zero_with_a_gradient_of_zero():
    pair, (images, labels) = tiny_pair(), tiny_batch()
    term = LearningWithoutMemorizing(pair)(*views(pair, images), torch.full_like(labels, 9))["lwm"]
    term.backward()
    assert float(term) == 0
    assert float(pair.student.deep[0].weight.grad.abs().max()) == 0


def test_lwm_without_a_label_takes_the_classes_of_the_teacher():
    pair, (images, labels) = tiny_pair(), tiny_batch()
    student, teacher = views(pair, images)
    terms = []
    for given in (torch.full_like(labels, UNLABELLED), teacher.logits.argmax(dim=1, keepdim=True)):
        torch.manual_seed(0)  # of the class that is drawn
        terms.append(LearningWithoutMemorizing(pair)(student, teacher, given)["lwm"])
    torch.testing.assert_close(terms[0], terms[1])
    assert float(terms[0]) > 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_terms_vanish_for_an_equal_student(method, spatial_dims):
    pair, (images, labels) = equal_pair(spatial_dims), tiny_batch(spatial_dims, side=4)
    (term,) = method(pair)(*views(pair, images), labels).values()
    assert float(term) == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0}, "bss: temperature is 0"),
        ({"steps": 0}, "bss: steps is 0"),
        ({"steps": 1.5}, "bss: steps is 1.5"),
        ({"step": -1}, "bss: step is -1"),
        ({"share": 0}, "bss: share is 0"),
        ({"share": 2}, "bss: share is 2"),
    ],
)
def test_bad_settings_of_boundary_samples_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        BoundarySamples(tiny_pair(), **settings)


@pytest.mark.parametrize("method", [SobolevTraining, LearningWithoutMemorizing])
def test_bad_weights_are_refused(method):
    with pytest.raises(InputError, match="must be finite and not negative"):
        method(tiny_pair(), weight=-0.1)
