# SPDX-License-Identifier: Apache-2.0
"""The list of bad inputs, one dataset of tiny files a row: what the check tells, training refuses, and the reverse.

Each row spoils one thing in a good dataset. The check must name the file, the fact and the remedy; loading the dataset
and preparing its slices, as training does it, must then fail for an error and succeed for a note.
"""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import InputError
from tests.data.toy_datasets import (
    AFFINE,
    PACKED,
    PIXELS,
    PLAIN,
    ROW,
    STORED,
    Spoil,
    Toy,
    bytes_of,
    compressed_anew,
    copy,
    declare,
    drawn,
    entry,
    flipped,
    folder_in_place_of_a_file,
    header,
    image,
    label,
    link_to_itself,
    masked_as,
    nifti,
    picture,
    png_of,
    renamed,
    rows_of,
    saved_as_float,
    saved_by_itk,
    scanned,
    series,
    spelled_with_blanks,
    tells,
    train_on,
)

NO_FORMS = {"sform_code": 0, "qform_code": 0}


def sform(x: list[float], y: list[float], z: list[float]) -> dict[str, object]:
    return {"sform_code": 1, "srow_x": x, "srow_y": y, "srow_z": z}


HUGE = [3, 32767, 32767, 32767, 1, 1, 1, 1]
BOMB = [3, 1024, 1024, 700, 1, 1, 1, 1]
MOVED = AFFINE + np.array([[0, 0, 0, 0.5], [0] * 4, [0] * 4, [0] * 4])
ALMOST = AFFINE + np.array([[0, 0, 0, 1e-6], [0] * 4, [0] * 4, [0] * 4])
FLIPPED = AFFINE @ np.array([[-1, 0, 0, 5], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
OBLIQUE = AFFINE @ np.array([[0.96, -0.28, 0, 0], [0.28, 0.96, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
A, LABEL, JSON = "images/a.nii.gz", "labels/a.nii.gz", "dataset.json"

# What is refused: number in the list and content; how it is made; file, fact and remedy that the check must tell.
REFUSED: dict[str, tuple[Spoil, str, str, str]] = {
    "1 gzip truncated": (image(PACKED[:300]), A, "gzip data end early, after 300 bytes", "download"),
    "2 gzip checksum wrong": (image(flipped(PACKED, len(PACKED) - 6)), A, "damaged gzip data .*CRC", "download"),
    "3 one byte flipped": (image(flipped(STORED, 500)), A, "damaged gzip data .*CRC", "download"),
    "3 one byte flipped in a label": (
        lambda toy: toy.put(LABEL, flipped(gzip.compress(nifti(drawn()), 0), 450)),
        LABEL,
        "damaged gzip data .*CRC",
        "download",
    ),
    "4 empty file": (image(b""), A, "is empty", "download or export it again"),
    "5 web page": (image(b"<!DOCTYPE html><html>404</html>"), A, "web page.* the download failed", "download it again"),
    "6 truncated nii": (renamed(PLAIN[:-10], ".nii"), "images/a.nii", "cut off: .* 432 bytes .* 774", "download"),
    "6 header of a nii alone": (renamed(PLAIN[:352], ".nii"), "images/a.nii", "is cut off", "download"),
    "7 plain file named gz": (image(PLAIN), A, "is not gzip-compressed", "rename it to .nii"),
    "8 NaN voxel": (image(gzip.compress(nifti(scanned(7, math.nan, "float32")))), A, "1 of 216 .* NaN", "replace"),
    "9 infinite voxel": (image(gzip.compress(nifti(scanned(7, -math.inf, "float32")))), A, "infinite", "replace"),
    "10 time series": (image(gzip.compress(nifti(scanned().reshape(6, 6, 3, 2)))), A, "4D.* series", "one frame"),
    "13 2D image": (image(gzip.compress(nifti(scanned()[..., 0]))), A, r"is 2D \(6 x 6\)", "give a 3D volume"),
    "16 header promises 70 TB": (header(dim=HUGE), A, "more than the limit of 8589934592", "check the file"),
    "17 decompression bomb": (header(dim=BOMB), A, "would grow .* times", "get the true file"),
    "19 no voxel size": (header(**NO_FORMS, pixdim=[1, 0, 0, 0, 0, 0, 0, 0]), A, "pixdim", "true voxel size"),
    "19 voxels of 1e-30 mm": (
        image(gzip.compress(nifti(scanned(), np.diag([1e-30, 1e-30, 1e-30, 1])))),
        A,
        "gives voxels of 1e-30 x 1e-30 x 1e-30 mm",
        "true voxel size",
    ),
    "19 voxels of 0 mm in NRRD": (
        saved_by_itk(".nrrd", b"directions: (0.80000000000000004", b"directions: (0"),
        "images/a.nrrd",
        "the direction and spacing holds NaN",
        "write a valid one",
    ),
    "21 sform of zeros": (header(**sform([0] * 4, [0] * 4, [0] * 4)), A, "the sform gives voxels of 0", "true voxel"),
    "22 sform of NaN": (header(**sform([math.nan] * 4, ROW, ROW)), A, "the sform holds NaN", "write a valid one"),
    "23 singular sform": (header(**sform(ROW, [0, 1, 1, 0], [0, 1, 1, 0])), A, "the sform is singular", "valid one"),
    "28 label of another shape": (label(drawn()[..., :5]), LABEL, "has shape 6 x 6 x 5, but images/a", "the label"),
    "29 label in another place": (label(drawn(), MOVED), LABEL, "not lie on the grid of images/a.*0.5 mm", "resample"),
    "30 label value unknown": (label(drawn(9)), LABEL, r"unknown label values 9 \(1 voxels\)", "declares 0, 1, 2"),
    "30 label value out of range": (label(drawn(300, "int16")), LABEL, r"300 \(1 voxels\)", "save it as drawn"),
    "31 label of 2.4": (label(drawn(2.4, "float32")), LABEL, r"whole numbers .* 2.4 \(1 voxels\)", "save it as drawn"),
    "8 NaN in a label": (label(drawn(math.nan, "float32")), LABEL, "NaN or infinite", "replace"),
    "38 unknown data type": (header(datatype=3, bitpix=16), A, "data code 3 not", "export the scan again"),
    "39 bad magic": (header(magic=b"abc"), A, "magic b'abc'", "save it as .nii"),
    "40 voxels far behind": (header(vox_offset=2.0**40), A, "the voxels at byte 1099511627776", "export it again"),
    "40 a slice too many": (image(gzip.compress(PLAIN + bytes(72))), A, "a slice or more behind", "export it again"),
    "40 a slice too many in MetaImage": (
        saved_by_itk(".mha", b"DimSize = 6 6 6", b"DimSize = 6 6 5"),
        "images/a.mha",
        "a slice or more behind the 360 bytes",
        "export it again",
    ),
    "40 a slice too many in NRRD": (
        saved_by_itk(".nrrd", b"sizes: 6 6 6", b"sizes: 6 6 5"),
        "images/a.nrrd",
        "a slice or more behind the 360 bytes",
        "export it again",
    ),
    "40 a slice too many in packed NRRD": (
        saved_by_itk(".nrrd", b"sizes: 6 6 6", b"sizes: 6 6 5", packed=True),
        "images/a.nrrd",
        "more voxels than the 360 bytes",
        "export it again",
    ),
    "47 values that the header rescales": (
        saved_by_itk(".mha", b"ElementType", b"ElementToIntensityFunctionOffset = -1024\nElementType"),
        "images/a.mha",
        "rescales the voxels .*offset -1024",
        "export the values themselves",
    ),
    "47 values quantised in NRRD": (
        saved_by_itk(".nrrd", b"endian", b"old min: -1024\nold max: 3000\nendian"),
        "images/a.nrrd",
        "rescales the voxels",
        "export the values themselves",
    ),
    "19 metres": (header(xyzt_units=1), A, "another unit than mm", "convert it to mm"),
    "19 centimetres in NRRD": (
        saved_by_itk(".nrrd", b"endian", b'space units: "cm" "cm" "cm"\nendian'),
        "images/a.nrrd",
        "measures in .*cm",
        "convert it to mm",
    ),
    "19 centimetres in MetaImage": (
        saved_by_itk(".mha", b"ElementType", b"DistanceUnits = cm\nElementType"),
        "images/a.mha",
        "measures in cm",
        "convert it to mm",
    ),
    "42 missing file": (lambda toy: (toy.folder / A).unlink(), A, "no such file", "check the path"),
    "42 folder named like a file": (folder_in_place_of_a_file, A, "is a folder, though", "give the file inside"),
    "42 link to itself": (link_to_itself, A, "symbolic links", "check the path"),
    "42 name that is too long": (
        entry("training", image=f"images/{'a' * 300}.nii.gz"),
        f"images/{'a' * 300}.nii.gz",
        "too long",
        "check the path",
    ),
    "43 name with a control character": (
        entry("training", image="images/\x1b[31m.nii.gz"),
        JSON,
        "control character",
        "rename the file",
    ),
    "44 two cases of one id": (entry("test", case="a"), JSON, "case a is listed twice", "one id"),
    "44 ids that differ in a blank": (entry("test", case="a "), JSON, "case a is listed twice", "one id"),
    "44 one file under two ids": (
        entry("test", image=A, label="labels/c.nii.gz"),
        A,
        "one file with images/a.nii.gz of case a",
        "its own file",
    ),
    "44 one scan copied": (copy(A, "images/c.nii.gz"), "images/c.nii.gz", "same image as case a .training", "keep one"),
    "44 one scan compressed anew": (compressed_anew, "images/c.nii.gz", "same image as case a .training", "keep one"),
    "45 one patient in two splits": (entry("test", patient="pa"), JSON, "patient pa .* test, training", "into one"),
    "45 patient with a blank": (entry("test", patient="pa "), JSON, "patient pa .* test, training", "into one"),
    "45 patient with composed accents": (
        lambda toy: (entry("training", patient="Jos\u00e9")(toy), entry("test", patient="Jose\u0301")(toy)),
        JSON,
        "patient José .* test, training",
        "into one",
    ),
    "48 colour scan": (header(datatype=128, bitpix=24), A, "no grey values", "integers or floats"),
    "56 misspelt option": (declare(spacing_knwon=False), JSON, "'spacing_knwon' is unknown", "mean 'spacing_known'"),
    "56 misspelt label": (
        lambda toy: toy.declared["test"][0].update(lable=toy.declared["test"][0].pop("label")),
        JSON,
        r"test\[0\].*'lable' is unknown",
        "mean 'label'",
    ),
    "56 missing key": (lambda toy: toy.declared.pop("labels"), JSON, "lacks the key labels", "writes all of them"),
    "56 labels with a gap": (
        declare(labels={"0": "background", "1": "liver", "3": "spleen"}),
        JSON,
        "must count 0, 1, 2",
        "renumber",
    ),
    "56 percentile of 400 digits": (
        declare(intensity={"rule": "window", "low": -(10**400), "high": 1}),
        JSON,
        "low is -1000",
        "finite number",
    ),
    "73 slice missing": (series(missing=3), "images/series", "4 mm between .* 2 mm elsewhere", "whole series"),
    "73 two series": (series(second=True), "images/series", "holds 2 DICOM series", "folder of its own"),
}
# What is accepted and noted: the file, the fact and what was taken.
NOTED: dict[str, tuple[Spoil, str, str, str]] = {
    "11 last axis of length 1": (image(gzip.compress(nifti(scanned()[..., None]))), A, "read as 3D", "none needed"),
    "20 voxel size negative": (
        lambda toy: (
            header(**NO_FORMS, pixdim=[1, -0.8, 0.8, 2, 0, 0, 0, 0])(toy),
            toy.put(LABEL, gzip.compress(nifti(drawn(), **NO_FORMS, pixdim=[1, 0.8, 0.8, 2, 0, 0, 0, 0]))),
        ),
        A,
        "negative voxel size",
        "taken as positive",
    ),
    "20 voxel size negative in MetaImage": (
        lambda toy: (
            saved_by_itk(".mha", b"ElementSpacing = 0.8", b"ElementSpacing = -0.8")(toy),
            label(drawn(), np.diag([0.8, -0.8, 2.0, 1.0]))(toy),
        ),
        "images/a.mha",
        "negative voxel size",
        "axis runs the other way",
    ),
    "24 sform and qform disagree": (header(qform_code=1, qoffset_x=7.0), A, "disagree by 7 mm", "sform used"),
    "25 label stored from the other side": (label(drawn()[::-1], FLIPPED), LABEL, "axes turned", "none needed"),
    "32 empty label": (label(np.zeros((6, 6, 6), "uint8")), LABEL, "is empty", "take the case out"),
    "32 organ absent in training": (
        label(np.minimum(drawn(), 1)),
        JSON,
        "no case of the training split has a spleen",
        "cannot learn it",
    ),
    "44 ids that differ in capitals": (entry("test", case="A"), JSON, "differ in capitals alone: A, a", "make sure"),
    "44 one label under two ids": (copy(LABEL, "labels/c.nii.gz"), "labels/c.nii.gz", "same label as case a", "drawn"),
    "44 count that is not the list's": (declare(numTraining=7), JSON, "numTraining is 7, but 1", "the list counts"),
    "46 file of no case": (
        lambda toy: toy.put("images/d.nii.gz", PACKED),
        "images",
        "1 file of no usable case: d.nii.gz",
        "add them",
    ),
    "47 grey values": (
        image(gzip.compress(nifti(scanned() % 256))),
        A,
        r"do not look like Hounsfield units but like grey",
        "export the CT in HU",
    ),
    "47 offset of 1024": (image(gzip.compress(nifti(scanned() + 1024))), A, "do not look like", "offset, likely 1024"),
    "73 DICOM that begins as a program": (series(start=b"MZ"), "images/series", "6 files begin as programs", "never"),
}
# What is accepted without a word.
SILENT: dict[str, Spoil] = {
    "26 oblique": lambda toy: (image(gzip.compress(nifti(scanned(), OBLIQUE)))(toy), label(drawn(), OBLIQUE)(toy)),
    "29 affine off by a millionth": label(drawn(), ALMOST),
    "31 label of 1.0000001": label(drawn(1.0000001, "float64")),
    "31 label of floats": label(drawn(1, "float32")),
    "43 letters and blanks in paths": spelled_with_blanks,
}
SLIDES_REFUSED: dict[str, tuple[Spoil, str, str, str]] = {
    "1 truncated": (bytes_of(lambda content: content[:150]), "images/a.png", "truncated or damaged", "copy it anew"),
    "2 checksum wrong": (
        bytes_of(lambda content: flipped(content, content.index(b"IEND") - 6)),
        "images/a.png",
        "truncated or damaged",
        "copy it anew",
    ),
    "4 empty file": (bytes_of(lambda content: b""), "images/a.png", "is empty", "copy it anew"),
    "5 web page": (bytes_of(lambda content: b"<html>404"), "images/a.png", "is a web page", "download it anew"),
    "16 header of 3.6 billion pixels": (
        lambda toy: toy.put("images/a.png", png_of(60_000, 60_000)),
        "images/a.png",
        "more than 178 million pixels",
        "tiled TIFF",
    ),
    "28 mask of another size": (
        picture(PIXELS[:8] % 3, "labels/a.png"),
        "labels/a.png",
        "has 8 x 16 .* 16 x 16",
        "mask",
    ),
    "30 class unknown": (
        picture(PIXELS // 64, "labels/a.png"),
        "labels/a.png",
        r"values 3 \(\d+ pixels\)",
        "known are",
    ),
    "31 mask compressed as JPEG": (masked_as(".jpg"), "labels/a.jpg", "JPEG, which blurs values", "data_prep.gastric"),
    "42 missing file": (lambda toy: (toy.folder / "images/a.png").unlink(), "images/a.png", "no picture", "path"),
    "44 one tile under two ids": (copy("images/a.png", "images/c.png"), "images/c.png", "same image as case a", "keep"),
    "48 grey tile for colour": (
        declare(modality={"0": "red", "1": "green", "2": "blue"}),
        "images/a.png",
        "is grey, but colour is asked for",
        "stained original",
    ),
    "48 slides without tile_px": (
        lambda toy: toy.declared.pop("tile_px"),
        JSON,
        "'grey slide' without",
        "a tile's side",
    ),
    "49 tile that is no square": (
        lambda toy: (picture(PIXELS[:8])(toy), picture(PIXELS[:8] % 3, "labels/a.png")(toy)),
        "images/a.png",
        "is 8 x 16 pixels, no square",
        "square training tiles",
    ),
}
SLIDES_NOTED: dict[str, tuple[Spoil, str, str, str]] = {
    "32 masks of healthy tissue": (
        picture(np.zeros((16, 16), np.uint8), "labels/b.png"),
        JSON,
        "1 mask with nothing but background: b",
        "none needed",
    ),
    "49 blank tile": (picture(np.full((16, 16), 255, np.uint8)), "images/a.png", "all pixels are 255", "take it out"),
}


KINDS = [("scans", REFUSED, NOTED), ("slides", SLIDES_REFUSED, SLIDES_NOTED)]


@pytest.mark.filterwarnings("error::UserWarning:pipeline")
@pytest.mark.parametrize(("kind", "row"), [(kind, row) for kind, refused, _ in KINDS for row in refused])
def test_refused_by_the_check_and_by_training(tmp_path: Path, kind: str, row: str) -> None:
    spoil, *expected = {"scans": REFUSED, "slides": SLIDES_REFUSED}[kind][row]
    tells(rows_of(Toy(tmp_path, kind), spoil), "error", tuple(expected))
    with pytest.raises(InputError) as caught:
        train_on(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "row"), [(kind, row) for kind, _, noted in KINDS for row in noted])
def test_accepted_by_training_and_noted_by_the_check(tmp_path: Path, kind: str, row: str) -> None:
    spoil, *expected = {"scans": NOTED, "slides": SLIDES_NOTED}[kind][row]
    tells(rows_of(Toy(tmp_path, kind), spoil), "note", tuple(expected))
    train_on(tmp_path)


@pytest.mark.parametrize("row", SILENT)
def test_accepted_without_a_word(tmp_path: Path, row: str) -> None:
    assert rows_of(Toy(tmp_path), SILENT[row]) == []
    train_on(tmp_path)


@pytest.mark.parametrize("kind", ["scans", "slides"])
def test_the_dataset_that_the_rows_spoil_is_good(tmp_path: Path, kind: str) -> None:
    assert rows_of(Toy(tmp_path, kind), lambda toy: None) == []
    train_on(tmp_path)


def test_a_scan_saved_in_other_numbers_is_found_by_the_check_alone(tmp_path: Path) -> None:
    """Row 44, where only the voxels tell: training, which never has all splits in memory, does not compare them."""
    rows = rows_of(Toy(tmp_path), saved_as_float)
    tells(rows, "error", ("images/c.nii.gz", "same image as case a .training", "keep one"))
