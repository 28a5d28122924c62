# SPDX-License-Identifier: Apache-2.0
"""Attentive features, contrast of regions and matching of logits: by hand, their identities, bad settings."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.distillation.method import Tapped
from pipeline.distillation.methods.afd import AttentiveFeatures, ChannelAttention, attentive_distance
from pipeline.distillation.methods.crd import ContrastiveRepresentation, contrast
from pipeline.distillation.methods.logits_mse import LogitsMatching
from pipeline.errors import InputError
from tests.distillation.tiny_pair import tiny_batch, tiny_pair, views


def random_values(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_attentive_distance_by_hand():
    """Channel 0 has the teacher's direction (3, 4): 0. Channel 1 is at right angles: 1 + 1. 0.25 * 0 + 0.75 * 2."""
    student = torch.tensor([[[[3.0, 4.0]], [[1.0, 0.0]]]])
    teacher = torch.tensor([[[[6.0, 8.0]], [[0.0, 5.0]]]])
    assert float(attentive_distance(student, teacher, torch.tensor([[0.25, 0.75]]))) == pytest.approx(1.5)


def test_attentive_distance_is_that_of_a_loop():
    student, teacher = random_values(0, 2, 3, 2, 2, 2), random_values(1, 2, 3, 2, 2, 2)
    weights = torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.4, 0.0]], dtype=torch.float64)
    total = 0.0
    for image in range(2):
        for channel in range(3):
            mine, theirs = student[image, channel], teacher[image, channel]
            difference = mine / mine.square().sum().sqrt() - theirs / theirs.square().sum().sqrt()
            total += float(weights[image, channel] * difference.square().sum())
    assert float(attentive_distance(student, teacher, weights)) == pytest.approx(total / 2)


def test_attentive_distance_knows_directions_alone():
    student, teacher, weights = random_values(0, 2, 3, 4, 4), random_values(1, 2, 3, 4, 4), torch.full((2, 3), 1 / 3)
    scale = torch.tensor([0.1, 2.0, 50.0]).reshape(1, 3, 1, 1)
    expected = attentive_distance(student, teacher, weights)
    torch.testing.assert_close(attentive_distance(student * scale, teacher * scale.flip(1), weights), expected)
    assert float(attentive_distance(teacher * scale, teacher, weights)) == pytest.approx(0)
    assert float(attentive_distance(-teacher, teacher, weights)) == pytest.approx(4)


def test_a_dead_channel_passes_no_gradient():
    student = torch.zeros(1, 2, 3, 3, requires_grad=True)
    attentive_distance(student, torch.ones(1, 2, 3, 3), torch.full((1, 2), 0.5)).backward()
    assert student.grad.tolist() == torch.zeros_like(student).tolist()


def test_channel_attention_by_hand():
    """Logits 0 and ln 3: sigmoids 0.5 and 0.75, and their shares 0.4 and 0.6."""
    attention = ChannelAttention(2, 1)
    torch.nn.init.zeros_(attention.layers[2].weight)
    attention.layers[2].bias.data = torch.tensor([0.0, math.log(3)])
    torch.testing.assert_close(attention(torch.ones(1, 2, 2, 2)), torch.tensor([[0.4, 0.6]]))


def test_channel_attention_adds_up_to_one_and_starts_equal_for_equal_logits():
    attention = ChannelAttention(4, 3).double()
    weights = attention(random_values(0, 5, 4, 3, 3)).detach()
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(5, dtype=torch.float64))
    assert float(weights.min()) > 0
    torch.nn.init.zeros_(attention.layers[2].weight)
    torch.nn.init.zeros_(attention.layers[2].bias)
    torch.testing.assert_close(attention(random_values(0, 5, 4, 3, 3)), torch.full((5, 4), 0.25, dtype=torch.float64))


def test_contrast_by_hand():
    """Two places, (1, 0) and (0, 1) in both networks, T = 1: each softmax is e / (e + 1) at the right place."""
    places = torch.eye(2, dtype=torch.float64)
    assert float(contrast(places, 3 * places, 1.0)) == pytest.approx(math.log(1 + math.exp(-1)))
    assert float(contrast(places, places.flip(0), 1.0)) == pytest.approx(math.log(1 + math.e))


def test_contrast_is_log_n_where_nothing_is_told_apart():
    alike = torch.ones(7, 3, dtype=torch.float64)
    assert float(contrast(alike, random_values(0, 1, 3).expand(7, 3))) == pytest.approx(math.log(7))


def test_contrast_is_that_of_a_loop():
    student, teacher, temperature = random_values(0, 5, 3), random_values(1, 5, 3), 0.4
    cosine = torch.nn.functional.cosine_similarity(student[:, None], teacher[None], dim=2).tolist()
    total = 0.0
    for place in range(5):
        own = math.exp(cosine[place][place] / temperature)
        total -= math.log(own / sum(math.exp(other / temperature) for other in cosine[place])) / 2
        total -= math.log(own / sum(math.exp(row[place] / temperature) for row in cosine)) / 2
    assert float(contrast(student, teacher, temperature)) == pytest.approx(total / 5)


def test_contrast_is_unchanged_by_order_and_length_and_best_at_equality():
    student, teacher, order = random_values(0, 6, 4), random_values(1, 6, 4), torch.randperm(6)
    expected = contrast(student, teacher)
    torch.testing.assert_close(contrast(5 * student[order], teacher[order]), expected)
    assert contrast(teacher, teacher) < 0.1 * expected


def test_a_single_region_has_nothing_to_be_told_from():
    """One image and a grid of one region: the term is 0 and its gradient too."""
    pair, (images, labels) = tiny_pair(), tiny_batch(batch=1)
    student, teacher = views(pair, images)
    term = ContrastiveRepresentation(pair, grid=1).double()(student, teacher, labels)["crd"]
    term.backward()
    assert float(term) == pytest.approx(0)
    assert float(pair.student.deep[0].weight.grad.abs().max()) == pytest.approx(0)


def test_regions_of_the_batch_are_at_most_as_many_as_asked_for():
    """Four images of 2 x 2 regions are 16; untrained embeddings of 3 regions cannot lose more than log 3 + 2 / T."""
    pair, (images, labels) = tiny_pair(), tiny_batch(batch=4)
    both = views(pair, images)
    terms = [
        ContrastiveRepresentation(pair, grid=2, regions=count, temperature=1e6).double()(*both, labels)["crd"]
        for count in (3, 16, 100)
    ]
    assert [float(term) for term in terms] == pytest.approx([math.log(3), math.log(16), math.log(16)], rel=1e-4)


def test_logits_matching_by_hand():
    """(1, 2) against (3, -1): the mean of 4 and 9."""
    student, teacher = torch.tensor([1.0, 2.0]).reshape(1, 2, 1, 1), torch.tensor([3.0, -1.0]).reshape(1, 2, 1, 1)
    method = LogitsMatching(tiny_pair())
    found = method(Tapped((), student), Tapped((), teacher), torch.zeros(1))
    assert {name: float(value) for name, value in found.items()} == {"logits_mse": 6.5}
    repeated = method(Tapped((), student.expand(3, 2, 4, 4)), Tapped((), teacher.expand(3, 2, 4, 4)), torch.zeros(1))
    assert float(repeated["logits_mse"]) == pytest.approx(6.5)


def test_no_gradient_reaches_the_teacher():
    pair, (images, labels) = tiny_pair(), tiny_batch()
    student, teacher = views(pair, images)
    leaves = [tap.clone().requires_grad_(True) for tap in (*teacher.features, teacher.logits)]
    watched = Tapped(tuple(leaves[:2]), leaves[2], images)
    for method in (AttentiveFeatures, ContrastiveRepresentation, LogitsMatching):
        sum(method(pair).double()(student, watched, labels).values()).backward(retain_graph=True)
    assert [leaf.grad for leaf in leaves] == [None] * 3


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (AttentiveFeatures, {"ratio": 0}, "afd: ratio is 0"),
        (AttentiveFeatures, {"ratio": "half"}, "afd: ratio is 'half'"),
        (ContrastiveRepresentation, {"temperature": 0}, "crd: temperature is 0"),
        (ContrastiveRepresentation, {"dimensions": 0}, "crd: dimensions is 0"),
        (ContrastiveRepresentation, {"grid": 0}, "crd: grid is 0"),
        (ContrastiveRepresentation, {"regions": 1}, "crd: regions is 1"),
        (LogitsMatching, {"weight": float("nan")}, "'logits_mse' is nan"),
    ],
)
def test_bad_settings_are_refused(method, settings, message):
    with pytest.raises(InputError, match=message):
        method(tiny_pair(), **settings)
