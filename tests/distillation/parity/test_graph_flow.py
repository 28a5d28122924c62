# SPDX-License-Identifier: Apache-2.0
"""Graph Flow is its written arithmetic in both presets: loops over images, channels, windows and nodes."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch

from pipeline.distillation.methods.graph_flow import GraphFlow, GraphFlowLoss, salience_graph, salient_windows
from pipeline.distillation.methods.graph_flow_preset import build_graph_flow
from pipeline.networks import Paraphraser
from tests.distillation.parity.plain_formulas import dot, encoded, maps, pair, pointwise, terms, view


def window(channel: np.ndarray, patch: int) -> list[float]:
    """The patch around the maximum of a map of any dimensions, zero outside, the last axis fastest."""
    centre = np.unravel_index(channel.argmax(), channel.shape)
    found = []
    for offset in product(range(-(patch // 2), patch // 2 + 1), repeat=channel.ndim):
        place = tuple(int(c + o) for c, o in zip(centre, offset, strict=True))
        inside = all(0 <= p < side for p, side in zip(place, channel.shape, strict=True))
        found.append(float(channel[place]) if inside else 0.0)
    return found


def graphs(tap: torch.Tensor, patch: int) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (B, C, places) and edges (B, C, C), the inner products of the vertices."""
    vertices = [[window(channel, patch) for channel in image] for image in tap.detach().numpy()]
    edges = [[[dot(one, other) for other in nodes] for one in nodes] for nodes in vertices]
    return np.array(vertices), np.array(edges)


@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (2, 3, 4, 3, 5), (2, 2, 1, 2)])
@pytest.mark.parametrize("patch", [1, 3, 5])
def test_windows_and_edges(shape, patch):
    tap = maps(0, *shape)
    vertices, edges = graphs(tap, patch)
    np.testing.assert_allclose(salient_windows(tap, patch).numpy(), vertices)
    graph = salience_graph(tap, patch)
    np.testing.assert_allclose(graph.vertices.numpy(), vertices)
    np.testing.assert_allclose(graph.edges.numpy(), edges)


def changes(taps: tuple[torch.Tensor, ...], patch: int) -> tuple[np.ndarray, np.ndarray]:
    (shallow_vertices, shallow_edges), (deep_vertices, deep_edges) = (graphs(tap, patch) for tap in taps)
    return deep_vertices - shallow_vertices, deep_edges - shallow_edges


@pytest.mark.parametrize("patch", [3, 9])
def test_losses_of_the_paper(patch):
    """Sums over images, channels and places of the squared difference of both changes; the teacher's are of factors."""
    torch.manual_seed(0)
    paraphrasers = Paraphraser(5, 4).double(), Paraphraser(6, 4).double()
    student, teacher = view(0, (4, 4), side=6), view(100, (5, 6), side=6)
    factors = tuple(encoded(one.encoder, tap) for one, tap in zip(paraphrasers, teacher.features, strict=True))
    of_student, of_teacher = changes(student.features, patch), changes(factors, patch)
    method = GraphFlow(GraphFlowLoss(patch=patch), paraphrasers, vertices=1.0, edges=1.0)
    found = terms(method, student, teacher)
    for term, mine, theirs in zip(("vertices", "edges"), of_student, of_teacher, strict=True):
        expected = sum((a - b) ** 2 for a, b in zip(mine.ravel(), theirs.ravel(), strict=True))
        assert found[term] == pytest.approx(expected), term


def test_networks_of_equal_channels_need_no_paraphraser():
    student, teacher = view(0, (4, 4)), view(100, (4, 4))
    found = terms(GraphFlow(GraphFlowLoss(), None, vertices=1.0, edges=1.0), student, teacher)
    of_student, of_teacher = changes(student.features, 3), changes(teacher.features, 3)
    assert found["vertices"] == pytest.approx(((of_student[0] - of_teacher[0]) ** 2).sum())
    assert found["edges"] == pytest.approx(((of_student[1] - of_teacher[1]) ** 2).sum())


def bounded_graphs(tap: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertices v / (|v| + delta) and their inner products.

    Delta is half of the median length of all windows, if that is above a twentieth of the root mean square and 0.001.
    """
    vertices = np.array([[window(channel, 3) for channel in image] for image in tap])
    lengths = np.array([[math.sqrt(dot(node, node)) for node in nodes] for nodes in vertices])
    in_order = sorted(lengths.ravel())
    median = in_order[(len(in_order) - 1) // 2]  # of an even number torch takes the lower one
    square = sum(length**2 for length in in_order) / len(in_order)
    vertices /= (lengths + max(median / 2, math.sqrt(square) / 20, 0.001))[:, :, None]
    return vertices, np.array([[[dot(one, other) for other in nodes] for one in nodes] for nodes in vertices])


def centred_changes(taps: list[np.ndarray]) -> list[np.ndarray]:
    """The changes of vertices and edges from the shallow to the deep tap, less their means over the images."""
    changed = [deep - shallow for shallow, deep in zip(*map(bounded_graphs, taps), strict=True)]
    return [change - sum(change) / len(change) for change in changed]


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_losses_of_the_bounded_preset(scale):
    """Means of the squared differences of both networks' centred changes; adapters follow the student's taps.

    With the small scale three of four channels of the shallow tap are nearly zero after its adapter.
    """
    torch.manual_seed(0)
    paraphrasers = Paraphraser(5, 4).double(), Paraphraser(6, 4).double()
    student, teacher = view(0, (4, 4), side=6, batch=3), view(100, (5, 6), side=6, batch=3)
    method = build_graph_flow(pair((4, 4), (5, 6), paraphrasers=paraphrasers))["graph_flow"].double()
    for number, adapter in enumerate(method.adapters):
        adapter.weight.data, adapter.bias.data = maps(7 + number, 4, 4, 1, 1), maps(9 + number, 4)
    for parameter in method.adapters[0].parameters():
        parameter.data[1:] *= scale
    adapted = [pointwise(one, tap) for one, tap in zip(method.adapters, student.features, strict=True)]
    factors = [encoded(one.encoder, tap).numpy() for one, tap in zip(paraphrasers, teacher.features, strict=True)]
    found = terms(method, student, teacher)
    both = zip(centred_changes(adapted), centred_changes(factors), strict=True)
    for term, (mine, theirs) in zip(("vertices", "edges"), both, strict=True):
        squares = [(a - b) ** 2 for a, b in zip(mine.ravel(), theirs.ravel(), strict=True)]
        assert found[term] == pytest.approx(sum(squares) / len(squares), rel=1e-6), term
