# SPDX-License-Identifier: Apache-2.0
"""Losses on feature maps are the published arithmetic: loops over random taps, trained parts and all."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.distillation.method import Tapped
from pipeline.distillation.methods.ab import ActivationBoundaries
from pipeline.distillation.methods.afd import AttentiveFeatures
from pipeline.distillation.methods.at import AttentionTransfer
from pipeline.distillation.methods.cwd import ChannelWise
from pipeline.distillation.methods.fitnet import FitNet
from pipeline.distillation.methods.fsp import FlowOfSolution
from pipeline.distillation.methods.ft import FactorTransfer
from pipeline.distillation.methods.mgd import MaskedGeneration
from pipeline.distillation.methods.nst import NeuronSelectivity
from pipeline.distillation.methods.ofd import FeatureOverhaul
from pipeline.distillation.methods.review import KnowledgeReview
from pipeline.distillation.methods.vid import VariationalInformation
from pipeline.networks import Paraphraser
from tests.distillation.parity.plain_formulas import (
    cosine,
    divergence,
    dot,
    encoded,
    maps,
    mean,
    normalised,
    pair,
    pixels,
    pointwise,
    softmax,
    terms,
    three_by_three,
    unit,
    view,
)

STUDENT, TEACHER = view(0, (3, 4)), view(100, (5, 6))  # taps of other channels, all 4 x 4, two images
PAIR = pair((3, 4), (5, 6))
TAPS = list(zip(STUDENT.features, TEACHER.features, strict=True))


def squares(one: np.ndarray, other: np.ndarray) -> float:
    return mean((a - b) ** 2 for a, b in zip(one.ravel().tolist(), other.ravel().tolist(), strict=True))


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_at(power):
    losses = []
    for mine, theirs in TAPS:
        for image in range(2):
            attention = [
                unit([sum(abs(value) ** power for value in pixel) for pixel in pixels(one[image : image + 1])])
                for one in (mine, theirs)
            ]
            losses.append(sum((a - b) ** 2 for a, b in zip(*attention, strict=True)))
    method = AttentionTransfer(PAIR, p=power)
    assert terms(method, STUDENT, TEACHER)["at"] == pytest.approx(mean(losses))


def test_fitnet():
    method = FitNet(PAIR).double()
    expected = mean(
        squares(pointwise(adapter.convolution, mine), theirs.numpy())
        for adapter, (mine, theirs) in zip(method.adapters, TAPS, strict=True)
    )
    assert terms(method, STUDENT, TEACHER)["fitnet"] == pytest.approx(expected)


def test_fsp():
    """Paraphrasers aside: equal channels, so that G_ij of both networks is compared as it is."""
    student, teacher = view(0, (3, 4)), view(100, (3, 4))
    total = 0.0
    for image in range(2):
        for i in range(3):
            for j in range(4):
                flows = [
                    dot(of.features[0][image, i].flatten().tolist(), of.features[1][image, j].flatten().tolist()) / 16
                    for of in (student, teacher)
                ]
                total += (flows[0] - flows[1]) ** 2 / (2 * 3 * 4)
    assert terms(FlowOfSolution(pair((3, 4), (3, 4))), student, teacher)["fsp"] == pytest.approx(total)


def test_ft():
    torch.manual_seed(0)
    paraphrasers = Paraphraser(5, 3).double(), Paraphraser(6, 4).double()
    method = FactorTransfer(pair((3, 4), (5, 6), paraphrasers=paraphrasers)).double()
    losses = []
    for translator, paraphraser, (mine, theirs) in zip(method.translators, paraphrasers, TAPS, strict=True):
        factors = encoded(translator, mine), encoded(paraphraser.encoder, theirs)
        for image in range(2):
            one, other = (unit(factor[image].flatten().tolist()) for factor in factors)
            distance = sum(abs(a - b) for a, b in zip(one, other, strict=True))
            losses.append(distance / math.sqrt(len(one)))  # the project's own factor, free of the map's size
    assert terms(method, STUDENT, TEACHER)["ft"] == pytest.approx(mean(losses))


def test_vid():
    """1/2 [log v_c + (t - mu(s))^2 / v_c], v_c = log(1 + e^a_c), mu three pointwise layers with ReLUs between."""
    method = VariationalInformation(PAIR).double()
    losses = []
    for loss, (mine, theirs) in zip(method.losses, TAPS, strict=True):
        loss.spread.data += maps(7, len(loss.spread))
        first, second, third = loss.mean[0], loss.mean[2], loss.mean[4]
        predicted = pointwise(third, np.maximum(pointwise(second, np.maximum(pointwise(first, mine), 0)), 0))
        variances = [math.log(1 + math.exp(a)) + 1e-6 for a in loss.spread.tolist()]
        losses.append(
            mean(
                (math.log(variance) + (float(theirs[place]) - predicted[place]) ** 2 / variance) / 2
                for place in np.ndindex(*theirs.shape)
                for variance in [variances[place[1]]]
            )
        )
    assert terms(method, STUDENT, TEACHER)["vid"] == pytest.approx(mean(losses))


def test_nst():
    losses = []
    for mine, theirs in TAPS:
        for image in range(2):
            s, t = ([channel.flatten().tolist() for channel in one[image]] for one in (mine, theirs))
            kernels = [
                mean(cosine(x, y) ** 2 for x in first for y in second) for first, second in [(t, t), (s, s), (s, t)]
            ]
            losses.append(kernels[0] + kernels[1] - 2 * kernels[2])
    assert terms(NeuronSelectivity(PAIR), STUDENT, TEACHER)["nst"] == pytest.approx(mean(losses))


def connected(connector: nn.Module, features: torch.Tensor) -> np.ndarray:
    """A pointwise convolution and normalisation by the batch."""
    return normalised(connector.norm, pointwise(connector.convolution, features))


@pytest.mark.parametrize("margin", [0.5, 1.0])
def test_ab(margin):
    """(s + m)^2 where the teacher is silent and s > -m, (s - m)^2 where it is active and s <= m."""
    method, losses = ActivationBoundaries(PAIR, margin=margin).double(), []
    for connector, (mine, theirs) in zip(method.connectors, TAPS, strict=True):
        connector.norm.bias.data += 0.3
        values = zip(connected(connector, mine).ravel().tolist(), theirs.flatten().tolist(), strict=True)
        losses.append(
            mean((s + margin) ** 2 * (s > -margin) if t <= 0 else (s - margin) ** 2 * (s <= margin) for s, t in values)
        )
    assert terms(method, STUDENT, TEACHER)["ab"] == pytest.approx(mean(losses))


def test_ofd():
    """(s - max(t, m_c))^2, but 0 where s <= max(t, m_c) <= 0; m_c the mean of the channel's negative values."""
    method, losses = FeatureOverhaul(PAIR).double(), []
    for connector, (mine, theirs) in zip(method.connectors, TAPS, strict=True):
        s, t, found = connected(connector, mine), theirs.numpy(), []
        for place in np.ndindex(*t.shape):
            channel = t[:, place[1]]
            target = max(t[place], channel[channel < 0].mean())
            found.append(0.0 if s[place] <= target <= 0 else (s[place] - target) ** 2)
        losses.append(mean(found))
    assert terms(method, STUDENT, TEACHER)["ofd"] == pytest.approx(mean(losses))


def test_afd():
    method, losses = AttentiveFeatures(PAIR).double(), []
    for adapter, attention, (mine, theirs) in zip(method.adapters, method.attention, TAPS, strict=True):
        adapted, (first, _, second) = pointwise(adapter.convolution, mine), attention.layers
        for image in range(2):
            t, s = theirs[image].flatten(1).tolist(), adapted[image].reshape(len(theirs[image]), -1).tolist()
            pooled = [mean(channel) for channel in t]
            hidden = [
                max(0, dot(w, pooled) + b) for w, b in zip(first.weight.tolist(), first.bias.tolist(), strict=True)
            ]
            scores = [dot(w, hidden) + b for w, b in zip(second.weight.tolist(), second.bias.tolist(), strict=True)]
            shares = [1 / (1 + math.exp(-value)) for value in scores]
            distances = [
                sum((a - b) ** 2 for a, b in zip(unit(one), unit(other), strict=True))
                for one, other in zip(s, t, strict=True)
            ]
            losses.append(dot(shares, distances) / sum(shares))
    assert terms(method, STUDENT, TEACHER)["afd"] == pytest.approx(mean(losses))


def places(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """tau^2 KL over the places of each channel, the mean over channels and images."""
    channels = (one.reshape(-1, one[0, 0].size).tolist() for one in (teacher, student))
    losses = [divergence(softmax(t, temperature), softmax(s, temperature)) for t, s in zip(*channels, strict=True)]
    return temperature**2 * mean(losses)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_cwd(temperature):
    method = ChannelWise(PAIR, features=1.0, temperature=temperature).double()
    found = terms(method, STUDENT, TEACHER)
    expected = places(STUDENT.logits.numpy(), TEACHER.logits.numpy(), temperature)
    assert found["cwd_logits"] == pytest.approx(expected)
    adapted = pointwise(method.adapter.convolution, STUDENT.features[-1])
    expected = places(adapted, TEACHER.features[-1].numpy(), temperature)
    assert found["cwd_features"] == pytest.approx(expected)


def test_mgd():
    """(G(m a(s)) - t)^2, m one draw a place for all channels, G two convolutions of kernel 3 with a ReLU between."""
    torch.manual_seed(0)
    method, losses = MaskedGeneration(PAIR, hidden=0.5).double(), []
    torch.manual_seed(5)
    masks = [(torch.rand(2, 1, 4, 4, dtype=torch.float64) >= 0.5).double().numpy() for _ in TAPS]
    assert all(0 < mask.mean() < 1 for mask in masks)
    for adapter, (first, _, second), mask, (mine, theirs) in zip(
        method.adapters, method.generators, masks, TAPS, strict=True
    ):
        hidden = mask * pointwise(adapter.convolution, mine)
        generated = three_by_three(second, np.maximum(three_by_three(first, hidden), 0))
        losses.append(squares(generated, theirs.numpy()))
    torch.manual_seed(5)
    assert terms(method, STUDENT, TEACHER)["mgd"] == pytest.approx(mean(losses))


def doubled(values: np.ndarray) -> np.ndarray:
    """A map of twice the size by nearest neighbours."""
    return values.repeat(2, axis=2).repeat(2, axis=3)


def context(student: np.ndarray, teacher: np.ndarray) -> float:
    """The weighted mean of squares of both maps and of their means over 4, 2 and 1 regions an axis, fewer than places.

    Each level weighs half of the one before.
    """
    side, levels = student.shape[-1], [squares(student, teacher)]
    for grid in (4, 2, 1):
        if grid < side:
            step = side // grid
            means = [one.reshape(*one.shape[:2], grid, step, grid, step).mean((3, 5)) for one in (student, teacher)]
            levels.append(squares(*means))
    weights = [0.5**number for number in range(len(levels))]
    return dot(weights, levels) / sum(weights)


def test_review():
    """Taps of 4 x 4 and 2 x 2 places, the teacher's twice as large: the deep one alone, the shallow one of both."""
    torch.manual_seed(0)
    method = KnowledgeReview(PAIR).double()
    mine, theirs = (maps(0, 2, 3, 4, 4), maps(1, 2, 4, 2, 2)), (maps(2, 2, 5, 8, 8), maps(3, 2, 6, 4, 4))
    shallow, deep = method.fusions
    entered = [
        normalised(one.entry[1], pointwise(one.entry[0], tap)) for one, tap in zip(method.fusions, mine, strict=True)
    ]
    both = np.concatenate([entered[0], doubled(entered[1])], axis=1)
    own, deeper = np.split(1 / (1 + np.exp(-pointwise(shallow.attention, both))), 2, axis=1)
    fused = own * entered[0] + deeper * doubled(entered[1])
    losses = [
        context(normalised(one.exit[1], three_by_three(one.exit[0], doubled(values))), target.numpy())
        for one, values, target in ((shallow, fused, theirs[0]), (deep, entered[1], theirs[1]))
    ]
    found = terms(method, Tapped(mine, torch.zeros(2, 3, 8, 8)), Tapped(theirs, torch.zeros(2, 3, 8, 8)))
    assert found["review"] == pytest.approx(mean(losses))
