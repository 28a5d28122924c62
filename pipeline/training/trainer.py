# SPDX-License-Identifier: Apache-2.0
"""One trainer for teacher, student alone and distilled student, so that these differ only by the distillation."""

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
    """Return the parameters that the student's optimizer trains: the network and the adapters of the methods."""
    adapters = [] if distiller is None else distiller.adapter_parameters()
    return [*network.parameters(), *adapters]


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
    With `accumulation_steps` N, gradients are means over N iterations, and the optimizer steps after each N-th. The
    distiller's own parts are trained on the last of the N. Gradients and logged terms are means over all processes.
    `engine.state.output` is a list of one dictionary for the whole batch, with `image`, `label`, `pred`, `loss` and
    `terms`: every unweighted term by name, detached. MONAI's `from_engine(["loss"], first=True)` reads it.

    It differs from MONAI's trainer in three ways. First, `precision` replaces `amp`. MONAI's `amp` works only on CUDA,
    creates its scaler in `run`, where a resumed run cannot restore it, and scales bfloat16 too. Here every device can
    be used, and the scaler exists from the start, for float16 only. Second, batches are not decollated, which would
    double the time of a small step. Third, losses are computed in float32.

    Args:
        distiller: terms to add, or None for training with labels alone.
        augmentation: changes images (B, C, ...) and labels (B, 1, ...) of a batch on the device, or None.
        student_view: makes the student's images from the teacher's; None where both see the same.
        precision: "float32", "bfloat16" or "float16" (CUDA only).
        log_gradient_shares: iterations between two logs of gradient shares, beginning with the first iteration. A share
            is the length of a weighted term's gradient, divided by that of the segmentation loss; it is logged as the
            term `share/TERM`. 0 logs none.
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
        """Call the functions in `before_run` (a resume), train until `max_epochs`, and always call `after_run`.

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
        # Augmentation fills in background from outside the image; items without a label must stay unlabelled there.
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
        """Let the distiller hold its shares of the gradient; return the shares of all terms if this step logs them."""
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
