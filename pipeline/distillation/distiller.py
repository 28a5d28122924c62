# SPDX-License-Identifier: Apache-2.0
"""The frozen teacher, the taps of both networks and the weighted terms of the chosen methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from pipeline.distillation.gradient_shares import GradientShares
from pipeline.distillation.method import DistillationMethod, Tapped, of_all_processes
from pipeline.distillation.schedule import Schedule
from pipeline.distillation.taps import FeatureTaps


class Distiller(nn.Module):
    """Compares the student's forward pass with the teacher's on the same images, by one or more methods.

    The teacher is frozen, stays in evaluation mode and runs without gradients. The student is only tapped: it is not
    a part of this module, so that neither its state nor its mode is touched here.

    Args:
        teacher: trained network; its `taps` are read unless `teacher_taps` names others.
        student: the network in training; its `taps` are read unless `student_taps` names others.
        methods: the methods by name; terms of two methods must not share a name.
        teacher_taps: dotted module names, shallow to deep.
        student_taps: the same of the student.
        inferer: runs the teacher on a batch, by default a plain call; use the trainer's, which pads.
        schedules: when each method counts, by its name; by default always. Outside its schedule a method does not run.
        total_steps: training steps of the whole run, for the schedules.
        groups: method name to group name; the methods of a group hold one share of the gradient together and have one
            schedule. By default each method is its own group.

    Raises:
        ValueError: two methods name the same term.
        InputError: a tap name is unknown.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        methods: Mapping[str, DistillationMethod],
        teacher_taps: Sequence[str] | None = None,
        student_taps: Sequence[str] | None = None,
        inferer: Callable[[torch.Tensor, nn.Module], torch.Tensor] | None = None,
        schedules: Mapping[str, Schedule] | None = None,
        total_steps: int = 1,
        groups: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.teacher = teacher.eval().requires_grad_(False)
        self.methods = nn.ModuleDict(methods)
        self.weights = _merge_weights(methods)
        self._teacher_taps = FeatureTaps(teacher, teacher_taps or teacher.taps)
        self._student_taps = FeatureTaps(student, student_taps or student.taps)
        self._inferer = inferer or (lambda images, network: network(images))
        self._views: tuple[Tapped, Tapped] | None = None
        self._schedules = {name: (schedules or {}).get(name, Schedule()) for name in methods}
        self._total_steps, self.steps = max(total_steps, 1), 0
        self.groups = {name: (groups or {}).get(name, name) for name in methods}
        wanted = {self.groups[name]: schedule.share for name, schedule in self._schedules.items()}
        self.shares = GradientShares({group: share for group, share in wanted.items() if share is not None})

    def train(self, mode: bool = True) -> Distiller:
        """Set the mode of the methods; the teacher always stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        student_logits: torch.Tensor,
        student_images: torch.Tensor | None = None,
        cut: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Return the unweighted terms of all methods for the student's last forward pass.

        Args:
            images: (B, C, H, W), what the teacher sees.
            labels: (B, 1, H, W), for the student's images.
            student_logits: (B, K, H, W), with its graph.
            student_images: (B, C, H, W), what the student saw; None for the same.
            cut: applied to the teacher's maps (B, ...), where rectangles of the student's images were exchanged.
        """
        student_images = images if student_images is None else student_images
        student = Tapped(self._student_taps.take(), student_logits, student_images).full_precision()
        teacher = self._teacher_view(images, student_logits, cut).full_precision()
        terms: dict[str, torch.Tensor] = {}
        with torch.autocast(images.device.type, enabled=False):  # squares and exponentials overflow half precision
            for method in self._running().values():
                views = (student, teacher, labels)
                if method.needs_global_batch:
                    views = map(of_all_processes, views)
                terms.update(method.named_terms(*views))
        self._views = (student.detach(), teacher)
        return terms

    @torch.no_grad()
    def _teacher_view(self, images: torch.Tensor, student_logits: torch.Tensor, cut: Callable | None) -> Tapped:
        """Return the teacher's view of the images; without maps and with zero logits where no method needs it."""
        if not any(method.needs_teacher for method in self._running().values()):
            return Tapped((), torch.zeros_like(student_logits), images, cut)
        logits = self._inferer(images, self.teacher)
        features = self._teacher_taps.take()
        if cut is not None:
            features, logits = tuple(map(cut, features)), cut(logits)
        return Tapped(features, logits, images, cut)

    def weighted(self, terms: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return each scalar term times its weight, its schedule's factor at this step and the factor of its share."""
        factors = {
            term: self._schedules[name].factor(self._progress) * self.shares.factor(self.groups[name])
            for name, method in self.methods.items()
            for term in method.weights
        }
        return {name: factors[name] * self.weights[name] * term for name, term in terms.items()}

    def total(self, terms: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the sum of the weighted terms, a scalar."""
        zero = torch.zeros((), device=next(iter(self.teacher.parameters())).device)
        return sum(self.weighted(terms).values(), start=zero)

    def follow_shares(
        self, terms: Mapping[str, torch.Tensor], segmentation: torch.Tensor, parameters: Sequence[nn.Parameter]
    ) -> None:
        """Measure the gradients of the methods that hold a share; call it before `weighted`, in all processes.

        Args:
            terms: unweighted scalar terms of the last forward pass.
            segmentation: the segmentation loss of the same pass, a scalar.
            parameters: the student's.
        """
        losses: dict[str, torch.Tensor] = {}
        for name, method in self.methods.items():
            group = self.groups[name]
            running = [term for term in method.weights if term in terms] if group in self.shares.wanted else []
            for term in running:
                losses[group] = losses.get(group, 0) + self.weights[term] * terms[term]
        self.shares.follow(losses, segmentation, parameters)

    @property
    def _progress(self) -> float:
        return min(self.steps / self._total_steps, 1 - 1e-9)

    def _running(self) -> dict[str, DistillationMethod]:
        """Return the methods that count at this point of the run."""
        return {
            name: method for name, method in self.methods.items() if self._schedules[name].factor(self._progress) > 0
        }

    def adapter_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the methods (adapters) that the student's optimizer trains too."""
        return [parameter for method in self.methods.values() for parameter in method.adapter_parameters()]

    def after_step(self) -> dict[str, torch.Tensor]:
        """Let each method train its own networks on the views of the last forward pass; return scalars to log."""
        if self._views is None:
            return {}
        student, teacher = self._views
        self._views = None
        logged: dict[str, torch.Tensor] = {}
        for method in self._running().values():
            logged.update(method.after_step(student, teacher))
        self.steps += 1
        return logged

    def training_state(self) -> dict[str, Any]:
        """Return the states of the methods and the steps done; teacher and student have files of their own."""
        own = {"steps": self.steps, "shares": self.shares.state_dict()}
        return own | {name: method.training_state() for name, method in self.methods.items()}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Take up what `training_state` returned for the same methods."""
        self.steps = state["steps"]
        self.shares.load_state_dict(state["shares"])
        for name, method in self.methods.items():
            method.load_training_state(state[name])


def _merge_weights(methods: Mapping[str, DistillationMethod]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for name, method in methods.items():
        shared = weights.keys() & method.weights.keys()
        if shared:
            raise ValueError(f"the method '{name}' repeats the loss term '{sorted(shared)[0]}' of another method")
        weights.update(method.weights)
    return weights
