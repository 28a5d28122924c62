# SPDX-License-Identifier: Apache-2.0
"""How near a student's taps can come to Graph Flow's target, by the kind of taps: free tensors in a student's place.

The teacher's factors leave a LeakyReLU and have both signs. Mobile U-Net's taps end without an activation and have
both too; ERFNet's taps and ENet's deep one are rectified. What free tensors cannot reach, no student can.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from pipeline.distillation.adapters import identity_adapter
from pipeline.distillation.methods.graph_flow import GraphFlowLoss

BATCH, CHANNELS, SIDE, STEPS = 8, 64, 16, 250


def factors() -> list[torch.Tensor]:
    """Return two smooth maps (B, C, H, W) as a paraphraser gives them: negative values are ten times smaller."""
    noise = torch.randn(2, BATCH, CHANNELS, SIDE, SIDE)
    return list(F.leaky_relu(F.avg_pool2d(noise.flatten(0, 1), 3, 1, 1), 0.1).unflatten(0, (2, BATCH)))


def remaining(rectified: bool, rectified_target: bool, adapted: bool) -> tuple[float, float]:
    """Return the shares of the vertices and edges losses that `STEPS` steps of Adam leave."""
    torch.manual_seed(0)
    target = tuple(F.relu(part) if rectified_target else part for part in factors())
    free = [torch.randn_like(part).requires_grad_() for part in target]
    adapters = [identity_adapter(CHANNELS, 2) if adapted else torch.nn.Identity() for _ in free]
    trained = [parameter for adapter in adapters for parameter in adapter.parameters()]
    groups = [{"params": free, "lr": 0.05}, *([{"params": trained, "lr": 3e-3}] if trained else [])]
    optimizer = torch.optim.Adam(groups)
    loss = GraphFlowLoss(edge="cosine", reduction="mean", node_norm="bounded", centred=True)
    history = []
    for _ in range(STEPS):
        taps = (F.relu(tap) if rectified else tap for tap in free)
        terms = loss(tuple(adapter(tap) for adapter, tap in zip(adapters, taps, strict=True)), target)
        history.append([float(term.detach()) for term in terms])
        optimizer.zero_grad()
        sum(terms).backward()
        optimizer.step()
    return tuple(last / first for first, last in zip(history[0], history[-1], strict=True))


def main() -> None:
    """Print a line for each kind of taps."""
    print(f"share of Graph Flow's losses left after {STEPS} steps on free taps\n{'taps':<36} vertices  edges")
    for name, *kind in (
        ("pre-activation taps (Mobile U-Net)", False, False, False),
        ("rectified (ERFNet; ENet's deep tap)", True, False, False),
        ("rectified, the factor too", True, True, False),
        ("rectified, a trained 1 x 1 adapter", True, False, True),
    ):
        vertices, edges = remaining(*kind)
        print(f"{name:<36} {vertices:8.3f} {edges:6.3f}", flush=True)


if __name__ == "__main__":
    main()
