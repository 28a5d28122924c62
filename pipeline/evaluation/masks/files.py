# SPDX-License-Identifier: Apache-2.0
"""Masks of slides on disk: PNG, plain TIFF, and the tiled pyramids that inference writes; pixels are class indices."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

import numpy as np
from tifffile import COMPRESSION, PHOTOMETRIC, TiffFile, TiffPage

from pipeline.data.slides.base import UNREADABLE
from pipeline.data.slides.pictures import image_size, read_label_image
from pipeline.errors import InputError

_TIFF_SUFFIXES = (".tif", ".tiff")
# JPEG is neither among the suffixes nor among the compressions of TIFF: it blurs class indices.
MASK_SUFFIXES = (".png", *_TIFF_SUFFIXES)
_OVERVIEW = "_overview.png"
_LOSSLESS = (
    COMPRESSION.NONE,
    COMPRESSION.CCITTRLE,
    COMPRESSION.CCITT_T4,
    COMPRESSION.CCITT_T6,
    COMPRESSION.LZW,
    COMPRESSION.PACKBITS,
    COMPRESSION.ADOBE_DEFLATE,
    COMPRESSION.DEFLATE,
    COMPRESSION.LZMA,
    COMPRESSION.ZSTD,
)
_ORIENTATION_TAG = 274
_MOST_LISTED = 8


def mask_suffix(path: Path) -> str | None:
    """Return the suffix of a mask as the file name has it, None for another file."""
    return path.suffix if path.suffix.lower() in MASK_SUFFIXES else None


def is_overview(path: Path) -> bool:
    """Tell whether a picture is the overview that inference puts beside the mask CASE.tif, and so no mask itself."""
    return path.name.endswith(_OVERVIEW) and path.with_name(path.name.removesuffix(_OVERVIEW) + ".tif").exists()


def read_mask(
    path: str | os.PathLike[str], known: Collection[int] | None = None, shape: tuple[int, int] | None = None
) -> np.ndarray:
    """Return the mask of a slide as (H, W) uint8: level 0 of a pyramid, the picture itself of other files.

    Raises `InputError` for a file that is missing or damaged or holds no class indices of 8 bits, for a size other than
    `shape`, which is told from the header, and for values that are not in `known`, if these are given.
    """
    path = Path(path)
    labels = _read_tiff(path, shape) if path.suffix.lower() in _TIFF_SUFFIXES else _read_picture(path, shape)
    if known is not None:
        _check_values(path, labels, known)
    return labels


def _read_picture(path: Path, shape: tuple[int, int] | None) -> np.ndarray:
    _check_shape(path, image_size(path), shape)
    return read_label_image(path)


def _read_tiff(path: Path, shape: tuple[int, int] | None) -> np.ndarray:
    """Read level 0 by tifffile: Pillow refuses pyramids, which have several pages, and large images."""
    if not path.is_file():
        raise InputError(f"no mask at {path}; check the path")
    try:
        with TiffFile(path) as file:
            page = _level_0(path, file)
            _check_shape(path, (page.imagelength, page.imagewidth), shape)
            _check_complete(path, page)
            return page.asarray().astype(np.uint8, copy=False).reshape(page.imagelength, page.imagewidth)
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{path} does not fit into memory; score smaller images") from error
    except Exception as error:  # damaged files raise TiffFileError, ValueError, zlib.error, struct.error and more
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path} is no TIFF picture, or a damaged one ({reason}); write it anew") from error


def _level_0(path: Path, file: TiffFile) -> TiffPage:
    """Return the page of full size; `InputError` unless there is one, with class indices of 8 bits or one bit."""
    pages = [page.aspage() for page in file.pages if not page.aspage().is_reduced]
    if len(pages) != 1:
        raise InputError(f"{path} holds {len(pages)} pictures; keep the mask alone")
    page = pages[0]
    if page.samplesperpixel != 1 or page.photometric != PHOTOMETRIC.MINISBLACK:
        kind = f"{page.photometric.name.lower()}, {page.samplesperpixel} channels"
        raise InputError(f"{path} holds colours ({kind}), no class indices; save one grey channel with 0, 1, 2, …")
    if page.bitspersample not in (1, 8) or page.dtype.kind not in "ub":
        raise InputError(f"{path} has values of {page.bitspersample} bits ({page.dtype}); save class indices as uint8")
    if page.compression not in _LOSSLESS:
        kind = COMPRESSION(page.compression).name
        raise InputError(f"{path} is compressed as {kind}, which may change class indices; save it with deflate")
    if page.tags.valueof(_ORIENTATION_TAG, default=1) != 1:
        raise InputError(f"{path} is to be rotated by viewers (TIFF orientation); save it as it should lie")
    return page


def _check_complete(path: Path, page: TiffPage) -> None:
    """Refuse a file that ends before its last tile: tifffile would fill some of the missing ones with zeros."""
    end = max((offset + count for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)), default=0)
    size = path.stat().st_size
    if end > size:
        raise InputError(f"{path} is truncated: {size} of at least {end} bytes are there; copy it anew")


def _check_shape(path: Path, found: tuple[int, int], expected: tuple[int, int] | None) -> None:
    if expected is not None and tuple(found) != tuple(expected):
        raise InputError(
            f"{path} has {found[1]} x {found[0]} pixels, the image {expected[1]} x {expected[0]}; give masks at the "
            "full resolution of the image"
        )


def _check_values(path: Path, labels: np.ndarray, known: Collection[int]) -> None:
    # Row by row: bincount turns its input into int64.
    counts = np.sum([np.bincount(row, minlength=256) for row in labels], axis=0)
    unknown = [int(value) for value in np.flatnonzero(counts) if value not in known]
    if not unknown:
        return
    shown = ", ".join(f"{value} ({counts[value]} pixels)" for value in unknown[:_MOST_LISTED])
    more = " and more" if len(unknown) > _MOST_LISTED else ""
    hint = ""
    if UNREADABLE in unknown:
        hint = f"; {UNREADABLE} stands for places that could not be read, and a single class is written as 1"
    raise InputError(f"{path} holds the values {shown}{more}, which name no class; known are {sorted(known)}{hint}")
