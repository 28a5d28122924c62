# SPDX-License-Identifier: Apache-2.0
"""The outputs of inference on scans: a label map and a description beside it for each."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from pipeline.data.scans.geometry import ANGLE_TOLERANCE_RAD, POSITION_TOLERANCE_MM, affine_difference
from pipeline.data.scans.snomed import given_codes
from pipeline.data.scans.volumes import Volume, label_counts, read_volume, write_label_map
from pipeline.errors import InputError
from pipeline.files.atomic import write_json
from pipeline.inference.case_writer import CaseWriter
from pipeline.inference.scans.dicom_seg import check_can_write_seg, write_dicom_seg
from pipeline.inference.scans.scan_dataset import ScanDataset

logger = logging.getLogger(__name__)

NIFTI, DICOM_SEG, OVERLAY = ".nii.gz", ".dcm", "_overlay.png"
OUTPUT_FORMATS = {"nifti": (NIFTI,), "dicom-seg": (DICOM_SEG,), "both": (NIFTI, DICOM_SEG)}
_MM3_PER_ML = 1000.0


def check_on_own_grid(prediction: torch.Tensor, scan: Volume) -> None:
    """Refuse (`InputError`) labels (1, X, Y, Z) whose affine is not that of their scan.

    A preprocessing transform that returns a plain tensor loses the record of earlier transforms. They could then not be
    undone for the labels, which would stay turned.
    """
    if isinstance(prediction, MetaTensor):
        edge, origin, angle = affine_difference(prediction.affine.numpy(), scan.affine)
        if max(edge, origin) <= POSITION_TOLERANCE_MM and angle <= ANGLE_TOLERANCE_RAD:
            return
    raise InputError(
        f"{scan.path}: the labels don't return to the scan's grid, since a preprocessing transform loses what was"
        " done to the image; let it return a MetaTensor with the metadata of its input"
    )


class LabelMapWriter(CaseWriter):
    """An ignite handler that writes `CASE.nii.gz` and `CASE.json` for each scan of an evaluator, on the scan's grid.

    The volumes of the organs (ml) are logged, with warnings of organs without a voxel and of anything odd about a scan.
    With `overlay` there is also a picture `CASE_overlay.png`, for which the scan is read again.

    With `output_format` "dicom-seg" the labels are written as DICOM SEG `CASE.dcm`, with "both" in both formats. The
    scans must then be DICOM series, since DICOM SEG refers to their slices. `organ_codes`, if given, are codes of
    SNOMED CT for its organs, as `given_codes` takes them; they take the place of the known ones.

    Reads `engine.state.output["pred"]`, label maps (B, 1, X, Y, Z) or a decollated list of (1, X, Y, Z), uint8, on the
    scans' own grids.
    See `CaseWriter` for the check of the folder, the protection of sources, finished cases, tables and arguments;
    `scans` is its `dataset`.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        scans: ScanDataset,
        labels: Mapping[int, str],
        checkpoint_sha256: str = "",
        settings: Mapping[str, Any] | None = None,
        overwrite: bool = True,
        output_format: str = "nifti",
        overlay: bool = False,
        organ_codes: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(output_dir, scans, labels, checkpoint_sha256, settings, overwrite)
        if output_format not in OUTPUT_FORMATS:
            raise InputError(f"output_format {output_format!r} is unknown; choose one of {', '.join(OUTPUT_FORMATS)}")
        self.scans = scans
        self.suffixes = (*OUTPUT_FORMATS[output_format], *([OVERLAY] if overlay else []), ".json")
        self.organs = [name for value, name in sorted(self.labels.items()) if value]
        self.codes = given_codes(organ_codes, self.organs)
        if self.codes and DICOM_SEG not in self.suffixes:
            raise InputError("organ_codes are for DICOM SEG; give --output_format dicom-seg or both with them")
        if self.codes:  # files with other codes are made anew
            self.settings["organ_codes"] = {name: list(code.kind[:3]) for name, code in self.codes.items()}

    def start(self, engine: Engine) -> None:
        """Find out before the long run whether its outputs can be written."""
        if DICOM_SEG in self.suffixes:
            check_can_write_seg([source.path for source in self.scans.sources], self.organs, self.codes)
        super().start(engine)

    def _write_batch(self, engine: Engine) -> None:
        batch, output = engine.state.batch, engine.state.output
        if isinstance(batch, list):  # a MONAI engine has decollated
            pairs = [(item["case"], result["pred"]) for item, result in zip(batch, output, strict=True)]
        else:
            pairs = list(zip(batch["case"], output["pred"], strict=True))
        for case, prediction in pairs:
            check_on_own_grid(prediction, self.scans.geometry_of(case))
            self.write(case, prediction)

    def write(self, case: str, prediction: torch.Tensor) -> Path:
        """Write label map and description of one scan from its labels (1, X, Y, Z) uint8; returns the map."""
        scan = self.scans.geometry_of(case)
        labels = prediction[0].detach().cpu().numpy()
        path = self._path(case, self.suffixes[0])
        if NIFTI in self.suffixes:
            write_label_map(self._path(case, NIFTI), labels, scan)
        if DICOM_SEG in self.suffixes:
            seg = self._path(case, DICOM_SEG)
            write_dicom_seg(seg, labels, scan, self.labels, self.checkpoint_sha256, self.codes)
        if OVERLAY in self.suffixes:
            self._draw(case, scan, labels)
        description = {**self._description(case, scan, labels), **self._completion_record(case, path)}
        write_json(self._path(case, ".json"), description)
        self._add(path, description)
        logger.info("%s: %.1f s, %s", case, description["seconds"], path)
        self._tell(case, description)
        return path

    def _tell(self, case: str, description: Mapping[str, Any]) -> None:
        """Log the volumes of the organs, and warn of organs without a voxel and of what is odd about the scan."""
        organs = {name: organ["volume_ml"] for name, organ in description["organs"].items()}
        found = [f"{name} {volume_ml:,.1f} ml" for name, volume_ml in organs.items() if volume_ml]
        if found:
            logger.info("%s: %s", case, ", ".join(found))
        if missing := [name for name, volume_ml in organs.items() if not volume_ml]:
            logger.warning("%s: not a voxel of %s", case, ", ".join(missing))
        for note in description["notes"]:
            logger.warning("%s: %s", case, note)

    def _draw(self, case: str, scan: Volume, labels: np.ndarray) -> None:
        from pipeline.inference.scans.overlay import write_overlay  # matplotlib takes a second, and few ask for it

        organs = self._organs(scan, labels)
        volumes_ml = {name: (organ["label"], organ["volume_ml"]) for name, organ in organs.items()}
        write_overlay(self._path(case, OVERLAY), read_volume(scan.path), labels, volumes_ml)

    def _organs(self, scan: Volume, labels: np.ndarray) -> dict[str, dict[str, Any]]:
        """Return label value, voxels and volume in ml of each organ."""
        counts = label_counts(labels)
        voxel_ml = abs(float(np.linalg.det(scan.affine[:3, :3]))) / _MM3_PER_ML
        return {
            name: {"label": value, "voxels": int(counts[value]), "volume_ml": round(int(counts[value]) * voxel_ml, 4)}
            for value, name in sorted(self.labels.items())
            if value != 0
        }

    def _description(self, case: str, scan: Volume, labels: np.ndarray) -> dict[str, Any]:
        return {
            "case": case,
            "input": str(scan.path),
            "shape": list(labels.shape),
            "spacing_mm": list(scan.spacing_mm),
            "orientation": "".join(nib.aff2axcodes(scan.affine)),
            "organs": self._organs(scan, labels),
            "notes": list(scan.notes),
            "seconds": round(self.scans.seconds_since_start(case), 3),
        }
