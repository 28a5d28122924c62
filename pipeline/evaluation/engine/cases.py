# SPDX-License-Identifier: Apache-2.0
"""The cases that an evaluator has just segmented, one at a time, whether MONAI has decollated the batch or not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.utils.enums import CommonKeys

from pipeline.errors import InputError
from pipeline.evaluation import overlap

CASE_KEY = "case"


@dataclass(frozen=True)
class EngineCase:
    """One case of a batch.

    `prediction` and `label`: label maps without batch and channel axes, (X, Y, Z) or (H, W) uint8, on the evaluator's
    device. `steps_mm`: a matrix whose columns are the steps in mm along each axis, None if the label has no affine.
    `case`: None if the batch has no key `case`. `image_shape`: that of the segmented image, None if the batch has no
    key `image`.
    """

    case: str | None
    prediction: torch.Tensor
    label: torch.Tensor
    steps_mm: np.ndarray | None
    image_shape: tuple[int, ...] | None = None


def engine_cases(engine: Engine) -> Iterator[EngineCase]:
    """Yield the cases of `engine.state.output` (`pred`, `label`) and `engine.state.batch` (`case`).

    Both are a dictionary of batches, (B, 1, ...), or after decollation a list of dictionaries, (1, ...). Raises
    `InputError` for tensors that are no label maps: more than one channel, or values that are not whole numbers in
    0..255.
    """
    outputs, batch = _one_by_one(engine.state.output), engine.state.batch
    for index, output in enumerate(outputs):
        case = _case_name(batch, index)
        missing = [key for key in (CommonKeys.PRED, CommonKeys.LABEL) if key not in output]
        if missing:
            raise InputError(f"the evaluator's output lacks {', '.join(missing)}; it has {', '.join(map(str, output))}")
        prediction = _label_map("prediction", output[CommonKeys.PRED], case)
        label = _label_map("label", output[CommonKeys.LABEL], case)
        steps_mm = _steps_mm(output[CommonKeys.LABEL], label.ndim)
        yield EngineCase(case, prediction, label, steps_mm, _image_shape(batch, index, label.ndim))


def tensor_confusion_matrix(prediction: torch.Tensor, label: torch.Tensor, classes: int) -> np.ndarray:
    """Return `overlap.confusion_matrix`, (classes, classes), of two uint8 tensors of one shape; a GPU counts itself."""
    if not prediction.is_cuda:
        return overlap.confusion_matrix(prediction.cpu().numpy(), label.cpu().numpy(), classes)
    if prediction.shape != label.shape or max(int(prediction.max()), int(label.max())) >= classes:
        overlap.check_label_maps(prediction.cpu().numpy(), label.cpu().numpy(), classes)
    return count_pairs(prediction, label.to(prediction.device), classes).cpu().numpy()


def count_pairs(prediction: torch.Tensor, label: torch.Tensor, classes: int) -> torch.Tensor:
    """Return the confusion matrix (classes, classes) int64 of two valid uint8 tensors of one shape, on their device."""
    pair = (label.to(torch.int32) * classes + prediction).flatten()
    counts = torch.bincount(pair[pair != 0], minlength=classes * classes)
    counts[0] = label.numel() - counts[1:].sum()
    return counts.reshape(classes, classes)


def _one_by_one(output: Any) -> list[Mapping[str, Any]]:
    if not isinstance(output, Mapping):
        return list(output)
    length = len(output[CommonKeys.PRED]) if CommonKeys.PRED in output else 1
    keys = [key for key in (CommonKeys.PRED, CommonKeys.LABEL) if key in output]
    return [{key: output[key][index] for key in keys} for index in range(length)]


def _case_name(batch: Any, index: int) -> str | None:
    if isinstance(batch, Mapping):
        names = batch.get(CASE_KEY)
        return names if names is None or isinstance(names, str) else str(names[index])
    return str(batch[index][CASE_KEY]) if CASE_KEY in batch[index] else None


def _image_shape(batch: Any, index: int, axes: int) -> tuple[int, ...] | None:
    item = batch if isinstance(batch, Mapping) else batch[index]
    image = item.get(CommonKeys.IMAGE)
    return tuple(image.shape[-axes:]) if isinstance(image, torch.Tensor) else None


def _label_map(name: str, tensor: torch.Tensor, case: str | None) -> torch.Tensor:
    plain = tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor
    if plain.shape[0] != 1:
        raise InputError(
            f"{name} of case {case} has {plain.shape[0]} channels; give a label map (argmax of the classes)"
        )
    plain = plain[0].detach()
    if plain.dtype == torch.uint8:
        return plain
    whole = plain.to(torch.uint8)
    # NaN, probabilities, negative and large values all come back changed.
    if not torch.equal(whole.to(plain.dtype), plain):
        raise InputError(f"{name} of case {case} is no label map: it holds other values than whole numbers in 0..255")
    return whole


def _steps_mm(label: torch.Tensor, axes: int) -> np.ndarray | None:
    if not isinstance(label, MetaTensor):
        return None
    return np.asarray(label.affine.cpu(), dtype=np.float64)[:-1, :axes]
