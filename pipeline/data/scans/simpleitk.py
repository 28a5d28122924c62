# SPDX-License-Identifier: Apache-2.0
"""NRRD and MetaImage files (`.nrrd`, `.mha`, `.mhd`) through SimpleITK, which MONAI has no reader for.

It is not used for NIfTI: SimpleITK refuses affines that NiBabel reads. Some faults that SimpleITK ignores are refused
here: a header that gives no voxel size, other units than mm, values that the header rescales, data that do not unpack,
and more voxels than the header promises.
"""

from __future__ import annotations

import math
import re
import zlib
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813  (the name that its manuals use)

from pipeline.data.scans.geometry import Volume, check_affine
from pipeline.data.scans.text_headers import file_beside, meta_header, nrrd_header
from pipeline.errors import InputError

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_CHUNK_BYTES = 1 << 20
# The file with the voxels (None where part of it is skipped), the byte where they begin, and their packing.
_Voxels = tuple[Path | None, int, str]
# The spaces that define left and right; ITK takes any other as if it were LPS.
_ANATOMICAL_SPACES = {
    *("right-anterior-superior", "left-anterior-superior", "left-posterior-superior"),
    *("ras", "las", "lps"),
}
_GREY_TYPES = {
    **dict.fromkeys((sitk.sitkInt8, sitk.sitkUInt8), 1),
    **dict.fromkeys((sitk.sitkInt16, sitk.sitkUInt16), 2),
    **dict.fromkeys((sitk.sitkInt32, sitk.sitkUInt32, sitk.sitkFloat32), 4),
    **dict.fromkeys((sitk.sitkInt64, sitk.sitkUInt64, sitk.sitkFloat64), 8),
}


def read_simpleitk(path: Path, max_bytes: int) -> Volume:
    """Read a `.nrrd`, `.mha` or `.mhd` file; the affine is turned from ITK's LPS to RAS.

    Integers stay integers, floats become float32. Raises `InputError` for damaged files, other than one 3D frame of
    grey values, more than `max_bytes` of voxels, and headers without voxel size or (NRRD) anatomical space.
    """
    check_header = _check_nrrd_header if path.suffix.lower() == ".nrrd" else _check_meta_header
    notes, voxels = check_header(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        more = _check_information(path, reader, max_bytes)
        affine = affine_of(reader)
        # Before the voxels: ITK inverts the matrix, and never ends with one of huge numbers.
        more += check_affine(path, affine, "direction and spacing")
        more += _check_data(path, *voxels, reader)
        image = reader.Execute()
    except RuntimeError as error:
        raise InputError(f"{path} cannot be read: {last_line(error)}; download or export it again") from error
    if image.GetDimension() == 4:
        image = image[:, :, :, 0]
    return Volume(grey_array(image), affine, path, None, (*notes, *more))


def affine_of(image: sitk.Image | sitk.ImageFileReader) -> np.ndarray:
    """Return the (4, 4) voxel to mm affine in RAS of an image or of a reader that has read its header.

    If there are more than three dimensions, the first three are taken.
    """
    affine, spacing = np.eye(4), np.asarray(image.GetSpacing())
    direction = np.reshape(image.GetDirection(), (len(spacing), len(spacing)))
    with np.errstate(over="ignore", invalid="ignore"):  # what is no finite number is refused
        affine[:3, :3] = direction[:3, :3] * spacing[:3]
    affine[:3, 3] = image.GetOrigin()[:3]
    return _LPS_TO_RAS @ affine


def grey_array(image: sitk.Image) -> np.ndarray:
    """Return the voxels as an (x, y, z) array, x fastest in memory as in a NIfTI file; float64 becomes float32."""
    array = sitk.GetArrayFromImage(image).T
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and that is refused
        return array.astype(np.float32, copy=False) if array.dtype.kind == "f" else array


def last_line(error: RuntimeError) -> str:
    """Return the last line of an exception of ITK, which names the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "unknown cause"


def is_grey(pixel_id: int) -> bool:
    """Tell whether a SimpleITK pixel type is one integer or real number."""
    return pixel_id in _GREY_TYPES


def _check_information(path: Path, reader: sitk.ImageFileReader, max_bytes: int) -> list[str]:
    size = reader.GetSize()
    text = " x ".join(map(str, size))
    if len(size) < 3:
        raise InputError(f"{path} is {len(size)}D ({text}); give a 3D volume")
    if any(length > 1 for length in size[3:]):
        raise InputError(f"{path} is {len(size)}D ({text}), a series of volumes; save the one frame that you need")
    if min(size) < 1:
        raise InputError(f"{path}: the header gives the shape {text}; export the scan again")
    if not is_grey(reader.GetPixelID()):
        kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
        raise InputError(f"{path}: voxels of type {kind} are no grey values; save one channel of integers or floats")
    promised = _promised_bytes(reader)
    if promised > max_bytes:
        raise InputError(
            f"{path}: the header promises {promised} bytes of voxels, more than the limit of {max_bytes};"
            " check the file, or split the scan"
        )
    return [f"shape {text} read as 3D"] if len(size) > 3 else []


def _promised_bytes(reader: sitk.ImageFileReader) -> int:
    return math.prod(reader.GetSize()) * _GREY_TYPES[reader.GetPixelID()]


def _check_nrrd_header(path: Path) -> tuple[list[str], _Voxels]:
    """Refuse a NRRD without voxel size or with axes that name no side of the patient; return notes and its voxels."""
    fields, end = nrrd_header(path)
    space = fields.get("space", "").lower()
    if "space directions" not in fields:
        raise InputError(f"{path}: no 'space directions', so no voxel size; export the scan with its geometry")
    if space not in _ANATOMICAL_SPACES:
        raise InputError(f"{path}: space {space!r} does not say where left is; export it as left-posterior-superior")
    if set(re.findall(r'"([^"]*)"', fields.get("space units", ""))) - {"mm"}:
        raise InputError(f"{path}: the header measures in {fields['space units']}; convert it to mm")
    if {"old min", "old max", "oldmin", "oldmax"} & fields.keys():
        raise InputError(f"{path}: the header rescales the voxels (old min, old max); export the values themselves")
    notes = [] if "space origin" in fields else ["no origin in the header: 0 taken"]
    return notes, _nrrd_voxels(path, fields, end)


def _nrrd_voxels(path: Path, fields: dict[str, str], end: int) -> _Voxels:
    data = path
    name = fields.get("data file", fields.get("datafile"))
    if name is not None:
        if name.startswith("LIST") or "%" in name:
            raise InputError(f"{path}: voxels spread over several files; save the scan as one .nrrd")
        data, end = file_beside(path, name), 0
    skipped = {"line skip", "lineskip", "byte skip", "byteskip"} & fields.keys()
    packing = fields.get("encoding", "").lower()
    return (None if skipped else data), end, packing


def _meta_voxels(fields: dict[str, str], data: Path, start: int) -> _Voxels:
    if fields.get("compresseddata", "").lower().startswith("t"):
        return data, start, "gzip"
    text = fields.get("binarydata", "true").lower().startswith("f")
    return (None, start, "text") if text or "headersize" in fields else (data, start, "raw")


def _meta_file(path: Path, name: str, end: int) -> tuple[Path, int]:
    """Return the file of voxels that a MetaImage names, and the byte where they begin."""
    if name.upper() == "LOCAL":
        return path, end
    if name.upper().startswith("LIST") or "%" in name:
        raise InputError(f"{path}: voxels spread over several files; save the scan as one .mha")
    return file_beside(path, name), 0


def _check_meta_header(path: Path) -> tuple[list[str], _Voxels]:
    """Refuse a MetaImage without voxel size or without the one file of its voxels; return notes and those voxels."""
    fields, end = meta_header(path)
    data, start = _meta_file(path, fields["elementdatafile"], end)
    packed = int(fields.get("compresseddatasize", 0))
    if packed > data.stat().st_size:
        raise InputError(f"{path}: {packed} bytes of compressed voxels in a shorter file; download or export it again")
    if fields.get("compresseddata", "").lower().startswith("t") and fields.get("headersize", "0") != "0":
        # ITK unpacks from another byte than it should, and gives whatever lies in memory.
        raise InputError(
            f"{path}: compressed voxels behind a header of {fields['headersize']} bytes; save the scan anew"
        )
    if "elementspacing" not in fields and "elementsize" not in fields:
        raise InputError(f"{path}: no ElementSpacing, so no voxel size; write the true one into the header")
    if fields.get("distanceunits", "mm").lower() not in ("mm", "?"):
        raise InputError(f"{path}: the header measures in {fields['distanceunits']}; convert it to mm")
    _check_meta_scaling(path, fields)
    oriented = {"transformmatrix", "rotation", "orientation"} & fields.keys()
    notes = [] if oriented else ["no orientation in the header: axes taken as LPS"]
    if "-" in re.sub(r"e-", "", fields.get("elementspacing", ""), flags=re.IGNORECASE):
        notes.append(f"negative voxel size {fields['elementspacing']}: that axis runs the other way")
    return notes, _meta_voxels(fields, data, start)


def _check_meta_scaling(path: Path, fields: dict[str, str]) -> None:
    """Refuse a slope or an offset, which MetaIO writes and ITK never applies."""
    for key, neutral in (("elementtointensityfunctionslope", 1.0), ("elementtointensityfunctionoffset", 0.0)):
        try:
            scaled = float(fields.get(key, neutral)) != neutral
        except ValueError:
            scaled = True
        if scaled:
            raise InputError(
                f"{path}: the header rescales the voxels ({key} {fields[key]}); export the values themselves"
            )


def _check_data(path: Path, data: Path | None, start: int, packing: str, reader: sitk.ImageFileReader) -> list[str]:
    """Compare the voxels that the file holds with those that its header promises; returns a note on a few bytes more.

    Otherwise, a header with a slice too few would be read without a message, as an image of another shape.
    """
    promised = _promised_bytes(reader)
    if data is None:
        return []
    if packing in ("gzip", "gz"):
        _check_unpacked(path, data, start, promised)
    surplus = data.stat().st_size - start - promised if packing == "raw" else 0
    if surplus >= promised // reader.GetSize()[2]:
        raise InputError(
            f"{path}: a slice or more behind the {promised} bytes that the header promises; export it again"
        )
    return [f"{surplus} bytes behind the voxels ignored"] if surplus > 0 else []


def _check_unpacked(path: Path, data: Path, start: int, promised: int) -> None:
    """Unpack compressed voxels to the end, without keeping them, so that zlib compares its checksum.

    Raises `InputError` for damaged data and for more or less than `promised` bytes; unpacks no further than that.
    """
    unpacker, count = zlib.decompressobj(wbits=47), 0  # zlib and gzip alike, as MetaIO takes both
    try:
        with open(data, "rb") as file:
            file.seek(start)
            packed = file.read(_CHUNK_BYTES)
            while packed and not unpacker.eof and count <= promised:
                count += len(unpacker.decompress(packed, _CHUNK_BYTES))
                packed = unpacker.unconsumed_tail or file.read(_CHUNK_BYTES)
    except zlib.error as error:
        raise InputError(f"{path}: damaged compressed data ({error}); download or export it again") from error
    if count > promised:
        raise InputError(f"{path}: more voxels than the {promised} bytes that its header promises; export it again")
    if not unpacker.eof or count < promised:
        raise InputError(
            f"{path}: the compressed data end early, after {count} of {promised} bytes; download or export it again"
        )
