# SPDX-License-Identifier: Apache-2.0
"""Preprocessing: one list of transforms of an image for training, evaluation and inference.

A config lists them, `model.pt` keeps the list as plain data, and inference runs it again.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import CastToTyped, Compose, Invertd, LoadImaged, MapTransform, Randomizable, Transform
from monai.utils import convert_to_tensor
from torch import Tensor

from pipeline import described
from pipeline.data.dataset.dataset import SLIDES
from pipeline.data.dataset.intensity import IntensityRule
from pipeline.data.scans.geometry import to_voxel_order_of
from pipeline.data.scans.monai_reader import VolumeReader
from pipeline.errors import InputError, find_input_error

IMAGE, LABEL = "image", "label"
_AS_THEY_ARE = np.array([[0, 1], [1, 1], [2, 1]])  # axes in NiBabel's terms: each in its place, not flipped
# Classes of MONAI's other modules read and write files.
TRUSTED_MODULES = (
    "monai.transforms.croppad",
    "monai.transforms.intensity",
    "monai.transforms.signal",
    "monai.transforms.spatial",
    "monai.transforms.utility",
    "pipeline.data",
)
_LOADER = described.dotted_name(LoadImaged)
_READERS = ("pipeline.data.VolumeReader", described.dotted_name(VolumeReader))


class ScaleIntensityByRuled(MapTransform):
    """Scales an image to [0, 1] float32: a fixed window, or percentiles of the whole image.

    Equals MONAI's `ScaleIntensityRanged`, or `ScaleIntensityRangePercentilesd`, with b_min 0, b_max 1 and clip. It
    needs one float32 copy of a volume where those make three. Percentiles are numpy's, for volumes of any size.

    Args:
        keys: of the images.
        rule: "window", with `low` and `high` in raw units (HU for CT), or "percentiles", with both in percent.
        low: the raw value, or the percentile, that becomes 0; lower values become 0 too.
        high: the raw value, or the percentile, that becomes 1; higher values become 1 too.
        allow_missing_keys: do nothing where a key is missing.

    Raises:
        InputError: an impossible rule; voxels that are not finite, where percentiles are wanted.
    """

    def __init__(
        self, keys: KeysCollection, rule: str, low: float, high: float, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.rule = IntensityRule(rule, low, high)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with its images scaled; the given ones are left as they are."""
        scaled = dict(data)
        for key in self.key_iterator(scaled):
            image = scaled[key]
            scaled[key] = self._scale(convert_to_tensor(image, track_meta=False))
            if isinstance(image, MetaTensor):
                scaled[key] = MetaTensor(scaled[key]).copy_meta_from(image)
        return scaled

    def _scale(self, raw: Tensor) -> Tensor:
        low, high = self.rule.window(raw)
        width = high - low if high > low else 1.0  # a constant volume becomes zeros
        return raw.to(torch.float32, copy=True).sub_(low).div_(width).clamp_(0.0, 1.0)


class Preprocessing(Compose):
    """Deterministic dictionary transforms of `image`, and of `label` where there is one, with their description.

    A case may lack `label`: transforms of that key leave out what is missing. Threads may share the preprocessing.

    Args:
        transforms: as MONAI's `Compose` takes them.
        description: of each as plain data, as `pipeline.described.describe` gives it.

    Raises:
        InputError: a random transform, which belongs into the augmentation.
    """

    def __init__(self, transforms: Sequence[Any], description: Iterable[Mapping[str, Any]]) -> None:
        super().__init__(list(transforms))
        self.description = [dict(one) for one in description]
        steps = self.flatten().transforms
        random = [type(one).__name__ for one in steps if isinstance(one, Randomizable)]
        if random:
            raise InputError(f"preprocessing has {', '.join(random)}, which is random; put it into the augmentation")
        # MONAI's allow_missing_keys_mode around each call would not do: threads share the transforms, and the first to
        # end would set them back while the others still run.
        for one in steps:
            if isinstance(one, MapTransform) and LABEL in one.keys:
                one.allow_missing_keys = True

    def __call__(self, data: Mapping[Hashable, Any], *args: Any, **kwargs: Any) -> dict[Hashable, Any]:
        """Return the preprocessed data; what a transform raises arrives as `InputError`."""
        try:
            return _with_label_as_image(super().__call__(data, *args, **kwargs))
        except Exception as error:  # MONAI wraps whatever a transform raises
            cause = find_input_error(error)
            if cause is None:
                cause = f"{_first_cause(error)}; correct the transforms, or leave the image out"
            raise InputError(f"preprocessing: {cause}") from error

    def of_image(self, image: Tensor) -> Tensor:
        """Return an image without a label, (X, Y, Z) or (C, H, W) as its reader gives it, preprocessed."""
        return self({IMAGE: image})[IMAGE]

    def to_own_grid(self) -> Compose:
        """Return a transform that brings label maps `pred` (1, ...) uint8 to the grid on which `image` was read.

        MONAI inverts the transforms that the image records: turns and flips exactly, other spacings by the nearest
        voxel. For `postprocessing` of an evaluator.
        """
        return Compose(
            [Invertd("pred", self, orig_keys=IMAGE, nearest_interp=True), CastToTyped("pred", dtype=torch.uint8)]
        )


def _with_label_as_image(data: dict[Hashable, Any]) -> dict[Hashable, Any]:
    """Return `data` with the label's axes in the order and direction of the image's.

    MONAI turns each by its own affine. In a scan at exactly 45 degrees, rounding decides to which side an axis points.
    """
    image, label = data.get(IMAGE), data.get(LABEL)
    if not (isinstance(image, MetaTensor) and isinstance(label, MetaTensor)) or image.ndim != 4:
        return data
    own, other = label.affine.numpy(), image.affine.numpy()
    change = nib.io_orientation(np.linalg.inv(other) @ own)
    if np.array_equal(change, _AS_THEY_ARE):
        return data
    array, affine = to_voxel_order_of(label[0].numpy(), own, other)
    turned = MetaTensor(torch.as_tensor(array.copy())[None], meta=label.meta)
    turned.affine = torch.as_tensor(affine)
    return {**data, LABEL: turned}


def _first_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).partition("\n")[0] or type(error).__name__


def preprocessing_of(description: Sequence[Mapping[str, Any]], own_modules: Sequence[str] = ()) -> Preprocessing:
    """Return the preprocessing that a model file describes, for images that have been read already.

    The first transform of a list for scans loads files; it is left out.
    Classes of `own_modules` may be built beside those of `TRUSTED_MODULES` and those that the user trusts.

    Raises:
        InputError: a transform of another module, or one that cannot be built.
    """
    steps = [one for one in description if one.get(described.TARGET) != _LOADER]
    transforms = [described.build(one, Transform, (*TRUSTED_MODULES, *own_modules)) for one in steps]
    return Preprocessing(transforms, steps)


def check_preprocessing(description: Sequence[Mapping[str, Any]], kind: str) -> None:
    """Refuse (`InputError`) a preprocessing that inference could not repeat; call it before training.

    `kind` is that of the dataset. Inference reads scans by `VolumeReader`, from files or from memory, so training must
    too. Slides are read by tiles: their loading is no part of the preprocessing.
    """
    loaders = [one for one in description if one[described.TARGET] == _LOADER]
    if kind == SLIDES and loaders:
        raise InputError("preprocessing is of tiles that have been read; put LoadImaged into loading")
    if kind != SLIDES and (
        len(loaders) != 1 or loaders[0] != description[0] or loaders[0].get("reader") not in _READERS
    ):
        raise InputError(
            "preprocessing must begin with its only LoadImaged, of reader pipeline.data.VolumeReader: inference reads "
            "scans by it"
        )
    # What the config names is at hand, and needs no other trust.
    preprocessing_of(description, [str(one[described.TARGET]).rpartition(".")[0] for one in description])
