# SPDX-License-Identifier: Apache-2.0
"""Images that an exported network is compared on, and calibrated by: as the network meets them in inference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.data.dataset.dataset import DATASET_FILE, load_dataset
from pipeline.data.preprocessing import Preprocessing, preprocessing_of
from pipeline.data.samples.slices import resize_images, resize_labels
from pipeline.data.scans.volumes import read_label, read_volume
from pipeline.data.slides.pictures import is_image, read_image, read_label_image
from pipeline.errors import InputError
from pipeline.inference.scans.scan_dataset import as_loaded
from pipeline.inference.scans.scan_files import find_scans
from pipeline.inference.sources import visible_entries
from pipeline.networks import SavedModel

MOST_IMAGES = 64
_MOST_PATCHES = 4  # of a volume


@dataclass(frozen=True)
class SampleFile:
    """A scan or a picture of a tile on disk, and its label where a dataset has one."""

    image: Path
    label: Path | None = None


@dataclass(frozen=True)
class Samples:
    """Images (N, C, S, S) float32 at the training size, or patches (N, 1, x, y, z), and what their pixels truly are.

    `truth`: classes (N, 1, ...) uint8 of the same sides, None where an image has no label.
    """

    images: Tensor
    truth: Tensor | None = None


def sample_files(model: SavedModel, given: str | None) -> list[SampleFile]:
    """Return the scans, or for a network of slides the pictures of tiles, at a path; none for None.

    Of a dataset folder these are the images of the training split with their labels.

    Raises:
        InputError: a path that is missing or holds none; a dataset with other classes than the network.
    """
    if given is None:
        return []
    path = Path(given)
    if (path / DATASET_FILE).is_file():
        dataset = load_dataset(path)
        if dict(dataset.labels) != model.labels:
            raise InputError(f"{path} has other classes than {model.path}; give the dataset that it was trained on")
        return [SampleFile(case.image, case.label) for case in dataset.split("training")]
    if model.tile_px is None:
        return [SampleFile(source.path) for source in find_scans(given)]
    if not path.exists():
        raise InputError(f"no such file or folder: {path}; check the path")
    files = [entry for entry in (visible_entries(path) if path.is_dir() else [path]) if is_image(entry)]
    if not files:
        raise InputError(f"no picture of a tile in {path}; give .png or .jpg files")
    return [SampleFile(file) for file in files]


def samples_of(model: SavedModel, files: Sequence[SampleFile]) -> Samples:
    """Return at most 64 images, spread evenly over the files and over each scan, preprocessed by the model's own list.

    Raises `InputError` for a file that cannot be read.
    """
    preprocessing = preprocessing_of(model.preprocessing)
    chosen = [files[index] for index in spread(len(files), MOST_IMAGES)]
    parts = [_samples(file, model, preprocessing, max(MOST_IMAGES // len(chosen), 1)) for file in chosen]
    truths = [part.truth for part in parts if part.truth is not None]
    images = torch.cat([part.images for part in parts]).float().contiguous()
    return Samples(images, torch.cat(truths) if len(truths) == len(parts) else None)


def _samples(file: SampleFile, model: SavedModel, preprocessing: Preprocessing, most: int) -> Samples:
    """Return what the network sees of one file, `most` images of a scan."""
    read = _read_scan if model.tile_px is None else _read_tile
    prepared = {key: torch.as_tensor(part) for key, part in preprocessing(read(file, model)).items()}
    image, truth = prepared["image"], prepared.get("label")
    if not isinstance(model.size, int):
        return Samples(*(None if part is None else _patches(part, model.size, most) for part in (image, truth)))
    sides = (model.size, model.size)
    image, truth = (None if part is None else _slices(part, most) for part in (image, truth))
    return Samples(resize_images(image, sides), None if truth is None else resize_labels(truth.to(torch.uint8), sides))


def _read_scan(file: SampleFile, model: SavedModel) -> dict[str, Tensor]:
    volume = read_volume(file.image)
    label = {} if file.label is None else {"label": as_loaded(read_label(file.label, volume, model.labels))}
    return {"image": as_loaded(volume), **label}


def _read_tile(file: SampleFile, model: SavedModel) -> dict[str, Tensor]:
    pixels = read_image(file.image, model.network.in_channels)
    label = {} if file.label is None else {"label": read_label_image(file.label, model.labels)[None]}
    return {"image": torch.from_numpy(pixels).permute(2, 0, 1), **label}


def _slices(image: Tensor, most: int) -> Tensor:
    """Return slices (N, C, X, Y) of (C, X, Y, Z), evenly spread; a tile (C, H, W) as one."""
    if image.ndim == 3:
        return image[None].contiguous()
    return image[..., spread(image.shape[-1], most)].permute(3, 0, 1, 2).contiguous()


def _patches(image: Tensor, size: Sequence[int], most: int) -> Tensor:
    """Return patches along the diagonal of a volume; what a patch has more than the volume is zero, as in training."""
    missing = [max(side - have, 0) for side, have in zip(size, image.shape[1:], strict=True)]
    image = F.pad(image, [amount for side in reversed(missing) for amount in (0, side)])
    room = [have - side for side, have in zip(size, image.shape[1:], strict=True)]
    corners = np.linspace([0, 0, 0], room, min(most, max(room) + 1, _MOST_PATCHES)).round().astype(int)
    x, y, z = size
    return torch.stack([image[:, i : i + x, j : j + y, k : k + z] for i, j, k in corners])


def spread(length: int, most: int) -> list[int]:
    """Return at most `most` whole numbers below `length`, evenly spread."""
    count = min(length, most)
    return [int((index + 0.5) * length / count) for index in range(count)]
