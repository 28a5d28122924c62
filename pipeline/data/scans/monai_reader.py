# SPDX-License-Identifier: Apache-2.0
"""The reader of scans as MONAI's `LoadImaged` takes one; it alone among the readers needs MONAI."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import ImageReader
from monai.utils import ensure_tuple

from pipeline.data.scans.volumes import metadata_of, read_volume, scan_suffix, signed_values
from pipeline.errors import InputError

# MONAI's LoadImage builds a reader of DICOM on GPUs whatever it is to read, and warns where there is no GPU.
logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")


class VolumeReader(ImageReader):
    """Reads every format of `read_volume`: `LoadImaged(keys, reader=VolumeReader)`.

    `LoadImage` catches all errors of a reader's `read` and hands the file to the next reader, which accepts much that
    is refused here (a wrong checksum, NaN voxels). So `read` only passes the path on, and `get_data` reads the file:
    its errors reach the caller.
    """

    def verify_suffix(self, filename: Sequence[str | os.PathLike[str]] | str | os.PathLike[str]) -> bool:
        """Tell whether all files have a known suffix; a folder is taken as a DICOM series."""
        return all(scan_suffix(name) is not None or Path(name).is_dir() for name in ensure_tuple(filename))

    def read(self, data: Sequence[str | os.PathLike[str]] | str | os.PathLike[str], **kwargs: Any) -> tuple[str, ...]:
        """Return the paths as given."""
        return tuple(os.fspath(name) for name in ensure_tuple(data))

    def get_data(self, img: tuple[str, ...]) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the voxels (x, y, z), by `signed_values`, and the metadata that MONAI's transforms expect.

        Raises `InputError` as `read_volume` does, and for more than one path.
        """
        if len(img) != 1:
            raise InputError(f"{', '.join(img)}: {len(img)} files for one image; give one file a key")
        volume = read_volume(img[0])
        return signed_values(volume.array), metadata_of(volume.affine, volume.array.shape)
