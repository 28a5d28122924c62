# SPDX-License-Identifier: Apache-2.0
"""`PerOrganReport`, the handler that writes the report of an evaluator's run.

MONAI's CSV saver is not used: it knows no organ names. Under torch.distributed every rank attaches it and
scores its own cases. A case that a sampler gives to two ranks counts once. Rank 0 writes.
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
from monai.engines import IterationEvents

from pipeline.data.dataset.dataset import SLIDES
from pipeline.errors import InputError
from pipeline.evaluation.engine.cases import EngineCase, engine_cases
from pipeline.evaluation.engine.metrics import merged, named_organs, refuse_double
from pipeline.evaluation.provenance import describe_case, describe_run, json_number
from pipeline.evaluation.report import check_output_folder, protocol_named, write_report
from pipeline.evaluation.slides.protocols import unscored_px
from pipeline.processes import distributed

_logger = logging.getLogger(__name__)


class PerOrganReport:
    """Handler that scores every case of an evaluator's run and writes the report at its end; slides are cases too.

    The evaluator's own metrics, those that are single numbers, are in the summary and in the log.

    It reads `pred` and `label` of the output, label maps (B, 1, ...) on one grid, and `case` of the batch. For scans,
    the label's affine gives the voxel size in mm. The summary lists shape, spacing and seconds of each case. The
    seconds of segmentation are counted from the batch's arrival to the end of the inferer. Where the scored maps have
    another size than `image` of the batch, as in protocol `paper`, the size of the image is listed too.

    Args:
        output_dir: folder of the report; a report in it is replaced.
        labels: label value to organ name; 0, the background, may be among them.
        protocol: `mm` (the default) or `transunet` for scans, `full` (the default) or `paper` for slides.
        checkpoint: file whose SHA-256 the summary names.
        dataset: name of the dataset, for the summary.
        seeds: seeds of the run, for the summary.
        spacing_known: False, for voxels of unknown size, leaves distances in mm and volumes empty. The protocols of
            slides measure in pixels and ignore it.
        kind: what the dataset holds, "scans" or "slides"; a protocol of the other kind is then refused. Without kind
            and protocol, scans are assumed.
        settings: further settings that the figures depend on, for the summary, as `CentreCropInferer.settings`; with
            `stride_px` among them, the summary tells how many pixels of each image were not scored.

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
        self.organs = named_organs(labels)
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
        refuse_double(item.case, self._scores)
        steps_mm = self._steps_mm(item)
        started = time.perf_counter()
        prediction, label = item.prediction.cpu().numpy(), item.label.cpu().numpy()
        try:
            scores = self.protocol.score(item.case, prediction, label, self.organs, steps_mm)
        except InputError as error:
            raise InputError(f"case {item.case}: {error}") from error
        seconds = {"segmentation": segmentation_seconds, "scoring": time.perf_counter() - started}
        self._scores[item.case] = scores
        self._cases[item.case] = {
            **describe_case(item.case, label.shape, steps_mm, **seconds),
            **self._describe_image(item),
        }

    def _steps_mm(self, item: EngineCase) -> np.ndarray | None:
        if not self.spacing_known or self.protocol.kind == SLIDES:
            return None
        if item.steps_mm is None:
            raise InputError(f"label of case {item.case} has no affine; load it as a MetaTensor for distances in mm")
        return item.steps_mm

    def _describe_image(self, item: EngineCase) -> dict[str, Any]:
        """Return what the summary says of an image whose map is not on its own grid."""
        if item.image_shape is None or item.image_shape == tuple(item.label.shape):
            return {}
        stride_px = self.settings.get("stride_px")
        unscored = {} if stride_px is None else {"unscored_px": unscored_px(*item.image_shape, stride_px)}
        return {"image_shape": list(item.image_shape), **unscored}

    def _write(self, engine: Engine) -> None:
        distributed.wait_for_all()
        scores, cases = merged(self._scores), merged(self._cases)
        if not distributed.is_main():
            return
        metrics = _numbers(engine.state.metrics)
        description = {
            **self._description,
            "cases": [cases[case] for case in sorted(cases)],
            "timings": {"total_seconds": round(time.perf_counter() - self._run_started, 3)},
            **({"metrics": metrics} if metrics else {}),
        }
        rows = [row for case in sorted(scores) for row in scores[case]]
        summary = write_report(self.output_dir, self.protocol, rows, description)
        _logger.info("report in %s\n%s", self.output_dir, self.protocol.table(summary))
        if metrics:
            _logger.info("metrics of the run: %s", ", ".join(f"{name} {value}" for name, value in metrics.items()))


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """Return those metrics of an evaluator that are single numbers, None for NaN."""
    return {name: json_number(round(float(value), 4)) for name, value in metrics.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) or (isinstance(value, torch.Tensor) and value.numel() == 1)
