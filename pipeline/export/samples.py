# SPDX-License-Identifier: Apache-2.0
"""Images that an exported network is compared on, and calibrated by: as the network meets them in inference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.data.preprocessing import Preprocessing, preprocessing_of
from pipeline.data.samples.slices import resize_images
from pipeline.data.scans.volumes import read_volume
from pipeline.data.slides.pictures import is_image, read_image
from pipeline.errors import InputError
from pipeline.inference.scans.scan_dataset import as_loaded
from pipeline.inference.scans.scan_files import find_scans
from pipeline.inference.sources import visible_entries
from pipeline.networks import SavedModel

MOST_IMAGES = 64


def sample_files(model: SavedModel, given: str | None) -> list[Path]:
    """Return the scans, or for a network of slides the pictures of tiles, at a path; none for None.

    Raises `InputError` for a path that is missing or holds none.
    """
    if given is None:
        return []
    if model.tile_px is None:
        return [source.path for source in find_scans(given)]
    path = Path(given)
    if not path.exists():
        raise InputError(f"no such file or folder: {path}; check the path")
    files = [entry for entry in (visible_entries(path) if path.is_dir() else [path]) if is_image(entry)]
    if not files:
        raise InputError(f"no picture of a tile in {path}; give .png or .jpg files")
    return files


def images_of(model: SavedModel, files: Sequence[Path]) -> Tensor:
    """Return images (N, C, S, S) float32 at the training size, or patches (N, 1, x, y, z) of a network of volumes.

    At most 64 in all, spread evenly over the files and over each scan; preprocessed by the model's own list. Raises
    `InputError` for a file that cannot be read.
    """
    preprocessing = preprocessing_of(model.preprocessing)
    each = max(MOST_IMAGES // len(files), 1)
    read = _tile if model.tile_px is not None else _patches if model.network.spatial_dims == 3 else _slices
    parts = [read(path, model, preprocessing, each) for path in files[:MOST_IMAGES]]
    return torch.cat(parts).float().contiguous()


def _slices(path: Path, model: SavedModel, preprocessing: Preprocessing, most: int) -> Tensor:
    image = _scan(path, preprocessing)
    chosen = image[..., list(_spread(image.shape[-1], most))].permute(3, 0, 1, 2)
    return resize_images(chosen.contiguous(), (model.size, model.size))


def _patches(path: Path, model: SavedModel, preprocessing: Preprocessing, most: int) -> Tensor:
    """Return patches along the diagonal of a volume; what a patch has more than the volume is zero, as in training."""
    image = _scan(path, preprocessing)
    missing = [max(side - have, 0) for side, have in zip(model.size, image.shape[1:], strict=True)]
    image = F.pad(image, [amount for side in reversed(missing) for amount in (0, side)])
    room = [have - side for side, have in zip(model.size, image.shape[1:], strict=True)]
    count = min(most, max(room) + 1, 4)
    corners = np.linspace([0, 0, 0], room, count).round().astype(int)
    return torch.stack(
        [image[:, x : x + model.size[0], y : y + model.size[1], z : z + model.size[2]] for x, y, z in corners]
    )


def _scan(path: Path, preprocessing: Preprocessing) -> Tensor:
    image = preprocessing.of_image(as_loaded(read_volume(path)))
    return image.as_tensor() if hasattr(image, "as_tensor") else image


def _tile(path: Path, model: SavedModel, preprocessing: Preprocessing, most: int) -> Tensor:
    picture = torch.from_numpy(read_image(path, model.network.in_channels))
    image = preprocessing.of_image(picture.permute(2, 0, 1))
    return resize_images(image[None].float(), (model.size, model.size))


def _spread(length: int, most: int) -> Iterator[int]:
    """Yield at most `most` whole numbers below `length`, evenly spread."""
    count = min(length, most)
    return (int((index + 0.5) * length / count) for index in range(count))
