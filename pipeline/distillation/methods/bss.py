# SPDX-License-Identifier: Apache-2.0
"""Boundary supporting samples: the student follows the teacher on images moved towards its decision boundary.

Heo et al., "Knowledge Distillation with Adversarial Samples Supporting Decision Boundary", AAAI 2019, arXiv 1805.05532:

    x <- x - step * gap * g / |g|,   gap = p_1(x) - p_2(x) of the teacher,   g = d gap / dx
    L = KL of teacher and student on the moved images, at temperature 3

The original moves an image from its class to another, drawn by the teacher's probabilities, until the class changes.
Here every pixel has a first and a second class of the teacher's; gap is the mean over the pixels that are still on the
side of the first, and one image is moved for all of them. The second class is the likeliest other, without a draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from pipeline.distillation.method import DistillationMethod, NetworkPair, Tapped
from pipeline.distillation.methods.extra_runs import run_again, seen_images
from pipeline.distillation.methods.kd import KnowledgeDistillationLoss
from pipeline.distillation.methods.relations import unit_vectors
from pipeline.distillation.settings import check_number, check_whole


def remaining_gap(logits: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return by how much the first class of each pixel is ahead of the second, in probability, or 0: (B, N).

    Args:
        logits: (B, K, ...).
        first: (B, 1, ...) whole numbers below K.
        second: likewise.
    """
    probabilities = logits.softmax(dim=1)
    return (probabilities.gather(1, first) - probabilities.gather(1, second)).clamp(min=0).flatten(1)


def boundary_images(
    network: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    logits: torch.Tensor,
    steps: int = 3,
    step: float = 0.1,
) -> torch.Tensor:
    """Return the images (B, C, ...), moved towards the network's decision boundary, without a graph.

    Each image stays within its own range of values. Constant images stay as they are.

    Args:
        network: maps images to logits (B, K, ...), K >= 2.
        images: (B, C, ...), float.
        logits: what the network made of them: the two likeliest classes of each pixel are its sides of the boundary.
        steps: steps of gradient descent on the gap.
        step: length of a step at gap 1: root mean square over the image, in standard deviations of its values.
    """
    first, second = logits.topk(2, dim=1).indices.split(1, dim=1)
    start = images.flatten(1)
    low, high = start.amin(dim=1, keepdim=True), start.amax(dim=1, keepdim=True)
    length = step * start.std(dim=1, correction=0, keepdim=True) * math.sqrt(start.shape[1])
    for _ in range(steps):
        images = images.detach().requires_grad_(True)
        gap = remaining_gap(network(images), first, second)
        (gradient,) = torch.autograd.grad(gap.sum(), images)
        move = length * gap.detach().mean(dim=1, keepdim=True) * unit_vectors(gradient.flatten(1))
        images = (images.detach().flatten(1) - move).clamp(low, high).reshape(images.shape)
    return images.detach()


class BoundarySamples(DistillationMethod):
    """`KnowledgeDistillationLoss` on `boundary_images` as a method with the single term `bss`.

    It is costly: on a share of the batch, the teacher runs forward and back `steps` times and once more, and the
    student once, which leaves the statistics of its batch normalisation alone. The authors move a part of each batch
    too, of 32 x 32 pixels by up to ten steps of length 0.3 (about 0.02 standard deviations each), and let the weight
    fall to 0 at 80 % of the run: `--methods "{'bss': {'weight': 1, 'end': 0.8}, ...}"` ends there.

    Args:
        pair: its networks are run again, the student in its own mode.
        weight: of the term. The original's 2, divided by the temperature squared: the loss has that factor.
        temperature: of both networks' probabilities.
        steps: how often the images are moved.
        step: by how much, in standard deviations of an image; three of 0.1 change the teacher's class of some 5 % of
            the pixels.
        share: of a batch's images that are moved, the first ones; two at least.

    Raises:
        InputError: a setting that is not positive, or a share above 1.
    """

    def __init__(
        self,
        pair: NetworkPair,
        *,
        weight: float = 0.2,
        temperature: float = 3.0,
        steps: int = 3,
        step: float = 0.1,
        share: float = 0.25,
    ) -> None:
        super().__init__({"bss": weight})
        self.loss = KnowledgeDistillationLoss(check_number("bss", "temperature", temperature), balance=0)
        self.steps, self.step = check_whole("bss", "steps", steps, 1), check_number("bss", "step", step)
        self.share = check_number("bss", "share", share, most=1)
        self.pair = pair

    def forward(self, student: Tapped, teacher: Tapped, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the scalar term `bss`; shapes as in `DistillationMethod`."""
        pair, images = self.pair, seen_images(student)
        images = images[: max(2, math.ceil(self.share * len(images)))]
        moved = boundary_images(
            lambda moving: run_again(pair, pair.teacher, moving),
            images,
            teacher.logits[: len(images)],
            self.steps,
            self.step,
        )
        with torch.no_grad():
            target = run_again(pair, pair.teacher, moved)
        return {"bss": self.loss(run_again(pair, pair.student, moved), target)}
