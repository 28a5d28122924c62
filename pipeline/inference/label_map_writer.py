# SPDX-License-Identifier: Apache-2.0
"""The outputs of inference: a label map and a description beside it for each scan, and a table of what failed."""

from __future__ import annotations

import csv
import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events

from pipeline.atomic import replace_when_complete, write_json
from pipeline.data.volumes import Volume, from_ras, label_counts, write_label_map
from pipeline.errors import InputError
from pipeline.inference.scans import Failure, ScanDataset, rank_and_ranks

logger = logging.getLogger(__name__)

FAILURES_FILE = "failures.csv"
_MM3_PER_ML = 1000.0


class LabelMapWriter:
    """An ignite handler that writes `CASE.nii.gz` and `CASE.json` for each scan of an evaluator, on the scan's grid.

    Reads `engine.state.output["pred"]`, label maps (B, 1, X, Y, Z) or a decollated list of (1, X, Y, Z), uint8 in RAS.
    At the start it checks that the folder can be written and that no output is one of the scans; at the end, or when
    the run breaks off, it writes `failures.csv`. Outputs of an earlier run are replaced.

    Args:
        output_dir: where the files go; made if need be.
        scans: the dataset that the evaluator reads.
        labels: label value to organ name, with or without the background.
        checkpoint_sha256: told in the descriptions, so that a mask can be traced to its model.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        scans: ScanDataset,
        labels: Mapping[int, str],
        checkpoint_sha256: str = "",
    ) -> None:
        self.output_dir = Path(output_dir)
        self.scans = scans
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
        """Find out before the long run whether its outputs can be written, and refuse to overwrite a scan."""
        self.written.clear()
        # Ignite keeps the number of good scans of the last run and would stop there, before a bad one at the end.
        engine.state.epoch_length = None
        inputs = {os.path.realpath(scan.path) for scan in self.scans.scans}
        for scan in self.scans.scans:
            for output in (self._path(scan.case, ".nii.gz"), self._path(scan.case, ".json")):
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

    def _write_batch(self, engine: Engine) -> None:
        batch, output = engine.state.batch, engine.state.output
        if isinstance(batch, list):  # a MONAI engine has decollated
            pairs = [(item["case"], result["pred"]) for item, result in zip(batch, output, strict=True)]
        else:
            pairs = list(zip(batch["case"], output["pred"], strict=True))
        for case, prediction in pairs:
            self.write(case, prediction)

    def write(self, case: str, prediction: torch.Tensor) -> Path:
        """Write label map and description of one scan from its labels (1, X, Y, Z) uint8 in RAS; returns the map."""
        scan = self.scans.place(case)
        labels = from_ras(prediction[0].detach().cpu().numpy(), scan.affine)
        path = self._path(case, ".nii.gz")
        write_label_map(path, labels, scan)
        description = self._description(case, scan, labels)
        write_json(self._path(case, ".json"), description)
        self.written.append(path)
        logger.info("%s: %.1f s, %s", case, description["seconds"], path)
        return path

    def _description(self, case: str, scan: Volume, labels: np.ndarray) -> dict[str, Any]:
        counts = label_counts(labels)
        voxel_ml = abs(float(np.linalg.det(scan.affine[:3, :3]))) / _MM3_PER_ML
        organs = {
            name: {"label": value, "voxels": int(counts[value]), "volume_ml": round(int(counts[value]) * voxel_ml, 4)}
            for value, name in sorted(self.labels.items())
            if value != 0
        }
        return {
            "case": case,
            "input": str(scan.path),
            "shape": list(labels.shape),
            "spacing_mm": list(scan.spacing_mm),
            "orientation": "".join(nib.aff2axcodes(scan.affine)),
            "organs": organs,
            "checkpoint_sha256": self.checkpoint_sha256,
            "notes": list(scan.notes),
            "seconds": round(self.scans.seconds_since_start(case), 3),
        }

    def finish(self, _engine: Engine | None = None) -> None:
        """Write `failures.csv`: one row a scan that failed, the header alone when none did (on rank 0 for all)."""
        rank, ranks = rank_and_ranks()
        if ranks > 1:
            gathered: list[Any] = [None] * ranks
            dist.all_gather_object(gathered, (self.scans.failures, self.written))
            self.scans.failures[:] = [failure for failures, _ in gathered for failure in failures]
            self.written[:] = [path for _, written in gathered for path in written]
        if rank == 0:
            self._write_failures()

    def _write_failures(self) -> None:
        with (
            replace_when_complete(self.output_dir / FAILURES_FILE) as temporary,
            open(temporary, "w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, [field.name for field in fields(Failure)])
            writer.writeheader()
            writer.writerows(asdict(failure) for failure in self.scans.failures)

    def _break_off(self, _engine: Engine, error: BaseException) -> None:
        """Keep the failures so far; other ranks may be gone, so nothing is gathered. The error goes on."""
        if self.scans.failures and rank_and_ranks()[1] == 1:
            self._write_failures()
        raise error

    @property
    def exit_code(self) -> int:
        """0 when every scan was segmented, 1 when some failed, 2 when none succeeded."""
        if not self.scans.failures:
            return 0
        return 1 if self.written else 2

    def exit_if_failed(self) -> None:
        """Leave the program with `exit_code` unless it is 0; call it when the evaluator has run."""
        failed, code = len(self.scans.failures), self.exit_code
        if code:
            logger.error("%d of %d scans failed: %s", failed, len(self.scans.scans), self.output_dir / FAILURES_FILE)
            raise SystemExit(code)
