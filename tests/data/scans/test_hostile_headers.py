# SPDX-License-Identifier: Apache-2.0
"""Headers that lie: about dimensions, lengths, and where the voxels are. What fuzzing found is named after it."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from pipeline.data.scans.dicom_elements import PixelSize, pixel_size
from pipeline.data.scans.text_headers import meta_header, nrrd_header
from pipeline.data.scans.volumes import read_volume
from pipeline.errors import InputError
from tests.data.toy_datasets import nifti, scanned, series

SHAPE = (5, 4, 3)


def saved(folder: Path, suffix: str, old: bytes = b"", new: bytes = b"", packed: bool = False) -> Path:
    """Write a scan by SimpleITK, and put `new` in the place of `old` in its header."""
    image = sitk.GetImageFromArray(np.arange(60, dtype=np.int16).reshape(SHAPE[::-1]))
    image.SetSpacing((0.8, 0.9, 2.0))
    path = folder / f"scan{suffix}"
    sitk.WriteImage(image, str(path), packed)
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))
    return path


def test_fields_of_a_meta_header(tmp_path: Path) -> None:
    text = b"NDims = 3\r\nDimSize = 5 4 3\nMy key = any: thing\n\nElementDataFile = LOCAL\n"
    (tmp_path / "a.mha").write_bytes(text + b"\0\1")
    fields = {"ndims": "3", "dimsize": "5 4 3", "my key": "any: thing", "elementdatafile": "LOCAL"}
    assert meta_header(tmp_path / "a.mha") == (fields, len(text))


def test_fields_of_a_nrrd_header(tmp_path: Path) -> None:
    directions = "(1,0,0) (0,1e0,0) (0,0,-.5)"
    text = (
        f"NRRD0004\n# any comment\nmy key:=any: thing\ndimension: 3\nsizes: 5 4 3\nspace directions: {directions}\n\n"
    )
    (tmp_path / "a.nrrd").write_bytes(text.encode() + b"\0\1")
    fields = {"dimension": "3", "sizes": "5 4 3", "space directions": directions}
    assert nrrd_header(tmp_path / "a.nrrd") == (fields, len(text))


META = {
    "dimensions that overran a buffer": (b"NDims = 3", b"NDims = 2147483647"),
    "dimensions given with a colon": (b"NDims = 3", b"NDims : 3"),
    "dimensions given twice": (b"NDims = 3", b"NDims = 3\nNDims = 5"),
    "dimensions after what needs them": (b"NDims = 3\n", b""),
    "a line without a key": (b"BinaryData =", b"BinaryData\n="),
    "too many sizes": (b"DimSize = 5 4 3", b"DimSize = 0 1 0 0 5 4 3"),
    "too few sizes": (b"DimSize = 5 4 3", b"DimSize = 5 4"),
    "sizes beyond all counting": (b"DimSize = 5 4 3", b"DimSize = 5 4 99999999999999999999"),
    "spacing that is no number": (b"ElementSpacing = 0.8", b"ElementSpacing = nan"),
    "a matrix of eight": (b"TransformMatrix = 1 0", b"TransformMatrix = 1"),
    "a value that is too long": (b"ElementType = MET_SHORT", b"ElementType = " + b"x" * 5000),
    "a control character": (b"MET_SHORT", b"MET_SHORT\x1b[2J"),
}


@pytest.mark.parametrize(("old", "new"), META.values(), ids=META)
def test_meta_header_that_lies_is_refused_before_its_parser(tmp_path: Path, old: bytes, new: bytes) -> None:
    with pytest.raises(InputError, match=r"scan\.mha: (damaged header at|the header says)"):
        read_volume(saved(tmp_path, ".mha", old, new))


NRRD = {
    "directions that overran a buffer": (b"space directions: ", b"space directions: " + b"x" * 5000),
    "directions for too few axes": (b"space directions: (", b"space directions: none ("),
    "directions of NaN": (b"directions: (0.", b"directions: (nan"),
    "dimensions beyond the format": (b"dimension: 3", b"dimension: 17"),
    "sizes before the dimension": (b"dimension: 3\n", b""),
    "a size of letters": (b"sizes: 5", b"sizes: x"),
    "a field given twice": (b"sizes: 5 4 3", b"sizes: 5 4 3\nsizes: 5 4 2"),
    "an unknown field": (b"endian:", b"indian:"),
    "an unknown packing": (b"encoding: raw", b"encoding: zrl"),
}


@pytest.mark.parametrize(("old", "new"), NRRD.values(), ids=NRRD)
def test_nrrd_header_that_lies_is_refused_before_its_parser(tmp_path: Path, old: bytes, new: bytes) -> None:
    with pytest.raises(InputError, match=r"scan\.nrrd: (damaged header at|the header says)"):
        read_volume(saved(tmp_path, ".nrrd", old, new))


@pytest.mark.parametrize(
    ("suffix", "old", "new"),
    [(".mha", b"DimSize = 5 4 3", b"DimSize = 5 4 0"), (".nrrd", b"sizes: 5 4 3", b"sizes: 5 4 0")],
)
def test_no_slices_at_all_are_refused(tmp_path: Path, suffix: str, old: bytes, new: bytes) -> None:
    with pytest.raises(InputError, match=r"scan\..*(the header gives the shape 5 x 4 x 0|cannot be read)"):
        read_volume(saved(tmp_path, suffix, old, new))


def test_matrix_of_huge_numbers_is_refused(tmp_path: Path) -> None:
    # ITK never ended inverting it.
    path = saved(tmp_path, ".mha", b"TransformMatrix = 1 0 0 0", b"TransformMatrix = 1 0 0 1e308")
    with pytest.raises(InputError, match=r"scan\.mha: the direction and spacing .*; write"):
        read_volume(path)


def test_packed_length_beyond_the_file_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    path = saved(tmp_path, ".mha", b"CompressedDataSize = ", b"CompressedDataSize = 9999999999", packed=True)
    with pytest.raises(InputError, match=r"99999999.* bytes of compressed voxels in a shorter file"):
        read_volume(path)


def test_packed_voxels_behind_a_header_are_refused(tmp_path: Path) -> None:
    # ITK sought them at another byte and gave what lay in memory.
    path = saved(tmp_path, ".mha", b"CompressedDataSize = ", b"HeaderSize = 7\nCompressedDataSize = ", packed=True)
    with pytest.raises(InputError, match=r"compressed voxels behind a header of 7 bytes; save the scan anew"):
        read_volume(path)


OUTSIDE = ["/dev/zero", "../secret.raw", "sub/../../secret.raw", "{folder}/secret.raw", "link.raw"]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("suffix", [".mhd", ".nrrd"])
def test_voxels_outside_the_folder_are_refused(tmp_path: Path, suffix: str, name: str) -> None:
    folder = tmp_path / "scans"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret.raw").write_bytes(bytes(120))
    (folder / "link.raw").symlink_to(tmp_path / "secret.raw")
    named = name.format(folder=tmp_path).encode()
    old, new = (b"scan.raw", named) if suffix == ".mhd" else (b"encoding:", b"data file: " + named + b"\nencoding:")
    with pytest.raises(InputError, match=r"its voxel file .* lies outside its folder; put it beside the header"):
        read_volume(saved(folder, suffix, old, new))


def test_header_and_voxels_that_are_links_into_one_folder_are_read(tmp_path: Path) -> None:
    store, view = tmp_path / "store", tmp_path / "view"
    store.mkdir()
    view.mkdir()
    saved(store, ".mhd")
    for name in ("scan.mhd", "scan.raw"):
        (view / name).symlink_to(store / name)
    assert read_volume(view / "scan.mhd").array.shape == SHAPE


def test_voxels_of_a_nrrd_in_a_file_of_their_own_are_read(tmp_path: Path) -> None:
    path = saved(tmp_path, ".nrrd", b"encoding:", b"data file: voxels.raw\nencoding:")
    head, _, voxels = path.read_bytes().partition(b"\n\n")
    path.write_bytes(head + b"\n")
    (tmp_path / "voxels.raw").write_bytes(voxels)
    np.testing.assert_array_equal(read_volume(path).array.ravel(order="F"), np.arange(60))
    (tmp_path / "voxels.raw").write_bytes(voxels + bytes(40))
    with pytest.raises(InputError, match="a slice or more behind the 120 bytes"):
        read_volume(path)


@pytest.mark.parametrize("files", [b"LIST", b"slice%02d.raw 1 3 1"])
def test_voxels_of_a_nrrd_in_many_files_are_refused(tmp_path: Path, files: bytes) -> None:
    with pytest.raises(InputError, match=r"spread over several files; save the scan as one \.nrrd"):
        read_volume(saved(tmp_path, ".nrrd", b"encoding:", b"data file: " + files + b"\nencoding:"))


def test_pipe_in_place_of_a_scan_is_refused_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "scan.nii.gz")
    with pytest.raises(InputError, match="is no regular file"):
        read_volume(tmp_path / "scan.nii.gz")
    os.mkfifo(tmp_path / "slice.dcm")
    (tmp_path / "scan.nii.gz").unlink()
    with pytest.raises(InputError, match=r"slice\.dcm is no regular file"):
        read_volume(tmp_path)


def test_nifti_that_does_not_say_where_its_voxels_are_is_refused(tmp_path: Path) -> None:
    # Readers take byte 0, 348 or 352, each another image.
    (tmp_path / "a.nii").write_bytes(nifti(scanned(), vox_offset=0))
    with pytest.raises(InputError, match=r"a\.nii: the header puts the voxels at byte 0, not behind itself"):
        read_volume(tmp_path / "a.nii")


# --- DICOM elements, by hand ------------------------------------------------------------------------------------------


def explicit(group: int, element: int, kind: bytes, value: bytes, length: int | None = None) -> bytes:
    length = len(value) if length is None else length
    head = struct.pack("<HH", group, element) + kind
    size = struct.pack("<HI", 0, length) if kind in (b"OW", b"SQ", b"UN", b"OB") else struct.pack("<H", length)
    return head + size + value


UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, END = (struct.pack("<HHI", 0xFFFE, tag, 0) for tag in (0xE000, 0xE00D, 0xE0DD))
OPEN_ITEM = struct.pack("<HHI", 0xFFFE, 0xE000, UNDEFINED)
IMPLICIT_CODE = struct.pack("<HHI", 8, 0x100, 4) + b"CODE"


def dicom(elements: bytes, syntax: bytes = b"1.2.840.10008.1.2.1\0") -> bytes:
    return bytes(128) + b"DICM" + explicit(2, 0x10, b"UI", syntax) + elements


def numbers(rows: int = 4, columns: int = 6, bits: int = 16) -> bytes:
    tags = ((0x10, rows), (0x11, columns), (0x100, bits))
    return b"".join(explicit(0x28, tag, b"US", struct.pack("<H", value)) for tag, value in tags)


PIXELS = explicit(0x7FE0, 0x10, b"OW", bytes(48))
WALKED = {
    "nothing else": (numbers() + PIXELS, 48),
    "more pixels": (numbers() + explicit(0x7FE0, 0x10, b"OW", bytes(60)), 60),
    "compressed pixels": (numbers() + explicit(0x7FE0, 0x10, b"OB", ITEM + END, UNDEFINED), None),
    "a sequence with its length": (explicit(8, 6, b"SQ", ITEM) + numbers() + PIXELS, 48),
    "a sequence up to its end": (
        explicit(8, 6, b"SQ", OPEN_ITEM + explicit(8, 0x100, b"SH", b"CODE") + ITEM_END + ITEM + END, UNDEFINED)
        + (numbers() + PIXELS),
        48,
    ),
    "a sequence of unknown kind, which is implicit": (
        explicit(9, 6, b"UN", OPEN_ITEM + IMPLICIT_CODE + ITEM_END + END, UNDEFINED) + numbers() + PIXELS,
        48,
    ),
    "pixels of an icon": (
        explicit(
            8, 6, b"SQ", OPEN_ITEM + numbers(1, 1) + explicit(0x7FE0, 0x10, b"OW", bytes(2)) + ITEM_END + END, UNDEFINED
        )
        + (numbers() + PIXELS),
        48,
    ),
}


@pytest.mark.parametrize(("elements", "stored"), WALKED.values(), ids=WALKED)
def test_pixels_are_counted_behind_any_elements(tmp_path: Path, elements: bytes, stored: int | None) -> None:
    (tmp_path / "a.dcm").write_bytes(dicom(elements))
    assert pixel_size(tmp_path / "a.dcm") == PixelSize(columns=6, rows=4, promised=48, stored=stored)


BROKEN = {
    "no pixels": numbers(),
    "no rows": numbers()[10:] + PIXELS,
    "pixels behind the end": numbers() + PIXELS[:-1],
    "a kind that is none": explicit(8, 6, b"x?", b"") + numbers() + PIXELS,
    "text without length": explicit(8, 6, b"OW", b"", UNDEFINED) + numbers() + PIXELS,
    "sequence without items": explicit(8, 6, b"SQ", IMPLICIT_CODE, UNDEFINED) + numbers() + PIXELS,
    "sequences without end": explicit(8, 6, b"SQ", OPEN_ITEM, UNDEFINED) * 5000,
    "rows of eight bytes": explicit(0x28, 0x10, b"US", bytes(8)) + numbers() + PIXELS,
    "nothing": b"",
}


@pytest.mark.parametrize("elements", BROKEN.values(), ids=BROKEN)
def test_elements_that_lead_nowhere_are_refused(tmp_path: Path, elements: bytes) -> None:
    (tmp_path / "a.dcm").write_bytes(dicom(elements))
    with pytest.raises(InputError, match=r"a\.dcm: damaged DICOM elements .*; convert it to NIfTI"):
        pixel_size(tmp_path / "a.dcm")


def test_deflated_elements_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(dicom(b"\x78\x9c", b"1.2.840.10008.1.2.1.99"))
    with pytest.raises(InputError, match="is deflated as a whole"):
        pixel_size(tmp_path / "a.dcm")


def test_series_that_gdcm_chokes_on_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(dicom(explicit(0x28, 2, b"US", b"\2\0") + numbers() + PIXELS))
    with pytest.raises(InputError, match="is damaged"):
        read_volume(tmp_path)


@pytest.mark.parametrize("rows", [3, 5, 7, 60000])
def test_rows_that_the_pixels_do_not_fill_are_refused(tmp_path: Path, rows: int) -> None:
    # Without it GDCM read 6 rows of pixels as 7, the last one made up.
    toy = SimpleNamespace(folder=tmp_path, declared={"training": [{}]})
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.nii.gz").touch()
    series()(toy)
    element = struct.pack("<HHIH", 0x28, 0x10, 2, 6)  # SimpleITK writes implicit elements
    for path in (tmp_path / "images/series").iterdir():
        content = path.read_bytes()
        assert content.count(element) == 1
        path.write_bytes(content.replace(element, element[:-2] + struct.pack("<H", rows)))
    with pytest.raises(InputError, match=f"promises {rows * 12} bytes of pixels, the file holds 72|cannot be read"):
        read_volume(tmp_path / "images/series")


def test_first_slice_that_is_no_dicom_any_more_is_missed(tmp_path: Path) -> None:
    # Without it a volume shorter by a slice was read.
    toy = SimpleNamespace(folder=tmp_path, declared={"training": [{}]})
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.nii.gz").touch()
    series()(toy)
    first = min((tmp_path / "images/series").iterdir())
    first.write_bytes(b"no DICOM")
    with pytest.raises(InputError, match=f"{first.name} is damaged or no part of a series"):
        read_volume(tmp_path / "images/series")
