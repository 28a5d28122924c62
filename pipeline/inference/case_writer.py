# SPDX-License-Identifier: Apache-2.0
"""The common part of writing results of scans and of slides: the folder, the tables, the exit code."""

from __future__ import annotations

import logging
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from pipeline.errors import InputError
from pipeline.inference.inputs import Failure, SourceDataset
from pipeline.inference.manifest import (
    FAILED,
    MANIFEST_FILE,
    ManifestRow,
    completion_record,
    row_of_earlier_run,
    write_rows,
)
from pipeline.inference.sources import Source
from pipeline.processes import distributed

logger = logging.getLogger(__name__)

FAILURES_FILE = "failures.csv"


class CaseWriter(ABC):
    """An ignite handler that writes files named CASE + suffix for each source that an evaluator segments.

    At the start it checks that the folder can be written and that no output is one of the sources; at the end, or when
    the run breaks off, it writes `failures.csv` and `manifest.csv`, which has a row for each case. All processes of a
    run share the folder, and rank 0 writes both.

    Args:
        output_dir: where the files go; made if need be.
        dataset: what the evaluator reads.
        labels: label value to name, with or without the background.
        checkpoint_sha256: of the model; written into the descriptions, so that a label map can be traced to its model.
        settings: further settings that the labels depend on, JSON primitives; also written into the descriptions.
        overwrite: False keeps complete outputs of an earlier run with the same input, model and settings; the evaluator
            does not see these cases. True makes all anew; evaluations with metrics need it.
    """

    suffixes: tuple[str, ...]

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        dataset: SourceDataset,
        labels: Mapping[int, str],
        checkpoint_sha256: str = "",
        settings: Mapping[str, Any] | None = None,
        overwrite: bool = True,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.dataset = dataset
        self.labels = {int(value): str(name) for value, name in labels.items()}
        self.checkpoint_sha256 = checkpoint_sha256
        self.settings, self.overwrite = dict(settings or {}), overwrite
        self.written: list[Path] = []
        self.rows: dict[str, ManifestRow] = {}
        self._sources = {source.case: source for source in dataset.sources}

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator (a MONAI engine calls this for each of its handlers)."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._write_batch)
        engine.add_event_handler(Events.COMPLETED, self.finish)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._write_tables_of_broken_run)

    def start(self, engine: Engine) -> None:
        """Check before the long run that outputs can be written, and that none would overwrite a source."""
        self.written.clear()
        self.rows.clear()
        # Ignite keeps the number of good sources of the last run and would stop there, before a bad one at the end.
        engine.state.epoch_length = None
        inputs = {os.path.realpath(source.path) for source in self.dataset.sources}
        for source in self.dataset.sources:
            for output in (self._path(source.case, suffix) for suffix in self.suffixes):
                if os.path.realpath(output) in inputs:
                    raise InputError(f"{output} is an input and would be overwritten; choose another output folder")
        try:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.output_dir):
                pass
        except OSError as error:
            raise InputError(f"cannot write into {self.output_dir}: {error.strerror}; choose another folder") from error
        self._skip_finished_cases()

    def _skip_finished_cases(self) -> None:
        """Find the cases of an earlier run; rank 0 decides, since ranks see the folder at different times."""
        kept: dict[str, ManifestRow] = {}
        if distributed.is_main() and not self.overwrite:
            found = (self._row_of_earlier_run(source) for source in self.dataset.sources)
            kept = {row.case: row for row in found if row is not None}
        kept = distributed.gathered(kept)[0]
        self.rows.update(kept)
        self.dataset.left_out = frozenset(kept)
        if kept:
            logger.info(
                "%d of %d %ss are done already, by the same model and settings; --overwrite True does them anew",
                *(len(kept), len(self.dataset.sources), self.dataset.noun),
            )
        left = len(self.dataset.sources) - len(kept)
        if left and distributed.is_main():  # a large scan may take minutes until the next line
            logger.info("segmenting %d %s%s into %s", left, self.dataset.noun, "s" * (left != 1), self.output_dir)

    def _row_of_earlier_run(self, source: Source) -> ManifestRow | None:
        outputs = [self._path(source.case, suffix) for suffix in self.suffixes]
        return row_of_earlier_run(source.case, source.path, outputs, self.checkpoint_sha256, self.settings)

    def _completion_record(self, case: str, label_map: Path, damaged: bool = False) -> dict[str, Any]:
        """Return the part of a description by which a later run keeps the case; `label_map` is complete."""
        return completion_record(self._sources[case].path, label_map, self.checkpoint_sha256, self.settings, damaged)

    def _add(self, path: Path, description: Mapping[str, Any]) -> None:
        """Take up a case that has been written."""
        self.written.append(path)
        row = [description[key] for key in ("case", "input")]
        row += [str(path), *(description[key] for key in ("sha256", "seconds", "status"))]
        self.rows[description["case"]] = ManifestRow(*row, "; ".join(description["notes"]))

    def _path(self, case: str, suffix: str) -> Path:
        return self.output_dir / f"{case}{suffix}"

    @abstractmethod
    def _write_batch(self, engine: Engine) -> None:
        """Write what the evaluator has just segmented, from `engine.state`."""

    def finish(self, _engine: Engine | None = None) -> None:
        """Write `failures.csv` and `manifest.csv` of all processes, on rank 0; none goes on before they are written."""
        distributed.wait_for_all()
        parts = distributed.gathered((self.dataset.failures, self.written, self.rows))
        self.written[:] = [path for _, written, _ in parts for path in written]
        for _, _, rows in parts:
            self.rows.update(rows)
        order = {source.case: number for number, source in enumerate(self.dataset.sources)}
        failures = (failure for failures, _, _ in parts for failure in failures)
        self.dataset.failures[:] = sorted(failures, key=lambda failure: order[failure.case])
        if distributed.is_main():
            self._write_tables()
        distributed.wait_for_all()  # torchrun ends all processes at the first exit code that is not 0

    def _write_tables(self) -> None:
        write_rows(self.output_dir / FAILURES_FILE, Failure, self.dataset.failures)
        errors = {failure.case: failure for failure in self.dataset.failures}
        table = []
        for source in self.dataset.sources:
            row, failure = self.rows.get(source.case), errors.get(source.case)
            if row is None and failure is None:
                continue  # the run broke off before it
            if row is None:
                row = ManifestRow(source.case, failure.file, "", "", None, FAILED, failure.error)
            table.append(row if failure is None else replace(row, notes=failure.error))
        write_rows(self.output_dir / MANIFEST_FILE, ManifestRow, table)

    def _write_tables_of_broken_run(self, _engine: Engine, error: BaseException) -> None:
        """Keep what is known so far; other ranks may be gone, so nothing is gathered. The error goes on."""
        if (self.dataset.failures or self.rows) and distributed.world_size() == 1:
            self._write_tables()
        raise error

    @property
    def exit_code(self) -> int:
        """0 when everything was segmented, 1 when something failed, 2 when nothing succeeded."""
        if not self.dataset.failures:
            return 0
        return 1 if self.rows else 2

    def exit_if_failed(self) -> None:
        """Leave the program with `exit_code` unless it is 0; call it when the evaluator has run."""
        failed, code = len(self.dataset.failures), self.exit_code
        if code:
            named = f"{failed} of {len(self.dataset.sources)} {self.dataset.noun}s failed"
            if distributed.is_main():
                logger.error("%s: %s", named, self.output_dir / FAILURES_FILE)
            raise SystemExit(code)
