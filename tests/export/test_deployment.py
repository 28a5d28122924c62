# SPDX-License-Identifier: Apache-2.0
"""The program of docs/deployment.md, as it is printed there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipeline.data import IntensityRule
from pipeline.segment import __main__ as segment
from tests.export.students import student

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from pipeline.export import __main__ as export

DOCUMENT = Path(__file__).parents[2] / "docs/deployment.md"


@pytest.mark.parametrize("rule", [IntensityRule("window", -100.0, 300.0), IntensityRule("percentiles", 0.5, 99.5)])
def test_twenty_lines_segment_as_this_package(tmp_path, monkeypatch, rule, capsys):
    (program,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert len(program.strip().splitlines()) <= 23
    model = student(tmp_path / "model.pt", "erfnet", rule=rule)
    voxels = np.random.default_rng(0).normal(50, 120, (48, 40, 6)).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, np.diag([1.0, 1.0, 3.0, 1.0])), scan := tmp_path / "scan.nii.gz")
    onnx, own, mask = (tmp_path / name for name in ("student.onnx", "own.nii.gz", "mask.nii.gz"))
    assert export.main([str(model.path), str(onnx), "--format", "onnx"]) == 0
    assert segment.main([str(onnx), str(scan), str(own)]) == 0
    monkeypatch.setattr(sys, "argv", ["program", str(onnx), str(scan), str(mask)])
    exec(compile(program, str(DOCUMENT), "exec"), {})
    found, expected = (np.asarray(nib.load(path).dataobj) for path in (mask, own))
    assert len(np.unique(expected)) > 1
    assert np.mean(found == expected) > 0.995  # Pillow and torch round differently
    assert "'liver'" in capsys.readouterr().out
