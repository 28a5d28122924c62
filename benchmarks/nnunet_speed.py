# SPDX-License-Identifier: Apache-2.0
"""Seconds and peak memory of nnU-Net's usual 3D network on a whole scan at 3 mm, as the field's default.

PlainConvUNet of its `3d_fullres` plans (six stages, 32 to 320 channels), patches of 128 x 128 x 128 with half an
overlap, Gaussian weights, no mirroring: nnU-Net without test-time augmentation. The network has random weights. Needs
benchmarks/requirements.txt, which `make bench` installs.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.inferers import sliding_window_inference
from torch import nn
from torch.nn import functional as F

from benchmarks.inference_memory import CLASSES, SPACING_MM, peak_bytes, write_scan

TARGET_MM = 3.0
PATCH = (128, 128, 128)
CHANNELS = (32, 64, 128, 256, 320, 320)


def plain_conv_unet() -> nn.Module:
    """Return nnU-Net's default 3D network with random weights."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    return PlainConvUNet(
        input_channels=1,
        n_stages=len(CHANNELS),
        features_per_stage=CHANNELS,
        conv_op=nn.Conv3d,
        kernel_sizes=3,
        strides=(1, 2, 2, 2, 2, 2),
        n_conv_per_stage=2,
        num_classes=CLASSES,
        n_conv_per_stage_decoder=2,
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    ).eval()


def segment(scan: Path, mask: Path, network: nn.Module) -> None:
    """Write the mask of a scan: resampled to 3 mm, segmented patch by patch, brought back as labels."""
    image = nib.load(scan)
    values = torch.from_numpy(np.asarray(image.dataobj, dtype=np.float32))[None, None]
    size = [round(n * mm / TARGET_MM) for n, mm in zip(values.shape[2:], SPACING_MM, strict=True)]
    small = F.interpolate(values, size=size, mode="trilinear")
    with torch.inference_mode():
        logits = sliding_window_inference((small - small.mean()) / small.std(), PATCH, 1, network, 0.5, "gaussian")
    labels = F.interpolate(logits.argmax(1, keepdim=True).float(), size=values.shape[2:], mode="nearest")
    nib.save(nib.Nifti1Image(labels[0, 0].numpy().astype(np.uint8), image.affine), mask)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the cost of one scan."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--slices", type=int, default=150)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    try:
        network = plain_conv_unet()
    except ImportError:
        print("skipped: pip install --no-deps -r benchmarks/requirements.txt")
        return
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        scan = Path(folder) / "scan.nii.gz"
        write_scan(scan, options.slices)
        start, cpu = time.perf_counter(), time.process_time()
        segment(scan, Path(folder) / "mask.nii.gz", network)
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(f"nnU-Net at 3 mm, 512 x 512 x {options.slices}: {wall:.1f} s, {cpu:.1f} CPU s, {peak_bytes() / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
