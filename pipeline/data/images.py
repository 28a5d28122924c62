# SPDX-License-Identifier: Apache-2.0
"""Plain pictures of tissue and their masks: PNG, JPEG and one-page TIFF, as 8-bit grey or RGB and nothing else.

What a viewer shows and what a program reads differ for many files (palettes, transparency, inks, 16 bits, a rotation
in the metadata). Converting in silence would change stain or place, so such files are refused with what to do.
"""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import ImageReader
from monai.utils import ensure_tuple
from PIL import Image, UnidentifiedImageError

from pipeline.atomic import replace_when_complete
from pipeline.data.volumes import metadata_of
from pipeline.errors import InputError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
GREY, COLOUR = 1, 3

_ORIENTATION_TAG, _BITS_TAG = 0x0112, 258
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
_SIXTEEN_BITS = "has {bits} bits a channel; save it with 8, scaled as it should look"


def is_image(path: str | os.PathLike[str]) -> bool:
    """Tell whether a file name has the suffix of a picture."""
    return Path(path).suffix.lower() in IMAGE_SUFFIXES


def read_image(path: str | os.PathLike[str], channels: int) -> np.ndarray:
    """Return a picture as (H, W, channels) uint8; one in colour becomes grey by `to_grey` where `channels` is 1.

    Raises `InputError` for a file that is missing, empty, truncated or no picture; for palettes, alpha, CMYK, 16 bits,
    several pages and a rotation in the metadata; and for a grey one where colour is asked for.
    """
    with _Opened(path) as picture:
        if picture.mode not in ("L", "RGB"):
            raise InputError(f"{path} {_ADVICE.get(picture.mode, f'is of kind {picture.mode}; save it as RGB')}")
        if channels == COLOUR and picture.mode == "L":
            raise InputError(f"{path} is grey, but colour is asked for; give the stained original")
        pixels = np.asarray(picture.convert("L") if channels == GREY else picture)
    return pixels.reshape(*pixels.shape[:2], channels)


def read_label_image(path: str | os.PathLike[str], known: Collection[int] | None = None) -> np.ndarray:
    """Return a label image as (H, W) uint8: the pixel values are the class indices.

    Raises `InputError` as `read_image` does, for a file in colour, and for values that are not in `known`, if given.
    """
    with _Opened(path) as picture:
        if picture.mode not in ("L", "1"):
            raise InputError(
                f"{path} is of kind {picture.mode}, no label image; make the dataset with data_prep.gastric"
            )
        labels = np.asarray(picture).astype(np.uint8)
    if known is not None:
        unknown = sorted(set(np.unique(labels).tolist()) - set(known))
        if unknown:
            shown = ", ".join(map(str, unknown[:8]))
            raise InputError(f"{path} holds the values {shown}, which name no class; known are {sorted(known)}")
    return labels


def read_mask_colours(path: str | os.PathLike[str]) -> np.ndarray:
    """Return a mask as anybody may have drawn it: (H, W) uint8 for grey or one-bit files, (H, W, 3) for colours.

    A palette stands for its colours, and an alpha channel is dropped where it is opaque throughout. Raises
    `InputError` for files that cannot be read, 16 bits and transparency.
    """
    with _Opened(path) as picture:
        if picture.mode in ("RGBA", "LA"):
            if picture.getchannel("A").getextrema() != (255, 255):
                raise InputError(f"{path} is transparent in places; flatten it and save it as RGB or grey")
            picture = picture.convert(picture.mode[:-1])
        if picture.mode == "P":
            picture = picture.convert("RGB")
        if picture.mode not in ("L", "1", "RGB"):
            raise InputError(f"{path} is of kind {picture.mode}, not a mask; save it as grey or RGB with 8 bits")
        pixels = np.asarray(picture)
    return pixels.astype(np.uint8) * 255 if pixels.dtype == bool else pixels


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Return (height, width) from the header; `InputError` for a file that is no picture."""
    with _Opened(path, load=False) as picture:
        return picture.height, picture.width


def to_grey(pixels: np.ndarray) -> np.ndarray:
    """Return RGB (H, W, 3) uint8 as grey (H, W, 1) uint8: 0.299 R + 0.587 G + 0.114 B, rounded (ITU-R BT.601)."""
    return np.asarray(Image.fromarray(pixels).convert("L"))[..., None]


def write_png(path: str | os.PathLike[str], pixels: np.ndarray) -> None:
    """Write (H, W) or (H, W, 1) grey or (H, W, 3) RGB uint8 as PNG, atomically."""
    flat = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == GREY else pixels
    with replace_when_complete(path) as temporary:
        Image.fromarray(np.ascontiguousarray(flat)).save(temporary, format="PNG")


class PictureReader(ImageReader):
    """Reads pictures for `LoadImaged`: (H, W, C) uint8 with `channels`, or label images (H, W) uint8 with `labels`.

    MONAI's `PILReader` swaps the axes to (W, H), takes palettes for values and drops alpha channels in silence. As in
    `VolumeReader`, `read` passes the path on, so that what `get_data` refuses arrives at the caller.
    """

    def __init__(self, channels: int | None = None, labels: Collection[int] | None = None) -> None:
        if (channels is None) == (labels is None):
            raise ValueError("give channels for images, or labels for label images")
        self.channels, self.labels = channels, None if labels is None else tuple(labels)

    def verify_suffix(self, filename: Sequence[str | os.PathLike[str]] | str | os.PathLike[str]) -> bool:
        """Tell whether all files have a known suffix."""
        return all(is_image(name) for name in ensure_tuple(filename))

    def read(self, data: Sequence[str | os.PathLike[str]] | str | os.PathLike[str], **kwargs: Any) -> tuple[str, ...]:
        """Return the paths as given."""
        return tuple(os.fspath(name) for name in ensure_tuple(data))

    def get_data(self, img: tuple[str, ...]) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the pixels and metadata that MONAI's transforms expect; `InputError` as `read_image` raises it."""
        if len(img) != 1:
            raise InputError(f"{', '.join(img)}: {len(img)} files for one image; give one file a key")
        if self.channels is None:
            pixels = read_label_image(img[0], self.labels)
            return pixels, metadata_of(np.eye(4), pixels.shape)
        pixels = read_image(img[0], self.channels)
        return pixels, {**metadata_of(np.eye(4), pixels.shape[:2]), "original_channel_dim": -1}


class _Opened:
    """A context in which a picture is open and, with `load`, decoded whole; everything that fails is `InputError`."""

    def __init__(self, path: str | os.PathLike[str], load: bool = True) -> None:
        self.path, self.load = Path(path), load

    def __enter__(self) -> Image.Image:
        _check_file(self.path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                self.picture = Image.open(self.path, formats=("PNG", "JPEG", "TIFF"))
            _check_layout(self.path, self.picture)
            if self.load:
                self.picture.load()
        except UnidentifiedImageError as error:
            raise InputError(f"{self.path} is no PNG, JPEG or TIFF picture; copy it anew") from error
        except Image.DecompressionBombError as error:
            raise InputError(f"{self.path} claims more than 178 million pixels; give it as a tiled TIFF") from error
        except InputError:
            raise
        except Exception as error:  # damaged files raise OSError, SyntaxError, ValueError, struct.error and more
            reason = str(error).partition("\n")[0]
            raise InputError(f"{self.path} is truncated or damaged ({reason}); copy it anew") from error
        return self.picture

    def __exit__(self, *_: object) -> None:
        self.picture.close()


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"no picture at {path}; check the path")
    try:
        size = path.stat().st_size
        with open(path, "rb"):
            pass
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if size == 0:
        raise InputError(f"{path} is empty (0 bytes); copy it anew")


def _check_layout(path: Path, picture: Image.Image) -> None:
    """Refuse what Pillow would reduce in silence: 16 bits, further pages, a rotation that viewers apply."""
    bits = _bits_a_channel(path, picture)
    if bits > 8:
        raise InputError(f"{path} {_SIXTEEN_BITS.format(bits=bits)}")
    pages = getattr(picture, "n_frames", 1)
    if pages > 1:
        raise InputError(f"{path} holds {pages} pages; save the one that is meant as a file of its own")
    if picture.getexif().get(_ORIENTATION_TAG, 1) != 1:
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
    return 16 if picture.mode.startswith("I") or picture.mode == "F" else 8
