# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from pipeline.data.scans.volumes import check_same_grid, read_label, read_volume, write_label_map
from pipeline.errors import InputError

SHAPE = (7, 6, 5)
SPACING_MM = (0.7, 0.8, 2.5)
OBLIQUE = (0.36, 0.48, -0.8, -0.8, 0.6, 0.0, 0.48, 0.64, 0.6)
STRAIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def image_of(dtype: str = "int16", direction: tuple[float, ...] = STRAIGHT) -> sitk.Image:
    array = np.random.default_rng(0).integers(-1000, 1000, SHAPE[::-1]).astype(dtype)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING_MM)
    image.SetOrigin((-120.5, 30.25, 700.0))
    image.SetDirection(direction)
    return image


def write_series(
    folder: Path, image: sitk.Image, uid: str = "1.2.826.0.1.1", tags: dict[str, str] | None = None
) -> list[Path]:
    """Write a CT series, one file a slice, with names that do not follow the order of the slices."""
    folder.mkdir(exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    direction = np.reshape(image.GetDirection(), (3, 3))
    paths = []
    for index in range(image.GetDepth()):
        origin = image.TransformIndexToPhysicalPoint((0, 0, index))
        slice_ = sitk.GetImageFromArray(sitk.GetArrayFromImage(image[:, :, index]))
        slice_.SetSpacing(image.GetSpacing()[:2])
        values = {
            "0008|0060": "CT",
            "0008|0018": f"{uid}.{index + 1}",
            "0020|000d": "1.2.826.0.1",
            "0020|000e": uid,
            "0020|0013": str(index + 1),
            "0020|0032": "\\".join(f"{value:.8g}" for value in origin),
            "0020|0037": "\\".join(f"{value:.8g}" for value in (*direction[:, 0], *direction[:, 1])),
            **(tags or {}),
        }
        for tag, value in values.items():
            slice_.SetMetaData(tag, value)
        paths.append(folder / f"{uid}_{(index * 3) % 5}{index}.dcm")
        writer.SetFileName(str(paths[-1]))
        writer.Execute(slice_)
    return paths


@pytest.fixture(params=[STRAIGHT, OBLIQUE], ids=["straight", "oblique"])
def direction(request: pytest.FixtureRequest) -> tuple[float, ...]:
    return request.param


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".mhd"])
def test_other_formats_equal_the_nifti_of_the_same_scan(
    tmp_path: Path, suffix: str, packed: bool, direction: tuple[float, ...]
) -> None:
    image = image_of(direction=direction)
    sitk.WriteImage(image, str(tmp_path / f"scan{suffix}"), packed)
    sitk.WriteImage(image, str(tmp_path / "scan.nii.gz"))
    volume, nifti = read_volume(tmp_path / f"scan{suffix}"), read_volume(tmp_path / "scan.nii.gz")
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array, nifti.array)
    np.testing.assert_allclose(volume.affine, nifti.affine, atol=1e-4)
    assert volume.array.strides == nifti.array.strides
    assert volume.notes == ()


def test_dicom_series_equals_the_nifti_of_the_same_scan(tmp_path: Path, direction: tuple[float, ...]) -> None:
    image = image_of(direction=direction)
    write_series(tmp_path / "series", image)
    (tmp_path / "series" / "notes.txt").write_text("not a slice")
    sitk.WriteImage(image, str(tmp_path / "scan.nii.gz"))
    volume, nifti = read_volume(tmp_path / "series"), read_volume(tmp_path / "scan.nii.gz")
    np.testing.assert_array_equal(volume.array, nifti.array)
    np.testing.assert_allclose(volume.affine, nifti.affine, atol=1e-4)
    assert volume.array.dtype == np.int16
    assert volume.notes == ()


def test_dicom_values_are_rescaled(tmp_path: Path) -> None:
    image = image_of()
    paths = write_series(tmp_path / "series", image, tags={"0028|1052": "-1024", "0028|1053": "1"})
    assert np.frombuffer(paths[0].read_bytes()[-84:], "<i2").min() >= 0, "stored with the offset taken off"
    array = read_volume(tmp_path / "series").array
    assert array.dtype == np.int16
    np.testing.assert_array_equal(array, sitk.GetArrayFromImage(image).T)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32", "float64"])
def test_voxel_types(tmp_path: Path, suffix: str, dtype: str) -> None:
    sitk.WriteImage(image_of(dtype), str(tmp_path / f"scan{suffix}"))
    expected = "float32" if dtype.startswith("float") else dtype
    assert read_volume(tmp_path / f"scan{suffix}").array.dtype == np.dtype(expected)


@pytest.mark.parametrize("name", ["scan.nrrd", "scan.mha", "series"])
def test_label_map_of_another_format_lies_on_its_grid(tmp_path: Path, name: str, direction: tuple[float, ...]) -> None:
    image = image_of(direction=direction)
    if name == "series":
        write_series(tmp_path / name, image)
    else:
        sitk.WriteImage(image, str(tmp_path / name))
    scan = read_volume(tmp_path / name)
    labels = (scan.array > 0).astype(np.uint8)
    write_label_map(tmp_path / "labels.nii.gz", labels, scan)
    again = read_label(tmp_path / "labels.nii.gz", like=scan)
    check_same_grid(scan, again)
    np.testing.assert_array_equal(again.array, labels)
    # ITK reads the same place out of the file.
    written = sitk.ReadImage(str(tmp_path / "labels.nii.gz"))
    np.testing.assert_allclose(written.GetOrigin(), image.GetOrigin(), atol=1e-3)
    np.testing.assert_allclose(written.GetDirection(), image.GetDirection(), atol=1e-4)


def test_tilted_gantry_gives_a_sheared_affine(tmp_path: Path) -> None:
    image = image_of()
    tilted = [sitk.Image(image[:, :, index : index + 1]) for index in range(SHAPE[2])]
    for index, path in enumerate(write_series(tmp_path / "series", image)):
        path.unlink()
        x, y, z = image.TransformIndexToPhysicalPoint((0, 0, index))
        tilted[index].SetOrigin((x, y + index * 0.5, z))
        position = "\\".join(f"{value:.8g}" for value in (x, y + index * 0.5, z))
        write_series(tmp_path / "one", tilted[index], tags={"0020|0032": position, "0008|0018": f"1.2.{index + 1}"})
        shutil.move(next((tmp_path / "one").iterdir()), path)
    scan = read_volume(tmp_path / "series")
    np.testing.assert_allclose(scan.affine[:3, 2], (0, -0.5, 2.5), atol=1e-4)
    assert "tilt of 11.31 degrees" in scan.notes[0]
    write_label_map(tmp_path / "labels.nii.gz", np.zeros(SHAPE, np.uint8), scan)
    np.testing.assert_allclose(nib.load(tmp_path / "labels.nii.gz").affine, scan.affine, atol=1e-4)
    assert read_label(tmp_path / "labels.nii.gz", like=scan).notes == ()


def test_several_series_are_listed(tmp_path: Path) -> None:
    write_series(tmp_path / "study", image_of(), "1.2.3.4", {"0008|103e": "thin"})
    write_series(tmp_path / "study", image_of(), "1.2.3.5")
    with pytest.raises(InputError, match=r"2 DICOM series: 1.2.3.4 \(5 files, thin\); 1.2.3.5 \(5 files\); move one"):
        read_volume(tmp_path / "study")


def test_missing_and_doubled_slices_are_refused(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "series", image_of())
    paths[2].rename(tmp_path / "kept")
    with pytest.raises(InputError, match=r"5 mm between .* 2.5 mm elsewhere; slices are missing"):
        read_volume(tmp_path / "series")
    (tmp_path / "kept").rename(paths[2])
    write_series(tmp_path / "second", image_of(), tags={"0008|0018": "9.9.9"})
    (next((tmp_path / "second").iterdir())).rename(tmp_path / "series" / "again.dcm")
    with pytest.raises(InputError, match="lie at one place"):
        read_volume(tmp_path / "series")


def test_slices_of_different_grids_are_refused(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "series", image_of())
    other = image_of()
    other.SetSpacing((0.9, 0.8, 2.5))
    replacement = write_series(tmp_path / "other", other)
    replacement[1].replace(paths[1])
    with pytest.raises(InputError, match="differs in size, pixel spacing or direction"):
        read_volume(tmp_path / "series")


def test_single_and_truncated_dicom_slices_are_refused(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "series", image_of())
    content = paths[1].read_bytes()
    paths[1].write_bytes(content[:-20])
    with pytest.raises(InputError, match="is damaged or no part of a series"):
        read_volume(tmp_path / "series")
    for path in paths[1:]:
        path.unlink()
    with pytest.raises(InputError, match="a single slice; give the whole series"):
        read_volume(tmp_path / "series")


def test_dicom_without_a_place_is_refused(tmp_path: Path) -> None:
    for path in write_series(tmp_path / "series", image_of()):
        content = path.read_bytes()
        position = b"\x20\x00\x32\x00"
        assert position in content
        path.write_bytes(content.replace(position, b"\x20\x00\x33\x00"))
    with pytest.raises(InputError, match="lacks ImagePositionPatient, so its place is unknown"):
        read_volume(tmp_path / "series")


def written(path: Path, **options: object) -> bytes:
    sitk.WriteImage(image_of(**options), str(path), True)
    return path.read_bytes()


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_damaged_compressed_data_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"scan{suffix}"
    content = written(path)
    for damaged in (
        content[:-20],
        content[:-40] + bytes([content[-40] ^ 0x10]) + content[-39:],
        content[:-6] + bytes([content[-6] ^ 0x10]) + content[-5:],
    ):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"damaged|end early|cannot be read"):
            read_volume(path)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_truncated_plain_data_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"scan{suffix}"
    sitk.WriteImage(image_of(), str(path), False)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="cannot be read"):
        read_volume(path)


def without_line(content: bytes, key: bytes) -> bytes:
    head, line, rest = content.partition(key)
    assert line
    return head + rest.split(b"\n", 1)[1]


@pytest.mark.parametrize(
    ("suffix", "key", "message"),
    [
        (".nrrd", b"space directions:", "no 'space directions', so no voxel size"),
        (".nrrd", b"space:", "space '' does not say where left is"),
        (".mha", b"ElementSpacing", "no ElementSpacing, so no voxel size"),
        (".mha", b"ElementDataFile", "no ElementDataFile, so no voxels"),
    ],
)
def test_headers_without_geometry_are_refused(tmp_path: Path, suffix: str, key: bytes, message: str) -> None:
    path = tmp_path / f"scan{suffix}"
    sitk.WriteImage(image_of(), str(path), False)
    path.write_bytes(without_line(path.read_bytes(), key))
    with pytest.raises(InputError, match=message):
        read_volume(path)


def test_space_that_is_not_the_patients_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scan.nrrd"
    content = written(path).replace(b"left-posterior-superior", b"scanner-xyz")
    path.write_bytes(content)
    with pytest.raises(InputError, match="space 'scanner-xyz' does not say where left is"):
        read_volume(path)


def test_axes_without_orientation_are_noted(tmp_path: Path) -> None:
    path = tmp_path / "scan.mha"
    sitk.WriteImage(image_of(), str(path), False)
    path.write_bytes(without_line(path.read_bytes(), b"TransformMatrix"))
    assert read_volume(path).notes == ("no orientation in the header: axes taken as LPS",)


def test_header_whose_voxel_file_is_missing(tmp_path: Path) -> None:
    sitk.WriteImage(image_of(), str(tmp_path / "scan.mhd"), False)
    (tmp_path / "scan.raw").unlink()
    with pytest.raises(InputError, match=r"its voxel file .*scan.raw is missing"):
        read_volume(tmp_path / "scan.mhd")


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_other_than_one_frame_of_grey_values_is_refused(tmp_path: Path, suffix: str) -> None:
    path = str(tmp_path / f"scan{suffix}")
    sitk.WriteImage(image_of()[:, :, 0], path)
    with pytest.raises(InputError, match=r"2D|give a 3D volume|does not say where left"):
        read_volume(path)
    sitk.WriteImage(sitk.Compose(image_of(), image_of(), image_of()), path)
    with pytest.raises(InputError, match=r"no grey values|series of volumes"):
        read_volume(path)
    sitk.WriteImage(sitk.JoinSeries([image_of(), image_of()]), path)
    with pytest.raises(InputError, match=r"a series of volumes|does not say where left|no grey values"):
        read_volume(path)


def test_header_that_promises_too_much_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scan.mha"
    sitk.WriteImage(image_of(), str(path), False)
    path.write_bytes(path.read_bytes().replace(b"DimSize = 7 6 5", b"DimSize = 70000 60000 5"))
    with pytest.raises(InputError, match="more than the limit"):
        read_volume(path)


@pytest.mark.parametrize(("depth", "message"), [(4, "more voxels than the 336 bytes"), (6, "after 420 of 504 bytes")])
def test_compressed_data_of_another_length_are_refused(tmp_path: Path, depth: int, message: str) -> None:
    path = tmp_path / "scan.mha"
    path.write_bytes(written(path).replace(b"DimSize = 7 6 5", f"DimSize = 7 6 {depth}".encode()))
    with pytest.raises(InputError, match=message):
        read_volume(path)


def test_nan_voxels_are_refused(tmp_path: Path) -> None:
    image = image_of("float32")
    image[1, 2, 3] = float("nan")
    sitk.WriteImage(image, str(tmp_path / "scan.nrrd"))
    with pytest.raises(InputError, match="1 of 210 voxels are NaN"):
        read_volume(tmp_path / "scan.nrrd")


def test_empty_and_foreign_content_is_refused(tmp_path: Path) -> None:
    for name, content in {"a.nrrd": b"", "b.mha": b"", "c.nrrd": b"<html>", "d.mha": gzip.compress(b"x")}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            read_volume(tmp_path / name)
