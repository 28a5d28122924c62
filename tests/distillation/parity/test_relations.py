# SPDX-License-Identifier: Apache-2.0
"""Losses that relate regions, places or classes are the published arithmetic: loops over random taps."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch

from pipeline.distillation.method import Tapped
from pipeline.distillation.methods.cc import CorrelationCongruence
from pipeline.distillation.methods.coco import CoCo
from pipeline.distillation.methods.crd import ContrastiveRepresentation
from pipeline.distillation.methods.emkd import EfficientMedical
from pipeline.distillation.methods.ifvd import IntraClassVariation
from pipeline.distillation.methods.irg import RelationshipGraph
from pipeline.distillation.methods.pkt import ProbabilisticTransfer
from pipeline.distillation.methods.prototypes import ClassPrototypes
from pipeline.distillation.methods.rkd import RelationalDistillation
from pipeline.distillation.methods.skd import PixelPairDistillation
from pipeline.distillation.methods.sp import SimilarityPreserving
from tests.distillation.parity.plain_formulas import (
    CLASSES,
    cosine,
    divergence,
    dot,
    maps,
    mean,
    pair,
    pixels,
    pointwise,
    regions,
    softmax,
    terms,
    unit,
    view,
)

STUDENT, TEACHER = view(0, (3, 4)), view(100, (5, 6))  # all taps 4 x 4, two images
PAIR = pair((3, 4), (5, 6))
GRID, REGIONS = 2, range(2 * 2 * 2)
TAPS = list(zip(STUDENT.features, TEACHER.features, strict=True))
DEEP = [of.features[-1] for of in (STUDENT, TEACHER)]


def square(one: list[float], other: list[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True))


def huber(one: float, other: float) -> float:
    error = abs(one - other)
    return error**2 / 2 if error < 1 else error - 0.5


def test_pkt():
    losses = []
    for taps in TAPS:
        likely = []
        for vectors in (regions(tap, GRID) for tap in taps):
            kernel = [[(cosine(one, other) + 1) / 2 for other in vectors] for one in vectors]
            likely.append([[value / sum(row) for value in row] for row in kernel])
        losses.append(mean(divergence(theirs, mine) for mine, theirs in zip(*likely, strict=True)))
    assert terms(ProbabilisticTransfer(PAIR, grid=GRID), STUDENT, TEACHER)["pkt"] == pytest.approx(mean(losses))


def test_sp():
    losses = []
    for taps in TAPS:
        grams = [
            [unit([dot(one, other) for other in vectors]) for one in vectors]
            for vectors in (regions(tap, GRID) for tap in taps)
        ]
        losses.append(mean(square(mine, theirs) for mine, theirs in zip(*grams, strict=True)))
    assert terms(SimilarityPreserving(PAIR, grid=GRID), STUDENT, TEACHER)["sp"] == pytest.approx(mean(losses))


def test_cc():
    """exp(-gamma |x - y|^2) of unit vectors is exp(-2 gamma) exp(2 gamma x.y), whose series ends with the square."""
    gamma = 0.4
    kernels = []
    for vectors in (regions(tap, GRID) for tap in DEEP):
        exponents = [[2 * gamma * cosine(one, other) for other in vectors] for one in vectors]
        kernels.append([[math.exp(-2 * gamma) * (1 + e + e**2 / 2) for e in row] for row in exponents])
    expected = mean((kernels[0][i][j] - kernels[1][i][j]) ** 2 for i in REGIONS for j in REGIONS)
    method = CorrelationCongruence(PAIR, gamma=gamma, order=2, grid=GRID)
    assert terms(method, STUDENT, TEACHER)["cc"] == pytest.approx(expected)


def test_rkd():
    distances, angles = [], []
    for vectors in (regions(tap, GRID) for tap in DEEP):
        apart = [[math.dist(one, other) for other in vectors] for one in vectors]
        usual = mean(value for row in apart for value in row if value > 0)
        distances.append([value / usual for row in apart for value in row])
        angles.append(
            [
                0.0 if j in (i, k) else cosine(np.subtract(vectors[i], vectors[j]), np.subtract(vectors[k], vectors[j]))
                for j in REGIONS
                for i in REGIONS
                for k in REGIONS
            ]
        )
    found = terms(RelationalDistillation(PAIR, grid=GRID), STUDENT, TEACHER)
    assert found["rkd_distance"] == pytest.approx(mean(map(huber, *distances)))
    assert found["rkd_angle"] == pytest.approx(mean(map(huber, *angles)))


def test_irg():
    student, teacher = view(0, (4, 4)), view(100, (6, 6))  # a transform compares two layers of equal channels
    edges, transforms = [], []
    for network in (student, teacher):
        layers = [regions(tap, GRID) for tap in network.features]
        edges.append([])
        for vectors in layers:
            apart = [square(one, other) for one in vectors for other in vectors]
            edges[-1] += [value / max(apart) for value in apart]
        moved = [square(shallow, deep) for shallow, deep in zip(*layers, strict=True)]
        transforms.append([value / max(moved) for value in moved])
    logits = [[value for vector in regions(of.logits, GRID) for value in vector] for of in (student, teacher)]
    found = terms(RelationshipGraph(pair((4, 4), (6, 6)), grid=GRID), student, teacher)
    for term, values in {"vertices": logits, "edges": edges, "transform": transforms}.items():
        assert found[f"irg_{term}"] == pytest.approx(square(*values) / len(values[0])), term


def test_crd():
    method = ContrastiveRepresentation(PAIR, grid=GRID, dimensions=7, temperature=0.3).double()
    embedded = []
    for layer, tap in zip((method.of_student, method.of_teacher), DEEP, strict=True):
        rows = list(zip(layer.weight.tolist(), layer.bias.tolist(), strict=True))
        embedded.append([[dot(weight, vector) + bias for weight, bias in rows] for vector in regions(tap, GRID)])
    likeness = [[cosine(mine, theirs) for theirs in embedded[1]] for mine in embedded[0]]
    losses = []
    for i in REGIONS:
        losses.append(-math.log(softmax(likeness[i], 0.3)[i]))
        losses.append(-math.log(softmax([row[i] for row in likeness], 0.3)[i]))
    assert terms(method, STUDENT, TEACHER)["crd"] == pytest.approx(mean(losses))


def test_coco():
    grid, found = 2, []
    for network in (STUDENT, TEACHER):
        vectors = [np.reshape(regions(tap, grid), (2, grid**2, -1)) for tap in network.features]
        for image in range(2):
            similar = [
                np.array([unit([cosine(one, other) for other in layer[image]]) for one in layer[image]])
                for layer in vectors
            ]
            found.append([[dot(row, column) for column in similar[1].T] for row in similar[0]])
    differences = np.array(found[:2]) - np.array(found[2:])
    expected = mean((differences**2).ravel().tolist())
    assert terms(CoCo(PAIR, grid=grid), STUDENT, TEACHER)["coco"] == pytest.approx(expected)


def test_skd_pair():
    student, teacher = view(0, (3,)), view(100, (5,))
    found = []
    for network in (student, teacher):
        nodes = np.reshape(regions(network.features[0], 2, np.max), (2, 4, -1))
        found.append([cosine(one, other) for image in nodes for one in image for other in image])
    method = PixelPairDistillation(pair((3,), (5,)), scale=0.5)
    assert terms(method, student, teacher)["skd_pair"] == pytest.approx(square(*found) / (2 * 4 * 4))


def blocks() -> tuple[torch.Tensor, list[int]]:
    """Labels (2, 1, 8, 8) that are alike in each 2 x 2 block, and the class of each place of a tap of 4 x 4."""
    small = torch.randint(0, 3, (2, 1, 4, 4), generator=torch.Generator().manual_seed(2))
    small[1] = small[1] % 2  # the second image has no third class
    return small.repeat_interleave(2, 2).repeat_interleave(2, 3), small.flatten().tolist()


def class_means(tap: torch.Tensor, kinds: list[int], image: int) -> dict[int, list[float]]:
    vectors, kinds = pixels(tap)[16 * image : 16 * (image + 1)], kinds[16 * image : 16 * (image + 1)]
    return {
        kind: np.mean([vector for vector, of in zip(vectors, kinds, strict=True) if of == kind], axis=0).tolist()
        for kind in sorted(set(kinds))
    }


def test_ifvd():
    labels, kinds = blocks()
    variations = [
        [cosine(vector, class_means(tap, kinds, i // 16)[kinds[i]]) for i, vector in enumerate(pixels(tap))]
        for tap in DEEP
    ]
    found = terms(IntraClassVariation(PAIR), STUDENT, TEACHER, labels)["ifvd"]
    assert found == pytest.approx(square(*variations) / len(kinds))


def test_emkd():
    """One tap. Importance: mean_c |f_c|^4, of unit length. Region: cosines of class means, over the pairs there are."""
    labels, kinds = blocks()
    student, teacher = view(0, (4,)), view(100, (6,))
    importance, affinity = [], []
    for image in range(2):
        one, other = (
            unit([mean(value**4 for value in pixel) for pixel in pixels(of.features[0][image : image + 1])])
            for of in (student, teacher)
        )
        importance.append(square(one, other))
        means = [class_means(of.features[0], kinds, image) for of in (student, teacher)]
        for a, b in combinations(sorted(means[0]), 2):
            affinity.append((cosine(means[0][a], means[0][b]) - cosine(means[1][a], means[1][b])) ** 2)
    assert len(affinity) == 3 + 1
    method = EfficientMedical(pair((4,), (6,)), balance=0, temperature=4)
    found = terms(method, student, teacher, labels)
    assert found["emkd_importance"] == pytest.approx(mean(importance))
    assert found["emkd_region"] == pytest.approx(mean(affinity))
    both = zip(pixels(teacher.logits), pixels(student.logits), strict=True)
    expected = 16 * mean(divergence(softmax(theirs, 4), softmax(mine, 4)) for theirs, mine in both)
    assert found["emkd_prediction"] == pytest.approx(expected, rel=1e-5)


def prototypes(student: np.ndarray, teacher: np.ndarray, kinds: np.ndarray, balance: float) -> float:
    """The weighted mean of squares between both maps' class means, over the classes that each image has.

    The class of a place is that of its nearest pixel. A class of n places weighs n^(1 - balance).
    """
    side, distances, weights = student.shape[-1], [], []
    nearest = [math.floor((place + 0.5) * kinds.shape[-1] / side) for place in range(side)]
    for mine, theirs, of_image in zip(student, teacher, kinds[:, nearest][:, :, nearest], strict=True):
        for kind in sorted(set(of_image.ravel().tolist())):
            there = of_image == kind
            means = [of[:, there].mean(axis=1).tolist() for of in (mine, theirs)]
            distances.append(square(*means) / len(means[0]))
            weights.append(float(there.sum()) ** (1 - balance))
    return dot(weights, distances) / sum(weights)


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("balance", [0, 0.5, 1])
def test_prototypes(balance, labelled):
    """Logits of 8 x 8 and two taps of 4 x 4 places; the student's shallow tap is twice as large as the teacher's.

    The second image lacks a class. If not labelled, it has labels in its upper half alone.
    """
    taps = (maps(0, 2, 3, 8, 8), maps(1, 2, 4, 4, 4)), (maps(2, 2, 5, 4, 4), maps(3, 2, 6, 4, 4))
    student, teacher = (Tapped(of, maps(seed, 2, CLASSES, 8, 8)) for seed, of in zip((4, 5), taps, strict=True))
    labels = torch.randint(0, CLASSES, (2, 1, 8, 8), generator=torch.Generator().manual_seed(6))
    labels[1] = labels[1] % 2
    if not labelled:
        labels[1, :, 4:] = -1
    method = ClassPrototypes(pair((3, 4), (5, 6)), balance=balance).double()
    of_shallow, of_deep = (
        pointwise(adapter.convolution, tap) for adapter, tap in zip(method.adapters, student.features, strict=True)
    )
    adapted = of_shallow.reshape(2, 5, 4, 2, 4, 2).mean((3, 5)), of_deep
    kinds = np.where(labels[:, 0] < 0, teacher.logits.numpy().argmax(axis=1), labels[:, 0])
    found = terms(method, student, teacher, labels)
    expected = prototypes(student.logits.numpy(), teacher.logits.numpy(), kinds, balance)
    assert found["prototypes_logits"] == pytest.approx(expected)
    both = zip(adapted, teacher.features, strict=True)
    expected = mean(prototypes(mine, theirs.numpy(), kinds, balance) for mine, theirs in both)
    assert found["prototypes_features"] == pytest.approx(expected)
