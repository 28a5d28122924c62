# SPDX-License-Identifier: Apache-2.0
"""Graph Flow: values derived by hand, the identities of the method, then bad input."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.distillation import GraphFlow, GraphFlowLoss, Tapped, salience_graph, variation_graph
from pipeline.distillation.methods.graph_flow import bounded, salient_windows
from pipeline.distillation.taps import FeatureTaps
from pipeline.errors import InputError
from pipeline.networks import build_network


def taps(seed: int, channels: int = 5, size: int = 8, batch: int = 2, **kwargs: object) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(batch, channels, size, size, generator=generator, dtype=torch.float64).to(**kwargs)
        for _ in range(2)
    )


def test_window_is_cut_around_the_maximum_and_zero_outside():
    features = torch.arange(16.0).reshape(1, 1, 4, 4)  # the maximum, 15, is the last corner
    assert salient_windows(features, 3).tolist() == [[[10, 11, 0, 14, 15, 0, 0, 0, 0]]]


def test_window_of_a_volume_is_cut_around_the_maximum_and_zero_outside():
    features = torch.arange(27.0).reshape(1, 1, 3, 3, 3)
    features[0, 0, 0, 1, 2] = 99  # what lies around: one plane towards the next, all rows, one column before
    assert salient_windows(features, 3).tolist() == [
        [[0] * 9 + [1, 2, 0, 4, 99, 0, 7, 8, 0] + [10, 11, 0, 13, 14, 0, 16, 17, 0]]
    ]


def test_first_of_equal_maxima_is_taken_and_each_channel_has_its_own():
    features = torch.zeros(1, 2, 3, 3)
    features[0, 1, 1, 1] = 2
    assert salient_windows(features, 1).tolist() == [[[0], [2]]]


def test_graphs_and_losses_by_hand():
    """Two channels, patch 1: vertices are the maxima, so every number can be worked out on paper."""
    shallow, deep = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)
    shallow[0, 0, 0, 0], shallow[0, 1, 1, 1] = 1, 2
    deep[0, 0, 1, 0], deep[0, 1, 0, 1] = 3, 5
    graph = salience_graph(shallow, patch=1)
    assert graph.vertices.tolist() == [[[1], [2]]]
    assert graph.edges.tolist() == [[[1, 2], [2, 4]]]
    change = variation_graph(graph, salience_graph(deep, patch=1))
    assert change.vertices.tolist() == [[[2], [3]]]
    assert change.edges.tolist() == [[[8, 13], [13, 21]]]
    nothing = (torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2))
    vertices, edges = GraphFlowLoss(patch=1)((shallow, deep), nothing)
    assert vertices == 2**2 + 3**2
    assert edges == 8**2 + 2 * 13**2 + 21**2
    vertices, edges = GraphFlowLoss(patch=1, reduction="mean")((shallow, deep), nothing)
    assert vertices == (2**2 + 3**2) / 2
    assert edges == (8**2 + 2 * 13**2 + 21**2) / 4


def test_cosine_edges_by_hand():
    features = torch.zeros(1, 2, 1, 3)
    features[0, 0] = torch.tensor([[1.0, 3.0, 0.0]])
    features[0, 1] = torch.tensor([[0.0, 4.0, 2.0]])
    edges = salience_graph(features, patch=3, edge="cosine").edges
    first, second = 10**0.5, 20**0.5
    softened = [length / (length + 0.5 * first) for length in (first, second)]  # torch's median of two is the smaller
    across = 12 / (first * second) * softened[0] * softened[1]
    expected = torch.tensor([[[softened[0] ** 2, across], [across, softened[1] ** 2]]])
    torch.testing.assert_close(edges, expected)


def test_bounded_by_hand():
    """Delta of lengths 3, 4, 5 is 4 / 2; of 0, 0, 0, 10 (root mean square 5) 5 / 20; of 0.0006 alone 0.001."""
    for lengths, delta in (((3.0, 4.0, 5.0), 2.0), ((0.0, 0.0, 0.0, 10.0), 0.25), ((6e-4,), 1e-3), ((0.0, 0.0), 1.0)):
        windows = torch.tensor(lengths)[None, :, None] * torch.tensor([0.6, -0.8])
        expected = windows / (torch.tensor(lengths)[None, :, None] + delta)
        torch.testing.assert_close(bounded(windows), expected)


@pytest.mark.parametrize("student", ["mobile_unet", "enet", "erfnet"])
def test_ordinary_taps_are_bounded_by_half_of_the_median_to_the_last_bit(student):
    torch.manual_seed(0)
    network = build_network(student, 1, 5)
    tapped = FeatureTaps(network, network.taps)
    network(F.interpolate(torch.rand(4, 1, 8, 8), scale_factor=8, mode="bilinear"))
    for tap in tapped.take():
        windows = salient_windows(tap.detach(), 3)
        length = windows.norm(dim=-1, keepdim=True)
        assert torch.equal(bounded(windows), windows / (length + length.median() / 2))


def squared_gradients(small: int, scale: float) -> list[torch.Tensor]:
    """Of each term, the squared gradient at each of eight channels of which the first `small` are scaled."""
    student = tuple(tap.clone() for tap in taps(0, channels=8, dtype=torch.float32))
    for tap in student:
        tap[:, :small] *= scale
        tap.requires_grad_()
    loss = GraphFlowLoss(edge="cosine", reduction="mean", node_norm="bounded", centred=True)
    found = []
    for term in loss(student, taps(1, channels=8, dtype=torch.float32)):
        gradients = torch.autograd.grad(term, student, retain_graph=True)
        found.append(sum(gradient.square().sum(dim=(0, 2, 3)) for gradient in gradients))
    return found


@pytest.mark.parametrize("small", [1, 4, 7, 8])
@pytest.mark.parametrize("scale", [1.0, 1e-2, 1e-4, 1e-6, 1e-8, 0.0])
def test_no_channel_takes_the_gradient_by_being_small(small, scale):
    """With plain unit lengths, a channel's gradient grows as one over its scale.

    Here it grows by a hundred at most; where all channels are small, by ten thousand, and of zeros there is none.
    """
    for usual, found in zip(squared_gradients(0, 1.0), squared_gradients(small, scale), strict=True):
        assert torch.isfinite(found).all()
        assert found.max() < (1e8 if small == 8 else 1e4) * usual.max()
        assert found.max() <= 0.7 * found.sum()
        assert (small == 8 and scale == 0) == (found.max() == 0)


def test_centred_graphs_do_not_see_what_all_images_share():
    loss = GraphFlowLoss(reduction="mean", patch=1, centred=True)
    student, teacher = taps(0), taps(1)
    same = tuple(tap[:1].expand(2, -1, -1, -1) for tap in student)
    assert [float(term) for term in loss(same, tuple(tap[:1].expand(2, -1, -1, -1) for tap in teacher))] == [0, 0]
    assert loss(student, teacher)[0] > 0
    alone = loss(tuple(tap[:1] for tap in student), tuple(tap[:1] for tap in teacher))
    assert alone[0] > 0  # one image has nothing to be compared with


def test_adapter_reaches_signed_targets_from_rectified_taps():
    """A student's tap of 1 everywhere, adapted by -1, equals the teacher's tap of -1."""
    minus = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.constant_(minus.weight, -1.0)
    student, teacher = (Tapped((torch.full((2, 1, 4, 4), value),) * 2, torch.zeros(1)) for value in (1.0, -1.0))
    method = GraphFlow(GraphFlowLoss(), None, 1.0, 1.0, (minus, minus))
    assert all(float(term.detach()) == 0 for term in method(student, teacher, torch.zeros(1)).values())
    assert len(method.adapter_parameters()) == 1


@pytest.mark.parametrize("options", [{}, {"edge": "cosine", "reduction": "mean", "node_norm": "bounded"}, {"patch": 9}])
class TestIdentities:
    """What must hold for any features and any options."""

    def test_zero_for_equal_features(self, options):
        both = taps(0)
        assert [float(term) for term in GraphFlowLoss(**options)(both, both)] == [0, 0]

    def test_unchanged_by_one_permutation_of_all_channels(self, options):
        student, teacher, order = taps(0), taps(1), torch.randperm(5)
        loss = GraphFlowLoss(**options)
        permuted = loss(tuple(tap[:, order] for tap in student), tuple(tap[:, order] for tap in teacher))
        torch.testing.assert_close(permuted, loss(student, teacher))

    def test_changed_by_a_permutation_of_the_student_alone(self, options):
        student, teacher = taps(0), taps(1)
        loss = GraphFlowLoss(**options)
        assert loss(tuple(tap.flip(1) for tap in student), teacher)[0] != loss(student, teacher)[0]

    def test_gradient_reaches_the_windows_of_the_student_alone(self, options):
        student = tuple(tap.requires_grad_() for tap in taps(0, size=16))
        teacher = tuple(tap.requires_grad_() for tap in taps(1, size=16))
        vertices, edges = GraphFlowLoss(**options)(student, teacher)
        (vertices + edges).backward()
        reached = (student[0].grad != 0).flatten(2).sum(-1)
        assert reached.max() <= options.get("patch", 3) ** 2
        assert reached.min() > 0
        assert all(tap.grad is None for tap in teacher)

    def test_maps_of_different_size_are_compared(self, options):
        assert all(torch.isfinite(term) for term in GraphFlowLoss(**options)(taps(0, size=8), taps(1, size=16)))


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_scaling_of_the_paper_form_is_quadratic_and_quartic(scale):
    loss = GraphFlowLoss()
    vertices, edges = loss(taps(0), taps(1))
    scaled = loss(tuple(scale * tap for tap in taps(0)), tuple(scale * tap for tap in taps(1)))
    torch.testing.assert_close(scaled, (vertices * scale**2, edges * scale**4), rtol=1e-4, atol=0)


def test_cosine_edges_are_free_of_scale():
    loss = GraphFlowLoss(edge="cosine")
    scaled = tuple(7.0 * tap for tap in taps(0))
    torch.testing.assert_close(loss(scaled, taps(1))[1], loss(taps(0), taps(1))[1])


def test_mean_is_free_of_batch_size():
    loss = GraphFlowLoss(edge="cosine", reduction="mean", node_norm="bounded", centred=True)
    twice = [tuple(tap.repeat(2, 1, 1, 1) for tap in both) for both in (taps(0), taps(1))]
    torch.testing.assert_close(loss(*twice), loss(taps(0), taps(1)))


def test_half_precision_features_do_not_overflow():
    large = tuple(100 * tap for tap in taps(0, dtype=torch.float16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, edges = GraphFlowLoss()(large, taps(1, dtype=torch.float16))
    assert edges.dtype == torch.float32
    assert torch.isfinite(edges)
    assert edges > torch.finfo(torch.float16).max  # it would have been infinite in half precision


def test_gradient_equals_the_numerical_one():
    student = tuple(tap.requires_grad_() for tap in taps(0, channels=2, size=4, batch=1))
    teacher = taps(1, channels=2, size=4, batch=1)
    assert torch.autograd.gradcheck(lambda *both: GraphFlowLoss()(both, teacher), student)


class Halve(nn.Module):
    """A stand-in for a paraphraser: keeps every second channel."""

    def encode(self, tap: torch.Tensor) -> torch.Tensor:
        return tap[:, ::2]


def test_method_is_zero_when_the_student_equals_the_paraphrased_teacher():
    teacher = Tapped(taps(0, channels=8), torch.zeros(1))
    student = Tapped(tuple(Halve().encode(tap) for tap in teacher.features), torch.zeros(1))
    method = GraphFlow(GraphFlowLoss(), (Halve(), Halve()), vertices=1.0, edges=1.0)
    terms = method(student, teacher, torch.zeros(1))
    assert {name: float(term) for name, term in terms.items()} == {"vertices": 0, "edges": 0}


def test_channel_mismatch_names_both_shapes():
    with pytest.raises(ValueError, match=r"\(2, 5, 8, 8\).*\(2, 6, 8, 8\).*paraphraser"):
        GraphFlowLoss()(taps(0, channels=5), taps(0, channels=6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"edge": "l1"}, "edge is 'l1'"),
        ({"reduction": "max"}, "reduction"),
        ({"patch": 4}, "odd"),
        ({"patch": 0}, "odd"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        GraphFlowLoss(**options)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf"), {"share": 0.1}])
def test_weights_must_be_finite_and_not_negative(weight):
    with pytest.raises(InputError, match="weight of the loss term 'edges'"):
        GraphFlow(GraphFlowLoss(), None, vertices=1.0, edges=weight)
