# SPDX-License-Identifier: Apache-2.0
"""Metrics for MONAI evaluators: `OrganDice` and `OrganHD95` for scans, `PooledIoU` for slides.

MONAI's own metric handlers are not used: they drop missed organs from the mean, and the one for HD95 takes no spacing.
Under torch.distributed every rank attaches them and scores its own cases. A case that a sampler gives to two ranks, to
fill up the last round, counts once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine
from ignite.metrics import Metric

from pipeline.errors import InputError
from pipeline.evaluation import overlap
from pipeline.evaluation.engine.cases import EngineCase, engine_cases, tensor_confusion_matrix
from pipeline.evaluation.scores import OrganScore, score_case
from pipeline.evaluation.slides.image_scores import BACKGROUND
from pipeline.evaluation.slides.pixel_scores import mean_iou, pixel_counts
from pipeline.evaluation.statistics import macro_mean
from pipeline.evaluation.summaries import summarise_organs
from pipeline.processes import distributed


class CaseMetric(Metric):
    """The base of key metrics of label maps: one confusion matrix for each case, gathered from all ranks.

    A subclass computes the metric in `figures`. `classes` is the number K of label values: 0 to K - 1 may occur in the
    maps. Raises `InputError` for a case that comes twice, and from `figures` at the end of a run.
    """

    def __init__(self, classes: int, device: str | torch.device = "cpu") -> None:
        self._classes = classes
        super().__init__(device=device)

    def figures(self, matrices: np.ndarray) -> tuple[float, dict[str, float]]:
        """Return the metric and its parts by name from matrices (cases, K, K) int64, in order of the cases' names."""
        raise NotImplementedError

    def reset(self) -> None:
        """Forget all cases."""
        self._matrices: dict[str, np.ndarray] = {}

    def iteration_completed(self, engine: Engine) -> None:
        """Count the cases that `engine` has just segmented."""
        for item in engine_cases(engine):
            self.update(item)

    def update(self, output: EngineCase) -> None:
        """Count one case."""
        # Cases without a name get one from rank and number, so that none counts as the same case as another.
        case = output.case if output.case is not None else f"{distributed.rank()}/{len(self._matrices)}"
        refuse_double(case, self._matrices)
        self._matrices[case] = tensor_confusion_matrix(output.prediction, output.label, self._classes)

    def compute(self) -> float:
        """Return the metric; collective under torch.distributed."""
        return self._figures()[0]

    def completed(self, engine: Engine, name: str) -> None:
        """Put the metric into `engine.state.metrics[name]` and its parts into `engine.state.metric_details[name]`."""
        engine.state.metrics[name], engine.state.metric_details[name] = self._figures()

    def _figures(self) -> tuple[float, dict[str, float]]:
        matrices = merged(self._matrices)
        if not matrices:
            raise InputError("no case was scored; give the evaluator cases with labels")
        return self.figures(np.stack([matrices[case] for case in sorted(matrices)]))


class OrganDice(CaseMetric):
    """Mean Dice of whole volumes, for `key_val_metric` of a MONAI evaluator.

    For each organ, Dice is averaged over the cases that have it in label or prediction: a missed or invented organ
    counts 0, an absent one does not count. The value is the mean over organs. The means of the organs are in
    `engine.state.metric_details[name]`, by organ name. `labels` maps label values to names; 0, the background, may be
    among them. Raises `InputError` for a case that comes twice, and at the end of a run in which no case has any organ:
    as a key metric, NaN could never be improved on. With `allow_absent` the value is NaN instead, for metrics that
    select no model.
    """

    def __init__(
        self, labels: Mapping[int, str], allow_absent: bool = False, device: str | torch.device = "cpu"
    ) -> None:
        self._organs, self._allow_absent = named_organs(labels), allow_absent
        super().__init__(max(self._organs) + 1, device)

    def figures(self, matrices: np.ndarray) -> tuple[float, dict[str, float]]:
        """Return the mean Dice over organs and the Dice of each, from matrices (cases, K, K)."""
        table = np.stack([overlap.dice(matrix) for matrix in matrices])[:, list(self._organs)]
        if np.isnan(table).all() and not self._allow_absent:
            raise InputError(f"none of {len(table)} cases has an organ in label or prediction; check the label files")
        return macro_mean(table), {
            organ: macro_mean(table[:, [column]]) for column, organ in enumerate(self._organs.values())
        }


class OrganHD95(Metric):
    """Mean HD95 in mm of whole volumes, for `additional_metrics` of a MONAI evaluator.

    For each organ, HD95 is averaged over the cases that have it in label or prediction: a missed or invented organ
    counts as the diagonal of its volume. The value is the mean over organs, equal to `hd95_penalised_mm_mean` in the
    report's row `mean`. Means of the organs are in `engine.state.metric_details[name]`, by organ name; NaN for an organ
    that no case has. MONAI's `HausdorffDistance` handler takes no spacing from the label and leaves missed organs out
    of the mean.

    Args:
        labels: label values to names; 0, the background, may be among them.
        spacing_known: False, where voxels have no size, leaves the value NaN.
        device: of ignite's `Metric`.

    Raises:
        InputError: a label without an affine, a case that comes twice, or at the end of a run no case at all.
    """

    def __init__(
        self, labels: Mapping[int, str], spacing_known: bool = True, device: str | torch.device = "cpu"
    ) -> None:
        self._organs, self._spacing_known = named_organs(labels), spacing_known
        super().__init__(device=device)

    def reset(self) -> None:
        """Forget all cases."""
        self._scores: dict[str, list[OrganScore]] = {}

    def iteration_completed(self, engine: Engine) -> None:
        """Measure the cases that `engine` has just segmented."""
        for item in engine_cases(engine):
            self.update(item)

    def update(self, output: EngineCase) -> None:
        """Measure one case."""
        case = output.case if output.case is not None else f"{distributed.rank()}/{len(self._scores)}"
        refuse_double(case, self._scores)
        if self._spacing_known and output.steps_mm is None:
            raise InputError(f"label of case {case} has no affine; load it as a MetaTensor for distances in mm")
        maps = (tensor.cpu().numpy() for tensor in (output.prediction, output.label))
        self._scores[case] = score_case(case, *maps, self._organs, output.steps_mm if self._spacing_known else None)

    def compute(self) -> float:
        """Return the metric; collective under torch.distributed."""
        return self._figures()[0]

    def completed(self, engine: Engine, name: str) -> None:
        """Put the metric into `engine.state.metrics[name]` and its parts into `engine.state.metric_details[name]`."""
        engine.state.metrics[name], engine.state.metric_details[name] = self._figures()

    def _figures(self) -> tuple[float, dict[str, float]]:
        scores = merged(self._scores)
        if not scores:
            raise InputError("no case was scored; give the evaluator cases with labels")
        *organs, mean = summarise_organs([score for case in sorted(scores) for score in scores[case]])
        return mean.hd95_penalised_mm_mean, {organ.organ: organ.hd95_penalised_mm_mean for organ in organs}


class PooledIoU(CaseMetric):
    """Mean IoU of all classes from one confusion matrix over all images, for `key_val_metric` of a MONAI evaluator.

    It is the mIoU of the protocols of slides: large images weigh more than small ones, the background is a class, and
    a class that neither labels nor predictions have does not count. The IoU of each class is in
    `engine.state.metric_details[name]`, by its name. `labels` maps label values to names; the background need not be
    among them. Raises `InputError` for an image that comes twice, and at the end of a run in which all labels are only
    background: a network that predicts nothing would then be perfect. `allow_absent` accepts such labels.
    """

    def __init__(
        self, labels: Mapping[int, str], allow_absent: bool = False, device: str | torch.device = "cpu"
    ) -> None:
        self._allow_absent = allow_absent
        self._names = {0: BACKGROUND, **{int(value): name for value, name in labels.items()}, **named_organs(labels)}
        super().__init__(max(self._names) + 1, device)

    def figures(self, matrices: np.ndarray) -> tuple[float, dict[str, float]]:
        """Return the mean IoU over classes and the IoU of each, from matrices (cases, K, K)."""
        pooled = matrices.sum(axis=0)
        if not pooled[1:].any() and not self._allow_absent:
            raise InputError(
                f"no label of {len(matrices)} images has a class beside the background; check the label files"
            )
        iou = pixel_counts(pooled).iou
        return float(mean_iou(pooled)), {name: float(iou[value]) for value, name in sorted(self._names.items())}


def named_organs(labels: Mapping[int, str]) -> dict[int, str]:
    """Return the organs of `labels` in order, without the background; `InputError` if there is none."""
    organs = {int(value): name for value, name in sorted(labels.items()) if int(value) != 0}
    if not organs:
        raise InputError(f"labels are {dict(labels)}; name one organ beside the background at least")
    return organs


def refuse_double(case: str, known: Mapping[str, Any]) -> None:
    """Refuse (`InputError`) a case that is known already."""
    if case in known:
        raise InputError(f"case {case} came twice in one run; give each scan one id, and whole volumes, not slices")


def merged(mine: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of all ranks; a case that two ranks have scored is there once."""
    return {case: entry for part in distributed.gathered(mine) for case, entry in part.items()}
