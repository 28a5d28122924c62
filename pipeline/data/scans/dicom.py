# SPDX-License-Identifier: Apache-2.0
"""A folder with one DICOM series read as one volume: stored values x slope + intercept, without display settings.

The slices are ordered and spaced by their own positions. A series with a gap, with two slices at one place, or with
slices of different grids is refused: the stack would look complete, but measurements in it would be wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import SimpleITK as sitk  # noqa: N813  (the name that its manuals use)

from pipeline.data.scans.dicom_elements import PixelSize, pixel_size
from pipeline.data.scans.formats import dicom_files, is_dicom_folder, is_visible, visible_files
from pipeline.data.scans.geometry import Volume, check_affine
from pipeline.data.scans.simpleitk import affine_of, grey_array, is_grey, last_line
from pipeline.errors import InputError

# Positions are decimal text in the files. A step that differs by more than this share from the even one is a gap or an
# overlap, unless all positions are rounded to few digits. A gap puts slices off an even stack by at least a third of a
# step, so roundings up to that size can be distinguished from it.
_STEP_TOLERANCE = 0.02
_COARSEST_ROUNDING = 0.3
_TILT_WORTH_A_NOTE_DEGREES = 0.1
_FRAMES, _DESCRIPTION = "0028|0008", "0008|103e"
_GEOMETRY_TAGS = {
    "ImagePositionPatient": "0020|0032",
    "ImageOrientationPatient": "0020|0037",
    "PixelSpacing": "0028|0030",
}
_PROGRAM_STARTS = (b"MZ", b"\x7fELF")
_SLICE_SUFFIXES = (".dcm", ".dicom", ".ima")


@dataclass(frozen=True)
class _Slice:
    path: Path
    affine: np.ndarray  # (4, 4) voxel to mm in RAS; its third column is the slice normal
    size: tuple[int, int]
    pixel_id: int
    position: tuple[str, ...] = ()  # as the header spells it
    inverted_at: int | None = None  # see `PixelSize`


def read_dicom_series(folder: Path, max_bytes: int) -> Volume:
    """Read the one series in `folder`; files that are no DICOM are left alone.

    Stored values are rescaled slice by slice (HU for CT). Raises `InputError` for none or several series, for slices
    without a place or off an even stack, for colour and multi-frame files, and for more than `max_bytes` of voxels.
    """
    if not is_dicom_folder(folder):
        raise InputError(f"{folder} holds no DICOM files; give a scan, or a folder of scans or of one DICOM series")
    slices = [_read_header(path) for path in series_files(folder)]
    slices, affine, notes = _stacked(folder, slices)
    notes += [*check_affine(folder, affine, "slice positions"), *_programs(folder)]
    promised = int(np.prod(slices[0].size)) * len(slices) * 4
    if promised > max_bytes:
        raise InputError(f"{folder}: {promised} bytes of voxels are more than the limit of {max_bytes}; split the scan")
    return Volume(_read_pixels(slices), affine, folder, None, tuple(notes))


def _named_as_slices(folder: Path) -> list[Path]:
    return [path for path in visible_files(folder) if path.suffix.lower() in _SLICE_SUFFIXES]


def _programs(folder: Path) -> list[str]:
    """Note files that are programs too, by their preamble, whose content DICOM leaves free; the voxels are safe."""
    found = []
    for path in dicom_files(folder):
        with open(path, "rb") as file:
            if file.read(4).startswith(_PROGRAM_STARTS):
                found.append(path.name)
    return (
        [f"{len(found)} files begin as programs do ({found[0]}): never run them, clear their preambles"]
        if found
        else []
    )


def series_files(folder: Path) -> list[Path]:
    """Return the slices of the one series in a folder; `InputError` for several, and for damaged files among them.

    Hidden files are passed over, such as those that macOS lays beside each file on a foreign disk (`._im003.dcm`).
    """
    try:
        series = {
            uid: [Path(name) for name in sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid)]
            for uid in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
        }
        series = {uid: shown for uid, files in series.items() if (shown := [*filter(is_visible, files)])}
    except RuntimeError as error:
        raise InputError(f"{folder}: a file of the series is damaged ({last_line(error)}); export it again") from error
    # GDCM leaves out files that it cannot parse: at either end of the stack nobody would miss them.
    known = {path for files in series.values() for path in files}
    lost = sorted({*dicom_files(folder), *_named_as_slices(folder)} - known)
    if lost:
        raise InputError(f"{lost[0]} is damaged or no part of a series ({len(lost)} such files); export it again")
    if len(series) > 1:
        listed = "; ".join(f"{uid} ({len(files)} files{_described(files[0])})" for uid, files in sorted(series.items()))
        raise InputError(f"{folder} holds {len(series)} DICOM series: {listed}; move one into a folder of its own")
    return next(iter(series.values()))


def _described(path: Path) -> str:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return ""
    return f", {reader.GetMetaData(_DESCRIPTION).strip()}" if reader.HasMetaDataKey(_DESCRIPTION) else ""


def _read_header(path: Path) -> _Slice:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(f"{path} cannot be read: {last_line(error)}; export the series again") from error
    frames = reader.GetMetaData(_FRAMES).strip() if reader.HasMetaDataKey(_FRAMES) else "1"
    if frames != "1" or len(reader.GetSize()) != 3 or reader.GetSize()[2] != 1:
        raise InputError(f"{path} holds {frames} frames in one file; convert it to NIfTI first (dcm2niix does)")
    if not is_grey(reader.GetPixelID()):
        raise InputError(f"{path} is no grey image; give the original slices, not screenshots")
    missing = [name for name, tag in _GEOMETRY_TAGS.items() if not reader.HasMetaDataKey(tag)]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}, so its place is unknown; export the original series")
    width, height, _ = reader.GetSize()
    said = pixel_size(path)
    _check_pixels(path, said, width, height)
    position = tuple(reader.GetMetaData(_GEOMETRY_TAGS["ImagePositionPatient"]).split("\\"))
    return _Slice(path, affine_of(reader), (width, height), reader.GetPixelID(), position, said.inverted_at)


def _check_pixels(path: Path, said: PixelSize, width: int, height: int) -> None:
    """Refuse a file with more or less pixels than its header promises, by a row or more."""
    if (said.columns, said.rows) != (width, height):
        raise InputError(
            f"{path}: {said.columns} x {said.rows} pixels by its header, but read as {width} x {height};"
            " export the series again"
        )
    missing = 0 if said.stored is None else said.promised - said.stored
    if missing > 0 or -missing >= max(2, said.promised // height):  # one byte may fill up to an even length
        raise InputError(
            f"{path}: the header promises {said.promised} bytes of pixels, the file holds {said.stored};"
            " export the series again"
        )


def _stacked(folder: Path, slices: list[_Slice]) -> tuple[list[_Slice], np.ndarray, list[str]]:
    """Return the slices in order along their normal, the affine of the stack, and notes on it."""
    first = slices[0]
    if len(slices) < 2:
        raise InputError(f"{folder} holds a single slice; give the whole series")
    for other in slices[1:]:
        if other.size != first.size or not np.allclose(other.affine[:3, :2], first.affine[:3, :2], atol=1e-4):
            raise InputError(
                f"{other.path} differs in size, pixel spacing or direction from {first.path.name}; keep one series"
            )
    normal = first.affine[:3, 2] / np.linalg.norm(first.affine[:3, 2])
    slices = sorted(slices, key=lambda item: float(item.affine[:3, 3] @ normal))
    positions = np.array([item.affine[:3, 3] for item in slices])
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    notes = _check_even(folder, slices, positions, step)
    affine = slices[0].affine.copy()
    affine[:3, 2] = step
    tilt = float(np.degrees(np.arccos(np.clip(step @ normal / np.linalg.norm(step), -1.0, 1.0))))
    if tilt > _TILT_WORTH_A_NOTE_DEGREES:
        notes.append(f"slices shifted along a tilt of {tilt:.2f} degrees: affine sheared")
    return slices, affine, notes


def _check_even(folder: Path, slices: list[_Slice], positions: np.ndarray, step: np.ndarray) -> list[str]:
    """Refuse steps between neighbours that differ from the most common one by more than rounding; note a coarse one."""
    steps = np.diff(positions, axis=0)
    lengths = np.linalg.norm(steps, axis=1)
    usual = float(np.median(lengths))
    if usual == 0 or lengths.min() < _STEP_TOLERANCE * usual:
        index = int(lengths.argmin())
        raise InputError(
            f"{folder}: {slices[index].path.name} and {slices[index + 1].path.name} lie at one place; leave one"
            " time point or reconstruction in the folder"
        )
    worst = np.linalg.norm(steps - np.median(steps, axis=0), axis=1)
    index = int(worst.argmax())
    if worst[index] > _STEP_TOLERANCE * usual:
        rounding_mm = _rounding_mm(slices)
        if rounding_mm < _COARSEST_ROUNDING * usual and _is_even_but_for(rounding_mm, positions, step):
            return [f"slice positions rounded to {rounding_mm:g} mm: even steps of {np.linalg.norm(step):.4g} mm taken"]
        raise InputError(
            f"{folder}: {lengths[index]:g} mm between {slices[index].path.name} and {slices[index + 1].path.name},"
            f" {usual:g} mm elsewhere; slices are missing or moved, export the whole series"
        )
    return []


def _rounding_mm(slices: list[_Slice]) -> float:
    """Return the unit of the last digit that any position has, such as 0.1 for -12.30 and 4.5."""
    try:
        digits = [Decimal(text.strip()).normalize().as_tuple().exponent for item in slices for text in item.position]
        return 10.0 ** min(0, *digits)
    except (InvalidOperation, TypeError):
        return 0.0


def _is_even_but_for(rounding_mm: float, positions: np.ndarray, step: np.ndarray) -> bool:
    """Tell whether positions (slices, 3) in mm, rounded to `rounding_mm`, can come from even steps.

    Rounding moves a slice by at most half a unit, and the line between first and last slice by at most half a unit.
    """
    even = positions[0] + np.arange(len(positions))[:, None] * step
    return bool(np.abs(positions - even).max() <= 1.001 * rounding_mm)


def _read_pixels(slices: list[_Slice]) -> np.ndarray:
    """Return the rescaled values (x, y, z): int16 where all fit, else int32 or float32.

    Each slice has its own rescaling, so the common type is chosen after all headers have been read.
    """
    real = any(item.pixel_id in (sitk.sitkFloat32, sitk.sitkFloat64) for item in slices)
    array = np.empty((*slices[0].size, len(slices)), dtype=np.float32 if real else np.int32, order="F")
    for index, item in enumerate(slices):
        try:
            array[..., index] = grey_array(_read_slice(item))[..., 0]
        except RuntimeError as error:
            raise InputError(f"{item.path} cannot be read: {last_line(error)}; export the series again") from error
    return _narrowed(array)


def _read_slice(item: _Slice) -> sitk.Image:
    """Return the values of a slice. GDCM inverts MONOCHROME1 for the screen, so it is told MONOCHROME2 instead."""
    if item.inverted_at is None:
        return sitk.ReadImage(str(item.path))
    content = bytearray(item.path.read_bytes())
    content[item.inverted_at] = ord("2")
    with TemporaryDirectory() as folder:
        (copy := Path(folder) / "slice.dcm").write_bytes(content)
        return sitk.ReadImage(str(copy))


def _narrowed(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "i" and array.min() >= -(2**15) and array.max() < 2**15:
        return array.astype(np.int16)
    return array
