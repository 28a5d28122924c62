# SPDX-License-Identifier: Apache-2.0
"""Values of a DICOM series are stored value x slope + intercept; its slices lie where their positions say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from pipeline.data.scans.volumes import read_volume
from pipeline.errors import InputError
from tests.data.scans.dicom_series import STEP_MM, write_slices

STORED = np.random.default_rng(0).integers(0, 4000, (5, 4, 7))


def with_tags(**tags: object):
    def change(header: Dataset, index: int) -> None:
        for name, value in tags.items():
            setattr(header, name, value)

    return change


def lookup_table() -> Dataset:
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [4096, 0, 16])
    table.add_new("LUTExplanation", "LO", "turned round")
    table.add_new("ModalityLUTType", "LO", "HU")
    table.add_new("LUTData", "OW", np.arange(4096, dtype="<u2")[::-1].tobytes())
    return table


KINDS = {
    "signed 16 bits": (STORED - 1000, {}),
    "unsigned 16 bits": (STORED, {"signed": False}),
    "unsigned 12 of 16 bits": (STORED, {"signed": False, "bits_stored": 12}),
    "unsigned 8 bits": (STORED // 16, {"signed": False, "bits": 8, "bits_stored": 8}),
}


@pytest.mark.parametrize("rescale", [("1", "0"), ("1", "-1024"), ("0.5", "-100")])
@pytest.mark.parametrize("kind", KINDS)
def test_monochrome1_is_for_the_display_alone(tmp_path: Path, kind: str, rescale: tuple[str, str]) -> None:
    stored, options = KINDS[kind]
    tags = dict(zip(("RescaleSlope", "RescaleIntercept"), rescale, strict=True))
    shown = {
        name: read_volume(
            write_slices(tmp_path / name, stored, change=with_tags(PhotometricInterpretation=name, **tags), **options)
        )
        for name in ("MONOCHROME1", "MONOCHROME2")
    }
    expected = stored * float(rescale[0]) + float(rescale[1])
    for volume in shown.values():
        np.testing.assert_array_equal(volume.array, expected)
        assert volume.notes == ()
    assert shown["MONOCHROME1"].array.dtype == shown["MONOCHROME2"].array.dtype


DISPLAYED = {
    "window": {"WindowCenter": "40", "WindowWidth": "400", "VOILUTFunction": "SIGMOID"},
    "table of the window": {"VOILUTSequence": Sequence([lookup_table()])},
    "presentation turned round": {"PresentationLUTShape": "INVERSE"},
    "softcopy in colour": {"PixelPresentation": "MIXED"},
    "padding": {"PixelPaddingValue": 0},
    "smallest and largest": {"SmallestImagePixelValue": 7, "LargestImagePixelValue": 8},
}


@pytest.mark.parametrize("tags", DISPLAYED.values(), ids=DISPLAYED)
def test_tags_of_the_display_change_no_value(tmp_path: Path, tags: dict[str, object]) -> None:
    folder = write_slices(tmp_path / "series", STORED, signed=False, bits_stored=12, change=with_tags(**tags))
    np.testing.assert_array_equal(read_volume(folder).array, STORED)


def test_bits_of_an_overlay_above_the_stored_ones_change_no_value(tmp_path: Path) -> None:
    folder = write_slices(tmp_path / "series", STORED | 0x8000, signed=False, bits_stored=12)
    np.testing.assert_array_equal(read_volume(folder).array, STORED)


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"ModalityLUTSequence": Sequence([lookup_table()])}, "a table gives the values"),
        ({"RescaleSlope": "0"}, "the rescale slope is '0'"),
        ({"RescaleSlope": "nan"}, "the rescale slope is 'nan'"),
        ({"RescaleSlope": "1e999"}, "the rescale slope is '1e999'"),
        ({"RescaleIntercept": "inf"}, "the rescale intercept is 'inf'"),
        ({"BitsStored": 12, "HighBit": 15}, "values of 12 bits end at bit 15, not 11"),
    ],
)
def test_values_that_would_be_guessed_are_refused(tmp_path: Path, tags: dict[str, object], message: str) -> None:
    with disable_value_validation():  # pydicom itself would write no such number
        folder = write_slices(tmp_path / "series", STORED, signed=False, change=with_tags(**tags))
    with pytest.raises(InputError, match=message):
        read_volume(folder)


@pytest.mark.parametrize("spelt", ["{:.1f}", "{:.1f}00"])
def test_positions_rounded_to_a_tenth_are_read_with_a_note(tmp_path: Path, spelt: str) -> None:
    def change(header: Dataset, index: int) -> None:
        header.ImagePositionPatient = ["0", "0", spelt.format(-100 + index * STEP_MM)]

    volume = read_volume(write_slices(tmp_path / "series", STORED, change=change))
    assert volume.notes == ("slice positions rounded to 0.1 mm: even steps of 1.25 mm taken",)
    assert volume.spacing_mm == pytest.approx((1, 1, STEP_MM), abs=0.1 / 6)
    np.testing.assert_array_equal(volume.array, STORED)


@pytest.mark.parametrize("missing", [1, 3, 5])
def test_slice_that_is_missing_is_no_rounding(tmp_path: Path, missing: int) -> None:
    def change(header: Dataset, index: int) -> None:
        header.ImagePositionPatient = [0, 0, round(index * STEP_MM, 1)]

    folder = write_slices(tmp_path / "series", STORED, change=change)
    (folder / f"im{missing:03d}.dcm").unlink()
    with pytest.raises(InputError, match="slices are missing or moved"):
        read_volume(folder)


def test_rounding_as_coarse_as_the_steps_is_refused(tmp_path: Path) -> None:
    def change(header: Dataset, index: int) -> None:
        header.ImagePositionPatient = [0, 0, round(index * STEP_MM)]

    with pytest.raises(InputError, match="slices are missing or moved"):
        read_volume(write_slices(tmp_path / "series", STORED, change=change))


@pytest.mark.parametrize("content", [b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(4096), b""])
def test_what_macos_lays_beside_the_slices_is_passed_over(tmp_path: Path, content: bytes) -> None:
    folder = write_slices(tmp_path / "series", STORED)
    for path in sorted(folder.iterdir()):
        path.with_name(f"._{path.name}").write_bytes(content)
    (folder / ".DS_Store").write_bytes(content)
    volume = read_volume(folder)
    np.testing.assert_array_equal(volume.array, STORED)
    assert volume.notes == ()
