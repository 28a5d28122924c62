# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gzip
import itertools
import math
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImaged, Orientation, Orientationd, ScaleIntensityRange

from pipeline.data.preprocessing import Preprocessing
from pipeline.data.scans.monai_reader import VolumeReader
from pipeline.data.scans.volumes import (
    Volume,
    check_same_grid,
    from_ras,
    label_counts,
    read_label,
    read_volume,
    to_ras,
    write_label_map,
)
from pipeline.errors import InputError, find_input_error

SHAPE = (5, 6, 7)
SPACING_MM = (0.7, 0.8, 2.5)
ORIENTATIONS = [
    "".join(axes) for order in itertools.permutations(("RL", "AP", "SI")) for axes in itertools.product(*order)
]


def affine_of(axcodes: str, oblique: bool = False) -> np.ndarray:
    ornt = nib.orientations.axcodes2ornt(axcodes)
    affine = nib.orientations.inv_ornt_aff(ornt, SHAPE) @ np.diag([*SPACING_MM, 1.0])
    affine[:3, 3] = (-100.25, 50.5, 900.125)
    if oblique:
        turn = np.eye(4)
        turn[:3, :3] = rotation((1.0, 2.0, 0.5), 0.3)
        affine = turn @ affine
    return affine


def rotation(axis: tuple[float, float, float], angle: float) -> np.ndarray:
    x, y, z = np.asarray(axis) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def voxels(dtype: str = "int16") -> np.ndarray:
    return np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(dtype)


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None, **fields: object) -> Path:
    """Write a NIfTI file and then set header fields as they are, past NiBabel's own repairs."""
    content = nib.Nifti1Image(array, affine_of("RAS") if affine is None else affine, dtype=array.dtype).to_bytes()
    header = nib.Nifti1Header(content[:348], check=False)
    for name, value in fields.items():
        header[name] = value
    content = header.binaryblock + content[348:]
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("oblique", [False, True])
@pytest.mark.parametrize("axcodes", ORIENTATIONS)
def test_to_ras_equals_monai_and_from_ras_undoes_it(axcodes: str, oblique: bool) -> None:
    affine, array = affine_of(axcodes, oblique), voxels()
    view, ras_affine = to_ras(array, affine)
    expected = Orientation("RAS", labels=None)(
        MetaTensor(torch.from_numpy(array)[None], affine=torch.from_numpy(affine))
    )

    assert nib.aff2axcodes(ras_affine) == ("R", "A", "S")
    np.testing.assert_array_equal(view, expected[0].numpy())
    np.testing.assert_allclose(ras_affine, expected.affine.numpy(), atol=1e-9)
    assert np.shares_memory(view, array)
    back = from_ras(view, affine)
    np.testing.assert_array_equal(back, array)
    assert np.shares_memory(back, array)


def test_there_are_48_orientations() -> None:
    assert len(set(ORIENTATIONS)) == 48


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "float32"])
def test_reads_what_was_written_in_its_own_type(tmp_path: Path, dtype: str, suffix: str) -> None:
    volume = read_volume(save(tmp_path / f"scan{suffix}", voxels(dtype)))
    assert volume.array.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(volume.array, voxels(dtype))
    np.testing.assert_allclose(volume.affine, affine_of("RAS"), atol=1e-4)
    assert volume.spacing_mm == pytest.approx(SPACING_MM)
    assert volume.notes == ()


def test_float64_and_scaled_values_become_float32(tmp_path: Path) -> None:
    assert read_volume(save(tmp_path / "double.nii", voxels("float64"))).array.dtype == np.float32
    path = save(tmp_path / "scaled.nii", voxels(), scl_slope=2.0, scl_inter=-1024.0)
    volume = read_volume(path)
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array, voxels() * 2.0 - 1024.0)
    np.testing.assert_array_equal(volume.array, nib.load(path).get_fdata())


def test_big_endian_and_nifti2_are_read(tmp_path: Path) -> None:
    header = nib.Nifti1Header(endianness=">")
    nib.save(nib.Nifti1Image(voxels(), affine_of("LPS"), header), tmp_path / "big.nii.gz")
    nib.save(nib.Nifti2Image(voxels(), affine_of("LPS")), tmp_path / "two.nii.gz")
    for name in ("big.nii.gz", "two.nii.gz"):
        volume = read_volume(tmp_path / name)
        np.testing.assert_array_equal(volume.array, voxels())
        assert volume.array.dtype.isnative
        np.testing.assert_allclose(volume.affine, affine_of("LPS"), atol=1e-4)
        write_label_map(tmp_path / "labels.nii.gz", voxels("uint8"), volume)
        written = nib.load(tmp_path / "labels.nii.gz")
        np.testing.assert_array_equal(written.affine, nib.load(tmp_path / name).affine)


def test_gzip_of_several_members_is_read(tmp_path: Path) -> None:
    content = save(tmp_path / "scan.nii", voxels()).read_bytes()
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(gzip.compress(content[:400]) + gzip.compress(content[400:]))
    np.testing.assert_array_equal(read_volume(path).array, voxels())


def test_simpleitk_is_imported_for_no_nifti_file(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((2, 3, 4), np.int16), np.eye(4)), tmp_path / "scan.nii.gz")
    code = (
        "import sys, pipeline.data, pipeline.inference\n"
        "shape = pipeline.data.read_volume(sys.argv[1]).array.shape\n"
        "assert shape == (2, 3, 4), shape\n"
        "assert 'SimpleITK' not in sys.modules"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "scan.nii.gz")]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[3])


def test_names_with_spaces_and_letters_of_all_kinds(tmp_path: Path) -> None:
    path = save(tmp_path / "Röntgen 腹部 scan.nii.gz", voxels())
    volume = read_volume(path)
    write_label_map(tmp_path / "Ergebnis 腹.nii.gz", voxels("uint8"), volume)
    assert read_label(tmp_path / "Ergebnis 腹.nii.gz", like=volume).array.max() == 209


@pytest.mark.parametrize(
    ("fields", "note"),
    [
        ({"qoffset_x": 3.0, "qform_code": 1}, "sform and qform disagree"),
        ({"quatern_b": 2.0, "qform_code": 1}, "qform invalid"),
        ({"sform_code": 0, "qform_code": 0}, "no sform or qform"),
        ({"pixdim": [1, 0, 0, 0, 0, 0, 0, 0]}, "differs from the sform"),
    ],
)
def test_odd_but_safe_headers_are_read_with_a_note(tmp_path: Path, fields: dict, note: str) -> None:
    volume = read_volume(save(tmp_path / "scan.nii.gz", voxels(), **{"sform_code": 2, **fields}))
    np.testing.assert_array_equal(volume.array, voxels())
    assert any(note in text for text in volume.notes), volume.notes


def test_trailing_axes_of_length_one_are_dropped_with_a_note(tmp_path: Path) -> None:
    volume = read_volume(save(tmp_path / "scan.nii.gz", voxels()[..., None, None]))
    assert volume.array.shape == SHAPE
    assert "5 x 6 x 7 x 1 x 1" in volume.notes[0]


def test_negative_voxel_size_is_taken_as_positive_with_a_note(tmp_path: Path) -> None:
    pixdim = [1, -0.7, 0.8, 2.5, 0, 0, 0, 0]
    volume = read_volume(save(tmp_path / "scan.nii", voxels(), sform_code=0, qform_code=0, pixdim=pixdim))
    assert volume.spacing_mm == pytest.approx(SPACING_MM)
    assert any("negative voxel size" in note for note in volume.notes)


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "LAS", "PIR"])
def test_label_map_keeps_sform_qform_codes_and_units_bit_by_bit(tmp_path: Path, axcodes: str) -> None:
    scan = nib.Nifti1Image(voxels(), affine_of(axcodes, oblique=True))
    scan.header.set_xyzt_units("mm", "sec")
    scan.set_sform(affine_of(axcodes, oblique=True), code=4)
    scan.set_qform(affine_of(axcodes, oblique=False), code=1)
    scan.header["descrip"] = b"Jane Doe"
    nib.save(scan, tmp_path / "scan.nii.gz")
    volume = read_volume(tmp_path / "scan.nii.gz")
    write_label_map(tmp_path / "labels.nii.gz", voxels("uint8"), volume)

    expected, written = nib.load(tmp_path / "scan.nii.gz").header, nib.load(tmp_path / "labels.nii.gz").header
    for field in ("srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y"):
        np.testing.assert_array_equal(written[field], expected[field])
    for field in ("qoffset_z", "sform_code", "qform_code", "xyzt_units", "dim", "pixdim"):
        np.testing.assert_array_equal(written[field], expected[field])
    assert written.get_data_dtype() == np.uint8
    assert b"Jane" not in gzip.decompress((tmp_path / "labels.nii.gz").read_bytes())
    np.testing.assert_array_equal(np.asanyarray(nib.load(tmp_path / "labels.nii.gz").dataobj), voxels("uint8"))
    check_same_grid(volume, read_label(tmp_path / "labels.nii.gz"))


def test_the_same_labels_give_the_same_bytes(tmp_path: Path) -> None:
    volume = read_volume(save(tmp_path / "scan.nii.gz", voxels()))
    for name in ("one.nii.gz", "two.nii.gz"):
        write_label_map(tmp_path / name, voxels("uint8"), volume)
    assert (tmp_path / "one.nii.gz").read_bytes() == (tmp_path / "two.nii.gz").read_bytes()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = read_volume(save(tmp_path / "scan.nii.gz", voxels()))
    write_label_map(tmp_path / "labels.nii.gz", voxels("uint8"), volume)

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib.Nifti1Image, "to_file_map", full_disk)
    with pytest.raises(InputError, match="No space left"):
        write_label_map(tmp_path / "labels.nii.gz", np.zeros(SHAPE, np.uint8), volume)
    assert read_label(tmp_path / "labels.nii.gz").array.max() == 209
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.nii.gz", "scan.nii.gz"]


def test_float_labels_within_a_thousandth_are_whole_numbers(tmp_path: Path) -> None:
    near = np.where(voxels() % 2, 1.0000001, 2.0009).astype(np.float32)
    label = read_label(save(tmp_path / "label.nii.gz", near), labels=(0, 1, 2))
    np.testing.assert_array_equal(label.array, np.where(voxels() % 2, 1, 2))
    assert label.array.dtype == np.uint8


def test_label_stored_in_another_axis_order_is_turned_to_the_image(tmp_path: Path) -> None:
    image = read_volume(save(tmp_path / "image.nii.gz", voxels(), affine_of("LAS")))
    ras, ras_affine = to_ras(voxels("uint8"), image.affine)
    label = read_label(save(tmp_path / "label.nii.gz", np.ascontiguousarray(ras), ras_affine), like=image)
    np.testing.assert_array_equal(label.array, voxels("uint8"))
    assert "axes turned" in label.notes[-1]


def test_affines_may_differ_by_rounding_and_no_more() -> None:
    def moved(change: np.ndarray) -> Volume:
        return Volume(voxels("uint8"), affine_of("RAS") + change, Path("label"))

    image, change = Volume(voxels(), affine_of("RAS"), Path("image")), np.zeros((4, 4))
    change[:3, :] = 1e-6
    check_same_grid(image, moved(change))
    for element in ((0, 0), (0, 3), (1, 0)):
        change = np.zeros((4, 4))
        change[element] = 0.002
        with pytest.raises(InputError, match="does not lie on the grid"):
            check_same_grid(image, moved(change))


def test_label_counts() -> None:
    labels = np.zeros((2, 3, 2), np.uint8)
    labels[0, 0] = (7, 255)
    counts = label_counts(labels)
    assert (counts[0], counts[7], counts[255], counts.sum()) == (10, 1, 1, 12)


def test_reader_gives_monai_the_array_and_the_affine(tmp_path: Path) -> None:
    path = save(tmp_path / "scan.nii.gz", voxels(), affine_of("LPS"))
    ours = LoadImaged("image", reader=VolumeReader, ensure_channel_first=True, dtype=None)({"image": str(path)})[
        "image"
    ]
    theirs = LoadImaged("image", ensure_channel_first=True, dtype=None)({"image": str(path)})["image"]
    assert ours.dtype == torch.int16
    assert torch.equal(ours.as_tensor(), theirs.as_tensor())
    assert torch.equal(ours.affine, theirs.affine)
    for key in ("filename_or_obj", "space"):
        assert ours.meta[key] == theirs.meta[key]
    for key in ("original_affine", "spatial_shape"):
        np.testing.assert_array_equal(ours.meta[key], theirs.meta[key])


def test_load_image_does_not_fall_back_to_a_reader_that_takes_what_is_refused(tmp_path: Path) -> None:
    bad = voxels("float32")
    bad[1, 1, 1] = np.nan
    path = save(tmp_path / "scan.nii.gz", bad)
    LoadImaged("image")({"image": str(path)})
    with pytest.raises(Exception) as caught:  # noqa: PT011  (MONAI wraps it in a RuntimeError)
        LoadImaged("image", reader=VolumeReader)({"image": str(path)})
    assert "1 of 210 voxels are NaN" in str(find_input_error(caught.value))


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "uint64"])
def test_monai_computes_with_what_the_reader_gives(tmp_path: Path, dtype: str) -> None:
    """Torch has unsigned types that it cannot subtract."""
    path = save(tmp_path / "scan.nii.gz", voxels(dtype))
    image = LoadImaged("image", reader=VolumeReader, dtype=None)({"image": str(path)})["image"]
    scaled = ScaleIntensityRange(0.0, 209.0, 0.0, 1.0)(image)
    np.testing.assert_allclose(scaled.numpy(), voxels() / 209.0, atol=1e-6)


def test_reader_refuses_a_list_of_files() -> None:
    reader = VolumeReader()
    with pytest.raises(InputError, match="2 files for one image"):
        reader.get_data(reader.read(["a.nii", "b.nii"]))
    assert reader.verify_suffix(["a.nii", "b.mha"])
    assert not reader.verify_suffix("a.png")


def test_real_scan_round_trip(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "abdomen_ct"
    image = read_volume(folder / "ct_3mm.nii.gz")
    label = read_label(folder / "label_synapse8_3mm.nii.gz", like=image, labels=range(9))
    assert image.array.dtype == np.int16
    assert (image.array.shape, image.spacing_mm) == ((122, 101, 112), (3.0, 3.0, 3.0))
    assert label_counts(label.array)[1:9].tolist() == [1786, 1300, 5144, 6993, 41602, 818, 9677, 4977]

    write_label_map(tmp_path / "label.nii.gz", label.array, image)
    again = read_label(tmp_path / "label.nii.gz", like=image)
    np.testing.assert_array_equal(again.array, label.array)
    np.testing.assert_array_equal(again.affine, nib.load(folder / "ct_3mm.nii.gz").affine)


DIAGONAL = np.eye(4)
DIAGONAL[:3, :3] = rotation((1.0, 0.0, 0.0), math.radians(135)) * np.array(SPACING_MM)


@pytest.mark.parametrize("axcodes", ["LAS", "RSA", "SAR", "IPL"])
def test_label_of_a_scan_at_45_degrees_is_turned_to_its_image(tmp_path: Path, axcodes: str) -> None:
    # The label is stored in another order of axes, and its affine is rounded to float32: MONAI sees other sides.
    change = nib.orientations.axcodes2ornt(axcodes)
    image = save(tmp_path / "image.nii", voxels(), DIAGONAL)
    array = nib.orientations.apply_orientation(voxels("uint8"), change)
    label = save(
        tmp_path / "label.nii", np.ascontiguousarray(array), DIAGONAL @ nib.orientations.inv_ornt_aff(change, SHAPE)
    )
    turned = read_label(label, like=read_volume(image))
    np.testing.assert_array_equal(turned.array, voxels("uint8"))
    check_same_grid(read_volume(image), turned)


def test_training_turns_a_label_that_rounding_gave_other_sides() -> None:
    # At 135 degrees about x, float64 sends y to S and float32 to P: MONAI turns image and label apart.
    affines = torch.as_tensor(DIAGONAL), torch.as_tensor(DIAGONAL.astype(np.float32).astype(np.float64))
    assert nib.aff2axcodes(affines[0]) != nib.aff2axcodes(affines[1])
    parts = {
        key: MetaTensor(torch.as_tensor(voxels())[None], affine=affine)
        for key, affine in zip(("image", "label"), affines, strict=True)
    }
    orientation = Orientationd(["image", "label"], axcodes="RAS", labels=None)
    apart = orientation(dict(parts))
    assert apart["image"].shape != apart["label"].shape
    together = Preprocessing([orientation], [{}])(dict(parts))
    np.testing.assert_array_equal(together["image"].numpy(), together["label"].numpy())
    np.testing.assert_allclose(together["image"].affine, together["label"].affine, atol=1e-4)


@pytest.mark.parametrize(
    ("slope", "inter", "noted"),
    [(np.inf, 0, True), (-np.inf, 0, True), (0, 5, True), (np.nan, 5, True), (np.nan, np.nan, False), (0, 0, False)],
)
def test_scaling_that_says_nothing_is_noted(tmp_path: Path, slope: float, inter: float, noted: bool) -> None:
    volume = read_volume(save(tmp_path / "a.nii", voxels(), scl_slope=slope, scl_inter=inter))
    np.testing.assert_array_equal(volume.array, voxels())
    expected = (f"scl_slope {slope:g} and scl_inter {inter:g} give no values: the stored ones taken",)
    assert volume.notes == (expected if noted else ())


def test_window_of_the_display_changes_no_value(tmp_path: Path) -> None:
    volume = read_volume(save(tmp_path / "a.nii", voxels(), cal_min=10, cal_max=20))
    np.testing.assert_array_equal(volume.array, voxels())
    assert volume.notes == ()
