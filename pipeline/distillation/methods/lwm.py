# SPDX-License-Identifier: Apache-2.0
"""Learning without memorizing: student and teacher find the evidence for a class at the same places.

Dhar et al., "Learning without Memorizing", CVPR 2019, arXiv 1811.08051, with the maps of Grad-CAM (Selvaraju et al.,
arXiv 1610.02391):

    M_k = relu(sum_c a_c F_c),   a_c = mean_positions d y_k / d F_c
    L   = ||M_k(student) / ||.||_2 - M_k(teacher) / ||.||_2||_1

The original has one class for each image, the likeliest, and y_k is its logit. Here y_k sums the logits of class k over
the pixels that are labelled k, as Vinogradova et al. (arXiv 2002.11434) do for segmentation. Each step draws one
of the classes present in each image: over many steps all classes count, at the cost of one. L is the mean over images,
divided by the square root of the number of positions so that it does not grow with the maps. It lies between 0 and
sqrt(2). Images whose map is empty in the teacher do not count. Both networks run a second time, and the
student is differentiated twice between the tap and the logits.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.distillation.adapters import resized
from pipeline.distillation.method import DistillationMethod, NetworkPair, Tapped
from pipeline.distillation.methods.extra_runs import check_twice_differentiable, run_again, seen_images
from pipeline.distillation.methods.relations import unit_vectors
from pipeline.distillation.taps import FeatureTaps
from pipeline.unlabelled import with_teachers_classes


def drawn_classes(labels: torch.Tensor, out_channels: int) -> torch.Tensor:
    """Return one of the classes present in each image, all equally likely: (B, 1, 1, 1) for labels (B, 1, H, W).

    Labels that are no class are never drawn. For an image with no other labels, the class is one that is not present.
    """
    classes = torch.arange(out_channels, device=labels.device)
    present = (labels.flatten(1)[:, None] == classes[:, None]).any(dim=2)
    drawn = (present * (1 + torch.rand(present.shape, device=labels.device))).argmax(dim=1)
    return drawn.reshape(-1, *[1] * (labels.ndim - 1))


def class_maps(
    features: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor, classes: torch.Tensor, create_graph: bool
) -> torch.Tensor:
    """Return the Grad-CAM map of one class for each image, up to a positive factor: (B, 1, h, w), zero where absent.

    Args:
        features: (B, C, h, w), which the logits were made from and which have a graph or require a gradient.
        logits: (B, K, H, W).
        labels: (B, 1, H, W).
        classes: (B, 1, 1, 1), whole numbers below K.
        create_graph: whether the maps will themselves be differentiated.
    """
    score = (logits.gather(1, classes.expand_as(labels)) * (labels == classes)).sum()
    (gradient,) = torch.autograd.grad(score, features, create_graph=create_graph)
    importance = gradient.sum(dim=tuple(range(2, gradient.ndim)), keepdim=True)
    return F.relu((importance * features).sum(dim=1, keepdim=True))


def map_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the absolute difference of maps of unit length, divided by sqrt(positions), the mean over images.

    Args:
        student: (B, 1, ...), not negative; brought to the size of the teacher's.
        teacher: the same; no gradient reaches it. Maps that are zero everywhere do not count; without any other, 0.
    """
    of_student = unit_vectors(resized(student, teacher.shape[2:]).flatten(1))
    of_teacher = unit_vectors(teacher.detach().flatten(1))
    counts = of_teacher.ne(0).any(dim=1)
    distances = (of_student - of_teacher).abs().sum(dim=1) / of_teacher.shape[1] ** 0.5
    return (distances * counts).sum() / counts.sum().clamp(min=1)


class LearningWithoutMemorizing(DistillationMethod):
    """`map_distance` of the deep taps' `class_maps` as a method with the single term `lwm`.

    The student's second run leaves the statistics of its batch normalisation alone.

    Args:
        pair: its networks are run again, the student in its own mode, and tapped by their `taps`.
        weight: of the term, which starts at about 0.7. The original adds the sum over positions to the other losses of
            learning one class after another; the code that carried it to distillation weighs the mean by 0.4.
    """

    def __init__(self, pair: NetworkPair, *, weight: float = 0.5) -> None:
        super().__init__({"lwm": weight})
        self.pair = pair

    def forward(self, student: Tapped, teacher: Tapped, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the scalar term `lwm`; `InputError` where several GPUs share the student's batch normalisation.

        Shapes as in `DistillationMethod`.
        """
        check_twice_differentiable("lwm", self.pair.student)
        images, pair = seen_images(student), self.pair
        labels = with_teachers_classes(labels, teacher.logits)
        classes = drawn_classes(labels, pair.out_channels)
        of_student, of_teacher = (
            class_maps(*self._deep(network, images), labels, classes, network is pair.student)
            for network in (pair.student, pair.teacher)
        )
        return {"lwm": map_distance(of_student, of_teacher)}

    def _deep(self, network: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the deep features of another run, and the logits made from them."""
        name = network.taps[-1]
        frozen = network is self.pair.teacher
        start = network.get_submodule(name).register_forward_hook(_start_graph) if frozen else None
        taps = FeatureTaps(network, [name])
        try:
            logits = run_again(self.pair, network, images)
            return taps.take()[0], logits
        finally:
            taps.remove()
            if start is not None:
                start.remove()


def _start_graph(module: nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
    """Replace the output of a frozen network's module by the start of a graph: nothing before it needs one."""
    return output.detach().requires_grad_(True).clone()  # what comes after may change it in place, as no leaf can be
