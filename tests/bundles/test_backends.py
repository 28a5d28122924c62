# SPDX-License-Identifier: Apache-2.0
"""The bundles' inference and evaluation with the network outside of torch."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import tifffile

from data_prep import phantom_slides
from tests.bundles.bundle_commands import assert_done, error_line, run
from tests.bundles.untrained import untrained

pytest.importorskip("onnx")


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_scans_are_segmented_as_by_torch_and_the_backend_is_told(backend, checkpoint, dataset_dir, tmp_path):
    pytest.importorskip(backend)
    given = ("--checkpoint", checkpoint, "--input", dataset_dir / "images", "--device", "cpu")
    for name in ("torch", backend):
        assert_done(run("synapse", "inference", *given, "--output_dir", tmp_path / name, "--backend", name))
    for description in sorted((tmp_path / backend).glob("*.json")):
        assert json.loads(description.read_text())["settings"] == {"precision": "float32", "backend": backend}
        case = description.with_suffix("").name
        masks = [nib.load(tmp_path / name / f"{case}.nii.gz").get_fdata() for name in ("torch", backend)]
        assert (masks[0] != masks[1]).mean() < 1e-3


def test_evaluation_tells_the_backend(checkpoint, dataset_dir, tmp_path):
    pytest.importorskip("onnxruntime")
    given = ("--checkpoint", checkpoint, "--dataset_dir", dataset_dir, "--device", "cpu")
    scores = {}
    for name in ("torch", "onnxruntime"):
        assert_done(run("synapse", "evaluate", *given, "--run_dir", tmp_path / name, "--backend", name))
        scores[name] = json.loads((tmp_path / name / "summary.json").read_text())
    assert scores["onnxruntime"].pop("settings") == {"backend": "onnxruntime"}
    assert "settings" not in scores["torch"]


def test_slides_are_segmented_as_by_torch(tmp_path):
    pytest.importorskip("onnxruntime")
    slides = tmp_path / "slides"
    assert phantom_slides.main(["--output", str(slides), "--images", "6", "--side", "128"]) == 0
    checkpoint = untrained(tmp_path / "model.pt", slides, "erfnet")
    given = ("--checkpoint", checkpoint, "--input", slides / "images", "--device", "cpu")
    for name in ("torch", "onnxruntime"):
        assert_done(run("gastric", "inference", *given, "--output_dir", tmp_path / name, "--backend", name))
    maps = sorted((tmp_path / "torch").glob("*.tif"))
    assert maps
    for path in maps:
        assert np.mean(tifffile.imread(path) != tifffile.imread(tmp_path / "onnxruntime" / path.name)) < 1e-3


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (("--backend", "tensorrt"), "choose torch, onnxruntime, openvino, auto"),
        (("--backend", "onnxruntime", "--precision", "bfloat16"), "float32, not bfloat16"),
    ],
)
def test_a_backend_that_cannot_run_is_one_line(checkpoint, dataset_dir, tmp_path, more, named):
    pytest.importorskip("onnxruntime")
    given = ("--checkpoint", checkpoint, "--input", dataset_dir / "images", "--output_dir", tmp_path / "out")
    assert named in error_line(run("synapse", "inference", *given, *more))
    assert not (tmp_path / "out").exists()
