# SPDX-License-Identifier: Apache-2.0
"""What writing the results of scans and of slides has in common: the folder, the table of failures, the exit code."""

from __future__ import annotations

import csv
import logging
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import ClassVar

from ignite.engine import Engine, Events

from pipeline import distributed
from pipeline.atomic import replace_when_complete
from pipeline.errors import InputError
from pipeline.inference.inputs import Failure, SourceDataset

logger = logging.getLogger(__name__)

FAILURES_FILE = "failures.csv"


class CaseWriter(ABC):
    """An ignite handler that writes files named CASE + suffix for each source that an evaluator segments.

    At the start it checks that the folder can be written and that no output is one of the sources; at the end, or when
    the run breaks off, it writes `failures.csv`. Outputs of an earlier run are replaced.

    Args:
        output_dir: where the files go; made if need be.
        dataset: what the evaluator reads.
        labels: label value to name, with or without the background.
        checkpoint_sha256: told in the descriptions, so that a label map can be traced to its model.
    """

    suffixes: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        dataset: SourceDataset,
        labels: Mapping[int, str],
        checkpoint_sha256: str = "",
    ) -> None:
        self.output_dir = Path(output_dir)
        self.dataset = dataset
        self.labels = {int(value): str(name) for value, name in labels.items()}
        self.checkpoint_sha256 = checkpoint_sha256
        self.written: list[Path] = []

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator (a MONAI engine calls this for each of its handlers)."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._write_batch)
        engine.add_event_handler(Events.COMPLETED, self.finish)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._break_off)

    def start(self, engine: Engine) -> None:
        """Find out before the long run whether its outputs can be written, and refuse to overwrite a source."""
        self.written.clear()
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

    def _path(self, case: str, suffix: str) -> Path:
        return self.output_dir / f"{case}{suffix}"

    @abstractmethod
    def _write_batch(self, engine: Engine) -> None:
        """Write what the evaluator has just segmented, from `engine.state`."""

    def finish(self, _engine: Engine | None = None) -> None:
        """Write `failures.csv`: one row for each failure, the header alone when there is none (on rank 0 for all)."""
        parts = distributed.gathered((self.dataset.failures, self.written))
        self.dataset.failures[:] = [failure for failures, _ in parts for failure in failures]
        self.written[:] = [path for _, written in parts for path in written]
        if distributed.is_main():
            self._write_failures()

    def _write_failures(self) -> None:
        with (
            replace_when_complete(self.output_dir / FAILURES_FILE) as temporary,
            open(temporary, "w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, [field.name for field in fields(Failure)])
            writer.writeheader()
            writer.writerows(asdict(failure) for failure in self.dataset.failures)

    def _break_off(self, _engine: Engine, error: BaseException) -> None:
        """Keep the failures so far; other ranks may be gone, so nothing is gathered. The error goes on."""
        if self.dataset.failures and distributed.ranks() == 1:
            self._write_failures()
        raise error

    @property
    def exit_code(self) -> int:
        """0 when everything was segmented, 1 when something failed, 2 when nothing succeeded."""
        if not self.dataset.failures:
            return 0
        return 1 if self.written else 2

    def exit_if_failed(self) -> None:
        """Leave the program with `exit_code` unless it is 0; call it when the evaluator has run."""
        failed, code = len(self.dataset.failures), self.exit_code
        if code:
            named = f"{failed} of {len(self.dataset.sources)} {self.dataset.noun}s failed"
            logger.error("%s: %s", named, self.output_dir / FAILURES_FILE)
            raise SystemExit(code)
