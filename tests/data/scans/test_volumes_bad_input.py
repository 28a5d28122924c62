# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipeline.data.scans.volumes import Volume, check_same_grid, read_label, read_volume, write_label_map
from pipeline.errors import InputError

AFFINE = np.diag([-0.8, -0.8, 2.0, 1.0])


def voxels(dtype: str = "int16") -> np.ndarray:
    return np.random.default_rng(0).integers(0, 100, (6, 6, 6)).astype(dtype)


def nifti(array: np.ndarray | None = None, **fields: object) -> bytes:
    """Return a NIfTI file whose header says what `fields` say, past NiBabel's own repairs."""
    array = voxels() if array is None else array
    content = nib.Nifti1Image(array, AFFINE, dtype=array.dtype).to_bytes()
    header = nib.Nifti1Header(content[:348], check=False)
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + content[348:]


def flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :]


def with_value(value: float) -> np.ndarray:
    array = voxels("float32")
    array[1, 2, 3] = value
    return array


def srow(row_x: list[float], row_y: list[float], row_z: list[float]) -> dict[str, object]:
    return {"sform_code": 1, "srow_x": row_x, "srow_y": row_y, "srow_z": row_z}


NO_FORMS = {"sform_code": 0, "qform_code": 0}
ROW = [1.0, 0.0, 0.0, 0.0]
STORED = gzip.compress(nifti(), compresslevel=0)
PACKED = gzip.compress(nifti())
HUGE = [3, 32767, 32767, 32767, 1, 1, 1, 1]
BOMB = [3, 1024, 1024, 700, 1, 1, 1, 1]

# name of the file, its content, what the one line must say
BAD_FILES = {
    "gzip truncated": ("a.nii.gz", PACKED[:300], "gzip data end early, after 300 bytes; download"),
    "gzip without its checksum": ("a.nii.gz", PACKED[:-8], "gzip data end early"),
    "gzip truncated in the header": ("a.nii.gz", PACKED[:40], "gzip data end early"),
    "gzip checksum wrong": ("a.nii.gz", flipped(PACKED, len(PACKED) - 6), "damaged gzip data .*CRC"),
    "gzip length wrong": ("a.nii.gz", flipped(PACKED, len(PACKED) - 2), "damaged gzip data .*length"),
    "one byte flipped in a stored block": ("a.nii.gz", flipped(STORED, 500), "damaged gzip data .*CRC"),
    "one byte flipped in the stream": ("a.nii.gz", flipped(PACKED, len(PACKED) // 2), "damaged gzip data"),
    "empty gz": ("a.nii.gz", b"", "is empty; download"),
    "empty nii": ("a.nii", b"", "is empty; download"),
    "web page": ("a.nii.gz", b"<!DOCTYPE html><html><body>404</body></html>", "is a web page"),
    "web page after blanks": ("a.nii", b"\n\n  <HTML><body>404</body></HTML>", "is a web page"),
    "git lfs pointer": ("a.nii.gz", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    "nii truncated": ("a.nii", nifti()[:-10], "is cut off: the header promises 432 bytes .* ends at 774"),
    "nii header alone": ("a.nii", nifti()[:352], "is cut off"),
    "nii less than a header": ("a.nii", nifti()[:100], "does not begin with a NIfTI header"),
    "gz holds less than promised": ("a.nii.gz", gzip.compress(nifti()[:-10]), "is cut off: 422 of the 432 bytes"),
    "gz holds a slice more": ("a.nii.gz", gzip.compress(nifti() + bytes(72)), "goes on for a slice or more"),
    "plain named gz": ("a.nii.gz", nifti(), "is not gzip-compressed.*rename it to .nii"),
    "gz named plain": ("a.nii", PACKED, "is gzip-compressed.*rename it to .nii.gz"),
    "text": ("a.nii", b"hello " * 100, "does not begin with a NIfTI header"),
    "text gz": ("a.nii.gz", gzip.compress(b"hello " * 100), "does not begin with a NIfTI header"),
    "unknown suffix": ("a.txt", b"hello", "unknown format; give .nii.gz"),
    "NaN voxel": ("a.nii.gz", gzip.compress(nifti(with_value(math.nan))), "1 of 216 voxels are NaN or infinite"),
    "infinite voxel": ("a.nii", nifti(with_value(-math.inf)), "1 of 216 voxels are NaN or infinite"),
    "float64 beyond float32": ("a.nii", nifti(with_value(1.0).astype("float64") * 1e300), "NaN or infinite"),
    "4D": ("a.nii.gz", gzip.compress(nifti(voxels().reshape(6, 6, 3, 2))), r"is 4D \(6 x 6 x 3 x 2\).*one frame"),
    "2D": ("a.nii.gz", gzip.compress(nifti(voxels()[..., 0])), r"is 2D \(6 x 6\); give a 3D volume"),
    "axis of length 0": ("a.nii", nifti(dim=[3, 6, 0, 6, 1, 1, 1, 1]), "gives the shape 6 x 0 x 6"),
    "negative axis": ("a.nii", nifti(dim=[3, 6, -6, 6, 1, 1, 1, 1]), "gives the shape 6 x -6 x 6"),
    "header promises 70 TB": ("a.nii", nifti(dim=HUGE), "promises .* more than the limit of 8589934592"),
    "header promises 70 TB gz": ("a.nii.gz", gzip.compress(nifti(dim=HUGE)), "more than the limit"),
    "header promises 1.4 GB": ("a.nii.gz", gzip.compress(nifti(dim=BOMB)), "would grow .* times"),
    "more than gzip can hold": (
        "a.nii.gz",
        gzip.compress(nifti(dim=[3, 512, 512, 100, 1, 1, 1, 1])),
        "of gzip cannot hold",
    ),
    "no voxel size": ("a.nii", nifti(**NO_FORMS, pixdim=[1, 0, 0, 0, 0, 0, 0, 0]), "write the true voxel size"),
    "NaN voxel size": ("a.nii", nifti(**NO_FORMS, pixdim=[1, 1, math.nan, 1, 0, 0, 0, 0]), "write the true voxel"),
    "qform without voxel size": (
        "a.nii",
        nifti(sform_code=0, qform_code=1, pixdim=[1, 1, 1, 0, 0, 0, 0, 0]),
        "the qform is .* write the true voxel size",
    ),
    "qform invalid": ("a.nii", nifti(sform_code=0, qform_code=1, quatern_b=2.0), "the qform is invalid"),
    "qform offset NaN": ("a.nii", nifti(sform_code=0, qform_code=1, qoffset_x=math.nan), "the qform holds NaN"),
    "sform zero": ("a.nii", nifti(**srow([0] * 4, [0] * 4, [0] * 4)), "the sform gives voxels of 0 x 0 x 0 mm"),
    "sform NaN": ("a.nii", nifti(**srow([math.nan] * 4, ROW, ROW)), "the sform holds NaN"),
    "sform singular": ("a.nii", nifti(**srow(ROW, [0, 1, 1, 0], [0, 1, 1, 0])), "the sform is singular"),
    "metres": ("a.nii", nifti(xyzt_units=1), "another unit than mm"),
    "unknown data type": ("a.nii", nifti(datatype=3, bitpix=16), "invalid NIfTI header: data code 3 not"),
    "colour": ("a.nii", nifti(datatype=128, bitpix=24), "are no grey values"),
    "complex": ("a.nii", nifti(datatype=32, bitpix=64), "are no grey values"),
    "bad magic": ("a.nii", nifti(magic=b"abc"), "magic b'abc' is not that of a single NIfTI file"),
    "header of a pair": ("a.nii", nifti(magic=b"ni1"), "magic b'ni1'"),
    "voxels far behind": (
        "a.nii.gz",
        gzip.compress(nifti(vox_offset=2.0**40)),
        "the voxels at byte 1099511627776",
    ),
    "voxels behind the end": ("a.nii", nifti(vox_offset=4096), "is cut off"),
    "voxels inside the header": ("a.nii", nifti(vox_offset=16), "vox offset 16 too low"),
    "infinite intercept": ("a.nii", nifti(scl_slope=2.0, scl_inter=math.inf), "invalid scaling"),
    "slope that overflows": ("a.nii", nifti(scl_slope=3e38), "NaN or infinite"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file_is_refused_in_one_line_that_names_it(tmp_path: Path, case: str) -> None:
    name, content, message = BAD_FILES[case]
    assert len(content) < 10_000
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_volume(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_stream_longer_than_promised_is_not_unpacked_to_its_end(tmp_path: Path) -> None:
    packer = zlib.compressobj(9, wbits=31)
    content = packer.compress(nifti()) + packer.compress(bytes(3 << 20)) + packer.flush()
    (tmp_path / "bomb.nii.gz").write_bytes(content + os.urandom(16))
    with pytest.raises(InputError, match="goes on for a slice or more"):
        read_volume(tmp_path / "bomb.nii.gz")


def test_the_budget_can_be_set(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(nifti())
    assert read_volume(tmp_path / "a.nii", max_bytes=432).array.shape == (6, 6, 6)
    with pytest.raises(InputError, match="more than the limit of 431"):
        read_volume(tmp_path / "a.nii", max_bytes=431)


def test_a_few_bytes_behind_the_voxels_are_noted(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(nifti() + bytes(8)))
    assert read_volume(tmp_path / "a.nii.gz").notes == ("8 bytes behind the voxels ignored",)


def missing(folder: Path) -> Path:
    return folder / "scan.nii.gz"


def folder_with_a_file_name(folder: Path) -> Path:
    (folder / "scan.nii.gz").mkdir()
    return folder / "scan.nii.gz"


def link_to_itself(folder: Path) -> Path:
    (folder / "scan.nii.gz").symlink_to(folder / "scan.nii.gz")
    return folder / "scan.nii.gz"


def empty_folder(folder: Path) -> Path:
    return folder


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (missing, "no such file"),
        (folder_with_a_file_name, "is a folder, though its name says .nii.gz"),
        (link_to_itself, "cannot open .* Too many levels of symbolic links"),
        (empty_folder, "holds no DICOM files"),
    ],
)
def test_paths_that_are_no_file(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_volume(make(tmp_path))


def label_file(folder: Path, array: np.ndarray, **fields: object) -> Path:
    (folder / "label.nii.gz").write_bytes(gzip.compress(nifti(array, **fields)))
    return folder / "label.nii.gz"


@pytest.mark.parametrize(
    ("dtype", "value", "message"),
    [
        ("float32", 2.4, r"whole numbers from 0 to 255, but it holds 2.4 \(1 voxels\)"),
        ("float32", 1.002, "1.002"),
        ("int16", -1, r"-1 \(1 voxels\)"),
        ("int16", 256, r"256 \(1 voxels\)"),
        ("uint8", 14, r"unknown label values 14 \(1 voxels\); the dataset declares 0, 1, 2"),
    ],
)
def test_label_values_that_are_none(tmp_path: Path, dtype: str, value: float, message: str) -> None:
    array = np.ones((3, 4, 5), dtype)
    array[0, 0, 0] = value
    with pytest.raises(InputError, match=message):
        read_label(label_file(tmp_path, array), labels=(0, 1, 2))


def test_many_wrong_values_are_counted_and_not_all_listed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"0.5 \(1 voxels\).* and 98 more"):
        read_label(label_file(tmp_path, np.arange(108, dtype="float32").reshape(3, 6, 6) + 0.5))


def test_label_of_another_shape_or_place_is_refused(tmp_path: Path) -> None:
    image = Volume(voxels(), AFFINE, Path("image.nii.gz"))
    with pytest.raises(InputError, match=r"label.nii.gz has shape 6 x 6 x 5, but image.nii.gz has 6 x 6 x 6"):
        read_label(label_file(tmp_path, voxels("uint8")[..., :5]), like=image)
    moved = srow([-0.8, 0, 0, 0.5], [0, -0.8, 0, 0], [0, 0, 2.0, 0])
    with pytest.raises(InputError, match=r"origin by 0.5 mm"):
        read_label(label_file(tmp_path, voxels("uint8"), **moved), like=image)
    mirrored = srow([0.8, 0, 0, 0], [0, -0.8, 0, 0], [0, 0, 2.0, 0])
    label = read_label(label_file(tmp_path, voxels("uint8"), **mirrored))
    with pytest.raises(InputError, match=r"axes by 3.14 rad"):
        check_same_grid(image, label)


def test_label_map_is_not_written_over_the_scan_or_under_another_name(tmp_path: Path) -> None:
    (tmp_path / "scan.nii.gz").write_bytes(PACKED)
    (tmp_path / "link.nii.gz").symlink_to(tmp_path / "scan.nii.gz")
    scan = read_volume(tmp_path / "scan.nii.gz")
    for name in ("scan.nii.gz", "link.nii.gz"):
        with pytest.raises(InputError, match="would overwrite the scan"):
            write_label_map(tmp_path / name, voxels("uint8"), scan)
    with pytest.raises(InputError, match=r"written as .nii.gz"):
        write_label_map(tmp_path / "labels.nii", voxels("uint8"), scan)
    with pytest.raises(ValueError, match="not uint8"):
        write_label_map(tmp_path / "labels.nii.gz", voxels(), scan)
    assert (tmp_path / "scan.nii.gz").read_bytes() == PACKED


def test_label_map_into_a_file_instead_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "scan.nii.gz").write_bytes(PACKED)
    with pytest.raises(InputError, match="cannot write"):
        write_label_map(
            tmp_path / "scan.nii.gz" / "labels.nii.gz", voxels("uint8"), read_volume(tmp_path / "scan.nii.gz")
        )


def test_every_flipped_byte_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    """The header of the gzip member (name, time) carries no check; all else does."""
    expected = voxels()
    for position in range(0, len(PACKED), 7):
        (tmp_path / "a.nii.gz").write_bytes(flipped(PACKED, position))
        try:
            volume = read_volume(tmp_path / "a.nii.gz")
        except InputError:
            continue
        np.testing.assert_array_equal(volume.array, expected)


def test_random_headers_raise_nothing_else(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    content = bytearray(nifti())
    for _ in range(300):
        damaged = bytearray(content)
        for position in random.integers(4, 348, 4):
            damaged[position] = random.integers(256)
        (tmp_path / "a.nii").write_bytes(damaged)
        try:
            volume = read_volume(tmp_path / "a.nii", max_bytes=1 << 20)
        except InputError:
            continue
        assert volume.array.ndim == 3
        assert np.isfinite(volume.affine).all()
        assert struct.unpack_from("<h", damaged, 40)[0] >= 3
