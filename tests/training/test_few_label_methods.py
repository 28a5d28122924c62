# SPDX-License-Identifier: Apache-2.0
"""Methods that need the class of a pixel: where nobody has labelled, the teacher's likeliest class stands in."""

from __future__ import annotations

from math import log

import pytest
import torch
from torch import nn

from pipeline.distillation import METHODS
from pipeline.distillation.method import DistillationMethod, NetworkPair, Tapped
from pipeline.unlabelled import UNLABELLED

CLASSES = 3
NEED_CLASSES = ("ifvd", "emkd", "bpkd")


def built(name: str, **settings: float) -> DistillationMethod:
    return METHODS[name](NetworkPair(nn.Identity(), nn.Identity(), (4, 4), (4, 4), CLASSES), **settings)


def view(seed: int) -> Tapped:
    """Return two taps (2, 4, 8, 8) and logits (2, 3, 16, 16) in squares of 4 x 4, which have an inside."""
    generator = torch.Generator().manual_seed(seed)
    taps = tuple(torch.randn(2, 4, 8, 8, generator=generator).relu() for _ in range(2))
    squares = torch.randn(2, CLASSES, 4, 4, generator=generator)
    return Tapped(taps, squares.repeat_interleave(4, 2).repeat_interleave(4, 3))


def row(*vectors: tuple[float, ...]) -> torch.Tensor:
    """Return a map (1, C, 1, N) with these vectors at its places."""
    return torch.tensor(vectors).T[None, :, None]


def of_taps(taps: torch.Tensor, logits: torch.Tensor) -> Tapped:
    return Tapped((taps, taps), logits)


def nobody_labelled(places: int) -> torch.Tensor:
    return torch.full((1, 1, 1, places), UNLABELLED, dtype=torch.uint8)


def test_variation_by_hand():
    """The teacher says class 1 twice. Student: both pixels are 45 degrees off their mean. Teacher: both on it.

    The student says class 0 at one of them, which doesn't count: each pixel alone would be its own mean.
    """
    student = of_taps(row((1.0, 0.0), (0.0, 1.0)), row((9.0, 0.0, 0.0), (0.0, 9.0, 0.0)))
    teacher = of_taps(row((4.0, 0.0), (2.0, 0.0)), row((0.0, 5.0, 0.0), (0.0, 1.0, 0.0)))
    term = built("ifvd")(student, teacher, nobody_labelled(2))["ifvd"]
    assert float(term) == pytest.approx((1 - 0.5**0.5) ** 2)


def test_affinity_of_regions_by_hand():
    """The teacher says class 0, then 2. Student: their means are at right angles. Teacher: 60 degrees, cosine 1/2.

    (0 - 1/2)^2 from each of two taps.
    """
    student = of_taps(row((1.0, 0.0), (0.0, 1.0)), row((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)))
    teacher = of_taps(row((2.0, 0.0), (1.0, 3.0**0.5)), row((3.0, 0.0, 0.0), (0.0, 0.0, 3.0)))
    term = built("emkd")(student, teacher, nobody_labelled(2))["emkd_region"]
    assert float(term) == pytest.approx(0.25 + 0.25)


def test_edges_by_hand():
    """The teacher says 0, 0, 1, 1: the two places in the middle are the edge.

    There it gives its class 1/2, the others 1/4 each; the student gives each 1/3. KL is the sum over classes:
    1/2 ln(3/2) + 2 * 1/4 ln(3/4) = 1/2 ln(9/8). The outer places, where the teacher is surer, are no edge.
    """
    two, many = log(2), 9.0
    teacher = row((many, 0.0, 0.0), (two, 0.0, 0.0), (0.0, two, 0.0), (0.0, many, 0.0))
    views = Tapped((), torch.zeros_like(teacher)), Tapped((), teacher)
    term = built("bpkd", edge_temperature=1.0)(*views, nobody_labelled(4))["bpkd_edge"]
    assert float(term) == pytest.approx(log(9 / 8) / 2)


@pytest.mark.parametrize("hidden", [(0, 1), (1,)])
@pytest.mark.parametrize("name", NEED_CLASSES)
def test_where_nobody_has_labelled_the_teachers_class_stands_in(name, hidden):
    """Labels of the other image stay: they are not what the teacher says."""
    method, student, teacher = built(name), view(0), view(1)
    predicted = teacher.logits.argmax(dim=1, keepdim=True).byte()
    bands = (torch.arange(16) // 6).byte().expand(2, 1, 16, 16)
    unlabelled, known = bands.clone(), bands.clone()
    for item in hidden:
        unlabelled[item], known[item] = UNLABELLED, predicted[item]
    found, expected, of_bands = (
        {term: float(value) for term, value in method(student, teacher, labels).items()}
        for labels in (unlabelled, known, bands)
    )
    assert found == expected
    assert all(value > 0 for value in found.values())
    assert found != of_bands
