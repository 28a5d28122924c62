# SPDX-License-Identifier: Apache-2.0
"""What one distillation step costs, and how much of it is the graph-flow loss (aim: at most 5 %)."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import torch

from pipeline.distillation import GraphFlowLoss, build_distiller
from pipeline.networks import Paraphraser, build_network
from pipeline.training import segmentation_loss

CLASSES = 9


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    """Return the median time of `work` over `repeats` calls after one that does not count."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def step_and_graph_seconds(student_name: str, width: float, size: int, batch: int, repeats: int) -> tuple[float, float]:
    """Return seconds of a whole distillation step and of the graph-flow loss in it, forward and backward."""
    torch.manual_seed(0)
    teacher = build_network("fanet", out_channels=CLASSES, width=width)
    student = build_network(student_name, out_channels=CLASSES).train()
    factors = student.tap_channels
    paraphrasers = tuple(Paraphraser(channels, to) for channels, to in zip(teacher.tap_channels, factors, strict=True))
    distiller = build_distiller("graph_flow", teacher, student, CLASSES, 1000, paraphrasers).train()
    optimizer, loss = torch.optim.Adam(student.parameters()), segmentation_loss("ce")
    images, labels = torch.rand(batch, 1, size, size), torch.randint(CLASSES, (batch, 1, size, size))

    def step() -> None:
        optimizer.zero_grad()
        logits = student(images)
        (loss(logits, labels) + distiller.total(distiller(images, labels, logits))).backward()
        optimizer.step()
        distiller.after_step()

    taps = [tuple(torch.rand(batch, c, size // 4, size // 4) for c in factors) for _ in range(2)]
    graph = GraphFlowLoss()

    def graph_flow() -> None:
        sum(graph(tuple(tap.requires_grad_() for tap in taps[0]), taps[1])).backward()

    return median_seconds(step, repeats), median_seconds(graph_flow, 5 * repeats)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each student."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=float, default=1.0, help="of the FANet teacher")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    print(f"distillation step, FANet width {options.width:g}, {options.size} x {options.size}, batch {options.batch}")
    print(f"{'student':<12} {'step s':>8} {'graph flow ms':>14} {'share':>7}")
    for student in ("mobile_unet", "enet", "erfnet"):
        step, graph = step_and_graph_seconds(student, options.width, options.size, options.batch, options.repeats)
        print(f"{student:<12} {step:8.2f} {1000 * graph:14.2f} {graph / step:7.2%}", flush=True)


if __name__ == "__main__":
    main()
