# SPDX-License-Identifier: Apache-2.0
"""Losses on logits are the published arithmetic: each formula by loops over random logits.

The mean teacher is here with a network of its own, which it averages. Mutual learning, whose peer runs on the images,
is compared in `methods/test_dml.py`.
"""

from __future__ import annotations

import math
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.distillation.method import NetworkPair, Tapped
from pipeline.distillation.methods.adversarial import AdversarialDistillation, discriminator_loss
from pipeline.distillation.methods.bpkd import BoundaryPrivileged
from pipeline.distillation.methods.dist import StrongerTeacher
from pipeline.distillation.methods.dkd import DecoupledDistillation
from pipeline.distillation.methods.kd import KnowledgeDistillation
from pipeline.distillation.methods.logit_std import StandardisedLogits
from pipeline.distillation.methods.logits_mse import LogitsMatching
from pipeline.distillation.methods.mean_teacher import MeanTeacher
from pipeline.distillation.methods.skd import HolisticDistillation, PixelPairDistillation
from tests.distillation.parity.plain_formulas import (
    CLASSES,
    divergence,
    dot,
    maps,
    mean,
    normalised,
    pair,
    pixels,
    pointwise,
    softmax,
    terms,
    three_by_three,
    view,
)

STUDENT, TEACHER = view(0, (4,)), view(100, (4,))


def some_labels(labelled: bool) -> torch.Tensor:
    """Labels of two images: random ones of two classes and three pixels of a third, the second image's if labelled."""
    labels = torch.randint(0, 2, (2, 1, 8, 8), generator=torch.Generator().manual_seed(1))
    labels[0, 0, 0, :3] = 2
    if not labelled:
        labels[1] = -1
    return labels


def known(labels: torch.Tensor) -> list[int]:
    """The class of each pixel: where nobody has labelled it, the teacher's likeliest."""
    both = zip(labels.flatten().tolist(), pixels(TEACHER.logits), strict=True)
    return [label if label >= 0 else theirs.index(max(theirs)) for label, theirs in both]


def balanced_mean(losses: list[float], kinds: list[int], balance: float) -> float:
    """The weighted mean of losses: a pixel of class k of share p_k weighs p_k^-balance."""
    weights = [(kinds.count(kind) / len(kinds)) ** -balance for kind in kinds]
    return dot(weights, losses) / sum(weights)


balances = pytest.mark.parametrize("balance", [0, 0.5, 1])
labelled_or_not = pytest.mark.parametrize("labelled", [True, False])


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@balances
@labelled_or_not
def test_kd(temperature, balance, labelled):
    labels = some_labels(labelled)
    losses = [
        temperature**2 * divergence(softmax(theirs, temperature), softmax(mine, temperature))
        for mine, theirs in zip(pixels(STUDENT.logits), pixels(TEACHER.logits), strict=True)
    ]
    method = KnowledgeDistillation(pair((4,), (4,)), temperature=temperature, balance=balance)
    expected = balanced_mean(losses, known(labels), balance)
    assert terms(method, STUDENT, TEACHER, labels)["kd"] == pytest.approx(expected, rel=1e-5)


@balances
@labelled_or_not
def test_dkd(balance, labelled):
    """At each pixel of class y: KL of (p_y, 1 - p_y), and KL of the other classes, each divided by 1 - p_y."""
    labels = some_labels(labelled)
    kinds, of_target, of_others = known(labels), [], []
    for mine, theirs, kind in zip(pixels(STUDENT.logits), pixels(TEACHER.logits), kinds, strict=True):
        p, q = softmax(theirs, 2), softmax(mine, 2)
        of_target.append(4 * divergence([p[kind], 1 - p[kind]], [q[kind], 1 - q[kind]]))
        others = [[one[k] / (1 - one[kind]) for k in range(CLASSES) if k != kind] for one in (p, q)]
        of_others.append(4 * divergence(*others))
    method = DecoupledDistillation(pair((4,), (4,)), temperature=2.0, balance=balance)
    found = terms(method, STUDENT, TEACHER, labels)
    assert found["dkd_target"] == pytest.approx(balanced_mean(of_target, kinds, balance))
    assert found["dkd_others"] == pytest.approx(balanced_mean(of_others, kinds, balance))


def standardised(values: list[float], alike: float) -> list[float]:
    """Values less their mean, divided by sqrt(variance + alike^2)."""
    centre = mean(values)
    deviation = math.sqrt(mean((value - centre) ** 2 for value in values) + alike**2)
    return [(value - centre) / deviation for value in values]


@balances
@labelled_or_not
def test_logit_std(balance, labelled):
    """kd at temperature 2 of logits that are standardised over classes, their variance softened by 0.1^2."""
    labels = some_labels(labelled)
    losses = [
        4 * divergence(softmax(standardised(theirs, 0.1), 2), softmax(standardised(mine, 0.1), 2))
        for mine, theirs in zip(pixels(STUDENT.logits), pixels(TEACHER.logits), strict=True)
    ]
    method = StandardisedLogits(pair((4,), (4,)), temperature=2.0, balance=balance)
    expected = balanced_mean(losses, known(labels), balance)
    assert terms(method, STUDENT, TEACHER, labels)["logit_std"] == pytest.approx(expected, rel=1e-5)


def test_dist():
    """1 - r = half of the mean squared difference of standardised probabilities, their variance softened by 0.01^2.

    `inter` goes over the classes of each pixel, `intra` over the pixels of the batch for each class.
    """
    p, q = ([softmax(pixel) for pixel in pixels(one.logits)] for one in (TEACHER, STUDENT))

    def distance(one: list[float], other: list[float]) -> float:
        both = zip(standardised(one, 0.01), standardised(other, 0.01), strict=True)
        return mean((a - b) ** 2 for a, b in both) / 2

    found = terms(StrongerTeacher(pair((4,), (4,))), STUDENT, TEACHER)
    assert found["dist_inter"] == pytest.approx(mean(map(distance, p, q)))
    of_classes = (map(list, zip(*one, strict=True)) for one in (p, q))
    assert found["dist_intra"] == pytest.approx(mean(map(distance, *of_classes)))


def blocks(labelled: bool) -> torch.Tensor:
    """Labels of two images with a block of class 1 or 2, the second without labels in its lower half if told so."""
    labels = torch.zeros(2, 1, 8, 8, dtype=torch.long)
    labels[0, 0, :4, :4], labels[1, 0, 2:, 5:] = 1, 2
    if not labelled:
        labels[1, 0, 4:] = -1
    return labels


def window(kinds: np.ndarray, place: tuple[int, int], radius: int) -> set[int]:
    """The classes within `radius` pixels of a place."""
    rows, columns = (slice(max(0, at - radius), at + radius + 1) for at in place)
    return set(kinds[rows, columns].ravel().tolist())


@pytest.mark.parametrize("radius", [1, 2])
@labelled_or_not
def test_bpkd(radius, labelled):
    """kd at the pixels with another class in their window, the mean over each image; cwd of all other pixels."""
    labels = blocks(labelled)
    kinds = np.array(known(labels)).reshape(2, 8, 8)
    edges, bodies = [], []
    for image in range(2):
        t, s = (one.logits[image].permute(1, 2, 0).tolist() for one in (TEACHER, STUDENT))
        band = [place for place in product(range(8), repeat=2) if len(window(kinds[image], place, radius)) > 1]
        body = [place for place in product(range(8), repeat=2) if place not in band]
        edges.append(4 * mean(divergence(softmax(t[y][x], 2), softmax(s[y][x], 2)) for y, x in band))
        bodies += [
            16 * divergence(*(softmax([of[y][x][kind] for y, x in body], 4) for of in (t, s)))
            for kind in range(CLASSES)
            if body
        ]
    method = BoundaryPrivileged(pair((4,), (4,)), radius=radius, edge_temperature=2.0, body_temperature=4.0)
    found = terms(method, STUDENT, TEACHER, labels)
    assert found["bpkd_edge"] == pytest.approx(mean(edges))
    assert found["bpkd_body"] == pytest.approx(sum(bodies) / (2 * CLASSES))


def test_logits_mse():
    both = zip(STUDENT.logits.flatten().tolist(), TEACHER.logits.flatten().tolist(), strict=True)
    expected = mean((mine - theirs) ** 2 for mine, theirs in both)
    assert terms(LogitsMatching(pair((4,), (4,))), STUDENT, TEACHER)["logits_mse"] == pytest.approx(expected)


def test_skd_pixel():
    """All labels are of one class, so that no balance of classes has anything to weigh."""
    expected = -mean(
        sum(p * math.log(q) for p, q in zip(softmax(theirs), softmax(mine), strict=True))
        for mine, theirs in zip(pixels(STUDENT.logits), pixels(TEACHER.logits), strict=True)
    )
    method = PixelPairDistillation(pair((4,), (4,)))
    assert terms(method, STUDENT, TEACHER)["skd_pixel"] == pytest.approx(expected, rel=1e-5)


class Squares(nn.Module):
    """Scores (w . x)^2 of each pixel x: the gradient there is 2 (w . x) w."""

    weights = (0.3, -0.2, 0.5)

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return sum(w * logits[:, k : k + 1] for k, w in enumerate(self.weights)).square()


def score(pixel: list[float]) -> float:
    return sum(w * x for w, x in zip(Squares.weights, pixel, strict=True)) ** 2


def test_adversarial_term_of_the_student():
    method = AdversarialDistillation(nn.Sequential(Squares(), nn.Conv2d(1, 1, 1)), total_steps=1)
    nn.init.ones_(method.discriminator[1].weight)
    nn.init.zeros_(method.discriminator[1].bias)
    expected = -mean(map(score, pixels(STUDENT.logits)))
    found = method(STUDENT, TEACHER, torch.zeros(1))["adversarial"]
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_hinge():
    expected = mean(max(0, 1 - score(pixel)) for pixel in pixels(TEACHER.logits))
    expected += mean(max(0, 1 + score(pixel)) for pixel in pixels(STUDENT.logits))
    assert float(discriminator_loss(Squares(), TEACHER.logits, STUDENT.logits, "hinge")) == pytest.approx(expected)


def penalty(mix: torch.Tensor, slope: float = 1.0) -> float:
    """The mean of (|gradient| - 1)^2 over images between both predictions, for scores of `slope` times the squares.

    The gradient's length is over all pixels.
    """
    length = math.sqrt(sum(w**2 for w in Squares.weights))
    penalties = []
    for image in mix * TEACHER.logits + (1 - mix) * STUDENT.logits:
        gradients = [2 * slope * math.sqrt(score(pixel)) * length for pixel in pixels(image[None])]
        penalties.append((math.sqrt(sum(gradient**2 for gradient in gradients)) - 1) ** 2)
    return mean(penalties)


def test_wgan_with_gradient_penalty():
    real, fake = TEACHER.logits, STUDENT.logits
    torch.manual_seed(5)
    found = discriminator_loss(Squares(), real, fake, "wgan-gp")
    torch.manual_seed(5)
    mix = torch.rand(2, 1, 1, 1, dtype=torch.float64)
    expected = mean(map(score, pixels(fake))) - mean(map(score, pixels(real))) + 10 * penalty(mix)
    assert float(found) == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["wgan-gp", "hinge"])
def test_skd_holistic(kind):
    """Scores a (w . x)^2 + b with trained a and b: the student's term, then the loss of the discriminator's step."""
    torch.manual_seed(0)
    method = HolisticDistillation(nn.Sequential(Squares(), nn.Conv2d(1, 1, 1)), total_steps=5, kind=kind)
    a, b = (float(parameter.detach()) for parameter in method.discriminator.parameters())
    of_teacher, of_student = ([a * score(pixel) + b for pixel in pixels(of.logits)] for of in (TEACHER, STUDENT))
    term = method(STUDENT, TEACHER, torch.zeros(1))["skd_holistic"]
    assert float(term) == pytest.approx(-mean(of_student), rel=1e-5)
    torch.manual_seed(5)
    found = method.after_step(STUDENT, TEACHER)["skd_discriminator"]
    if kind == "hinge":
        expected = mean(max(0, 1 - one) for one in of_teacher) + mean(max(0, 1 + one) for one in of_student)
    else:
        torch.manual_seed(5)
        expected = mean(of_student) - mean(of_teacher) + 10 * penalty(torch.rand(2, 1, 1, 1), abs(a))
    assert float(found) == pytest.approx(expected, rel=1e-5)


def run(parameters: list[np.ndarray], images: torch.Tensor) -> torch.Tensor:
    """The logits of a convolution, batch normalisation by the batch's own figures, a ReLU and a pointwise layer."""
    weights, biases = ([torch.from_numpy(one) for one in parameters[start::2]] for start in (0, 1))
    first, norm, last = (SimpleNamespace(weight=w, bias=b) for w, b in zip(weights, biases, strict=True))
    hidden = normalised(norm, three_by_three(first, images.numpy()))
    return torch.from_numpy(pointwise(last, np.maximum(hidden, 0)))


def test_mean_teacher():
    """Six of ten steps of a student that moves at random: the ramp ends at the fourth, alpha is 0.7 from the third on.

    The average sees other images than the student.
    """
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, CLASSES, 1)
    student = nn.Sequential(*layers).double()
    method = MeanTeacher(NetworkPair(student, student, (1,), (1,), CLASSES, total_steps=10), decay=0.7)
    average = [one.detach().numpy().copy() for one in student.parameters()]
    for step in range(6):
        own = [one.detach().numpy().copy() for one in student.parameters()]
        seen, strong = maps(2 * step, 2, 1, 6, 6), maps(2 * step + 1, 2, 1, 6, 6)
        mine, theirs = Tapped((), student(strong).detach(), strong), Tapped((), torch.zeros(2, CLASSES, 6, 6), seen)
        likely = ([softmax(pixel) for pixel in pixels(of)] for of in (run(own, strong), run(average, seen)))
        error = mean((p - q) ** 2 for one, other in zip(*likely, strict=True) for p, q in zip(one, other, strict=True))
        found = float(method(mine, theirs, torch.zeros(2, 1, 6, 6))["mean_teacher"])
        assert found == pytest.approx(math.exp(-5 * max(0, 1 - step / 4) ** 2) * error), step
        own = [values + np.random.default_rng(step).normal(0, 0.3, values.shape) for values in own]
        for parameter, values in zip(student.parameters(), own, strict=True):
            parameter.data = torch.from_numpy(values)
        method.after_step(mine, theirs)
        alpha = (1 / 2, 2 / 3, 0.7)[min(step, 2)]
        average = [alpha * before + (1 - alpha) * values for before, values in zip(average, own, strict=True)]
        for values, expected in zip(method.average.parameters(), average, strict=True):
            np.testing.assert_allclose(values.detach().numpy(), expected, rtol=1e-9, atol=1e-12)
