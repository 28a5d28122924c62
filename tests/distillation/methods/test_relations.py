# SPDX-License-Identifier: Apache-2.0
"""Methods that relate regions of a batch, cc, rkd and irg: values by hand, parity with loops, then bad input."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.distillation.method import NetworkPair, Tapped
from pipeline.distillation.methods.cc import CorrelationCongruence, taylor_kernel
from pipeline.distillation.methods.irg import RelationshipGraph, edges, transform
from pipeline.distillation.methods.relations import (
    batch_regions,
    evenly_spaced_rows,
    largest_grid,
    squared_distances,
    unit_vectors,
)
from pipeline.distillation.methods.rkd import RelationalDistillation, angles, differences, relative_distances
from pipeline.errors import InputError

METHODS = {"cc": CorrelationCongruence, "rkd": RelationalDistillation, "irg": RelationshipGraph}


def pair(**changes: object) -> NetworkPair:
    return NetworkPair(nn.Identity(), nn.Identity(), (6, 6), (4, 4), 2, **changes)


def points(*rows: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(rows)


def as_view(*taps: torch.Tensor, logits: torch.Tensor | None = None) -> Tapped:
    """Return a view of one image whose places, along its width, are the rows of the taps."""
    maps = tuple(tap.T[None, :, None] for tap in taps)
    return Tapped(maps, torch.zeros(1, 2, 1, len(taps[0])) if logits is None else logits)


def test_regions_are_means_of_squares_over_the_whole_batch():
    maps = torch.arange(32.0).reshape(2, 1, 4, 4)
    of_student, of_teacher = batch_regions(maps, maps.repeat(1, 3, 1, 1)[..., :2], grid=2, most=100)
    # rows 0-1, columns 0-1 of the first image: (0 + 1 + 4 + 5) / 4
    assert of_student.tolist() == [[2.5], [4.5], [10.5], [12.5], [18.5], [20.5], [26.5], [28.5]]
    assert of_teacher.shape == (8, 3)


def test_too_many_regions_are_thinned_evenly():
    assert evenly_spaced_rows(torch.arange(10.0)[:, None], 4).flatten().tolist() == [0, 3, 6, 9]


@pytest.mark.parametrize(("regions", "dims", "side"), [(1024, 2, 32), (1024, 3, 10), (1, 2, 1)])
def test_largest_grid(regions, dims, side):
    assert largest_grid(regions, dims) == side


def test_unit_vectors_have_length_one_and_zero_stays_zero_without_gradient():
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    unit = unit_vectors(vectors)
    torch.testing.assert_close(unit.detach(), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    (unit * torch.tensor([[1.0, 0.0], [1.0, 1.0]])).sum().backward()
    # d(x / r)/dx = 1 / r - x^2 / r^3 = 0.128 and d(x / r)/dy = -x y / r^3 = -0.096
    torch.testing.assert_close(vectors.grad, torch.tensor([[0.128, -0.096], [0.0, 0.0]]))


def test_squared_distances_equal_the_differences():
    torch.manual_seed(0)
    vectors = 5 * torch.randn(20, 16) + 100
    found = squared_distances(vectors)
    torch.testing.assert_close(found, (vectors[None] - vectors[:, None]).square().sum(dim=-1), rtol=1e-4, atol=1e-3)
    assert (found.diagonal() == 0).all()


def test_cc_by_hand():
    """Two regions, at right angles or alike: k(1) - k(0) = exp(-0.8) (0.8 + 0.32) in two of four places."""
    student, teacher = as_view(points((1.0, 0.0), (0.0, 1.0))), as_view(points((1.0, 0.0), (5.0, 0.0)))
    term = CorrelationCongruence(pair())(student, teacher, torch.zeros(1))["cc"]
    assert float(term) == pytest.approx((math.exp(-0.8) * 1.12) ** 2 / 2)


def test_taylor_kernel_comes_near_the_gaussian_kernel():
    torch.manual_seed(0)
    vectors = torch.randn(5, 3, dtype=torch.float64)
    unit = F.normalize(vectors)
    gaussian = torch.exp(-0.4 * torch.cdist(unit, unit).square())
    torch.testing.assert_close(taylor_kernel(vectors, 0.4, order=10), gaussian)


def test_rkd_by_hand():
    """Student (0,0), (1,0), (0,1); teacher 0, 1, 2 on a line.

    Distances: student (1, 1, sqrt 2) / m with m = (2 + sqrt 2) / 3, teacher (1, 2, 1) / (4/3) for (01, 02, 12); each
    stands twice among nine. Cosines at 0, 1, 2: student 0, 1/sqrt 2, 1/sqrt 2; teacher 1, -1, 1; each twice among 27.
    Huber: 1/2, then 1 + 1/sqrt 2 - 1/2, then (1 - 1/sqrt 2)^2 / 2: 1.75 in all.
    """
    student, teacher = as_view(points((0, 0), (1, 0), (0, 1.0))), as_view(points((0,), (1,), (2.0,)))
    terms = RelationalDistillation(pair())(student, teacher, torch.zeros(1))
    mean = (2 + 2**0.5) / 3
    gaps = [1 / mean - 0.75, 1 / mean - 1.5, 2**0.5 / mean - 0.75]
    assert float(terms["rkd_distance"]) == pytest.approx(2 * sum(gap**2 / 2 for gap in gaps) / 9)
    assert float(terms["rkd_angle"]) == pytest.approx(3.5 / 27)


def test_rkd_equals_loops_over_pairs_and_triples():
    torch.manual_seed(0)
    vectors = torch.randn(5, 3)
    apart = differences(vectors)
    lengths = torch.tensor([[math.dist(one, other) for other in vectors.tolist()] for one in vectors.tolist()])
    torch.testing.assert_close(relative_distances(apart), lengths / lengths[lengths > 0].mean())
    found = angles(apart)
    for j in range(5):
        for i in range(5):
            for k in range(5):
                expected = torch.cosine_similarity(vectors[i] - vectors[j], vectors[k] - vectors[j], dim=0)
                torch.testing.assert_close(found[j, i, k], expected, atol=1e-6, rtol=1e-5)


def test_regions_alike_up_to_rounding_have_no_direction():
    """Air is the same everywhere but for the last bits: directions of that noise must not teach anything."""
    vectors = torch.cat((torch.full((6, 4), 7.0), 20 * torch.randn(4, 4)))
    noisy = (vectors * (1 + 1e-6 * torch.randn_like(vectors))).requires_grad_()
    apart = differences(noisy)
    assert (apart[:6, :6] == 0).all()
    F.mse_loss(angles(apart), torch.zeros(10, 10, 10)).backward()
    assert noisy.grad.abs().max() < 1


def test_irg_by_hand():
    """Deep rows 0, 1, 3 of the student: squares (1, 9, 4) / 9; 0, 1, 2 of the teacher: (1, 4, 1) / 4; mean of 9.

    Shallow edges are equal. The change is (0, 0, 1) and (0, 0, 0): by the largest, (0, 0, 1) against zeros. The logits
    are 0 against 2 everywhere: 4.
    """
    shallow = points((0,), (1,), (2.0,))
    student = as_view(shallow, points((0,), (1,), (3.0,)))
    teacher = as_view(shallow, shallow, logits=torch.full((1, 2, 1, 3), 2.0))
    terms = RelationshipGraph(pair())(student, teacher, torch.zeros(1))
    deep = 2 * ((1 / 9 - 1 / 4) ** 2 + 0 + (4 / 9 - 1 / 4) ** 2) / 9
    assert float(terms["irg_edges"]) == pytest.approx(deep / 2)
    assert float(terms["irg_transform"]) == pytest.approx(1 / 3)
    assert float(terms["irg_vertices"]) == 4


def test_layers_of_different_channels_are_compared_by_means_of_neighbours():
    """(1, 3 | 5, 7) becomes (2, 6): against (2, 2), the change is 16; of the other row, nothing: zero."""
    changes = transform(points((1, 3, 5, 7), (4, 4, 4, 4.0)), points((2, 2), (4, 4.0)))
    assert changes.tolist() == [1, 0]
    assert transform(points((1, 1.0)), points((1, 3.0))).tolist() == [1]


def test_edges_of_equal_regions_are_zero():
    assert edges(torch.ones(4, 2)).tolist() == torch.zeros(4, 4).tolist()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"grid": 0}, "grid is 0; it must be a whole number from 1 to 32"),
        ({"grid": 2.5}, "grid is 2.5"),
        ({"grid": 33}, "grid is 33"),
        ({"regions": 1}, "regions is 1; it must be a whole number from 2"),
        ({"regions": 10**6}, "regions is 1000000"),
        ({"weight": -1.0}, "weight of the loss term"),
    ],
)
def test_bad_regions_end_in_one_clear_line(name, settings, message):
    with pytest.raises(InputError, match=message):
        METHODS[name](pair(), **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": 0}, "cc: gamma is 0; it must be a finite number above 0"),
        ({"gamma": float("nan")}, "cc: gamma is nan"),
        ({"gamma": "wide"}, "cc: gamma is 'wide'"),
        ({"order": 0}, "cc: order is 0; it must be a whole number from 1 to 10"),
        ({"order": True}, "cc: order is True"),
    ],
)
def test_bad_kernels_end_in_one_clear_line(settings, message):
    with pytest.raises(InputError, match=message):
        CorrelationCongruence(pair(), **settings)
