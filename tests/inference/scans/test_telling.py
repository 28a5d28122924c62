# SPDX-License-Identifier: Apache-2.0
"""What inference tells of a scan: volumes of organs, organs without a voxel, a scan of another modality, a picture."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pipeline.data import CT_WINDOW
from pipeline.inference import segment_files
from pipeline.inference.scans.modality import modality_told
from tests.preprocessing import scan_preprocessing

AFFINE = np.diag([2.0, 2.0, 5.0, 1.0])
LABELS = {0: "background", 1: "liver", 2: "spleen"}


class OneClass(nn.Module):
    """Calls every pixel liver."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([0 * images, 0 * images + 1, 0 * images], dim=1)


@pytest.fixture
def model() -> SimpleNamespace:
    return SimpleNamespace(
        network=OneClass(),
        network_arguments={"name": "fake", "in_channels": 1, "out_channels": 3},
        labels=LABELS,
        preprocessing=scan_preprocessing(CT_WINDOW),
        size=8,
        tile_px=None,
        modality="CT",
        sha256="abc123",
    )


def write_scan(path, low: int = -1000, high: int = 1000):
    array = np.linspace(low, high, 10 * 10 * 5).reshape(10, 10, 5).astype(np.int16)
    nib.save(nib.Nifti1Image(array, AFFINE), path)
    return path


def lines(caplog, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


def test_volumes_are_told_and_organs_without_a_voxel_warned_of(tmp_path, model, caplog):
    scan = write_scan(tmp_path / "scan.nii.gz")
    with caplog.at_level(logging.INFO, "pipeline"):
        assert segment_files(scan, tmp_path / "out", model) == 0
    assert "scan: liver 10.0 ml" in lines(caplog, logging.INFO)  # 500 voxels of 2 x 2 x 5 mm
    assert lines(caplog, logging.WARNING) == ["scan: not a voxel of spleen"]


def test_an_mr_on_a_model_of_ct_is_told_in_the_log_and_in_the_description(tmp_path, model, caplog):
    scan = write_scan(tmp_path / "scan.nii.gz", 0, 700)
    with caplog.at_level(logging.INFO, "pipeline"):
        assert segment_files(scan, tmp_path / "out", model) == 0
    (note,) = json.loads((tmp_path / "out" / "scan.json").read_text())["notes"]
    assert note.startswith("unlike the CT that the model was trained on: values 0..700 do not look like Hounsfield")
    assert f"scan: {note}" in lines(caplog, logging.WARNING)


def test_a_picture_on_request_which_an_earlier_run_without_it_does_not_replace(tmp_path, model):
    scan, out = write_scan(tmp_path / "scan.nii.gz"), tmp_path / "out"
    segment_files(scan, out, model)
    assert not (out / "scan_overlay.png").exists()
    segment_files(scan, out, model, overlay=True)
    picture = np.asarray(Image.open(out / "scan_overlay.png").convert("RGB")).astype(int)
    left, right = np.array_split(picture, 2, axis=1)
    assert np.ptp(left, axis=2).mean() < 1, "the left half is grey"
    assert np.ptp(right[: len(right) // 2], axis=2).mean() > 10, "the right one is tinted"


def test_other_formats_than_dicom_tell_no_modality(tmp_path):
    assert modality_told(write_scan(tmp_path / "scan.nii.gz")) is None
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no DICOM")
    assert modality_told(tmp_path / "empty") is None
