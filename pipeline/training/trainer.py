# SPDX-License-Identifier: Apache-2.0
"""One trainer for teacher, student alone and distilled student: the control differs by the distillation only."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.utils import CommonKeys as Keys
from torch import nn

from pipeline.data import StudentView
from pipeline.distillation import Distiller
from pipeline.distillation.gradient_shares import gradient_shares
from pipeline.distillation.settings import check_whole
from pipeline.errors import InputError
from pipeline.processes.bfloat16 import check_bfloat16
from pipeline.processes.distributed import average_gradients, averaged, synchronise_modules
from pipeline.unlabelled import UNLABELLED, labelled_items, of_labelled_items

logger = logging.getLogger(__name__)
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def trained_parameters(network: nn.Module, distiller: Distiller | None = None) -> list[nn.Parameter]:
    """Return what the student's optimizer trains: the network, and the adapters of the methods of distillation."""
    adapters = [] if distiller is None else distiller.adapter_parameters()
    return [*network.parameters(), *adapters]


def check_unlabelled_share(unlabelled_share: float, distiller: Distiller | None) -> None:
    """Refuse (`InputError`) items without a label in a training that learns from labels alone."""
    if unlabelled_share and distiller is None:
        raise InputError(
            "--unlabelled_share: a training without distillation learns nothing from cases without a label; name "
            "distill.yaml too, or leave it out"
        )


def autocast_dtype(precision: str, device: str | torch.device) -> torch.dtype | None:
    """Return the type that a precision autocasts to on a device, None for float32.

    Raises:
        InputError: unknown precision, float16 without CUDA, or bfloat16 on a CPU that only emulates it.
    """
    if precision not in PRECISIONS:
        raise InputError(f"unknown precision '{precision}'; choose one of {', '.join(PRECISIONS)}")
    if precision == "float16" and torch.device(device).type != "cuda":
        raise InputError("precision float16 needs a CUDA device; use bfloat16 or float32 here")
    if precision == "bfloat16":
        check_bfloat16(device)
    return PRECISIONS[precision]


class DistillationTrainer(SupervisedTrainer):
    """MONAI's supervised trainer with mixed precision on any device, batched augmentation and distillation terms.

    Each iteration: move the batch to the device, augment it there, run the student, add the weighted terms of the
    distiller to the segmentation loss, step the optimizer, let the distiller train its own parts (discriminator).
    With `accumulation_steps` N, gradients are the means of N iterations and the optimizer steps after each N-th; what
    the distiller trains itself sees the last of them. Gradients, and the terms told, are the means over all processes.
    `engine.state.output` is a list of one dictionary for the whole batch, with `image`, `label`, `pred`, `loss` and
    `terms`: every unweighted term by name, detached. MONAI's `from_engine(["loss"], first=True)` reads it.

    It departs from the parent in three ways. Its `amp` is CUDA only, creates its scaler in `run` (so that no resumed
    run can restore it) and scales bfloat16 too: here `precision` works on every device and the scaler exists from the
    start, for float16 alone. It does not decollate, which doubles the time of a small step. Losses run in float32.

    Args:
        distiller: terms to add, or None for training with labels alone.
        augmentation: maps (images, labels) of a batch on the device, or None.
        student_view: makes what the student sees of what the teacher sees; None for the same.
        precision: "float32", "bfloat16" or "float16" (CUDA only).
        log_gradient_shares: iterations from one log of each weighted term's gradient, as a share of the segmentation
            loss's, to the next, beginning with the first; they are terms `share/TERM` there. 0 never does.
        kwargs: arguments of `SupervisedTrainer`, but not `amp` and `decollate`.

    Raises:
        InputError: unknown precision, float16 without CUDA, or a loss term that is not finite during training.
    """

    def __init__(
        self,
        *,
        distiller: Distiller | None = None,
        augmentation: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None = None,
        student_view: StudentView | None = None,
        precision: str = "float32",
        log_gradient_shares: int = 0,
        **kwargs: Any,
    ) -> None:
        self.before_run: list[Callable[[DistillationTrainer], None]] = []
        self.after_run: list[Callable[[DistillationTrainer], None]] = []
        super().__init__(amp=False, decollate=False, **kwargs)
        self.distiller = distiller.to(self.state.device) if distiller is not None else None
        if self.distiller is not None:
            synchronise_modules(self.distiller.methods)
        self.augmentation, self.student_view = augmentation, student_view
        self.log_gradient_shares = check_whole("training", "log_gradient_shares", log_gradient_shares, least=0)
        self.dtype = autocast_dtype(precision, self.state.device)
        self.grad_scaler = torch.amp.GradScaler(self.state.device.type, enabled=precision == "float16")

    def run(self) -> None:
        """Call what `before_run` holds (a resume), train until `max_epochs`, and call `after_run`, come what may.

        A run that was resumed after its last epoch has nothing left to do; ignite would start it anew from epoch 0.
        """
        try:
            while self.before_run:
                self.before_run.pop(0)(self)
            if self.state.epoch >= self.state.max_epochs:
                self.logger.info("all %d epochs are done already", self.state.max_epochs)
                return
            super().run()
        finally:
            while self.after_run:
                self.after_run.pop()(self)

    def _iteration(self, engine: DistillationTrainer, batchdata: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
        images, labels = self._batch_on_device(batchdata)
        self.network.train()
        if self.distiller is not None:
            self.distiller.train()
        engine.state.output = {Keys.IMAGE: images, Keys.LABEL: labels}
        with torch.autocast(images.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            loss, terms = self._losses(images, labels)
        engine.fire_event(IterationEvents.LOSS_COMPLETED)
        self._step(loss)
        if self.distiller is not None and self._optimizer_steps():
            terms.update(self.distiller.after_step())
        engine.state.output[Keys.LOSS] = loss.detach()
        engine.state.output["terms"] = averaged(terms)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return [engine.state.output]

    def _batch_on_device(self, batchdata: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        batch = self.prepare_batch(batchdata, self.state.device, self.non_blocking, **self.to_kwargs)
        images, labels = (torch.as_tensor(part) for part in batch[:2])
        labelled = labelled_items(labels)
        if self.augmentation is not None:
            images, labels = self.augmentation(images, labels)
        # What an augmentation moves in from outside is background, but not where nobody has labelled.
        return images, labels if labelled.all() else labels.masked_fill(~_along(labelled, labels), UNLABELLED)

    def _losses(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        seen, labels, cut = (images, labels, None) if self.student_view is None else self.student_view(images, labels)
        prediction = self.inferer(seen, self.network)
        self.state.output[Keys.PRED] = prediction
        self.fire_event(IterationEvents.FORWARD_COMPLETED)
        with torch.autocast(images.device.type, enabled=False):
            compared = _float32(prediction), labels
            needs_labels = getattr(self.loss_function, "needs_labels", True)
            segmentation = self.loss_function(*(of_labelled_items(*compared) if needs_labels else compared))
        terms = {"segmentation": segmentation}
        loss, shares = segmentation, {}
        if self.distiller is not None:
            distillation = self.distiller(images, labels, prediction, seen, cut)
            with torch.autocast(images.device.type, enabled=False):
                shares = self._gradient_shares(segmentation, distillation)
            loss = loss + self.distiller.total(distillation)
            terms.update(distillation)
        self._check_finite(loss, terms)
        return loss, {**terms, "total": loss, **shares}

    def _gradient_shares(
        self, segmentation: torch.Tensor, distillation: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Let the distiller hold its shares of the gradient; return those of all terms where they are to be logged."""
        scale = self.grad_scaler.scale  # without it float16 loses small gradients; no share depends on it
        terms = {name: scale(term) for name, term in distillation.items()}
        student = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        self.distiller.follow_shares(terms, scale(segmentation), student)
        if not self.log_gradient_shares or (self.state.iteration - 1) % self.log_gradient_shares:
            return {}
        shares = gradient_shares(self.distiller.weighted(terms), scale(segmentation), student)
        told = ", ".join(f"{name} {float(share):.3g}" for name, share in shares.items())
        logger.info("gradients as shares of the segmentation loss's, iteration %d: %s", self.state.iteration, told)
        return {f"share/{name}": share for name, share in shares.items()}

    def _check_finite(self, loss: torch.Tensor, terms: dict[str, torch.Tensor]) -> None:
        if torch.isfinite(loss):
            return
        broken = [name for name, term in terms.items() if not torch.isfinite(term)] or ["total"]
        raise InputError(
            f"the loss term '{broken[0]}' is {terms.get(broken[0], loss).item()} at iteration {self.state.iteration}: "
            "lower --learning_rate or the weight of that term, or train in float32"
        )

    def _step(self, loss: torch.Tensor) -> None:
        if (self.state.iteration - 1) % self.accumulation_steps == 0:
            self.optimizer.zero_grad(set_to_none=True)
        self.grad_scaler.scale(loss / self.accumulation_steps).backward()
        if self.distiller is not None:
            average_gradients(self.distiller.adapter_parameters())
        self.fire_event(IterationEvents.BACKWARD_COMPLETED)
        if self._optimizer_steps():
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()

    def _optimizer_steps(self) -> bool:
        return self.state.iteration % self.accumulation_steps == 0


def _along(items: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return items.reshape(-1, *[1] * (labels.ndim - 1))


def _float32(prediction: Any) -> Any:
    """Cast a tensor, or each tensor of nested tuples, to float32."""
    if isinstance(prediction, torch.Tensor):
        return prediction.float()
    return tuple(_float32(part) for part in prediction)
