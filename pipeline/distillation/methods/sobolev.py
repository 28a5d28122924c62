# SPDX-License-Identifier: Apache-2.0
"""Sobolev training: the student reacts to a change of the image as the teacher does.

Czarnecki et al., "Sobolev Training for Neural Networks", NeurIPS 2017, arXiv 1706.04859, in the form of Srinivas and
Fleuret, "Knowledge Transfer with Jacobian Matching", ICML 2018, arXiv 1803.00443: one row of the Jacobian, normalised.

    g(x) = d/dx sum_pixels o_y(x)               (y the teacher's class of each pixel)
    L    = ||g_s / ||g_s||_2 - g_t / ||g_t||_2||_2^2      (the mean over images), from 0 to 4

The original has one logit for each image, that of the true class. A gradient for each pixel's logit would take as many
backward runs as there are pixels; the sum over pixels takes one. Both networks run a second time, and the student is
differentiated twice: a step takes two to three times as long, and as much more memory.
"""

from __future__ import annotations

import torch

from pipeline.distillation.method import DistillationMethod, NetworkPair, Tapped
from pipeline.distillation.methods.extra_runs import check_twice_differentiable, run_again, seen_images
from pipeline.distillation.methods.relations import unit_vectors


def image_gradient(
    logits: torch.Tensor, images: torch.Tensor, classes: torch.Tensor, create_graph: bool
) -> torch.Tensor:
    """Return the gradient of the summed logits of one class per pixel, in the images' shape (B, C, ...).

    Args:
        logits: (B, K, ...), made from `images`.
        images: (B, C, ...), which require a gradient.
        classes: (B, 1, ...) whole numbers below K.
        create_graph: whether the gradient will itself be differentiated.
    """
    (gradient,) = torch.autograd.grad(logits.gather(1, classes).sum(), images, create_graph=create_graph)
    return gradient


def gradient_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the squared distance of image gradients (B, C, ...) of unit length, the mean over images.

    An image without a gradient counts as a zero vector. No gradient reaches `teacher`.
    """
    difference = unit_vectors(student.flatten(1)) - unit_vectors(teacher.detach().flatten(1))
    return difference.square().sum(dim=1).mean()


class SobolevTraining(DistillationMethod):
    """`gradient_distance` as a method with the single term `sobolev`.

    The student's second run leaves the statistics of its batch normalisation alone.

    Args:
        pair: its networks are run again, the student in its own mode; all layers must have second derivatives.
        weight: of the term, which starts at about 2, that of unrelated directions. The code that made the method known
            takes the mean over pixels and weighs it by 20, which fits images of 32 x 32.
    """

    def __init__(self, pair: NetworkPair, *, weight: float = 0.25) -> None:
        super().__init__({"sobolev": weight})
        self.pair = pair

    def forward(self, student: Tapped, teacher: Tapped, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the scalar term `sobolev`; `InputError` where several GPUs share the student's batch normalisation.

        Shapes as in `DistillationMethod`.
        """
        check_twice_differentiable("sobolev", self.pair.student)
        images = seen_images(student).requires_grad_(True)
        classes = teacher.logits.argmax(dim=1, keepdim=True)
        of_teacher = image_gradient(run_again(self.pair, self.pair.teacher, images), images, classes, False)
        of_student = image_gradient(run_again(self.pair, self.pair.student, images), images, classes, True)
        return {"sobolev": gradient_distance(of_student, of_teacher)}
