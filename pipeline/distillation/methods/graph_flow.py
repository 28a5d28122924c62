# SPDX-License-Identifier: Apache-2.0
"""Graph Flow: the student learns how the teacher's salient channel features change from a shallow to a deep layer.

Zou et al., "Graph Flow: Cross-layer Graph Flow Distillation for Dual Efficient Medical Image Segmentation", IEEE TMI
2022, arXiv 2203.08667. The authors' loss file is not public; the formula is the best fit to the published weights,
ablation and figures:

    v_k   = the p x p window (p x p x p of volumes) of channel k around its maximum  (salience graph, vertices)
    E     = V V^T                                                                    (salience graph, edges)
    dV    = V_deep - V_shallow,  dE = E_deep - E_shallow                             (variation graph)
    L_V   = || dV_student - dV_teacher ||^2,  L_E = || dE_student - dE_teacher ||^2

Three things are ours, each an option. First, windows are scaled to nearly unit length by a bounded rule. Second,
variation graphs are centred over the batch: on abdominal MR, most of a teacher's graph is the same for every image and
teaches nothing. Third, a trained 1 x 1 convolution, the adapter, follows the student's taps. The teacher's factors have
both signs, while ERFNet's taps and ENet's deep one are rectified (>= 0), and rectified taps do not reach them. The
shares of both losses that 250 steps leave on free tensors in a student's place (`python -m
benchmarks.graph_flow_reach`):

    taps                             vertices  edges
    pre-activation, of both signs      0.007   0.019
    rectified                          0.219   0.120
    rectified, the factor too          0.216   0.118
    rectified, with an adapter         0.028   0.067

Pre-activation taps come nearest. But a tap is the output of a module, and no module of ERFNet or ENet gives these
values: they are a sum inside a block, right before its last activation. The adapter works for any network and starts as
the identity, so it is the default. In training nothing was lost by it: ERFNet on a tenth of EBHI-Seg had a mean IoU of
0.654 (validation 0.643) with the adapter, and 0.650 (0.629) with the values before the activation and no adapter (three
seeds).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.distillation.method import DistillationMethod, Tapped, at_least_float32
from pipeline.distillation.paraphrased import FrozenParaphrasers
from pipeline.errors import InputError

EDGES = ("dot", "cosine")
REDUCTIONS = ("sum", "mean")
NODE_NORMS = ("none", "bounded")
# Windows shorter than this share of the median window do not gain by being brought to unit length.
_SOFTENING = 0.5
# The same against the root mean square, for maps whose median window is tiny. Ordinary taps don't come near: in the
# three students half of the median is 0.23 to 0.49 of it, at the start and in 25 steps on random images.
_LEAST_SHARE = 0.05
# The same as a length, for maps that are tiny as a whole: ordinary windows have lengths of 1 to 10.
_LEAST_LENGTH = 1e-3


class Graph(NamedTuple):
    """A complete graph with one node per channel: vertices (B, C, P) with P places in a window, edges (B, C, C)."""

    vertices: torch.Tensor
    edges: torch.Tensor


def salient_windows(features: torch.Tensor, patch: int) -> torch.Tensor:
    """Return the window of each channel around its maximum, `patch` places along each axis, zero outside the map.

    Args:
        features: (B, C, H, W) or (B, C, D, H, W). Gradients reach the values in the window, but not its position.
        patch: odd side of the window.

    Returns:
        (B, C, patch * patch) or (B, C, patch * patch * patch), float32 (float64 stays).
    """
    sides = features.shape[2:]
    flat = features.flatten(2)
    position = flat.detach().argmax(dim=-1, keepdim=True)
    reach = torch.arange(patch, device=features.device) - patch // 2
    offsets = torch.cartesian_prod(*[reach] * len(sides)).unbind(1)  # one tensor per axis, the last runs fastest
    centres, inner = [], position
    for side in reversed(sides):
        centres.append(inner % side)
        inner = inner.div(side, rounding_mode="floor")
    inside: torch.Tensor | bool = True
    index = torch.zeros_like(position)
    for side, centre, offset in zip(sides, reversed(centres), offsets, strict=True):
        place = centre + offset
        inside = inside & (place >= 0) & (place < side)
        # Reading a clamped place and masking it spares a padded copy of the whole feature map.
        index = index * side + place.clamp(0, side - 1)
    return at_least_float32(flat.gather(2, index)) * inside


def bounded(windows: torch.Tensor) -> torch.Tensor:
    """Return windows (B, C, N) of nearly unit length: v / (|v| + delta).

    Delta is half of the median length, but at least a twentieth of the root mean square of the lengths and 0.001.

    A plain division by the length is singular: its gradient grows as 1 / |v|, and rectified taps have many windows that
    are nearly zero. Here no slope is above 1 / delta. As long as the median counts, the slope at a window of length
    zero is three times that at the median window. Where more than half of the windows are tiny, the root mean square
    bounds the slope: at 28 over the length of the others for a half, at 57 for seven of eight. Where all are tiny, the
    slope is at most 1000. Where all are zero, nothing tells a direction, and there is no gradient.
    """
    length = torch.linalg.vector_norm(windows, dim=-1, keepdim=True)
    known = length.detach()
    typical = known.square().mean().sqrt()
    delta = torch.maximum(_SOFTENING * known.median(), _LEAST_SHARE * typical).clamp(min=_LEAST_LENGTH)
    return windows / (length + delta) * (typical > 0)


def salience_graph(features: torch.Tensor, patch: int = 3, edge: str = "dot", node_norm: str = "none") -> Graph:
    """Return the salience graph of a feature map (B, C, ...): one node per channel, an edge between any two nodes."""
    vertices = salient_windows(features, patch)
    unit = bounded(vertices) if edge == "cosine" or node_norm == "bounded" else vertices
    ends = unit if edge == "cosine" else vertices
    return Graph(unit if node_norm == "bounded" else vertices, torch.bmm(ends, ends.transpose(1, 2)))


def variation_graph(shallow: Graph, deep: Graph) -> Graph:
    """Return the change from the shallow to the deep salience graph, node by node and edge by edge."""
    return Graph(deep.vertices - shallow.vertices, deep.edges - shallow.edges)


class GraphFlowLoss(nn.Module):
    """Squared differences of the student's and the teacher's variation graphs.

    Args:
        patch: odd side of the salient window; 3 in the paper's best fit, 9 its alternative.
        edge: "dot" (paper) or "cosine" (free of the scale of the activations).
        reduction: "sum" over batch, nodes and values (paper) or "mean" (free of batch, channel count and patch).
        node_norm: "none" (paper) or "bounded" (each vertex of nearly unit length, see `bounded`).
        centred: take the batch's mean from each variation graph; a batch of one image stays as it is.

    Raises:
        InputError: an option is unknown or the patch is even.
    """

    def __init__(
        self, patch: int = 3, edge: str = "dot", reduction: str = "sum", node_norm: str = "none", centred: bool = False
    ) -> None:
        super().__init__()
        for name, value, known in (
            ("edge", edge, EDGES),
            ("reduction", reduction, REDUCTIONS),
            ("node_norm", node_norm, NODE_NORMS),
        ):
            if value not in known:
                raise InputError(f"graph flow: {name} is '{value}'; choose one of {', '.join(known)}")
        if patch < 1 or patch % 2 == 0:
            raise InputError(f"graph flow: patch is {patch}; it must be odd and positive")
        self.patch, self.edge, self.reduction, self.node_norm = patch, edge, reduction, node_norm
        self.centred = centred
        # Sums, medians and means over the batch are those of all processes.
        self.needs_global_batch = reduction == "sum" or edge == "cosine" or node_norm == "bounded" or centred

    def forward(
        self, student: tuple[torch.Tensor, ...], teacher: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the vertices loss and the edges loss, float32 scalars; no gradient reaches `teacher`.

        Args:
            student: shallow and deep feature map, each (B, C, h, w) or (B, C, d, h, w).
            teacher: the same of the teacher, after its paraphrasers; equal B and C, any spatial size.

        Raises:
            ValueError: batch or channel counts differ (a variation graph has one node per channel).
        """
        for student_map, teacher_map in zip(student, teacher, strict=True):
            if student_map.shape[:2] != teacher_map.shape[:2]:
                raise ValueError(
                    f"graph flow compares maps of equal batch and channels, got {tuple(student_map.shape)} of the "
                    f"student and {tuple(teacher_map.shape)} of the teacher; a paraphraser changes channels"
                )
        student_graph = self._variation(student)
        with torch.no_grad():
            teacher_graph = self._variation(teacher)
        vertices, edges = (
            F.mse_loss(of_student, of_teacher, reduction=self.reduction)
            for of_student, of_teacher in zip(student_graph, teacher_graph, strict=True)
        )
        return vertices, edges

    def _variation(self, features: tuple[torch.Tensor, ...]) -> Graph:
        with torch.autocast(features[0].device.type, enabled=False):  # sums of fourth powers overflow half precision
            shallow, deep = (salience_graph(tap, self.patch, self.edge, self.node_norm) for tap in features)
            variation = variation_graph(shallow, deep)
        if not self.centred or len(features[0]) == 1:
            return variation
        return Graph(*(part - part.mean(dim=0) for part in variation))


class GraphFlow(DistillationMethod):
    """The graph terms of Graph Flow as a method: the teacher's taps pass frozen paraphrasers, the student's do not.

    Args:
        loss: how variation graphs are compared.
        paraphrasers: (shallow, deep) trained encoders of the teacher's taps, or None where teacher and student taps
            have equal channels and are compared as they are.
        vertices: weight of the vertices term.
        edges: weight of the edges term.
        adapters: trained modules (shallow, deep) that the student's taps pass, or None.
    """

    def __init__(
        self,
        loss: GraphFlowLoss,
        paraphrasers: tuple[nn.Module, nn.Module] | None,
        vertices: float,
        edges: float,
        adapters: tuple[nn.Module, nn.Module] | None = None,
    ) -> None:
        super().__init__({"vertices": vertices, "edges": edges})
        self.loss, self.needs_global_batch = loss, loss.needs_global_batch
        self.paraphrasers = FrozenParaphrasers(paraphrasers)
        self.adapters = nn.ModuleList(adapters or (nn.Identity(), nn.Identity()))

    def forward(self, student: Tapped, teacher: Tapped, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the scalar terms `vertices` and `edges`; shapes as in `DistillationMethod`."""
        features = tuple(adapter(tap) for adapter, tap in zip(self.adapters, student.features, strict=True))
        vertices, edges = self.loss(features, self.paraphrasers(teacher.features))
        return {"vertices": vertices, "edges": edges}
