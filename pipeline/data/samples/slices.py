# SPDX-License-Identifier: Apache-2.0
"""All slices of a split as one array in memory (or mapped from disk): an epoch never waits for files.

MONAI's `CacheDataset` with a random crop of depth 1 copies a whole volume for each slice (110 ms); indexing one
contiguous array takes well under a millisecond. Hence this dataset of our own.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from monai.utils import convert_to_tensor
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset as TorchDataset
from tqdm import tqdm

from pipeline.data.samples.slice_cache import building, cache_key, open_slices
from pipeline.data.scans.geometry import ANGLE_TOLERANCE_RAD, POSITION_TOLERANCE_MM, affine_difference
from pipeline.errors import InputError, find_input_error
from pipeline.unlabelled import UNLABELLED

logger = logging.getLogger(__name__)

_LABEL_TOLERANCE = 1e-3
_CHANNELS = {3: (1, 3), 4: (1,)}  # of pictures (grey or colour) and of volumes, by the axes that they have
_CHUNK = 32  # slices resized at once: bounds the extra memory for volumes of hundreds of slices

Preprocess = Callable[[Mapping[str, str]], Mapping[str, Any]]


def resize_images(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Return `images` (N, C, H, W) float at `size` (h, w): bilinear, pixel areas aligned, smoothed when shrinking.

    Training and inference both call it, so a network meets the resolution that it learned from.
    """
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)


def resize_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Return `labels` (N, 1, H, W) of any integer type at `size` (h, w), nearest neighbour of the pixel centres."""
    if tuple(labels.shape[-2:]) == tuple(size):
        return labels
    if labels.dtype == torch.uint8:
        return F.interpolate(labels, size=size, mode="nearest-exact")
    # Torch resizes no wider integers; float64 holds every label value exactly.
    return F.interpolate(labels.double(), size=size, mode="nearest-exact").to(labels.dtype)


class SliceDataset(TorchDataset):
    """Every slice of every case, prepared once.

    Args:
        datalist: entries with `case`, `image` and `label`, as `Dataset.training_datalist` gives them; those without a
            label get one of `UNLABELLED`.
        preprocessing: called once per volume with an entry; gives `image` (1, X, Y, Z) float in [0, 1] and `label`
            (1, X, Y, Z). Intensities are normalised there, per volume. Slices are taken along the last axis. A picture,
            such as a tile of tissue, is one slice: `image` (C, H, W) and `label` (1, H, W). A cache needs its
            `description`, which a `Preprocessing` has.
        size: side S of the square slices in pixels.
        out_channels: number of classes; a label value at or above it is refused.
        cache_dir: folder for slices on disk, mapped instead of held in memory and found again by the next run.

    Items are `{"image": (C, S, S) float32, "label": (1, S, S) uint8}`. `images` (N, C, S, S) and `labels` (N, 1, S, S)
    are the whole arrays; `slices` names case and position of each. Raises `InputError`, with the name of the case, for
    voxels that are not finite, labels out of range, image and label of different shape, and too little memory.
    """

    def __init__(
        self,
        datalist: Sequence[Mapping[str, str]],
        preprocessing: Preprocess,
        size: int,
        out_channels: int,
        cache_dir: str | None = None,
    ) -> None:
        if not isinstance(size, int):
            raise InputError(f"slices have one side, not {size}: to train a 3D network, name volumes.yaml too")
        if not datalist:
            raise InputError("no case to take slices from; give a split with cases")
        self.size = size
        self.out_channels = out_channels
        volumes = _prepared(datalist, preprocessing, size, out_channels)
        if cache_dir is None:
            self.images, self.labels, self.slices = _collect(volumes, len(datalist), size)
        else:
            folder = Path(cache_dir) / cache_key(datalist, preprocessing.description, size)
            self.images, self.labels, self.slices = _from_cache(folder, volumes, size)
            _check_stored_labels(self.labels, out_channels, folder)
        logger.info(
            "%d slices of %d cases, %.2f GB",
            len(self),
            len(datalist),
            _gigabytes(len(self), self.images.shape[1], size),
        )

    @property
    def unlabelled_from(self) -> int:
        """Index of the first slice without a label; those with one come before."""
        return int((self.labels[:, 0, 0, 0] != UNLABELLED).sum())

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self.images[index], "label": self.labels[index]}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Tensor]]:
        # Torch's loader asks for a whole batch by this name; its collate then finds views of one array.
        batch = self.batch(indices)
        return [{"image": image, "label": label} for image, label in zip(*batch.values(), strict=True)]

    def batch(self, indices: Sequence[int] | Tensor) -> dict[str, Tensor]:
        """Return slices as one batch `{"image": (B, C, S, S), "label": (B, 1, S, S)}`, a copy, on the same device."""
        chosen = torch.as_tensor(indices, dtype=torch.long, device=self.images.device)
        return {"image": self.images.index_select(0, chosen), "label": self.labels.index_select(0, chosen)}

    def to(self, device: str | torch.device) -> SliceDataset:
        """Move all slices to `device` and return self; batches are then taken there (no loader workers)."""
        self.images, self.labels = self.images.to(device), self.labels.to(device)
        return self


Volume = tuple[str, Tensor, Tensor]


def _prepared(
    datalist: Sequence[Mapping[str, str]], preprocessing: Preprocess, size: int, out_channels: int
) -> Iterator[Volume]:
    """Yield case, images (D, C, S, S) float32 and labels (D, 1, S, S) uint8 of one volume after another."""
    for entry in tqdm(datalist, desc="preparing slices", unit="volume", disable=None):
        image, label = prepared_volume(entry, preprocessing, out_channels)
        yield entry["case"], _to_slices(image, size, resize_images), _to_slices(label, size, resize_labels)


def prepared_volume(entry: Mapping[str, str], preprocessing: Preprocess, out_channels: int) -> tuple[Tensor, Tensor]:
    """Return the image (1, X, Y, Z) or (C, H, W) float32 and the label (1, ...) uint8 that `preprocessing` makes.

    The label of an entry without one is `UNLABELLED` everywhere.

    Raises `InputError` with the name of the case, like `SliceDataset`.
    """
    case = entry["case"]
    image, label = _preprocess(case, entry, preprocessing)
    _check_volume(case, image, label)
    if "label" in entry:
        _check_labels(case, label, out_channels)
    return image, label.round().to(torch.uint8) if label.is_floating_point() else label.to(torch.uint8)


def _preprocess(case: str, entry: Mapping[str, str], preprocessing: Preprocess) -> tuple[Tensor, Tensor]:
    try:
        prepared = preprocessing(dict(entry))
    except Exception as error:
        cause = find_input_error(error)
        if cause is None:
            raise RuntimeError(f"preprocessing failed for case {case}: {error}") from error
        raise InputError(f"case {case}: {cause}") from error
    image = prepared["image"]
    if "label" in entry:
        label = prepared["label"]
        _check_same_grid(case, image, label)
    else:
        label = torch.full((1, *image.shape[1:]), UNLABELLED, dtype=torch.uint8)
    image, label = (convert_to_tensor(part, track_meta=False) for part in (image, label))
    return image.to(torch.float32), label


def _check_same_grid(case: str, image: Any, label: Any) -> None:
    """Refuse an image and a label at different places in the patient, where MONAI has kept both affines."""
    if not (isinstance(image, MetaTensor) and isinstance(label, MetaTensor)):
        return
    edge, origin, angle = affine_difference(image.affine.numpy(), label.affine.numpy())
    if max(edge, origin) > POSITION_TOLERANCE_MM or angle > ANGLE_TOLERANCE_RAD:
        raise InputError(
            f"case {case}: image and label lie on different grids (voxel edge off by {edge:.3g} mm, origin by "
            f"{origin:.3g} mm, axes by {angle:.3g} rad); resample the label onto the image"
        )


def _check_volume(case: str, image: Tensor, label: Tensor) -> None:
    if image.ndim not in _CHANNELS or image.shape[0] not in _CHANNELS[image.ndim]:
        raise InputError(
            f"case {case}: the image is {tuple(image.shape)} after preprocessing, neither (1, X, Y, Z) nor (C, H, W)"
        )
    if (1, *image.shape[1:]) != tuple(label.shape):
        raise InputError(
            f"case {case}: image {tuple(image.shape)} and label {tuple(label.shape)} differ in shape; "
            "they must be of one scan"
        )
    if image.numel() == 0:
        raise InputError(f"case {case}: the volume is empty, {tuple(image.shape)}; take the case out")
    if image.ndim == 3 and image.shape[1] != image.shape[2]:  # inference meets squares alone
        raise InputError(f"case {case}: a tile of {tuple(image.shape[1:])} pixels would be distorted; cut it square")
    finite = torch.isfinite(image)
    if not finite.all():
        count = int((~finite).sum())
        raise InputError(f"case {case}: {count} voxels of the image are NaN or infinite; repair or leave out the scan")
    if image.min() < 0 or image.max() > 1:
        logger.warning("case %s: intensities %.3g..%.3g lie outside 0..1", case, image.min(), image.max())


def _check_labels(case: str, label: Tensor, out_channels: int) -> None:
    values = torch.unique(label).tolist()
    wrong = [f"{value:g}" for value in values if not _is_label(value, out_channels)]
    if wrong:
        raise InputError(
            f"case {case}: label values {', '.join(wrong[:8])} are not among 0..{out_channels - 1}; "
            "correct the label file or the labels of dataset.json"
        )


def _is_label(value: float, out_channels: int) -> bool:
    # Labels stored as floats carry rounding; read_label allows the same thousandth.
    return math.isfinite(value) and abs(value - round(value)) <= _LABEL_TOLERANCE and 0 <= round(value) < out_channels


def _to_slices(volume: Tensor, size: int, resize: Callable[[Tensor, tuple[int, int]], Tensor]) -> Tensor:
    """Return (1, X, Y, Z) as contiguous slices (Z, 1, size, size): rows are x, columns are y; (C, H, W) as one."""
    slices = volume.permute(3, 0, 1, 2) if volume.ndim == 4 else volume[None]
    return torch.cat([resize(chunk, (size, size)) for chunk in slices.split(_CHUNK)]).contiguous()


def _collect(volumes: Iterator[Volume], cases: int, size: int) -> tuple[Tensor, Tensor, list[tuple[str, int]]]:
    """Return all slices as two contiguous arrays in memory; the volumes are freed as they are copied over."""
    parts: list[Volume] = []
    slices: list[tuple[str, int]] = []
    for volume in volumes:
        parts.append(volume)
        slices.extend((volume[0], position) for position in range(len(volume[1])))
        _check_channels(volume[0], len(volume[1][0]), len(parts[0][1][0]))
        _check_memory(_gigabytes(len(slices), len(volume[1][0]), size), len(parts), cases)
    images = torch.empty((len(slices), *parts[0][1].shape[1:]), dtype=torch.float32)
    labels = torch.empty((len(slices), 1, size, size), dtype=torch.uint8)
    start = len(slices)
    while parts:
        _, image, label = parts.pop()
        start -= len(image)
        images[start : start + len(image)] = image
        labels[start : start + len(label)] = label
    return images, labels, slices


def _from_cache(folder: Path, volumes: Iterator[Volume], size: int) -> tuple[Tensor, Tensor, list[tuple[str, int]]]:
    if not folder.is_dir():
        with building(folder, size) as writer:
            for case, images, labels in volumes:
                writer.append(case, images, labels)
    else:
        logger.info("slices found in %s", folder)
    return open_slices(folder)


def _check_stored_labels(labels: Tensor, out_channels: int, folder: Path) -> None:
    """Refuse cached slices that were checked against more classes than there are now."""
    labelled = labels[labels != UNLABELLED]
    highest = int(labelled.max()) if labelled.numel() else 0
    if highest >= out_channels:
        raise InputError(f"slices in {folder} hold label {highest}, but there are {out_channels} classes; correct them")


def _check_channels(case: str, channels: int, first: int) -> None:
    if channels != first:
        raise InputError(f"case {case} has {channels} channels, the cases before it {first}; make them alike")


def _check_memory(gigabytes: float, done: int, cases: int) -> None:
    """Refuse early what would not fit into memory, estimated from the `done` cases so far, not after minutes."""
    needed = gigabytes / done * (cases - done)
    available = _available_gigabytes()
    if available is not None and needed > available:
        raise InputError(
            f"the slices of {cases} cases need about {gigabytes / done * cases:.1f} GB, and "
            f"{available:.1f} GB more are free; set cache_dir to keep them on disk, or a smaller size"
        )


def _gigabytes(slices: int, channels: int, size: int) -> float:
    """Return the memory of float32 images with `channels` and their uint8 labels."""
    return slices * size * size * (4 * channels + 1) / 1e9


def _available_gigabytes() -> float | None:
    """Return the memory that can still be taken, or None where the system does not tell (only Linux does)."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return kilobytes["MemAvailable"] * 1024 / 1e9
