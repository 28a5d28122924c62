# SPDX-License-Identifier: Apache-2.0
"""What a distillation step costs beside its bare passes (aim: at most 1.10 times).

The bare passes are those that no distillation can do without: the teacher forward, the student forward and backward,
and the optimizer's step.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import torch

from pipeline.distillation import build_distiller
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


class Step:
    """A student, its teacher and a batch, to time parts of a distillation step on.

    Args:
        student: name of the student; the teacher is a FANet of `width`.
        method: of the distillation, with its default weights.
        size: side of the images in pixels.
        batch: images.
    """

    def __init__(self, student: str, method: str, width: float, size: int, batch: int) -> None:
        torch.manual_seed(0)
        self.teacher = build_network("fanet", out_channels=CLASSES, width=width).eval()
        self.student = build_network(student, out_channels=CLASSES).train()
        channels = zip(self.teacher.tap_channels, self.student.tap_channels, strict=True)
        paraphrasers = tuple(Paraphraser(*pair) for pair in channels) if method == "graph_flow" else None
        arguments = (method, self.teacher, self.student, CLASSES, 1000, paraphrasers)
        self.distiller = build_distiller(*arguments).train()
        adapters = self.distiller.adapter_parameters()
        self.optimizer = torch.optim.Adam([*self.student.parameters(), *adapters])
        self.loss = segmentation_loss("ce")
        self.images, self.labels = torch.rand(batch, 1, size, size), torch.randint(CLASSES, (batch, 1, size, size))

    def whole(self) -> None:
        """Do a step of distillation."""
        self.optimizer.zero_grad()
        logits = self.student(self.images)
        distillation = self.distiller.total(self.distiller(self.images, self.labels, logits))
        (self.loss(logits, self.labels) + distillation).backward()
        self.optimizer.step()
        self.distiller.after_step()

    def bare(self) -> None:
        """Do what no distillation can do without."""
        self.optimizer.zero_grad()
        with torch.no_grad():
            self.teacher(self.images)
        self.loss(self.student(self.images), self.labels).backward()
        self.optimizer.step()


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each student and method."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--methods", nargs="+", default=["kd", "graph_flow", "coco"])
    parser.add_argument("--width", type=float, default=0.25, help="of the FANet teacher; 1 is the published one")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)
    print(f"distillation step, FANet width {options.width:g}, {options.size} x {options.size}, batch {options.batch}")
    print(f"{'student':<12} {'method':<12} {'step s':>8} {'bare s':>8} {'ratio':>6} (aim 1.10)")
    for student in ("mobile_unet", "enet", "erfnet"):
        for method in options.methods:
            step = Step(student, method, options.width, options.size, options.batch)
            whole, bare = median_seconds(step.whole, options.repeats), median_seconds(step.bare, options.repeats)
            print(f"{student:<12} {method:<12} {whole:8.2f} {bare:8.2f} {whole / bare:6.2f}", flush=True)


if __name__ == "__main__":
    main()
