# SPDX-License-Identifier: Apache-2.0
"""DICOM SEG of small series, read back by highdicom."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from pipeline.data import IntensityRule, read_volume
from pipeline.data.scans.volumes import label_counts
from pipeline.errors import InputError
from pipeline.inference import segment_files
from pipeline.inference.scans.dicom_seg import write_dicom_seg
from pipeline.networks import build_network, load_model, save_model
from tests.bundles.bundle_commands import error_line, run
from tests.preprocessing import scan_preprocessing

highdicom = pytest.importorskip("highdicom")

LABELS = {0: "background", 1: "liver", 2: "kidney_left", 3: "my tumour"}
ROWS, COLUMNS, SLICES = 6, 8, 5
TURN = nib.eulerangles.euler2mat(0.3, -0.2, 0.1)


def write_series(folder: Path, turn: np.ndarray = TURN) -> Path:
    """Write an oblique CT series whose files and numbers run against its slices."""
    folder.mkdir()
    voxels = np.random.default_rng(0).integers(-200, 300, (SLICES, ROWS, COLUMNS), dtype=np.int16)
    for index in range(SLICES):
        header = pydicom.Dataset()
        header.file_meta = pydicom.dataset.FileMetaDataset()
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        header.SOPClassUID, header.SOPInstanceUID = CTImageStorage, f"1.2.3.{index + 1}"
        header.StudyInstanceUID, header.SeriesInstanceUID, header.FrameOfReferenceUID = "1.2", "1.2.3", "1.2.4"
        header.PatientID, header.PatientName, header.PatientBirthDate, header.PatientSex = "p", "P^Q", "", ""
        header.StudyID, header.StudyDate, header.StudyTime, header.AccessionNumber = "", "", "", ""
        header.Modality, header.InstanceNumber, header.SeriesNumber = "CT", SLICES - index, 1
        header.ReferringPhysicianName = header.Manufacturer = ""
        header.ImagePositionPatient = [f"{value:.8g}" for value in np.array([-40, 20, 7]) + turn @ [0, 0, 2.5 * index]]
        header.ImageOrientationPatient = [f"{value:.8g}" for value in (*turn[:, 0], *turn[:, 1])]
        header.PixelSpacing, header.SliceThickness = [0.7, 0.9], 2.5
        header.Rows, header.Columns, header.SamplesPerPixel = ROWS, COLUMNS, 1
        header.PhotometricInterpretation, header.PixelRepresentation = "MONOCHROME2", 1
        header.BitsAllocated = header.BitsStored = 16
        header.HighBit, header.RescaleSlope, header.RescaleIntercept = 15, 1, 0
        header.PixelData = voxels[index].tobytes()
        header.save_as(folder / f"{SLICES - index}.dcm", enforce_file_format=True)
    return folder


@pytest.fixture
def series(tmp_path) -> Path:
    return write_series(tmp_path / "series")


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    network = build_network("enet", in_channels=1, out_channels=len(LABELS))
    steps = scan_preprocessing(IntensityRule("window", -200, 300))
    save_model(tmp_path / "model.pt", network, labels=LABELS, preprocessing=steps, size=16, modality="CT")
    return load_model(tmp_path / "model.pt")


def on_grid(seg: Path, scan) -> np.ndarray:
    """Return the labels of a SEG file on the grid of a scan, voxel by voxel where the file says that they lie."""
    volume = highdicom.seg.segread(seg).get_volume(combine_segments=True)
    indices = np.argwhere(volume.array > 0)
    places = (np.diag([-1, -1, 1, 1]) @ volume.affine @ np.c_[indices, np.ones(len(indices))].T).T
    voxels = (np.linalg.inv(scan.affine) @ places.T).T[:, :3]
    assert np.abs(voxels - voxels.round()).max(initial=0) < 1e-3
    labels = np.zeros(scan.array.shape, np.uint8)
    labels[tuple(voxels.round().astype(int).T)] = volume.array[volume.array > 0]
    return labels


@pytest.mark.parametrize("turn", [np.eye(3), TURN, np.diag([-1.0, 1.0, -1.0])], ids=["straight", "oblique", "feet up"])
def test_labels_lie_on_the_series_to_the_voxel(turn, tmp_path):
    scan = read_volume(write_series(tmp_path / "series", turn))
    labels = np.random.default_rng(1).integers(0, 4, scan.array.shape, dtype=np.uint8)
    write_dicom_seg(tmp_path / "seg.dcm", labels, scan, LABELS)
    np.testing.assert_array_equal(on_grid(tmp_path / "seg.dcm", scan), labels)


def test_each_frame_is_of_the_slice_that_it_refers_to(series, tmp_path):
    scan = read_volume(series)
    labels = np.zeros(scan.array.shape, np.uint8)
    labels[5, 2, 3] = 1  # column 5, row 2 of the fourth slice
    write_dicom_seg(tmp_path / "seg.dcm", labels, scan, LABELS)
    seg = highdicom.seg.segread(tmp_path / "seg.dcm")
    (frame,) = seg.PerFrameFunctionalGroupsSequence
    source = frame.DerivationImageSequence[0].SourceImageSequence[0]
    assert source.ReferencedSOPInstanceUID == "1.2.3.4"
    assert np.argwhere(seg.pixel_array).tolist() == [[2, 5]]
    assert (seg.PatientID, seg.StudyInstanceUID, seg.FrameOfReferenceUID) == ("p", "1.2", "1.2.4")


def test_organs_are_coded(series, tmp_path):
    scan = read_volume(series)
    write_dicom_seg(tmp_path / "seg.dcm", np.ones(scan.array.shape, np.uint8), scan, LABELS)
    segments = highdicom.seg.segread(tmp_path / "seg.dcm").SegmentSequence
    kinds = [one.SegmentedPropertyTypeCodeSequence[0] for one in segments]
    assert [one.SegmentLabel for one in segments] == ["liver", "kidney_left", "my tumour"]
    assert [(kind.CodeValue, kind.CodeMeaning) for kind in kinds] == [
        ("10200004", "Liver"),
        ("64033007", "Kidney"),
        ("91772007", "Organ"),
    ]
    assert kinds[1].SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"


def test_cyst_is_coded_with_the_kidney_that_it_lies_in(series, tmp_path):
    scan = read_volume(series)
    write_dicom_seg(tmp_path / "seg.dcm", np.ones(scan.array.shape, np.uint8), scan, {1: "kidney_cyst_left"})
    (segment,) = highdicom.seg.segread(tmp_path / "seg.dcm").SegmentSequence
    (kind,), (region,) = segment.SegmentedPropertyTypeCodeSequence, segment.AnatomicRegionSequence
    assert (kind.CodeMeaning, region.CodeMeaning) == ("Cyst", "Kidney")
    assert segment.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "49755003"
    assert region.AnatomicRegionModifierSequence[0].CodeMeaning == "Left"
    assert "SegmentedPropertyTypeModifierCodeSequence" not in kind


def test_given_codes_come_before_known_ones(series, model, tmp_path, caplog):
    given = {"my tumour": ["108369006", "Neoplasm"], "kidney_left": [18639004, "Left kidney"]}
    out = tmp_path / "out"
    assert segment_files(series, out, model, output_format="dicom-seg", organ_codes=given) == 0
    assert "no SNOMED CT code" not in caplog.text
    segments = highdicom.seg.segread(out / "series.dcm").SegmentSequence
    kinds = [one.SegmentedPropertyTypeCodeSequence[0] for one in segments]
    assert [(kind.CodeValue, kind.CodeMeaning) for kind in kinds] == [
        ("10200004", "Liver"),
        ("18639004", "Left kidney"),
        ("108369006", "Neoplasm"),
    ]
    assert "SegmentedPropertyTypeModifierCodeSequence" not in kinds[1]


def test_other_codes_make_a_case_anew(series, model, tmp_path):
    out = tmp_path / "out"

    def time_of_file(meaning: str) -> int:
        codes = {"my tumour": ["108369006", meaning]}
        assert segment_files(series, out, model, output_format="dicom-seg", organ_codes=codes) == 0
        return (out / "series.dcm").stat().st_mtime_ns

    first = time_of_file("Neoplasm")
    assert time_of_file("Neoplasm") == first
    assert time_of_file("Tumour") > first


def test_codes_without_a_seg_are_refused_in_one_line(series, model, tmp_path):
    files = ["--checkpoint", model.path, "--input", series, "--output_dir", tmp_path / "out"]
    result = run("synapse", "inference", *files, "--organ_codes", "{'my tumour': ['108369006', 'Neoplasm']}")
    assert "organ_codes are for DICOM SEG; give --output_format dicom-seg or both with them" in error_line(result)
    codes = ["--output_format", "both", "--organ_codes", "{'heart': ['80891009', 'Heart']}"]
    result = run("synapse", "inference", *files, *codes)
    told = "organ_codes: the model has no organ 'heart'; it has liver, kidney_left, my tumour"
    assert told in error_line(result)
    assert not (tmp_path / "out").exists()


def test_real_series_gets_its_labels_to_the_voxel(shared_data, tmp_path):
    scan = read_volume(shared_data / "dicom_ct")  # JPEG 2000
    assert scan.array.shape == (512, 512, 20)
    labels = np.digitize(scan.array, [-300, 150, 400]).astype(np.uint8)  # soft tissue, contrast and bone, dense bone
    assert all(label_counts(labels)[:4] > 1000)
    write_dicom_seg(tmp_path / "seg.dcm", labels, scan, LABELS)
    np.testing.assert_array_equal(on_grid(tmp_path / "seg.dcm", scan), labels)
    seg = highdicom.seg.segread(tmp_path / "seg.dcm")
    headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in (shared_data / "dicom_ct").glob("*.dcm")]
    instances = seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert {one.ReferencedSOPInstanceUID for one in instances} == {header.SOPInstanceUID for header in headers}
    assert seg.FrameOfReferenceUID == headers[0].FrameOfReferenceUID


def test_series_without_any_organ_has_a_file_too(series, tmp_path):
    scan = read_volume(series)
    write_dicom_seg(tmp_path / "seg.dcm", np.zeros(scan.array.shape, np.uint8), scan, LABELS)
    assert not on_grid(tmp_path / "seg.dcm", scan).any()


def test_series_that_changed_is_refused(series, tmp_path):
    scan = read_volume(series)
    (series / "2.dcm").unlink()
    with pytest.raises(InputError, match="the slices are not where they were when they were read"):
        write_dicom_seg(tmp_path / "seg.dcm", np.zeros(scan.array.shape, np.uint8), scan, LABELS)
    assert not (tmp_path / "seg.dcm").exists()


def test_header_that_lacks_what_a_seg_repeats_is_refused(series, tmp_path):
    scan = read_volume(series)
    for file in series.iterdir():
        header = pydicom.dcmread(file)
        del header.StudyInstanceUID
        header.save_as(file)
    with pytest.raises(
        InputError, match=r"series: no DICOM SEG of it \(.*StudyInstanceUID.*; give --output_format nifti"
    ):
        write_dicom_seg(tmp_path / "seg.dcm", np.zeros(scan.array.shape, np.uint8), scan, LABELS)


def test_both_files_make_a_case_done(series, model, tmp_path, caplog):
    out = tmp_path / "out"
    assert segment_files(series, out, model, output_format="both") == 0
    assert "no SNOMED CT code is known for my tumour" in caplog.text
    labels = np.asarray(nib.load(out / "series.nii.gz").dataobj)
    assert len(np.unique(labels)) > 1
    np.testing.assert_array_equal(on_grid(out / "series.dcm", read_volume(series)), labels)
    first = (out / "series.dcm").stat().st_mtime_ns
    assert segment_files(series, out, model, output_format="both") == 0
    assert (out / "series.dcm").stat().st_mtime_ns == first
    (out / "series.dcm").unlink()
    assert segment_files(series, out, model, output_format="both") == 0
    assert (out / "series.dcm").is_file()


def test_seg_alone(series, model, tmp_path):
    assert segment_files(series, tmp_path / "out", model, output_format="dicom-seg") == 0
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == ["failures.csv", "manifest.csv", "series.dcm", "series.json"]
    assert json.loads((tmp_path / "out/series.json").read_text())["organs"]["liver"]["label"] == 1


def test_seg_of_a_nifti_file_is_refused_in_one_line(model, tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 4), np.int16), np.eye(4)), tmp_path / "scan.nii.gz")
    files = ["--checkpoint", model.path, "--input", tmp_path / "scan.nii.gz", "--output_dir", tmp_path / "out"]
    result = run("synapse", "inference", *files, "--output_format", "dicom-seg")
    assert "scan.nii.gz is no DICOM series, to whose slices a DICOM SEG could refer" in error_line(result)
    assert not (tmp_path / "out").exists()


def test_unknown_format_is_refused(series, model, tmp_path):
    with pytest.raises(InputError, match="output_format 'rtstruct' is unknown; choose one of nifti, dicom-seg, both"):
        segment_files(series, tmp_path / "out", model, output_format="rtstruct")
