# SPDX-License-Identifier: Apache-2.0
"""A student leaves home: exported, it runs where no more is installed than the documentation says."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipeline.data import read_volume
from pipeline.export.__main__ import main as export
from pipeline.inference import segment
from tests.environments import make_environment, without_project
from tests.export.students import SEGRESNET, student

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
VOXELS = np.random.default_rng(0).normal(75, 150, (23, 27, 9)).round().astype(np.int16)
AFFINE = np.array([[0, 0, -1.5, 40], [-0.7, 0, 0, 5], [0, 0.7, 0, -60], [0, 0, 0, 1.0]])


@pytest.fixture
def scan(tmp_path) -> Path:
    nib.save(nib.Nifti1Image(VOXELS, AFFINE), tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


def run_in(folder: Path, python: Path, *arguments: str | Path) -> None:
    command = [python, *arguments]
    result = subprocess.run(
        command, capture_output=True, encoding="utf-8", check=False, cwd=folder, env=without_project()
    )
    assert result.returncode == 0, result.stderr[-3000:]


def has(python: Path, module: str) -> bool:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    return subprocess.run([python, "-I", "-c", code], check=False).returncode == 0  # -I: not from this folder


def test_an_onnx_student_segments_without_torch(scan, tmp_path):
    model = student(tmp_path / "model.pt", SEGRESNET, init_filters=8)
    assert export([str(model.path), str(tmp_path / "student.onnx"), "--format", "onnx"]) == 0
    python = make_environment(tmp_path / "light", "-r", ROOT / "pipeline/segment/requirements-segment.txt")
    assert not has(python, "torch")
    shutil.copytree(ROOT / "pipeline", tmp_path / "clone/pipeline")
    run_in(tmp_path / "clone", python, "-m", "pipeline.segment", tmp_path / "student.onnx", scan, tmp_path / "o.nii.gz")
    labels, expected = np.asarray(nib.load(tmp_path / "o.nii.gz").dataobj), segment(read_volume(scan), model)
    assert np.count_nonzero(labels != expected) <= 2e-3 * expected.size  # where two classes are level
    assert len(np.unique(expected)) > 1


@pytest.mark.parametrize("of_volumes", [False, True])
def test_a_bundle_runs_with_what_its_metadata_names(scan, tmp_path, of_volumes):
    options = {"spatial_dims": 3, "init_filters": 4, "blocks_down": (1, 1), "blocks_up": (1,)}
    options["norm"] = ("GROUP", {"num_groups": 2})
    path = tmp_path / "model.pt"
    model = student(path, SEGRESNET, (16, 16, 6), **options) if of_volumes else student(path, "enet")
    bundle = tmp_path / "elsewhere/student"
    assert export([str(model.path), str(bundle), "--format", "bundle"]) == 0
    told = json.loads((bundle / "configs/metadata.json").read_text())
    versions = {"monai": told["monai_version"], "torch": told["pytorch_version"], "numpy": told["numpy_version"]}
    versions.update(told["required_packages_version"])
    pinned = [f"{name}=={version.partition('+')[0]}" for name, version in versions.items()]
    python = make_environment(tmp_path / "fresh", *pinned)
    assert not has(python, "pipeline")
    config = bundle / "configs/inference.json"
    run = ["-m", "monai.bundle", "run", "--config_file", config, "--dataset_dir", scan, "--output_dir", "masks"]
    run_in(bundle.parent, python, *run)
    mask = nib.load(bundle.parent / "masks/scan_seg.nii.gz")
    expected = segment(read_volume(scan), model)
    np.testing.assert_array_equal(np.asarray(mask.dataobj), expected)
    np.testing.assert_allclose(mask.affine, AFFINE, atol=1e-5)
    assert len(np.unique(expected)) > 1
