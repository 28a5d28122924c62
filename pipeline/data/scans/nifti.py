# SPDX-License-Identifier: Apache-2.0
"""NIfTI files; a file that is damaged or has a wrong header is refused.

NiBabel reads the headers. The voxels are read here. A gzip member has its checksum at its end, and a reader that stops
after the last voxel never compares it: a flipped byte then changes voxels in silence. The stream is read into one
buffer of the size that the header promises, and no further. ISA-L unpacks them in less than half of zlib's time, and
packs label maps in a tenth.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
from isal import igzip, isal_zlib
from nibabel.spatialimages import HeaderDataError

from pipeline.data.scans.geometry import Volume, affine_difference, check_affine, spacing_of
from pipeline.errors import InputError
from pipeline.files.atomic import replace_when_complete

MAX_VOXEL_BYTES = 8 << 30
_CHUNK_BYTES = 1 << 20
_LEVEL = 1  # a tenth larger than zlib's 4
# Deflate cannot shrink data more than 1032 times (its longest match, 258 bytes, costs two bits). A header that promises
# more voxels than that is wrong.
_DEFLATE_LIMIT = 1032
# A gigabyte or more that shrank 400 times is no scan: noise keeps scans below a factor of 20, and label maps are small.
_BOMB_BYTES, _BOMB_RATIO = 1 << 30, 400
# Extensions stand between header and voxels; more than this is a damaged offset.
_MAX_EXTENSION_BYTES = 64 << 20
_MILLIMETRES, _UNKNOWN_UNIT = 2, 0
_SPACE_UNIT_MASK = 7
_QUIET = logging.Logger("quiet header checks", level=logging.CRITICAL)


def read_nifti(path: Path, max_bytes: int = MAX_VOXEL_BYTES) -> Volume:
    """Read a `.nii` or `.nii.gz` file to its very end.

    Integers stay integers where the header does not scale them (`scl_slope` 0 or 1, `scl_inter` 0), all else is
    float32. Raises `InputError` for anything damaged, for other than one 3D frame, voxels over `max_bytes`, and for a
    header that gives the voxels no place or size.
    """
    _check_content(path)
    with _readable(path) as stream:
        header, edges = _read_header(path, stream)
        shape, notes = _shape(path, header)
        notes += _unused_scaling(header)
        _check_budget(path, header, max_bytes)
        affine, more = _affine(path, header, edges)
        raw, rest = _read_voxels(path, stream, header)
    array = raw.reshape(shape, order="F")
    return Volume(_scaled(path, array, header), affine, path, header, (*notes, *more, *rest))


def _check_content(path: Path) -> None:
    """Refuse by the first bytes: an empty file, a web page, a name that does not fit the compression."""
    with open(path, "rb") as file:
        start = file.read(352)
    compressed = start[:2] == b"\x1f\x8b"
    text = start.lstrip().lower()
    if not start:
        raise InputError(f"{path} is empty; download or export it again")
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise InputError(f"{path} is a web page, not a NIfTI file: the download failed; download it again")
    if text.startswith(b"version https://git-lfs"):
        raise InputError(f"{path} is a Git LFS pointer, not the file itself; fetch it with git lfs pull")
    if path.suffix.lower() == ".gz" and not compressed:
        plain = start[344:347] in (b"n+1", b"ni1") or start[4:7] == b"n+2"
        remedy = "rename it to .nii" if plain else "download or export it again"
        raise InputError(f"{path} is not gzip-compressed, though its name says so; {remedy}")
    if path.suffix.lower() == ".nii" and compressed:
        raise InputError(f"{path} is gzip-compressed, though its name does not say so; rename it to .nii.gz")


@contextmanager
def _readable(path: Path) -> Iterator[BinaryIO]:
    """Open `path`, through gzip where its name says so; errors while reading become `InputError`."""
    opener = igzip.open if path.suffix.lower() == ".gz" else open
    with opener(path, "rb") as stream:
        try:
            yield stream
        except EOFError as error:
            raise InputError(
                f"{path}: the gzip data end early, after {path.stat().st_size} bytes; download or export it again"
            ) from error
        except (igzip.BadGzipFile, isal_zlib.error) as error:
            raise InputError(f"{path}: damaged gzip data ({error}); download or export it again") from error


def _read_header(path: Path, stream: BinaryIO) -> tuple[nib.Nifti1Header, np.ndarray]:
    """Return the header and the voxel edges (mm) stored in it; NiBabel's own checks turn an edge of 0 into 1 mm."""
    block = stream.read(348)
    size = {block[:4], block[:4][::-1]}
    if len(block) == 348 and (540).to_bytes(4, "little") in size:
        kind, block = nib.Nifti2Header, block + stream.read(540 - 348)
    elif len(block) == 348 and (348).to_bytes(4, "little") in size:
        kind = nib.Nifti1Header
    else:
        raise InputError(f"{path} does not begin with a NIfTI header; give a .nii or .nii.gz file")
    try:
        header = kind(block, check=False)
        if header["magic"].item().rstrip(b"\0\r\n\x1a") not in (b"n+1", b"n+2"):
            raise InputError(
                f"{path}: magic {header['magic'].item()!r} is not that of a single NIfTI file (n+1); save it as .nii"
            )
        edges = np.array(header["pixdim"][1:4], dtype=np.float64)
        header.check_fix(logger=_QUIET, error_level=40)
    except HeaderDataError as error:
        raise InputError(f"{path}: invalid NIfTI header: {error}; export the scan again") from error
    return header, edges


def _shape(path: Path, header: nib.Nifti1Header) -> tuple[tuple[int, int, int], list[str]]:
    """Return the (x, y, z) shape of grey values; trailing axes of length 1 are dropped with a note."""
    stored = header.get_data_dtype()
    if stored.kind not in "iuf":
        raise InputError(f"{path}: voxels of type {stored} are no grey values; save the scan as integers or floats")
    shape = tuple(int(size) for size in header.get_data_shape())
    text = " x ".join(map(str, shape))
    if len(shape) < 3:
        raise InputError(f"{path} is {len(shape)}D ({text}); give a 3D volume")
    if min(shape) < 1:
        raise InputError(f"{path}: the header gives the shape {text}; export the scan again")
    if any(size > 1 for size in shape[3:]):
        raise InputError(f"{path} is {len(shape)}D ({text}), a series of volumes; save the one frame that you need")
    notes = [f"shape {text} read as 3D"] if len(shape) > 3 else []
    return (shape[0], shape[1], shape[2]), notes


def _check_budget(path: Path, header: nib.Nifti1Header, max_bytes: int) -> None:
    """Refuse a header that promises more than memory should hold or the file can contain, before any allocation."""
    promised, stored = _promised_bytes(header), path.stat().st_size
    if promised > max_bytes:
        raise InputError(
            f"{path}: the header promises {promised} bytes of voxels, more than the limit of {max_bytes};"
            " check the file, or split the scan"
        )
    if path.suffix.lower() != ".gz":
        offset = _offset(path, header)
        if stored < offset + promised:
            raise InputError(
                f"{path} is cut off: the header promises {promised} bytes of voxels from byte {offset} on, the file"
                f" ends at {stored}; download or export it again"
            )
        return
    ratio = promised / stored
    if promised >= _BOMB_BYTES and ratio > _BOMB_RATIO:
        raise InputError(
            f"{path}: {stored} bytes would grow {ratio:.0f} times to {promised}, which no scan does; get the true file"
        )
    if ratio > _DEFLATE_LIMIT:
        raise InputError(
            f"{path}: the header promises {promised} bytes of voxels, which {stored} bytes of gzip cannot hold;"
            " download or export it again"
        )


def _promised_bytes(header: nib.Nifti1Header) -> int:
    # Python's integers: the product of seven 16-bit sizes overflows numpy's.
    return math.prod(int(size) for size in header.get_data_shape()) * header.get_data_dtype().itemsize


def _offset(path: Path, header: nib.Nifti1Header) -> int:
    start = int(header["sizeof_hdr"])
    offset = float(header["vox_offset"])  # 0 is no default: readers disagree on what it means
    if not start <= offset <= start + _MAX_EXTENSION_BYTES:
        raise InputError(f"{path}: the header puts the voxels at byte {offset:.0f}, not behind itself; export it again")
    return int(offset)


def _affine(path: Path, header: nib.Nifti1Header, edges: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return the affine by the header's codes (sform before qform before voxel size), and notes on what is odd."""
    unit = int(header["xyzt_units"]) & _SPACE_UNIT_MASK
    if unit not in (_MILLIMETRES, _UNKNOWN_UNIT):
        raise InputError(f"{path}: the header measures in another unit than mm (xyzt_units {unit}); convert it to mm")
    has_sform, has_qform = int(header["sform_code"]) > 0, int(header["qform_code"]) > 0
    source = "sform" if has_sform else "qform" if has_qform else "voxel size (pixdim; there is no sform or qform)"
    if not has_sform and not (np.isfinite(edges).all() and edges.all()):
        raise InputError(f"{path}: the {source} is {edges.tolist()} mm; write the true voxel size")
    try:
        affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    except (HeaderDataError, ValueError) as error:
        raise InputError(f"{path}: the {source} is invalid ({error}); write a valid one") from error
    notes = check_affine(path, affine, source)
    if not has_sform and (edges < 0).any():
        notes.append(f"negative voxel size {edges.tolist()}: taken as positive")
    if not (has_sform or has_qform):
        notes.append("no sform or qform: orientation taken as LAS, the Analyze convention")
    if has_sform and has_qform:
        notes += _disagreement(header, affine)
    if has_sform and not np.allclose(edges, spacing_of(affine), rtol=1e-3):
        notes.append(f"pixdim {edges.tolist()} differs from the sform's voxel size: sform used")
    return affine, notes


def _disagreement(header: nib.Nifti1Header, sform: np.ndarray) -> list[str]:
    try:
        qform = np.asarray(header.get_qform(), dtype=np.float64)
    except (HeaderDataError, ValueError):
        qform = np.full((4, 4), np.nan)
    if not np.isfinite(qform).all() or not np.linalg.norm(qform[:3, :3], axis=0).all():
        return ["qform invalid: sform used"]
    edge, origin, angle = affine_difference(sform, qform)
    if max(edge, origin) <= 0.01 and angle <= 1e-3:
        return []
    return [
        f"sform and qform disagree by {origin:.3g} mm at the origin, {edge:.3g} mm a voxel and"
        f" {math.degrees(angle):.3g} degrees: sform used"
    ]


def _read_voxels(path: Path, stream: BinaryIO, header: nib.Nifti1Header) -> tuple[np.ndarray, list[str]]:
    """Return the stored voxels, flat, in native byte order, and a note if a few bytes follow them.

    Reading goes on to the end of the stream, where gzip compares checksum and length.
    """
    _skip(stream, _offset(path, header) - int(header["sizeof_hdr"]))
    stored, promised = header.get_data_dtype(), _promised_bytes(header)
    buffer = np.empty(promised, dtype=np.uint8)
    count = _fill(stream, memoryview(buffer))
    if count < promised:
        raise InputError(
            f"{path} is cut off: {count} of the {promised} bytes of voxels that its header promises;"
            " download or export it again"
        )
    slice_bytes = promised // int(header.get_data_shape()[2])
    surplus = _count(stream, slice_bytes)
    if surplus >= slice_bytes:
        raise InputError(
            f"{path} goes on for a slice or more behind the {promised} bytes that its header promises; export it again"
        )
    raw = buffer.view(stored)
    if not stored.isnative:
        raw = raw.byteswap(inplace=True).view(stored.newbyteorder("="))
    return raw, [f"{surplus} bytes behind the voxels ignored"] if surplus else []


def _fill(stream: BinaryIO, target: memoryview) -> int:
    """Read into `target` until it is full or the stream ends; returns the number of bytes read."""
    filled = 0
    while filled < len(target):
        count = stream.readinto(target[filled : filled + _CHUNK_BYTES])
        if not count:
            break
        filled += count
    return filled


def _skip(stream: BinaryIO, length: int) -> None:
    _count(stream, length)


def _count(stream: BinaryIO, limit: int) -> int:
    """Read on and return how many bytes came, at most `limit` (and one read of nothing, which ends a gzip member)."""
    count = 0
    while count < limit:
        read = len(stream.read(min(_CHUNK_BYTES, limit - count)))
        if not read:
            break
        count += read
    return count


def _unused_scaling(header: nib.Nifti1Header) -> list[str]:
    """Note a scaling that has no effect: infinite, or an offset with a slope of 0 or NaN, which mean no scaling."""
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    lost_offset = math.isfinite(inter) and inter != 0
    if math.isinf(slope) or ((slope == 0 or math.isnan(slope)) and lost_offset):
        return [f"scl_slope {slope:g} and scl_inter {inter:g} give no values: the stored ones taken"]
    return []


def _scaled(path: Path, array: np.ndarray, header: nib.Nifti1Header) -> np.ndarray:
    """Return the stored values scaled as the header says, without a float64 copy of the volume."""
    try:
        slope, inter = header.get_slope_inter()
    except HeaderDataError as error:
        raise InputError(f"{path}: invalid scaling in the header: {error}; export the scan again") from error
    unscaled = slope is None or (slope == 1.0 and inter == 0.0)
    if unscaled and array.dtype.kind in "iu":
        return array
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and that is refused
        if unscaled:
            return array.astype(np.float32, copy=False)
        scaled = np.empty(array.shape, dtype=np.float32, order="F")
        for index in range(array.shape[2]):
            scaled[..., index] = array[..., index].astype(np.float64) * slope + inter
    return scaled


def write_nifti_labels(path: Path, labels: np.ndarray, like: Volume) -> None:
    """Write `labels` (x, y, z) uint8 as `.nii.gz` on the grid of `like`: atomically, and each time the same bytes.

    A NIfTI scan passes on its sform, qform, codes and units bit by bit, and nothing else: descriptions and extensions
    may hold a patient's name. Scans in other formats give their affine as sform (and qform where it has no shear).
    """
    header = _label_header(like)
    header.set_data_dtype(np.uint8)
    header.set_data_shape(labels.shape)
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    image = kind(labels, None, header)
    with (
        replace_when_complete(path) as temporary,
        open(temporary, "wb") as file,
        # Without name and time the same labels give the same bytes.
        igzip.IGzipFile(filename="", mode="wb", compresslevel=_LEVEL, fileobj=file, mtime=0) as stream,
    ):
        image.to_file_map({"image": nib.FileHolder(fileobj=stream)})


def _label_header(like: Volume) -> nib.Nifti1Header:
    if like.header is None:
        header = nib.Nifti1Header()
        header.set_xyzt_units("mm")
        header.set_sform(like.affine, code="scanner")
        header.set_qform(like.affine, code="scanner")
        if not np.allclose(header.get_qform(), like.affine, atol=1e-3):
            header["qform_code"] = 0  # quaternions know no shear (a tilted gantry): the sform alone is right
        return header
    header = type(like.header)()
    header["pixdim"] = like.header["pixdim"]
    fields = [f"quatern_{axis}" for axis in "bcd"] + [f"qoffset_{axis}" for axis in "xyz"]
    for name in [*fields, *(f"srow_{axis}" for axis in "xyz"), "qform_code", "sform_code", "xyzt_units"]:
        header[name] = like.header[name]
    return header
