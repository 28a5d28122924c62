# SPDX-License-Identifier: Apache-2.0
"""What MONAI evaluators plug in: the key metric `OrganDice`, and the handler `PerOrganReport` that writes the report.

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

from pipeline.errors import InputError
from pipeline.evaluation import overlap
from pipeline.evaluation.engine_cases import EngineCase, engine_cases, tensor_confusion_matrix
from pipeline.evaluation.provenance import describe_case, describe_run
from pipeline.evaluation.report import check_output_folder, protocol_named, report_table, write_report
from pipeline.evaluation.statistics import macro_mean

_logger = logging.getLogger(__name__)


class OrganDice(Metric):
    """Mean Dice of whole volumes, for `key_val_metric` of a MONAI evaluator.

    The value is the mean over organs of the mean over the cases that have the organ in label or prediction: a missed or
    invented organ counts 0, an absent one does not count. The means of the organs are in
    `engine.state.metric_details[name]`, by organ name. `labels` maps label values to names; 0, the background, may be
    among them. Raises `InputError` at the end of a run in which no case has any organ, since no later value would ever
    beat NaN as the key metric, and for a case that comes twice.
    """

    def __init__(self, labels: Mapping[int, str], device: str | torch.device = "cpu") -> None:
        self._organs = _organs(labels)
        super().__init__(device=device)

    def reset(self) -> None:
        """Forget all cases."""
        self._dice: dict[str, np.ndarray] = {}

    def iteration_completed(self, engine: Engine) -> None:
        """Score the cases that `engine` has just segmented."""
        for item in engine_cases(engine):
            self.update(item)

    def update(self, output: EngineCase) -> None:
        """Score one case."""
        matrix = tensor_confusion_matrix(output.prediction, output.label, max(self._organs) + 1)
        # Cases without a name differ by rank and number: none is a double of another.
        case = output.case if output.case is not None else f"{_rank()}/{len(self._dice)}"
        _refuse_double(case, self._dice)
        self._dice[case] = overlap.dice(matrix)[list(self._organs)]

    def compute(self) -> float:
        """Return the mean over organs; collective under torch.distributed."""
        return macro_mean(self._table())

    def completed(self, engine: Engine, name: str) -> None:
        """Put the mean into `engine.state.metrics[name]` and the organs into `engine.state.metric_details[name]`."""
        table = self._table()
        engine.state.metrics[name] = macro_mean(table)
        engine.state.metric_details[name] = {
            organ: macro_mean(table[:, [column]]) for column, organ in enumerate(self._organs.values())
        }

    def _table(self) -> np.ndarray:
        dice = _merged(self._dice)
        table = np.array([dice[case] for case in sorted(dice)]).reshape(len(dice), len(self._organs))
        if np.isnan(table).all():
            raise InputError(f"none of {len(dice)} cases has an organ in label or prediction; check the label files")
        return table


class PerOrganReport:
    """Handler that scores every case of an evaluator's run and writes the report at its end.

    It reads `pred` and `label` of the output, label maps (B, 1, ...) on one grid, and `case` of the batch; the label's
    affine gives the voxel size in mm. The summary lists shape, spacing and seconds of each case; seconds of
    segmentation run from the batch's arrival to the end of the inferer.

    Args:
        output_dir: folder of the report; a report in it is replaced.
        labels: label value to organ name; 0, the background, may be among them.
        protocol: `mm` or `transunet`.
        checkpoint: file whose SHA-256 the summary names.
        dataset: name of the dataset, for the summary.
        seeds: seeds of the run, for the summary.
        spacing_known: False leaves distances and volumes empty, where voxels have no size.

    Raises:
        InputError: the folder or the checkpoint cannot be used, a case has no name or comes twice, or maps do not fit.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        labels: Mapping[int, str],
        protocol: str = "mm",
        checkpoint: str | os.PathLike[str] | None = None,
        dataset: str | None = None,
        seeds: Mapping[str, int] | None = None,
        spacing_known: bool = True,
    ) -> None:
        self.output_dir = check_output_folder(output_dir)
        self.protocol = protocol_named(protocol)
        self.organs = _organs(labels)
        self.spacing_known = spacing_known
        self._description = {"dataset": dataset, **describe_run(checkpoint, seeds)}
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
        if self.spacing_known and item.spacing_mm is None:
            raise InputError(f"label of case {item.case} has no affine; load it as a MetaTensor for distances in mm")
        spacing_mm = item.spacing_mm if self.spacing_known else None
        started = time.perf_counter()
        prediction, label = item.prediction.cpu().numpy(), item.label.cpu().numpy()
        try:
            scores = self.protocol.score(item.case, prediction, label, self.organs, spacing_mm)
        except InputError as error:
            raise InputError(f"case {item.case}: {error}") from error
        self._scores[item.case] = scores
        self._cases[item.case] = describe_case(
            item.case,
            label.shape,
            spacing_mm,
            segmentation=segmentation_seconds,
            scoring=time.perf_counter() - started,
        )

    def _write(self, engine: Engine) -> None:
        scores, cases = _merged(self._scores), _merged(self._cases)
        if _rank() != 0:
            return
        description = {
            **self._description,
            "cases": [cases[case] for case in sorted(cases)],
            "timings": {"total_seconds": round(time.perf_counter() - self._run_started, 3)},
        }
        rows = [row for case in sorted(scores) for row in scores[case]]
        summary = write_report(self.output_dir, self.protocol, rows, description)
        _logger.info("report in %s\n%s", self.output_dir, report_table(summary))


def _organs(labels: Mapping[int, str]) -> dict[int, str]:
    organs = {int(value): name for value, name in sorted(labels.items()) if int(value) != 0}
    if not organs:
        raise InputError(f"labels are {dict(labels)}; name one organ beside the background at least")
    return organs


def _refuse_double(case: str, known: Mapping[str, Any]) -> None:
    if case in known:
        raise InputError(f"case {case} came twice in one run; give each scan one id, and whole volumes, not slices")


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _rank() -> int:
    return torch.distributed.get_rank() if _distributed() else 0


def _merged(mine: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of all ranks; a case that two ranks have scored is there once."""
    if not _distributed():
        return mine
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, mine)
    return {case: entry for part in parts for case, entry in part.items()}
