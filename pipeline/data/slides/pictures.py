# SPDX-License-Identifier: Apache-2.0
"""Plain pictures of tissue and their masks: PNG, JPEG and one-page TIFF, as 8-bit grey or RGB and nothing else.

For many files, a viewer shows something other than what a program reads (palettes, transparency, inks, 16 bits, a
rotation in the metadata). A silent conversion could change stains or places, so such files are refused with a line that
says what to do.

Damaged files are refused where the damage can be found. The checksums of PNG and of deflated TIFF are compared. Files
that end early are refused, except a PNG that lacks only its last four bytes, which hold nothing. JPEG and TIFF with
another or no compression have no checksum, and Pillow does not pass libjpeg's warnings on to Python. So changed bytes
in the middle of those files go unnoticed.
"""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.errors import InputError
from pipeline.files.atomic import replace_when_complete

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
GREY, COLOUR = 1, 3

_FORMATS = ("PNG", "JPEG", "TIFF")
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PAGE_STARTS = (b"<!doctype", b"<html", b"<?xml", b"<head")
_ORIENTATION_TAG = 0x0112
# Of TIFF: bits a channel, what 0 means (0: white), channels, kind of number (1: unsigned, 4: not told), place of data.
_BITS_TAG, _PHOTOMETRIC_TAG, _CHANNELS_TAG, _NUMBER_TAG = 258, 262, 277, 339
_STRIP_TAGS, _TILE_TAGS = (273, 279), (324, 325)
_DEFLATE = ("tiff_adobe_deflate", "tiff_deflate")
_ADVICE = {
    "P": "has a palette; save it as plain RGB",
    "PA": "has a palette; save it as plain RGB",
    "RGBA": "has an alpha channel; flatten it onto white and save it as RGB",
    "LA": "has an alpha channel; flatten it onto white and save it as grey",
    "La": "has an alpha channel; flatten it onto white and save it as grey",
    "RGBa": "has an alpha channel; flatten it onto white and save it as RGB",
    "CMYK": "holds inks (CMYK), not colours of light; convert it to RGB with its own profile",
    "1": "has one bit a pixel, so it is a mask, not an image",
}


def is_image(path: str | os.PathLike[str]) -> bool:
    """Tell whether a file name has the suffix of a picture."""
    return Path(path).suffix.lower() in IMAGE_SUFFIXES


def read_image(path: str | os.PathLike[str], channels: int) -> np.ndarray:
    """Return a picture as (H, W, channels) uint8; one in colour becomes grey by `to_grey` where `channels` is 1.

    Raises `InputError` for a file that is missing, empty, truncated or no picture; for palettes, alpha, CMYK, 16 bits,
    several pages and a rotation in the metadata; and for a grey one where colour is asked for.
    """
    with _opened(path) as picture:
        if picture.mode not in ("L", "RGB"):
            raise InputError(f"{path} {_ADVICE.get(picture.mode, f'is of kind {picture.mode}; save it as RGB')}")
        if channels == COLOUR and picture.mode == "L":
            raise InputError(f"{path} is grey, but colour is asked for; give the stained original")
        # A copy: torch warns of arrays that cannot be written to, and Pillow's are such.
        pixels = np.array(picture.convert("L") if channels == GREY else picture)
    return pixels.reshape(*pixels.shape[:2], channels)


def read_label_image(path: str | os.PathLike[str], known: Collection[int] | None = None) -> np.ndarray:
    """Return a label image as (H, W) uint8: the pixel values are the class indices.

    Raises `InputError` as `read_image` does, for a file in colour or compressed as JPEG, for 2 or 4 bits a pixel and
    TIFF in which 0 is white (both change the values), and for values that are not in `known`, if given.
    """
    with _opened(path) as picture:
        wrong = _no_label_image(path, picture)
        if wrong is not None:
            raise InputError(f"{path} {wrong}, no label image; make the dataset with data_prep.gastric")
        labels = np.array(picture).astype(np.uint8)
    if known is not None:
        values, counts = np.unique(labels, return_counts=True)
        unknown = [
            f"{value} ({count} pixels)" for value, count in zip(values, counts, strict=True) if value not in known
        ]
        if unknown:
            shown = ", ".join(unknown[:8]) + (f" and {len(unknown) - 8} more" if len(unknown) > 8 else "")
            raise InputError(f"{path} holds the values {shown}, which name no class; known are {sorted(known)}")
    return labels


def _no_label_image(path: str | os.PathLike[str], picture: Image.Image) -> str | None:
    """Return what keeps the pixel values from being class indices, or None."""
    if picture.mode not in ("L", "1"):
        return f"is of kind {picture.mode}"
    if "jpeg" in (picture.format.lower(), picture.info.get("compression")):
        return "is compressed as JPEG, which blurs values"
    bits = _bits_a_channel(Path(path), picture)
    if bits not in (1, 8):
        return f"has {bits} bits a pixel"
    if picture.format == "TIFF" and picture.tag_v2.get(_PHOTOMETRIC_TAG) == 0:
        return "is a TIFF in which 0 is white"
    return None


def read_mask_colours(path: str | os.PathLike[str]) -> np.ndarray:
    """Return a mask from any drawing tool: (H, W) uint8 for grey or one-bit files, (H, W, 3) uint8 for colours.

    A palette stands for its colours, one-bit files hold 0 and 255 and grey of 2 or 4 bits is stretched to 0..255, as
    viewers show them; an alpha channel is dropped where it is opaque throughout. Raises `InputError` for files that
    cannot be read, 16 bits and transparency.
    """
    with _opened(path) as picture:
        if picture.mode in ("RGBA", "LA") or (picture.mode == "P" and "transparency" in picture.info):
            if picture.convert("RGBA").getchannel("A").getextrema() != (255, 255):
                raise InputError(f"{path} is transparent in places; flatten it and save it as RGB or grey")
            picture = picture.convert("L" if picture.mode == "LA" else "RGB")
        if picture.mode == "P":
            picture = picture.convert("RGB")
        if picture.mode not in ("L", "1", "RGB"):
            raise InputError(f"{path} is of kind {picture.mode}, not a mask; save it as grey or RGB with 8 bits")
        pixels = np.array(picture)
    return pixels.astype(np.uint8) * 255 if pixels.dtype == bool else pixels


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Return (height, width) from the header; `InputError` for a file that is no picture."""
    with _opened(path, load=False) as picture:
        return picture.height, picture.width


def to_grey(pixels: np.ndarray) -> np.ndarray:
    """Return RGB (H, W, 3) uint8 as grey (H, W, 1) uint8: 0.299 R + 0.587 G + 0.114 B, rounded (ITU-R BT.601)."""
    return np.asarray(Image.fromarray(pixels).convert("L"))[..., None]


def write_png(path: str | os.PathLike[str], pixels: np.ndarray) -> None:
    """Write (H, W) or (H, W, 1) grey or (H, W, 3) RGB uint8 as PNG, atomically."""
    flat = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == GREY else pixels
    with replace_when_complete(path) as temporary:
        Image.fromarray(np.ascontiguousarray(flat)).save(temporary, format="PNG")


@contextmanager
def _opened(path: str | os.PathLike[str], load: bool = True) -> Iterator[Image.Image]:
    """Yield an open picture, with `load` checked and decoded whole; everything that fails is `InputError`."""
    path = Path(path)
    _check_file(path)
    try:
        picture = _decoded(path, load)
    except UnidentifiedImageError as error:
        raise InputError(f"{path} {_unidentified(path)}") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{path} claims more than 178 million pixels; give it as a tiled TIFF") from error
    except MemoryError as error:
        raise InputError(f"{path} does not fit into memory; close other programs or use a larger machine") from error
    except InputError:
        raise
    except Exception as error:  # damaged files raise OSError, SyntaxError, ValueError, struct.error, zlib.error, ...
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path} is truncated or damaged ({reason}); copy it anew") from error
    with picture:
        yield picture


def _decoded(path: Path, load: bool) -> Image.Image:
    with warnings.catch_warnings():
        # Of pictures up to the limit of size, and of formats that Pillow tried in vain: an error says it all.
        warnings.simplefilter("ignore")
        picture = Image.open(path, formats=_FORMATS)
        try:
            _check_layout(path, picture, load)
            if load:
                _check_sums(path, picture)
                picture.load()
        except BaseException:
            picture.close()
            raise
    return picture


def _check_file(path: Path) -> None:
    # os.path: pathlib raises for a name that is too long for the system.
    if os.path.isdir(path):
        raise InputError(f"{path} is a folder; give the picture inside it")
    if not os.path.isfile(path):
        raise InputError(f"no picture at {path}; check the path")
    try:
        size = path.stat().st_size
        with open(path, "rb"):
            pass
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; check its permissions") from error
    if size == 0:
        raise InputError(f"{path} is empty (0 bytes); copy it anew")


def _unidentified(path: Path) -> str:
    with open(path, "rb") as file:
        start = file.read(64)
    if start.startswith((b"\x89PNG", b"\xff\xd8\xff")):
        return "is truncated or damaged in its header; copy it anew"
    if start.startswith(_TIFF_STARTS):
        return "is a TIFF of a kind that cannot be read; save it as grey or RGB with 8 bits a channel"
    start = start.lstrip().lower()
    if start.startswith(_PAGE_STARTS):
        return "is a web page, so the download failed; download it anew"
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the picture itself; fetch it with git lfs pull"
    return "is no PNG, JPEG or TIFF picture; copy it anew"


def _check_layout(path: Path, picture: Image.Image, load: bool) -> None:
    """Refuse what Pillow would drop in silence: 16 bits, further pages or channels, a rotation in the metadata."""
    bits = _bits_a_channel(path, picture)
    if bits > 8:
        raise InputError(f"{path} has {bits} bits a channel; save it with 8, scaled as it should look")
    pages = getattr(picture, "n_frames", 1)
    if pages > 1:
        raise InputError(f"{path} holds {pages} pages; save the one that is meant as a file of its own")
    if picture.format == "TIFF":
        _check_tiff(path, picture)
    # Pillow decodes a PNG to look for its rotation, which may stand at the end.
    if (load or picture.format != "PNG") and picture.getexif().get(_ORIENTATION_TAG) in range(2, 9):
        raise InputError(f"{path} is to be rotated by viewers (EXIF orientation); save it as it should lie")
    if "transparency" in picture.info and picture.mode != "P":
        raise InputError(f"{path} has a transparent colour; flatten it onto white and save it as RGB")


def _bits_a_channel(path: Path, picture: Image.Image) -> int:
    """Return the bits of the file itself: Pillow reads 48-bit colour as if it had 24."""
    if picture.format == "PNG":
        with open(path, "rb") as file:
            return struct.unpack_from(">B", file.read(25), 24)[0]
    if picture.format == "TIFF":
        return max(np.ravel(picture.tag_v2.get(_BITS_TAG, 1)).tolist())
    return 8


def _check_tiff(path: Path, picture: Image.Image) -> None:
    channels = picture.tag_v2.get(_CHANNELS_TAG, 1)
    if channels != len(picture.getbands()):
        raise InputError(f"{path} has {channels} channels, of which viewers show {len(picture.getbands())}; save these")
    if not set(np.ravel(picture.tag_v2.get(_NUMBER_TAG, 1)).tolist()) <= {1, 4}:
        raise InputError(
            f"{path} holds signed or real numbers; save it with 8 bits a channel, scaled as it should look"
        )


def _check_sums(path: Path, picture: Image.Image) -> None:
    """Compare the checksums that decoding skips: of a PNG's last chunks, and of all that is deflated in a TIFF."""
    if picture.format == "PNG":
        with Image.open(path, formats=("PNG",)) as again:
            again.verify()
    if picture.format == "TIFF" and picture.info.get("compression") in _DEFLATE:
        tags = _TILE_TAGS if _TILE_TAGS[0] in picture.tag_v2 else _STRIP_TAGS
        with open(path, "rb") as file:
            for start, size in zip(*(picture.tag_v2[tag] for tag in tags), strict=True):
                file.seek(start)
                zlib.decompress(file.read(size))
