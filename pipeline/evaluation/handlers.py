# SPDX-License-Identifier: Apache-2.0
"""What MONAI evaluators plug in: key metrics, `OrganDice` for scans and `PooledIoU` for slides, and `PerOrganReport`.

MONAI's own metric handlers are not used: its HD95 handler takes no spacing and drops missed organs from the mean, and
its CSV saver knows no organ names. Under torch.distributed every rank attaches both; each scores its own cases, doubles
that a sampler adds to fill up the last round count once, and rank 0 writes.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from monai.engines import IterationEvents

from pipeline.data.dataset.dataset import SLIDES
from pipeline.errors import InputError
from pipeline.evaluation import overlap
from pipeline.evaluation.engine_cases import EngineCase, engine_cases, tensor_confusion_matrix
from pipeline.evaluation.provenance import describe_case, describe_run
from pipeline.evaluation.report import check_output_folder, protocol_named, write_report
from pipeline.evaluation.slides.image_scores import BACKGROUND
from pipeline.evaluation.slides.pixel_scores import mean_iou, pixel_counts
from pipeline.evaluation.slides.protocols import unscored_px
from pipeline.evaluation.statistics import macro_mean
from pipeline.processes import distributed

_logger = logging.getLogger(__name__)


class CaseMetric(Metric):
    """What key metrics of label maps have in common: one confusion matrix a case, gathered from all ranks.

    A subclass says in `figures` what becomes of the matrices. `classes` are the columns of a matrix: 0 to `classes` - 1
    may occur in the maps. Raises `InputError` for a case that comes twice, and from `figures` at the end of a run.
    """

    def __init__(self, classes: int, device: str | torch.device = "cpu") -> None:
        self._classes = classes
        super().__init__(device=device)

    def figures(self, matrices: np.ndarray) -> tuple[float, dict[str, float]]:
        """Return the metric and its parts by name from (cases, K, K) int64, the cases in order of their names."""
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
        # Cases without a name differ by rank and number: none is a double of another.
        case = output.case if output.case is not None else f"{distributed.rank()}/{len(self._matrices)}"
        _refuse_double(case, self._matrices)
        self._matrices[case] = tensor_confusion_matrix(output.prediction, output.label, self._classes)

    def compute(self) -> float:
        """Return the metric; collective under torch.distributed."""
        return self._figures()[0]

    def completed(self, engine: Engine, name: str) -> None:
        """Put the metric into `engine.state.metrics[name]` and its parts into `engine.state.metric_details[name]`."""
        engine.state.metrics[name], engine.state.metric_details[name] = self._figures()

    def _figures(self) -> tuple[float, dict[str, float]]:
        matrices = _merged(self._matrices)
        if not matrices:
            raise InputError("no case was scored; give the evaluator cases with labels")
        return self.figures(np.stack([matrices[case] for case in sorted(matrices)]))


class OrganDice(CaseMetric):
    """Mean Dice of whole volumes, for `key_val_metric` of a MONAI evaluator.

    The value is the mean over organs of the mean over the cases that have the organ in label or prediction: a missed or
    invented organ counts 0, an absent one does not count. The means of the organs are in
    `engine.state.metric_details[name]`, by organ name. `labels` maps label values to names; 0, the background, may be
    among them. Raises `InputError` at the end of a run in which no case has any organ, since no later value would ever
    beat NaN as the key metric, and for a case that comes twice.
    """

    def __init__(self, labels: Mapping[int, str], device: str | torch.device = "cpu") -> None:
        self._organs = _organs(labels)
        super().__init__(max(self._organs) + 1, device)

    def figures(self, matrices: np.ndarray) -> tuple[float, dict[str, float]]:
        """Return the mean Dice over organs and that of each."""
        table = np.stack([overlap.dice(matrix) for matrix in matrices])[:, list(self._organs)]
        if np.isnan(table).all():
            raise InputError(f"none of {len(table)} cases has an organ in label or prediction; check the label files")
        return macro_mean(table), {
            organ: macro_mean(table[:, [column]]) for column, organ in enumerate(self._organs.values())
        }


class PooledIoU(CaseMetric):
    """Mean IoU of all classes from one confusion matrix over all images, for `key_val_metric` of a MONAI evaluator.

    It is the mIoU of the protocols of slides: large images weigh more than small ones, the background is a class, and
    a class that neither labels nor predictions have does not count. The IoU of each class is in
    `engine.state.metric_details[name]`, by its name. `labels` maps label values to names; the background need not be
    among them. Raises `InputError` at the end of a run in which no label has anything but background: a network that
    predicts nothing would then be perfect; and for an image that comes twice.
    """

    def __init__(self, labels: Mapping[int, str], device: str | torch.device = "cpu") -> None:
        self._names = {0: BACKGROUND, **{int(value): name for value, name in labels.items()}, **_organs(labels)}
        super().__init__(max(self._names) + 1, device)

    def figures(self, matrices: np.ndarray) -> tuple[float, dict[str, float]]:
        """Return the mean IoU over classes and that of each."""
        pooled = matrices.sum(axis=0)
        if not pooled[1:].any():
            raise InputError(
                f"no label of {len(matrices)} images has a class beside the background; check the label files"
            )
        iou = pixel_counts(pooled).iou
        return float(mean_iou(pooled)), {name: float(iou[value]) for value, name in sorted(self._names.items())}


class PerOrganReport:
    """Handler that scores every case of an evaluator's run and writes the report at its end; slides are cases too.

    It reads `pred` and `label` of the output, label maps (B, 1, ...) on one grid, and `case` of the batch; of scans,
    the label's affine gives the voxel size in mm. The summary lists shape, spacing and seconds of each case; seconds of
    segmentation run from the batch's arrival to the end of the inferer. Where the maps scored have another size than
    `image` of the batch, as in protocol `paper`, the size of the image is listed too.

    Args:
        output_dir: folder of the report; a report in it is replaced.
        labels: label value to organ name; 0, the background, may be among them.
        protocol: `mm` (the default) or `transunet` for scans, `full` (the default) or `paper` for slides.
        checkpoint: file whose SHA-256 the summary names.
        dataset: name of the dataset, for the summary.
        seeds: seeds of the run, for the summary.
        spacing_known: False leaves distances in mm and volumes empty, where voxels have no size. The protocols of
            slides measure in pixels and do not ask.
        kind: what the dataset holds, "scans" or "slides"; a protocol of the other kind is then refused. Without it
            and without a protocol, scans are taken for granted.
        settings: what else the figures depend on, for the summary, as `CentreCropInferer.settings`; with `stride_px`
            among them, the summary tells how many pixels of each image were not scored.

    Raises:
        InputError: the folder or the checkpoint cannot be used, the protocol is of the other kind, a case has no name
            or comes twice, or maps do not fit.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        labels: Mapping[int, str],
        protocol: str | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        dataset: str | None = None,
        seeds: Mapping[str, int] | None = None,
        spacing_known: bool = True,
        kind: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.protocol = protocol_named(protocol, kind)
        self.output_dir = check_output_folder(output_dir)
        self.organs = _organs(labels)
        self.spacing_known = spacing_known
        self.settings = dict(settings or {})
        self._description = {
            "dataset": dataset,
            **({"settings": self.settings} if settings else {}),
            **describe_run(checkpoint, seeds),
        }
        self._scores: dict[str, list[Any]] = {}
        self._cases: dict[str, dict[str, Any]] = {}
        self._run_started = self._batch_started = self._segmentation_seconds = 0.0

    def attach(self, engine: Engine) -> None:
        """Register with a MONAI evaluator."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_STARTED, self._start_batch)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._stop_batch)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._score)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _start(self, engine: Engine) -> None:
        self._scores, self._cases = {}, {}
        self._run_started = time.perf_counter()

    def _start_batch(self, engine: Engine) -> None:
        self._batch_started = time.perf_counter()

    def _stop_batch(self, engine: Engine) -> None:
        if torch.device(engine.state.device or "cpu").type == "cuda":
            torch.cuda.synchronize(engine.state.device)  # kernels still in flight belong to this batch
        self._segmentation_seconds = time.perf_counter() - self._batch_started

    def _score(self, engine: Engine) -> None:
        items = list(engine_cases(engine))
        for item in items:
            self._score_case(item, self._segmentation_seconds / len(items))

    def _score_case(self, item: EngineCase, segmentation_seconds: float) -> None:
        if item.case is None:
            raise InputError("the batch has no key 'case'; name each case in the datalist, as dataset.json does")
        _refuse_double(item.case, self._scores)
        spacing_mm = self._spacing_mm(item)
        started = time.perf_counter()
        prediction, label = item.prediction.cpu().numpy(), item.label.cpu().numpy()
        try:
            scores = self.protocol.score(item.case, prediction, label, self.organs, spacing_mm)
        except InputError as error:
            raise InputError(f"case {item.case}: {error}") from error
        seconds = {"segmentation": segmentation_seconds, "scoring": time.perf_counter() - started}
        self._scores[item.case] = scores
        self._cases[item.case] = {
            **describe_case(item.case, label.shape, spacing_mm, **seconds),
            **self._describe_image(item),
        }

    def _spacing_mm(self, item: EngineCase) -> tuple[float, ...] | None:
        if not self.spacing_known or self.protocol.kind == SLIDES:
            return None
        if item.spacing_mm is None:
            raise InputError(f"label of case {item.case} has no affine; load it as a MetaTensor for distances in mm")
        return item.spacing_mm

    def _describe_image(self, item: EngineCase) -> dict[str, Any]:
        """Return what the summary says of an image whose map is not on its own grid."""
        if item.image_shape is None or item.image_shape == tuple(item.label.shape):
            return {}
        stride_px = self.settings.get("stride_px")
        unscored = {} if stride_px is None else {"unscored_px": unscored_px(*item.image_shape, stride_px)}
        return {"image_shape": list(item.image_shape), **unscored}

    def _write(self, engine: Engine) -> None:
        distributed.wait_for_all()
        scores, cases = _merged(self._scores), _merged(self._cases)
        if not distributed.is_main():
            return
        description = {
            **self._description,
            "cases": [cases[case] for case in sorted(cases)],
            "timings": {"total_seconds": round(time.perf_counter() - self._run_started, 3)},
        }
        rows = [row for case in sorted(scores) for row in scores[case]]
        summary = write_report(self.output_dir, self.protocol, rows, description)
        _logger.info("report in %s\n%s", self.output_dir, self.protocol.table(summary))


def _organs(labels: Mapping[int, str]) -> dict[int, str]:
    organs = {int(value): name for value, name in sorted(labels.items()) if int(value) != 0}
    if not organs:
        raise InputError(f"labels are {dict(labels)}; name one organ beside the background at least")
    return organs


def _refuse_double(case: str, known: Mapping[str, Any]) -> None:
    if case in known:
        raise InputError(f"case {case} came twice in one run; give each scan one id, and whole volumes, not slices")


def _merged(mine: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of all ranks; a case that two ranks have scored is there once."""
    return {case: entry for part in distributed.gathered(mine) for case, entry in part.items()}
