# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.data import IntensityRule, read_volume
from pipeline.errors import InputError
from pipeline.inference import segment
from pipeline.networks import PaddedInferer, SavedModel
from pipeline.runtimes import runners
from pipeline.segment import __main__ as command
from pipeline.segment.slicewise import segment_volume
from tests.export.students import SEGRESNET, student

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from pipeline.export.__main__ import main as export  # noqa: E402  (it needs what is looked for above)

ROOT = Path(__file__).resolve().parents[2]
PERCENTILES = IntensityRule("percentiles", 0.5, 99.5)
# Sides that are multiples of what the network takes, and sides that must be padded.
NETWORKS = {
    "erfnet": {"size": 32},
    "mobile_unet": {"size": 40},
    "enet": {"size": 24},
    "segresnet": {"size": 27, "rule": PERCENTILES, "name": SEGRESNET, "init_filters": 8},
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return a function from the name of a network to its model and its ONNX file."""
    folder, made = tmp_path_factory.mktemp("students"), {}

    def make(key: str) -> tuple[SavedModel, Path]:
        if key not in made:
            made[key] = student(folder / f"{key}.pt", **{"name": key, **NETWORKS[key]}), folder / f"{key}.onnx"
            assert export([str(folder / f"{key}.pt"), str(folder / f"{key}.onnx"), "--format", "onnx"]) == 0
        return made[key]

    return make


def write_scan(path: Path, axcodes: str = "RAS", oblique: bool = False, depth: int = 7) -> Path:
    """Write a smooth random scan of 45 x 38 voxels a slice, stored along other axes."""
    coarse = torch.rand(1, 1, 6, 5, 4, generator=torch.Generator().manual_seed(0))
    smooth = F.interpolate(coarse, size=(45, 38, depth), mode="trilinear")[0, 0].numpy()
    affine = np.diag([0.9, 1.1, 3.0, 1.0])
    affine[:3, 3] = (-12.5, 30.25, 700.0)
    if oblique:
        cosine, sine = np.cos(0.3), np.sin(0.3)
        affine = np.array([[1, 0, 0, 0], [0, cosine, -sine, 0], [0, sine, cosine, 0], [0, 0, 0, 1]]) @ affine
    turned = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(axcodes)
    )
    nib.save(nib.Nifti1Image((smooth * 600 - 200).astype(np.int16), affine).as_reoriented(turned), path)
    return path


def voxels(path: Path) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj)


class Margins(torch.nn.Module):
    """Gives by how much the winning class leads, in place of logits, so that `segment` brings it to the scan's grid."""

    def __init__(self, model: SavedModel) -> None:
        super().__init__()
        self.network, self.size_divisor = model.network, 1

    def forward(self, images: Tensor) -> Tensor:
        first, second = PaddedInferer()(images, self.network).topk(2, dim=1).values.unbind(1)
        undecided = (first - second < 1e-4).float()[:, None]
        return torch.cat([0.01 - undecided, undecided], dim=1)


def ties(model: SavedModel, scan: Path) -> np.ndarray:
    """Return where rounding may decide: next to pixels of the network in which two classes are level."""
    return segment(read_volume(scan), replace(model, network=Margins(model))).astype(bool)


@pytest.mark.parametrize("oblique", [False, True])
@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "SLA", "PIR"])
def test_masks_are_those_of_torch_voxel_for_voxel(exported, tmp_path, axcodes, oblique):
    model, file = exported("segresnet")
    scan = write_scan(tmp_path / "scan.nii.gz", axcodes, oblique)
    assert command.main([str(file), str(scan), str(tmp_path / "labels.nii.gz"), "--backend", "onnxruntime"]) == 0
    labels, expected = voxels(tmp_path / "labels.nii.gz"), segment(read_volume(scan), model)
    level = ties(model, scan)
    np.testing.assert_array_equal(labels[~level], expected[~level])
    assert level.mean() < 0.01
    assert len(np.unique(expected)) > 1
    assert nib.load(tmp_path / "labels.nii.gz").get_data_dtype() == np.uint8
    np.testing.assert_array_equal(nib.load(tmp_path / "labels.nii.gz").affine, nib.load(scan).affine)


@pytest.mark.parametrize("key", ["erfnet", "mobile_unet"])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_students_give_the_masks_of_torch(exported, tmp_path, key, backend):
    pytest.importorskip(backend)
    model, file = exported(key)
    scan = write_scan(tmp_path / "scan.nii", "ALI")
    labels = segment_volume(read_volume(scan), runners.load_student(file, backend))
    level = ties(model, scan)
    np.testing.assert_array_equal(labels[~level], segment(read_volume(scan), model)[~level])


def test_enet_differs_where_maxima_are_level_alone(exported, tmp_path):
    # It un-pools by the places of maxima: where two pixels of a window are level, rounding chooses the place.
    model, file = exported("enet")
    scan = write_scan(tmp_path / "scan.nii")
    labels = segment_volume(read_volume(scan), runners.load_student(file, "onnxruntime"))
    assert (labels != segment(read_volume(scan), model)).mean() < 2e-3


def test_an_openvino_file_gives_the_masks_of_the_onnx_file(exported, tmp_path):
    pytest.importorskip("openvino")
    model, file = exported("erfnet")
    assert export([str(model.path), str(tmp_path / "erfnet.xml"), "--format", "openvino"]) == 0
    scan = write_scan(tmp_path / "scan.nii")
    for student_file, name in ((file, "a.nii.gz"), (tmp_path / "erfnet.xml", "b.nii.gz")):
        assert command.main([str(student_file), str(scan), str(tmp_path / name), "--backend", "openvino"]) == 0
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_the_size_of_chunks_does_not_change_the_result(exported, tmp_path, chunk):
    _, file = exported("segresnet")
    volume, loaded = read_volume(write_scan(tmp_path / "scan.nii")), runners.load_student(file, "onnxruntime")
    np.testing.assert_array_equal(segment_volume(volume, loaded, chunk), segment_volume(volume, loaded))


def test_neither_torch_nor_monai_is_loaded(exported, tmp_path):
    _, file = exported("erfnet")
    write_scan(tmp_path / "scan.nii.gz")
    arguments = [str(file), str(tmp_path / "scan.nii.gz"), str(tmp_path / "labels.nii.gz")]
    code = (
        "import sys; from pipeline.segment.__main__ import main; "
        f"code = main({arguments!r}); heavy = {{'torch', 'monai', 'SimpleITK', 'ignite'}} & set(sys.modules); "
        "sys.exit(f'loaded: {heavy}' if heavy else code)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(r"scan: \d+\.\d s by \w+, .*labels\.nii\.gz\n", result.stdout)


class TestFolders:
    def test_each_scan_has_its_label_map(self, exported, tmp_path):
        _, file = exported("erfnet")
        (tmp_path / "scans").mkdir()
        for name in ("a.nii.gz", "b.nii"):
            write_scan(tmp_path / "scans" / name)
        assert command.main([str(file), str(tmp_path / "scans"), str(tmp_path / "out")]) == 0
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.nii.gz", "b.nii.gz"]
        assert voxels(tmp_path / "out/a.nii.gz").tolist() == voxels(tmp_path / "out/b.nii.gz").tolist()

    def test_a_bad_scan_is_passed_over_and_ends_in_1(self, exported, tmp_path, capsys):
        _, file = exported("erfnet")
        (tmp_path / "scans").mkdir()
        write_scan(tmp_path / "scans/good.nii")
        (tmp_path / "scans/bad.nii").write_bytes(b"")
        assert command.main([str(file), str(tmp_path / "scans"), str(tmp_path / "out")]) == 1
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.nii.gz"]
        assert "bad skipped" in capsys.readouterr().err

    def test_all_bad_ends_in_2(self, exported, tmp_path):
        _, file = exported("erfnet")
        (tmp_path / "scans").mkdir()
        for name in ("a.nii", "b.nii"):
            (tmp_path / "scans" / name).write_bytes(b"")
        assert command.main([str(file), str(tmp_path / "scans"), str(tmp_path / "out")]) == 2

    def test_one_file_is_no_output_for_two_scans(self, exported, tmp_path):
        _, file = exported("erfnet")
        for name in ("a.nii", "b.nii"):
            write_scan(tmp_path / name)
        with pytest.raises(InputError, match="give a folder as output"):
            command.main([str(file), str(tmp_path), str(tmp_path / "labels.nii.gz")])


class TestRefused:
    def test_an_output_that_is_there_unless_told_so(self, exported, tmp_path):
        _, file = exported("erfnet")
        scan, output = write_scan(tmp_path / "scan.nii"), tmp_path / "labels.nii.gz"
        output.write_bytes(b"mine")
        with pytest.raises(InputError, match=r"exists.*--overwrite"):
            command.main([str(file), str(scan), str(output)])
        assert output.read_bytes() == b"mine"
        assert command.main([str(file), str(scan), str(output), "--overwrite"]) == 0
        assert voxels(output).shape == (45, 38, 7)

    def test_an_output_that_is_the_scan(self, exported, tmp_path):
        _, file = exported("erfnet")
        scan = write_scan(tmp_path / "scan.nii.gz")
        with pytest.raises(InputError, match="is an input"):
            command.main([str(file), str(scan), str(scan), "--overwrite"])

    def test_an_output_of_another_format(self, exported, tmp_path):
        _, file = exported("erfnet")
        with pytest.raises(InputError, match=r"rename the output"):
            command.main([str(file), str(write_scan(tmp_path / "scan.nii")), str(tmp_path / "labels.nrrd")])

    @pytest.mark.parametrize("name", ["student.pt", "student.onnx", "missing.onnx"])
    def test_what_is_no_student(self, tmp_path, name):
        (tmp_path / "student.pt").write_bytes(b"PK")
        (tmp_path / "student.onnx").write_bytes(b"no model")
        with pytest.raises(InputError, match=re.escape(name)):
            command.main([str(tmp_path / name), str(write_scan(tmp_path / "scan.nii")), str(tmp_path / "o.nii.gz")])
        assert not (tmp_path / "o.nii.gz").exists()

    def test_an_onnx_file_that_was_not_exported_here(self, exported, tmp_path):
        _, file = exported("erfnet")
        model = onnx.load(file)
        del model.metadata_props[:]
        onnx.save(model, tmp_path / "bare.onnx")
        for backend in filter(runners.is_installed, runners.RUNTIMES):
            with pytest.raises(InputError, match="no exported student"):
                runners.load_student(tmp_path / "bare.onnx", backend)

    def test_a_truncated_file(self, exported, tmp_path):
        _, file = exported("erfnet")
        (tmp_path / "cut.onnx").write_bytes(file.read_bytes()[:10_000])
        for backend in filter(runners.is_installed, runners.RUNTIMES):
            with pytest.raises(InputError, match="cannot be read"):
                runners.load_student(tmp_path / "cut.onnx", backend)

    def test_a_runtime_that_is_not_installed(self, exported, monkeypatch):
        _, file = exported("erfnet")
        monkeypatch.setattr(runners, "is_installed", lambda name: False)
        with pytest.raises(InputError, match="pip install openvino"):
            runners.load_student(file, "openvino")
        with pytest.raises(InputError, match="pip install onnxruntime"):
            runners.load_student(file)

    def test_logits_that_are_not_finite_name_the_slice(self, exported, tmp_path):
        _, file = exported("erfnet")
        loaded = runners.load_student(file, "onnxruntime")

        def broken(images: np.ndarray) -> np.ndarray:
            """Give NaN for the second of the last three slices."""
            logits = loaded.run(images)
            second_of_three = (np.arange(len(logits)) == 1) & (len(logits) == 3)
            return np.where(second_of_three[:, None, None, None], np.nan, logits)

        volume = read_volume(write_scan(tmp_path / "scan.nii"))
        with pytest.raises(InputError, match="slice 5 of 7"):
            segment_volume(volume, replace(loaded, run=broken))

    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"tile_px": 1024}, "tiles of slides"),
            ({"spatial_dims": 3, "size": (8, 8, 8)}, "takes volumes"),
            ({"in_channels": 3}, "3 channels"),
            ({"preprocessing": []}, "preprocessing"),
        ],
    )
    def test_students_of_other_images(self, exported, tmp_path, changes, named):
        _, file = exported("erfnet")
        loaded = runners.load_student(file, "onnxruntime")
        other = replace(loaded, description=replace(loaded.description, **changes))
        with pytest.raises(InputError, match=named):
            segment_volume(read_volume(write_scan(tmp_path / "scan.nii")), other)


def test_auto_takes_openvino_on_x86_and_onnxruntime_elsewhere(monkeypatch):
    monkeypatch.setattr(runners, "is_installed", lambda name: True)
    for machine, expected in (("x86_64", "openvino"), ("AMD64", "openvino"), ("aarch64", "onnxruntime")):
        monkeypatch.setattr(runners.platform, "machine", lambda machine=machine: machine)
        assert runners.fastest_runtime() == expected
    monkeypatch.setattr(runners, "is_installed", lambda name: name == "onnxruntime")
    monkeypatch.setattr(runners.platform, "machine", lambda: "x86_64")
    assert runners.fastest_runtime() == "onnxruntime"


def test_the_command_prints_one_line_and_ends_in_2(exported, tmp_path):
    _, file = exported("erfnet")
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "pipeline.segment",
            file,
            tmp_path / "none.nii",
            tmp_path / "o.nii.gz",
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert result.returncode == 2
    assert result.stderr == f"error: no such file or folder: {tmp_path}/none.nii; check the path\n"
