# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
import torch.distributed as dist
from monai.data import DataLoader, MetaTensor
from monai.engines import SupervisedEvaluator
from torch import Tensor, nn

from pipeline.data import IntensityRule, preprocessing_of
from pipeline.data.scans.volumes import read_volume
from pipeline.errors import InputError
from pipeline.inference import (
    FAILURES_FILE,
    LabelMapWriter,
    Scan,
    ScanDataset,
    SliceWiseInferer,
    find_scans,
    scan_loader,
    segment,
    segment_files,
)
from tests.preprocessing import scan_preprocessing

AFFINE = np.array([[-0.9, 0, 0, 10], [0, 0, 2.0, -30], [0, -1.1, 0, 5], [0, 0, 0, 1.0]])  # stored as L, I, A
PREPROCESSING = scan_preprocessing(IntensityRule("window", -100.0, 300.0))
LABELS = {0: "background", 1: "liver", 2: "spleen"}


class Threshold(nn.Module):
    """Label 1 above a quarter of the window, 2 above three quarters."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([0.5 - images, 0.25 - (images - 0.5).abs(), images - 0.5 - 1e-3], dim=1)


@pytest.fixture
def model() -> SimpleNamespace:
    arguments = {"name": "fake", "in_channels": 1, "out_channels": 3}
    return SimpleNamespace(
        network=Threshold(),
        network_arguments=arguments,
        labels=LABELS,
        preprocessing=PREPROCESSING,
        size=8,
        tile_px=None,
        modality="synthetic",
        sha256="abc123",
    )


def scan(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-100, 300, (8, 8, 9)).astype(np.int16)


def save(path: Path, array: np.ndarray | None = None) -> Path:
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(scan() if array is None else array, AFFINE), path)
    return path


def failures(folder: Path) -> list[dict[str, str]]:
    with open(folder / FAILURES_FILE, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_single_file_gives_label_map_and_description(tmp_path: Path, model: SimpleNamespace) -> None:
    path = save(tmp_path / "in" / "patient 7.nii.gz")
    assert segment_files(path, tmp_path / "out", model) == 0

    volume = read_volume(path)
    written = nib.load(tmp_path / "out" / "patient 7.nii.gz")
    labels = np.asanyarray(written.dataobj)
    assert written.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(written.affine, nib.load(path).affine)
    np.testing.assert_array_equal(labels, segment(volume, model))

    told = json.loads((tmp_path / "out" / "patient 7.json").read_text())
    counts = np.bincount(labels.ravel(), minlength=3)
    assert told["case"] == "patient 7"
    assert told["input"] == str(path)
    assert told["shape"] == [8, 8, 9]
    assert told["spacing_mm"] == pytest.approx([0.9, 1.1, 2.0])
    assert told["orientation"] == "LIA"
    assert list(told["organs"]) == ["liver", "spleen"]
    assert told["organs"]["liver"] == {
        "label": 1,
        "voxels": counts[1],
        "volume_ml": pytest.approx(counts[1] * 0.9 * 1.1 * 2.0 / 1000, abs=1e-4),
    }
    assert (told["checkpoint_sha256"], told["notes"]) == ("abc123", [])
    assert 0 < told["seconds"] < 60
    assert failures(tmp_path / "out") == []
    assert sorted(os.listdir(tmp_path / "out")) == [
        "failures.csv",
        "manifest.csv",
        "patient 7.json",
        "patient 7.nii.gz",
    ]


def test_folder_of_all_formats(tmp_path: Path, model: SimpleNamespace) -> None:
    folder = tmp_path / "in"
    save(folder / "a.nii.gz")
    save(folder / "b.nii")
    image = sitk.ReadImage(str(folder / "a.nii.gz"))
    for name in ("c.nrrd", "d.mha", "e.mhd"):
        sitk.WriteImage(image, str(folder / name))
    sitk.WriteImage(image, str(folder / "c.seg.nrrd"))
    (folder / "notes.txt").write_text("passed over")
    (folder / "._a.nii.gz").write_bytes(b"passed over too")
    assert segment_files(folder, tmp_path / "out", model) == 0
    assert not list((tmp_path / "out").glob("*.seg*"))
    expected = np.asanyarray(nib.load(tmp_path / "out" / "a.nii.gz").dataobj)
    for case in "abcde":
        written = nib.load(tmp_path / "out" / f"{case}.nii.gz")
        np.testing.assert_array_equal(np.asanyarray(written.dataobj), expected)
        np.testing.assert_allclose(written.affine, AFFINE, atol=1e-4)


def test_dicom_series_and_folder_of_series(tmp_path: Path, model: SimpleNamespace) -> None:
    save(tmp_path / "a.nii.gz")
    image = sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    direction = np.reshape(image.GetDirection(), (3, 3))
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for series in ("one", "two"):
        (tmp_path / "study" / series).mkdir(parents=True)
        for index in range(image.GetDepth()):
            slice_ = image[:, :, index]
            place = image.TransformIndexToPhysicalPoint((0, 0, index))
            tags = {
                "0008|0060": "CT",
                "0008|0018": f"1.2.{index + 1}",
                "0020|000e": "1.2",
                "0020|0032": "\\".join(map(str, place)),
                "0020|0037": "\\".join(map(str, (*direction[:, 0], *direction[:, 1]))),
            }
            for tag, value in tags.items():
                slice_.SetMetaData(tag, value)
            writer.SetFileName(str(tmp_path / "study" / series / f"{index}.dcm"))
            writer.Execute(slice_)
    assert [item.case for item in find_scans(tmp_path / "study")] == ["one", "two"]
    assert [item.case for item in find_scans(tmp_path / "study" / "one")] == ["one"]
    assert segment_files(tmp_path / "study", tmp_path / "out", model) == 0
    expected = segment(read_volume(tmp_path / "a.nii.gz"), model)
    for series in ("one", "two"):
        written = np.asanyarray(nib.load(tmp_path / "out" / f"{series}.nii.gz").dataobj)
        # The stack is ordered along the slice normal, so its last axis may run against that of the NIfTI file.
        assert np.array_equal(written, expected) or np.array_equal(written, expected[..., ::-1])


def test_bad_scan_in_a_folder_is_recorded_and_the_rest_goes_on(tmp_path: Path, model: SimpleNamespace) -> None:
    for name in ("a.nii.gz", "c.nii.gz"):
        save(tmp_path / "in" / name)
    (tmp_path / "in" / "b.nii.gz").write_bytes(b"<html>not found</html>")
    assert segment_files(tmp_path / "in", tmp_path / "out", model) == 1
    (row,) = failures(tmp_path / "out")
    assert (row["case"], row["file"]) == ("b", str(tmp_path / "in" / "b.nii.gz"))
    assert "is a web page" in row["error"]
    assert {"a.nii.gz", "c.nii.gz"} <= set(os.listdir(tmp_path / "out"))
    assert "b.nii.gz" not in os.listdir(tmp_path / "out")

    save(tmp_path / "in" / "b.nii.gz")
    assert segment_files(tmp_path / "in", tmp_path / "out", model) == 0
    assert failures(tmp_path / "out") == []


def test_folder_without_a_good_scan_gives_code_2(tmp_path: Path, model: SimpleNamespace) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.nii.gz", "b.nii.gz"):
        (tmp_path / "in" / name).write_bytes(b"")
    assert segment_files(tmp_path / "in", tmp_path / "out", model) == 2
    assert [row["case"] for row in failures(tmp_path / "out")] == ["a", "b"]


def test_single_bad_file_is_an_error(tmp_path: Path, model: SimpleNamespace) -> None:
    (tmp_path / "a.nii.gz").write_bytes(b"")
    with pytest.raises(InputError, match="is empty"):
        segment_files(tmp_path / "a.nii.gz", tmp_path / "out", model)


def test_damaged_network_stops_the_run(tmp_path: Path, model: SimpleNamespace) -> None:
    for name in ("a.nii.gz", "c.nii.gz"):
        save(tmp_path / "in" / name)
    (tmp_path / "in" / "b.nii.gz").write_bytes(b"")
    model.network = nn.Conv2d(1, 3, 1)
    nn.init.constant_(model.network.weight, float("nan"))
    with pytest.raises(InputError, match="logits are NaN or infinite in slice 0 of 8"):
        segment_files(tmp_path / "in", tmp_path / "out", model)
    assert "a.nii.gz" not in os.listdir(tmp_path / "out")


@pytest.mark.parametrize("name", ["missing", "missing.nii.gz"])
def test_missing_input(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"no such file or folder: .*{name}; check the path"):
        find_scans(tmp_path / name)


def test_all_missing_inputs_are_named(tmp_path: Path) -> None:
    save(tmp_path / "a.nii")
    with pytest.raises(InputError, match=r"b\.nii, .*c\.nii; check"):
        find_scans([tmp_path / "a.nii", tmp_path / "b.nii", tmp_path / "c.nii"])
    with pytest.raises(InputError, match="nothing given"):
        find_scans([])


def test_folder_without_scans(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"png")
    with pytest.raises(InputError, match=r"no scan in .*; give \.nii\.gz, "):
        find_scans(tmp_path)


def test_a_segmentation_is_no_scan(tmp_path: Path) -> None:
    (tmp_path / "a.seg.nrrd").write_bytes(b"NRRD0004\n")
    with pytest.raises(InputError, match=r"a\.seg\.nrrd is a segmentation; give the scan"):
        find_scans(tmp_path / "a.seg.nrrd")
    with pytest.raises(InputError, match="no scan in"):
        find_scans(tmp_path)


def test_two_scans_of_one_name(tmp_path: Path) -> None:
    save(tmp_path / "a.nii")
    save(tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match=r"two scans named a would share one output: .*a\.nii, .*a\.nii\.gz"):
        find_scans(tmp_path)


def test_scans_with_names_of_their_own(tmp_path: Path) -> None:
    paths = [save(tmp_path / patient / "ct.nii.gz") for patient in ("anna", "bert")]
    named = [Scan(path.parent.name, path) for path in paths]
    assert [item["case"] for item in ScanDataset(named, preprocessing_of(PREPROCESSING))] == ["anna", "bert"]
    with pytest.raises(InputError, match="two scans named ct"):
        ScanDataset(paths, preprocessing_of(PREPROCESSING))


def test_folder_named_like_a_file_is_a_bad_scan(tmp_path: Path, model: SimpleNamespace) -> None:
    (tmp_path / "a.nii.gz").mkdir()
    with pytest.raises(InputError, match="is a folder, though its name says"):
        segment_files(tmp_path / "a.nii.gz", tmp_path / "out", model)


def test_output_that_would_overwrite_an_input_is_refused(tmp_path: Path, model: SimpleNamespace) -> None:
    path = save(tmp_path / "in" / "a.nii.gz")
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for folder in (tmp_path / "in", tmp_path / "link", tmp_path / "in" / ".." / "in"):
        with pytest.raises(InputError, match="is an input and would be overwritten"):
            segment_files(path, folder, model)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before
    assert os.listdir(tmp_path / "in") == ["a.nii.gz"]


def test_output_folder_is_tried_before_anything_is_read(tmp_path: Path, model: SimpleNamespace) -> None:
    (tmp_path / "bad.nii.gz").write_bytes(b"")
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match="cannot write into"):
        segment_files(tmp_path / "bad.nii.gz", tmp_path / "file" / "out", model)


def test_outputs_of_an_earlier_run_are_replaced(tmp_path: Path, model: SimpleNamespace) -> None:
    path = save(tmp_path / "in" / "a.nii.gz")
    segment_files(path, tmp_path / "out", model)
    first = (tmp_path / "out" / "a.nii.gz").read_bytes()
    save(path, scan(seed=1))
    segment_files(path, tmp_path / "out", model)
    assert (tmp_path / "out" / "a.nii.gz").read_bytes() != first


def test_notes_of_an_odd_scan_are_passed_on(tmp_path: Path, model: SimpleNamespace) -> None:
    content = nib.Nifti1Image(scan()[..., None], AFFINE).to_bytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(content))
    segment_files(tmp_path / "a.nii.gz", tmp_path / "out", model)
    assert json.loads((tmp_path / "out" / "a.json").read_text())["notes"] == ["shape 8 x 8 x 9 x 1 read as 3D"]
    assert nib.load(tmp_path / "out" / "a.nii.gz").shape == (8, 8, 9)


@pytest.mark.parametrize("decollate", [True, False])
@pytest.mark.parametrize("make_loader", [scan_loader, lambda scans: DataLoader(scans, batch_size=1)])
def test_as_the_parts_of_a_monai_evaluator(
    tmp_path: Path, model: SimpleNamespace, make_loader: object, decollate: bool
) -> None:
    for index, name in enumerate("ab"):
        save(tmp_path / "in" / f"{name}.nii.gz", scan(index))
    (tmp_path / "in" / "bad.nii").write_bytes(b"")
    if not decollate:  # whole batches cannot be turned back, so the scans must keep their voxel order
        model.preprocessing = [step for step in PREPROCESSING if "Orientationd" not in step["_target_"]]
    preprocessing = preprocessing_of(model.preprocessing)
    scans = ScanDataset(str(tmp_path / "in"), preprocessing)
    writer = LabelMapWriter(str(tmp_path / "out"), scans, LABELS, "abc123")
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=make_loader(scans),
        network=model.network,
        inferer=SliceWiseInferer(8),
        postprocessing=preprocessing.to_own_grid() if decollate else None,
        val_handlers=[writer],
        decollate=decollate,
    )
    evaluator.run()
    assert [path.name for path in writer.written] == ["a.nii.gz", "b.nii.gz"]
    assert [failure.case for failure in scans.failures] == ["bad"]
    assert writer.exit_code == 1
    with pytest.raises(SystemExit, match="1"):
        writer.exit_if_failed()
    for name in "ab":
        written = nib.load(tmp_path / "out" / f"{name}.nii.gz")
        expected = segment(read_volume(tmp_path / "in" / f"{name}.nii.gz"), model)
        np.testing.assert_array_equal(np.asanyarray(written.dataobj), expected)

    evaluator.run()
    assert len(scans.failures) == 1, "a second run begins anew"


def test_items_of_the_dataset(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz")
    scans = ScanDataset(path, preprocessing_of(PREPROCESSING))
    (item,) = list(scans)
    assert isinstance(item["image"], MetaTensor)
    assert item["image"].shape == (1, 8, 9, 8)
    assert item["image"].dtype == torch.float32
    assert 0 <= float(item["image"].min()) < float(item["image"].max()) <= 1
    assert nib.aff2axcodes(item["image"].affine.numpy()) == ("R", "A", "S")
    assert item["case"] == "a"
    scan = scans.geometry_of("a")
    assert scan.array.shape == (8, 8, 9)
    assert scan.array.nbytes == 8 * 8 * 9 * 2
    assert scan.array.strides == (0, 0, 0), "the voxels are not kept"


def test_the_loader_does_not_copy_the_scan(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(scan(), np.eye(4)), tmp_path / "a.nii")
    scans = ScanDataset(tmp_path / "a.nii", preprocessing_of(PREPROCESSING))
    kept = []
    read = scans._read

    def remember(item: object) -> object:
        kept.append(read(item))
        return kept[-1]

    scans._read = remember
    (batch,) = list(scan_loader(scans))
    assert batch["image"].data_ptr() == kept[0]["image"].data_ptr()
    assert batch["image"].shape == (1, 1, 8, 8, 9)
    assert batch["case"] == ["a"]


def test_workers_are_refused_since_failures_would_be_lost(tmp_path: Path) -> None:
    save(tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match="set num_workers to 0"):
        list(
            DataLoader(ScanDataset(tmp_path / "a.nii.gz", preprocessing_of(PREPROCESSING)), batch_size=1, num_workers=1)
        )


def segment_as_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    network = SimpleNamespace(
        network=Threshold(),
        network_arguments={"in_channels": 1},
        labels=LABELS,
        preprocessing=PREPROCESSING,
        size=8,
        tile_px=None,
        modality="synthetic",
        sha256="",
    )
    code = segment_files(f"{folder}/in", f"{folder}/out", network)
    Path(folder, f"code{rank}").write_text(str(code))
    dist.destroy_process_group()


def test_two_processes_share_the_scans_and_one_table_of_failures(tmp_path: Path) -> None:
    for name in "abc":
        save(tmp_path / "in" / f"{name}.nii.gz")
    (tmp_path / "in" / "d.nii").write_bytes(b"")
    # Forked: two fresh interpreters would spend half a minute on imports.
    torch.multiprocessing.start_processes(segment_as_rank, (str(tmp_path),), nprocs=2, start_method="fork")
    assert {f"{name}.nii.gz" for name in "abc"} <= set(os.listdir(tmp_path / "out"))
    assert [row["case"] for row in failures(tmp_path / "out")] == ["d"]
    assert [(tmp_path / f"code{rank}").read_text() for rank in range(2)] == ["1", "1"]
