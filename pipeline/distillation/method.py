# SPDX-License-Identifier: Apache-2.0
"""The base of every distillation method: a module that compares the student's and the teacher's outputs of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.errors import InputError
from pipeline.processes.global_batch import gather_batch


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of any shape, half precision as float32; float32 and float64 stay."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@dataclass(frozen=True)
class Tapped:
    """One network's view of a batch.

    Attributes:
        features: tapped feature maps, shallow to deep, each (B, C, h, w) or (B, C, d, h, w).
        logits: (B, K, H, W) or (B, K, D, H, W), no softmax.
        images: what the network saw, (B, C, H, W) or (B, C, D, H, W); None where it is not kept.
        cut: the rectangles that a strong view exchanged between images of the batch, or None. The student's images and
            the teacher's features and logits are cut, but the teacher's images are not.
    """

    features: tuple[torch.Tensor, ...]
    logits: torch.Tensor
    images: torch.Tensor | None = None
    cut: Callable[[torch.Tensor], torch.Tensor] | None = None

    def cut_maps(self, maps: torch.Tensor) -> torch.Tensor:
        """Return maps (B, ...) that a network made of `images`, cut as `features` and `logits` are."""
        return maps if self.cut is None else self.cut(maps)

    def detach(self) -> Tapped:
        """Return the same view without its graph."""
        return replace(self, features=tuple(one.detach() for one in self.features), logits=self.logits.detach())

    def full_precision(self) -> Tapped:
        """Return the same view with half precision turned into float32."""
        features = tuple(map(at_least_float32, self.features))
        return replace(self, features=features, logits=at_least_float32(self.logits))


def of_all_processes(part: Any) -> Any:
    """Join a view or a tensor (B, ...) of this process with those of all others along the batch; collective."""
    if isinstance(part, Tapped):
        images = None if part.images is None else gather_batch(part.images)
        return Tapped(tuple(map(gather_batch, part.features)), gather_batch(part.logits), images)
    return gather_batch(part)


def label_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of logits (B, K, ...) against labels (B, 1, ...), the mean over pixels and batch."""
    return F.cross_entropy(logits, labels.squeeze(1).long())


@dataclass(frozen=True)
class NetworkPair:
    """The two networks that a method is built for, and what is known of the run.

    Attributes:
        teacher: frozen, in evaluation mode.
        student: in training. A method may run either again, but must not keep it as a submodule.
        teacher_channels: channels of the teacher's taps, shallow to deep.
        student_channels: the same of the student.
        out_channels: number of classes K of both.
        total_steps: training steps of the whole run, for schedules.
        paraphrasers: trained (shallow, deep) paraphrasers of the teacher's taps, or None.
        size: side of the images in pixels, None if unknown.
        spatial_dims: 2 for images, 3 for volumes.
        inferer: runs a network on a batch: `inferer(images, network)`.
        segmentation_loss: the run's loss of logits (B, K, ...) against labels (B, 1, ...).
        learning_rate: of the run's optimizer at the start.
        weight_decay: of the run's optimizer.
    """

    teacher: nn.Module
    student: nn.Module
    teacher_channels: tuple[int, ...]
    student_channels: tuple[int, ...]
    out_channels: int
    total_steps: int = 1
    paraphrasers: tuple[nn.Module, nn.Module] | None = None
    size: int | None = None
    spatial_dims: int = 2
    inferer: Callable[[torch.Tensor, nn.Module], torch.Tensor] = lambda images, network: network(images)
    segmentation_loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = label_cross_entropy
    learning_rate: float = 3e-4
    weight_decay: float = 0.0


class DistillationMethod(nn.Module):
    """One method of distillation: named loss terms and the weight of each.

    `Distiller` calls it outside autocast with views in float32, the teacher's without a graph, and applies `weights` to
    the terms that come back. Parts that learn beside the student (adapters) belong to `adapter_parameters` and are
    trained by its optimizer; parts that it must not touch (a discriminator) are updated in `after_step`.

    Each of several processes calls it on its share of the batch, and the results are averaged. This equals the step of
    one process if the terms are means over images. A method that relates images or sums over them sets
    `needs_global_batch = True`; each process then calls it on the batch of all. A method that compares the student with
    something other than the teacher sets `needs_teacher = False`. If no method needs the teacher, it does not run.
    A part of a method that holds a share of the gradient for itself (see `Schedule`) has it as `gradient_share`.

    Items without a label have `pipeline.unlabelled.UNLABELLED` in `labels`. A method that needs the class of a pixel
    takes the teacher's likeliest class there (`pipeline.class_balance.known_classes`).
    """

    needs_global_batch: bool = False
    needs_teacher: bool = True
    gradient_share: float | None = None

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__()
        for term, weight in weights.items():
            if not isinstance(weight, int | float) or not 0 <= weight < float("inf"):  # also refuses NaN
                raise InputError(
                    f"the weight of the loss term '{term}' is {weight}; it must be finite and not negative"
                )
        self.weights = dict(weights)
        self.prefix = ""

    def rename_terms(self, prefix: str) -> None:
        """Put `prefix` before the names of all terms, where another method has the same."""
        self.weights = {prefix + term: weight for term, weight in self.weights.items()}
        self.prefix = prefix

    def named_terms(self, student: Tapped, teacher: Tapped, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the scalar terms of `forward`, under the names in `weights`."""
        return {self.prefix + term: value for term, value in self(student, teacher, labels).items()}

    def forward(self, student: Tapped, teacher: Tapped, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the unweighted terms by name, each a scalar.

        Args:
            student: the student's feature maps (B, c, h, w) and logits (B, K, H, W), with their graph.
            teacher: those of the teacher, without a graph.
            labels: (B, 1, H, W); with 3D networks all have a depth axis before H.
        """
        raise NotImplementedError

    def adapter_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that the student's optimizer trains: by default all that are not frozen."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def after_step(self, student: Tapped, teacher: Tapped) -> dict[str, torch.Tensor]:
        """Train the method's own networks, after the student's step; return scalars to log."""
        return {}

    def training_state(self) -> dict[str, Any]:
        """Return what a resumed run needs of this method beyond its configuration: tensors and primitives only."""
        return {"adapters": self.state_dict()} if self.adapter_parameters() else {}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Take up a state that `training_state` returned."""
        if "adapters" in state:
            self.load_state_dict(state["adapters"])
