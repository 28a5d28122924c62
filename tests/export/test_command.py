# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from data_prep import phantom_ct
from pipeline.data import read_label, to_ras
from pipeline.errors import InputError
from pipeline.networks import load_model
from pipeline.runtimes.runners import is_installed, load_student
from tests.bundles.untrained import untrained
from tests.export.students import student

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from pipeline.export import __main__ as command
from pipeline.export import bundle_parity, formats
from pipeline.export.parity import smooth_images
from pipeline.export.samples import SampleFile, sample_files, samples_of


@pytest.fixture
def model(tmp_path):
    return student(tmp_path / "model.pt", "erfnet")


def export(model, output: Path, name: str = "onnx", *more: str) -> int:
    return command.main([str(model.path), str(output), "--format", name, *more])


def write_scans(folder: Path, count: int = 1, depth: int = 40) -> Path:
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(count):
        values = (generator.random((36, 30, depth)) * 500 - 150).astype(np.int16)
        nib.save(nib.Nifti1Image(values, np.diag([1.0, 1.0, 2.0, 1.0])), folder / f"{number}.nii.gz")
    return folder


def test_agreement_and_size_are_printed(model, tmp_path, capsys):
    assert export(model, tmp_path / "student.onnx") == 0
    first, *organs, pixels, last = capsys.readouterr().out.splitlines()
    assert first == "agreement with torch on 8 smooth random images (no --slices):"
    assert all("Dice 1.00000" in line for line in organs)
    assert organs
    assert pixels == f"0 of {8 * 32 * 32} pixels differ"
    megabytes = (tmp_path / "student.onnx").stat().st_size / 1e6
    assert last.startswith(f"{tmp_path}/student.onnx: {megabytes:.2f} MB")


def test_slices_of_scans_are_compared(model, tmp_path, capsys):
    scans = write_scans(tmp_path / "scans", 2)
    assert export(model, tmp_path / "student.onnx", "onnx", "--slices", str(scans)) == 0
    assert f"on 64 images of {scans}:" in capsys.readouterr().out


def test_a_broken_export_is_refused_and_nothing_is_written(model, tmp_path, monkeypatch, capsys):
    def write_broken(network: nn.Module, description, path: Path) -> None:
        wrong = student(tmp_path / "wrong.pt", "erfnet").network
        with torch.no_grad():
            for parameter in list(wrong.parameters())[-2:]:
                parameter.neg_()
        right.write(wrong, description, path)

    right = formats.FORMATS["onnx"]
    monkeypatch.setitem(formats.FORMATS, "onnx", replace(right, write=write_broken))
    before = sorted(tmp_path.iterdir())
    assert export(model, tmp_path / "out.onnx") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: the exported masks differ from torch's: Dice ")
    assert line.endswith("nothing is written")
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "wrong.pt"])


def test_a_refused_openvino_export_leaves_neither_file(model, tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.setattr("pipeline.export.parity.LEAST_DICE", 1.1)
    before = sorted(tmp_path.iterdir())
    assert export(model, tmp_path / "student.xml", "openvino") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_a_refused_export_leaves_the_file_before(model, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.export.parity.LEAST_DICE", 1.1)
    (tmp_path / "student.onnx").write_bytes(b"before")
    assert export(model, tmp_path / "student.onnx") == 1
    assert (tmp_path / "student.onnx").read_bytes() == b"before"


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_8_bits_are_calibrated_on_slices_and_smaller(model, tmp_path, monkeypatch, name):
    if not is_installed(formats.FORMATS[name].packages[-1]):
        pytest.skip(f"no {name}")
    monkeypatch.setattr("pipeline.export.parity.LEAST_DICE_INT8", 0.0)  # of noise by a network that learned nothing
    scans, suffix = write_scans(tmp_path / "scans", 1, 4), formats.FORMATS[name].suffix
    assert export(model, tmp_path / f"floats{suffix}", name) == 0
    assert export(model, tmp_path / f"rounded{suffix}", name, "--int8", "--slices", str(scans)) == 0
    assert command._megabytes(tmp_path / f"rounded{suffix}") < 0.5 * command._megabytes(tmp_path / f"floats{suffix}")
    rounded = load_student(tmp_path / f"rounded{suffix}")
    assert rounded.description.int8
    images = smooth_images(model)
    with torch.inference_mode():
        expected = model.network(images)
    correlation = np.corrcoef(rounded.run(images.numpy()).ravel(), expected.numpy().ravel())[0, 1]
    assert correlation > 0.95


class TestImages:
    def test_of_scans_are_the_slices_that_inference_sees(self, model, tmp_path):
        scans = sorted(write_scans(tmp_path / "scans", 1, 3).iterdir())
        images = samples_of(model, [SampleFile(scan) for scan in scans]).images
        assert images.shape == (3, 1, 32, 32)
        assert (images.min() >= 0, images.max() <= 1) == (True, True)

    def test_of_volumes_are_patches_and_small_volumes_are_padded(self, tmp_path):
        name, size = "monai.networks.nets.SegResNet", [40, 16, 16]
        model = student(tmp_path / "model.pt", name, size=size, spatial_dims=3, init_filters=8)
        images = samples_of(model, [SampleFile(scan) for scan in write_scans(tmp_path / "scans").iterdir()]).images
        assert images.shape == (4, 1, 40, 16, 16)
        assert not images[:, :, 36:].any()

    def test_of_slides_are_tiles(self, tmp_path):
        model = student(tmp_path / "model.pt", "erfnet", tile_px=64)
        Image.fromarray(np.full((64, 64, 3), 200, np.uint8)).save(tmp_path / "tile.png")
        assert samples_of(model, [SampleFile(tmp_path / "tile.png")]).images.shape == (1, 3, 32, 32)

    def test_of_a_dataset_have_their_labels(self, tmp_path):
        folder = tmp_path / "data"
        assert phantom_ct.main(["--output", str(folder), "--cases", "4", "--size", "32", "--slices", "8"]) == 0
        model = load_model(untrained(tmp_path / "model.pt", folder, "erfnet"))
        files = sample_files(model, str(folder))
        assert len(files) == 2
        samples = samples_of(model, files)
        assert samples.truth.shape == samples.images.shape == (16, 1, 32, 32)
        label = read_label(files[0].label)
        turned, _ = to_ras(label.array, label.affine)
        np.testing.assert_array_equal(samples.truth[:8, 0], turned.transpose(2, 0, 1))

    def test_of_another_dataset_are_refused(self, tmp_path):
        folder = tmp_path / "data"
        assert phantom_ct.main(["--output", str(folder), "--cases", "4", "--size", "32", "--slices", "8"]) == 0
        with pytest.raises(InputError, match="other classes"):
            sample_files(student(tmp_path / "model.pt", "erfnet"), str(folder))


class TestBundle:
    @pytest.fixture
    def compared(self, tmp_path, monkeypatch) -> list[str]:
        """Return the names of what bundles are run on; the network stands for them, which takes no process."""
        names = []

        def mask(folder: Path, image: Path) -> np.ndarray:
            names.append(image.name)
            return bundle_parity._own_mask(load_model(tmp_path / "model.pt"), image)

        monkeypatch.setattr(bundle_parity, "_mask_by_bundle", mask)
        return names

    def test_without_slices_a_made_up_scan_is_compared(self, model, tmp_path, compared, capsys):
        assert export(model, tmp_path / "liver", "bundle") == 0
        first, *organs, pixels, last = capsys.readouterr().out.splitlines()
        assert (compared, first) == (["made_up.nii.gz"], "agreement with torch on a made-up scan (no --slices):")
        assert organs
        assert pixels == f"0 of {40 * 32 * 6} pixels differ"
        assert last.startswith(f"{tmp_path / 'liver'}: a MONAI bundle that runs without this project")

    def test_three_scans_of_many_are_compared(self, model, tmp_path, compared, capsys):
        scans = write_scans(tmp_path / "scans", 6, 2)
        assert export(model, tmp_path / "liver", "bundle", "--slices", str(scans)) == 0
        assert compared == ["1.nii.gz", "3.nii.gz", "5.nii.gz"]
        assert f"on 3 of 6 scans of {scans}:" in capsys.readouterr().out

    def test_of_a_slide_student_is_compared_on_pictures(self, tmp_path, compared, capsys):
        model = student(tmp_path / "model.pt", "erfnet", tile_px=32)
        picture = np.random.default_rng(0).integers(0, 200, (40, 48, 3), np.uint8)
        Image.fromarray(picture).save(tmp_path / "tile.png")
        assert export(model, tmp_path / "liver", "bundle", "--slices", str(tmp_path / "tile.png")) == 0
        output = capsys.readouterr().out
        assert f"on 1 of 1 pictures of {tmp_path / 'tile.png'}:" in output
        assert f"0 of {40 * 48} pixels differ" in output

    def test_another_mask_exits_with_1_and_nothing_is_written(self, model, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(
            bundle_parity, "_mask_by_bundle", lambda folder, image: (bundle_parity._own_mask(model, image) + 1) % 4
        )
        assert export(model, tmp_path / "liver.zip", "bundle") == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: the exported masks differ from torch's: Dice ")
        assert line.endswith("on a made-up scan (no --slices); nothing is written")
        assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]

    def test_zip_and_report_are_what_their_names_say(self, model, tmp_path, compared):
        (tmp_path / "report").mkdir()
        summary = {"dataset": "phantoms", "checkpoint": {"sha256": model.sha256}}
        (tmp_path / "report/summary.json").write_text(json.dumps(summary))
        (tmp_path / "report/per_organ.csv").write_text("organ,n_cases,dice_mean,hd95_mm_mean\nliver,3,0.912,2.5\n")
        archive = tmp_path / "liver.zip"
        assert export(model, archive, "bundle", "--report", str(tmp_path / "report")) == 0
        card = zipfile.ZipFile(archive).read("liver/docs/README.md").decode()
        assert "| liver | 3 | 0.912 | 2.5 |" in card


class TestRefused:
    @pytest.mark.parametrize(
        ("output", "more", "named"),
        [
            ("student.pt2", ["--format", "onnx"], r"named \.onnx"),
            ("student.ts", ["--format", "torchscript", "--int8", "--slices", "."], "--int8 is for onnx and openvino"),
            ("student.onnx", ["--format", "onnx", "--int8"], "give some by --slices"),
            ("student.onnx", ["--format", "onnx", "--slices", "no_such_folder"], "no_such_folder"),
            ("student.onnx", ["--format", "onnx", "--report", "report"], "--report is for the model card of a bundle"),
            ("student", ["--format", "bundle", "--report", "no_such_report"], "no_such_report is no report on scans"),
        ],
    )
    def test_options_that_do_not_fit(self, model, tmp_path, output, more, named):
        with pytest.raises(InputError, match=named):
            command.main([str(model.path), str(tmp_path / output), *more])
        assert not (tmp_path / output).exists()

    def test_a_file_that_is_no_model(self, tmp_path):
        (tmp_path / "model.pt").write_bytes(b"text")
        with pytest.raises(InputError, match="not a model file"):
            command.main([str(tmp_path / "model.pt"), str(tmp_path / "student.onnx"), "--format", "onnx"])

    def test_a_package_that_is_not_installed(self, model, tmp_path, monkeypatch):
        monkeypatch.setattr("pipeline.export.file_kinds.is_installed", lambda name: name != "onnxscript")
        with pytest.raises(InputError, match="pip install onnxscript"):
            export(model, tmp_path / "student.onnx")
