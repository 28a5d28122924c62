# SPDX-License-Identifier: Apache-2.0
"""CoCo: values derived by hand, parity with the matrices written out, the whole method, then bad input."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.distillation.distiller import Distiller
from pipeline.distillation.method import NetworkPair, Tapped
from pipeline.distillation.methods.coco import CoCo, CoCoLoss, build_coco, cross_layer_correlation
from pipeline.errors import InputError
from pipeline.networks import build_network


def pair(**changes: object) -> NetworkPair:
    return NetworkPair(nn.Identity(), nn.Identity(), (6, 6), (4, 4), 3, **changes)


def map_of(*vectors: tuple[float, ...]) -> torch.Tensor:
    """Return a map (1, C, 1, N) with these vectors at its places."""
    return torch.tensor(vectors).T[None, :, None]


def test_loss_by_hand():
    """Two regions, at right angles in the shallow layer: G_shallow = I, so that M = G_deep.

    Student: equal in the deep layer, rows (1, 1) / sqrt 2. Teacher: at right angles there too, M = I. The differences
    are 1 / sqrt 2 - 1 on the diagonal and 1 / sqrt 2 beside it: the mean square is 1 - 1 / sqrt 2.
    """
    across = map_of((1.0, 0.0), (0.0, 2.0))
    alike = map_of((3.0, 0.0), (1.0, 0.0))
    loss = CoCoLoss(grid=2)((across, alike), (across, across))
    torch.testing.assert_close(loss, torch.tensor(1 - 0.5**0.5))


def written_out(shallow: torch.Tensor, deep: torch.Tensor, side: int) -> torch.Tensor:
    """Return M with both similarity matrices formed, one image after the other."""
    found = []
    for layers in zip(shallow, deep, strict=True):
        similarities = []
        for layer in layers:
            pooled = F.adaptive_avg_pool2d(layer, side).flatten(1).T
            unit = pooled / pooled.norm(dim=1, keepdim=True)
            similarity = unit @ unit.T
            similarities.append(similarity / similarity.norm(dim=1, keepdim=True))
        found.append(similarities[0] @ similarities[1])
    return torch.stack(found)


def test_factors_and_loss_equal_the_matrices_written_out():
    torch.manual_seed(0)
    student = tuple(torch.randn(2, 3, 8, 8, dtype=torch.float64) for _ in range(2))
    teacher = tuple(torch.randn(2, 5, 12, 12, dtype=torch.float64) for _ in range(2))
    expected = [written_out(*taps, side=4) for taps in (student, teacher)]
    left, middle, right = cross_layer_correlation(
        *(F.adaptive_avg_pool2d(tap, 4).flatten(2).transpose(1, 2) for tap in student)
    )
    torch.testing.assert_close(left @ middle @ right.transpose(1, 2), expected[0])
    torch.testing.assert_close(CoCoLoss(grid=4)(student, teacher), (expected[0] - expected[1]).square().mean())


def test_gradient_equals_the_numerical_one():
    torch.manual_seed(0)
    student = tuple(torch.randn(1, 3, 2, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    teacher = tuple(torch.randn(1, 2, 2, 2, dtype=torch.float64) for _ in range(2))
    assert torch.autograd.gradcheck(lambda *both: CoCoLoss(2)(both, teacher), student)


@pytest.mark.parametrize(("dims", "most"), [(2, 32), (3, 10)])
def test_grid_stays_within_1024_regions(dims, most):
    assert CoCo(pair(spatial_dims=dims)).loss.grid == most
    with pytest.raises(InputError, match=rf"coco: grid is {most + 1}; .* from 2 to {most}"):
        CoCo(pair(spatial_dims=dims), grid=most + 1)


@pytest.mark.parametrize("grid", [1, 0, -4, 2.5, True, "8"])
def test_bad_grids_are_refused(grid):
    with pytest.raises(InputError, match="coco: grid is"):
        CoCo(pair(), grid=grid)


def test_whole_method_trains_the_student_with_kd_and_adversary_beside_the_correlation():
    torch.manual_seed(0)
    teacher, student = build_network("enet", out_channels=2), build_network("mobile_unet", out_channels=2)
    networks = NetworkPair(teacher, student, teacher.tap_channels, student.tap_channels, 2, total_steps=5)
    methods = build_coco(networks, weight=3.0, kd=0.5, adversarial=0.1, adversarial_kind="hinge")
    distiller = Distiller(teacher, student, methods, total_steps=5)
    assert distiller.weights == {"coco": 3.0, "kd": 0.5, "adversarial": 0.1}
    images = torch.randn(2, 1, 64, 64)
    terms = distiller(images, torch.zeros(2, 1, 64, 64), student(images))
    distiller.total(terms).backward()
    assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in student.parameters())
    assert set(distiller.after_step()) == {"discriminator"}


def test_weights_of_zero_leave_parts_out():
    assert set(build_coco(pair(), kd=0)) == {"coco"}


def test_middle_taps_are_not_compared():
    torch.manual_seed(0)
    ends = tuple(torch.randn(1, 4, 4, 4) for _ in range(2))
    student, teacher = (Tapped((ends[0], torch.randn(1, 4, 4, 4), ends[1]), torch.zeros(1)) for _ in range(2))
    assert float(CoCo(pair())(student, teacher, torch.zeros(1))["coco"]) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        (
            {"size": 32},
            {"adversarial": 0.1},
            "discriminator of coco needs slices of 64 pixels, the teacher's have 32.*'adversarial': 0",
        ),
        ({"spatial_dims": 3}, {"adversarial": 0.1}, "discriminator of coco judges slices.*'adversarial': 0"),
        ({}, {"adversarial": 0.1, "adversarial_kind": "lsgan"}, "choose one of wgan-gp, hinge"),
        ({}, {"temperature": 0}, "temperature"),
        ({}, {"weight": -1.0}, "weight of the loss term 'coco'"),
        ({}, {"adversarial": -1.0}, "weight of the loss term 'adversarial'"),
    ],
)
def test_bad_settings_end_in_one_clear_line(changes, settings, message):
    with pytest.raises(InputError, match=message):
        build_coco(pair(**changes), **settings)
