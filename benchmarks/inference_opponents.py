# SPDX-License-Identifier: Apache-2.0
"""The two usual ways of segmenting a scan with a 2D network, for `inference_speed` to compare with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from monai.inferers import SliceInferer
from monai.transforms import (
    AsDiscreted,
    Compose,
    EnsureChannelFirstd,
    Invertd,
    LoadImaged,
    Orientationd,
    Resized,
    SaveImaged,
    ScaleIntensityRanged,
)
from scipy.ndimage import zoom
from torch import nn

from pipeline.data import CT_WINDOW


def stock_monai(scan: Path, output: Path, network: nn.Module, size: int) -> None:
    """Segment a scan by MONAI's own transforms and inferer, as its tutorials do: logits of the whole volume."""
    before = Compose(
        [
            LoadImaged("image"),
            EnsureChannelFirstd("image"),
            Orientationd("image", axcodes="RAS"),
            ScaleIntensityRanged("image", CT_WINDOW.low, CT_WINDOW.high, 0.0, 1.0, clip=True),
            Resized("image", (size, size, -1), mode="trilinear"),
        ]
    )
    after = Compose(
        [
            Invertd("pred", transform=before, orig_keys="image", nearest_interp=False),
            AsDiscreted("pred", argmax=True),
            SaveImaged("pred", output_dir=output, output_postfix="", separate_folder=False, output_dtype=np.uint8),
        ]
    )
    item = before({"image": scan})
    with torch.inference_mode():
        item["pred"] = SliceInferer(roi_size=(size, size), sw_batch_size=4, spatial_dim=2)(
            item["image"][None], network
        )[0]
    after(item)


def original_loop(scan: Path, output: Path, network: nn.Module, size: int) -> None:
    """Segment a scan slice by slice as the published code does: cubic zoom in, one slice at a time, nearest zoom out.

    That code is rewritten here; it read prepared arrays, which SimpleITK gives here.
    """
    import SimpleITK as sitk  # noqa: N813

    image = sitk.ReadImage(str(scan))
    volume = np.clip(sitk.GetArrayFromImage(image).astype(np.float32), CT_WINDOW.low, CT_WINDOW.high)
    volume = (volume - CT_WINDOW.low) / (CT_WINDOW.high - CT_WINDOW.low)
    prediction = np.zeros(volume.shape, np.uint8)
    for index, one in enumerate(volume):
        height, width = one.shape
        # The array's rows go from front to back; the network has learned from slices (x, y) in RAS.
        turned = zoom(one, (size / height, size / width), order=3)[::-1, ::-1].T.copy()
        with torch.no_grad():
            logits = network(torch.from_numpy(turned)[None, None].float())
        labels = torch.argmax(torch.softmax(logits, dim=1), dim=1)[0].numpy().astype(np.uint8)
        prediction[index] = zoom(labels.T[::-1, ::-1], (height / size, width / size), order=0)
    labels = sitk.GetImageFromArray(prediction)
    labels.CopyInformation(image)
    output.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(labels, str(output / scan.name), useCompression=True)
