# SPDX-License-Identifier: Apache-2.0
"""The reader of pictures as MONAI's `LoadImaged` takes one; it alone among the readers of slides needs MONAI."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from monai.data import ImageReader
from monai.utils import ensure_tuple

from pipeline.data.scans.volumes import metadata_of
from pipeline.data.slides.pictures import is_image, read_image, read_label_image
from pipeline.errors import InputError


class PictureReader(ImageReader):
    """Reads pictures for `LoadImaged`: (H, W, C) uint8 with `channels`, or label images (H, W) uint8 with `labels`.

    MONAI's `PILReader` swaps the axes to (W, H), reads palette indices as values and drops alpha channels in silence.
    As in `VolumeReader`, `read` only passes the path on, so that errors of `get_data` reach the caller.
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
        """Return pixels, (H, W, C) or label (H, W), and the metadata for MONAI; `InputError` as in `read_image`."""
        if len(img) != 1:
            raise InputError(f"{', '.join(img)}: {len(img)} files for one image; give one file a key")
        if self.channels is None:
            pixels = read_label_image(img[0], self.labels)
            return pixels, metadata_of(np.eye(4), pixels.shape)
        pixels = read_image(img[0], self.channels)
        return pixels, {**metadata_of(np.eye(4), pixels.shape[:2]), "original_channel_dim": -1}
