# SPDX-License-Identifier: Apache-2.0
"""The check that a bundle, run as its users run it, gives the masks of the network itself."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from PIL import Image

from pipeline.data.scans.volumes import read_volume
from pipeline.data.slides.pictures import read_image, write_png
from pipeline.errors import InputError
from pipeline.export.bundle_configs import is_of_slides
from pipeline.export.parity import Agreement, ParityError, agreement_of_masks, check_parity, smooth_noise
from pipeline.inference.segmentation import segment_by
from pipeline.inference.slides.tiles import tile_inferer_of
from pipeline.networks.saved_model import SavedModel

MOST_COMPARED = 3  # each takes a process of its own, ten seconds or more
_SLICES = 6  # more than a CPU's chunk
# The first axis of the made-up scan points to the front, the second to the right, mm.
_AFFINE = np.array([[0, 0.8, 0, 40], [0.9, 0, 0, -60], [0, 0, 3, 5], [0, 0, 0, 1]])
_GREYS = (0.0, 1000.0)  # of the made-up scan where the preprocessing has no window


def made_up_image(model: SavedModel, folder: Path) -> Path:
    """Write a scan of smooth random greys into `folder`, or a picture for a model of slides, and return its path.

    It is always the same, a quarter larger than what the network was trained on, and the scan's axes are permuted.
    """
    if is_of_slides(model):
        path = folder / "made_up.png"
        (noise,) = smooth_noise(1, model.network.in_channels, [model.tile_px * 5 // 4] * 2)
        write_png(path, (255 * noise).round().to(torch.uint8).permute(1, 2, 0).numpy())
        return path
    path = folder / "made_up.nii.gz"
    width, height, depth = (model.size, model.size, _SLICES) if isinstance(model.size, int) else model.size
    noise = smooth_noise(1, 1, (width * 5 // 4, height, depth))[0, 0].numpy()
    windows = [(step["low"], step["high"]) for step in model.preprocessing if step.get("rule") == "window"]
    low, high = windows[0] if windows else _GREYS
    nib.save(nib.Nifti1Image((low + (high - low) * noise).astype(np.float32), _AFFINE), path)
    return path


def check_images(model: SavedModel, images: Sequence[Path]) -> None:
    """Raise `InputError` for scans that a bundle cannot read."""
    for image in [] if is_of_slides(model) else images:
        if not str(image).endswith((".nii", ".nii.gz")):
            raise InputError(f"{image}: a bundle reads NIfTI alone; give .nii or .nii.gz to compare masks on")


def check_bundle(folder: Path, model: SavedModel, images: Sequence[Path]) -> Agreement | None:
    """Return how far the masks of a bundle agree with the network's on `images`; None for no images.

    Raises:
        InputError: an image cannot be read.
        ParityError: the bundle gives no mask, or one that `check_parity` refuses.
    """
    if not images:
        return None
    own = [_own_mask(model, image) for image in images]
    by_bundle = [_mask_by_bundle(folder, image) for image in images]
    for image, first, second in zip(images, own, by_bundle, strict=True):
        if first.shape != second.shape:
            raise ParityError(f"the bundle's mask of {image} has the shape {second.shape}, not {first.shape}")
    flat = (np.concatenate([mask.ravel() for mask in masks]) for masks in (own, by_bundle))
    found = agreement_of_masks(*flat, model.labels)
    check_parity(found, int8=False)
    return found


def _own_mask(model: SavedModel, image: Path) -> np.ndarray:
    """Return the mask by the network as a bundle has it: not folded, which rounds otherwise where ENet's maxima tie."""
    if not is_of_slides(model):
        return segment_by(model.network, read_volume(image), model)
    pixels = torch.from_numpy(read_image(image, model.network.in_channels)).permute(2, 0, 1)
    return tile_inferer_of(model)(pixels[None], model.network)[0, 0].numpy()


def _mask_by_bundle(folder: Path, image: Path) -> np.ndarray:
    """Run the bundle on the CPU, where this project's own mask is made too; another processor rounds otherwise."""
    config = (folder / "configs" / "inference.json").resolve()
    with tempfile.TemporaryDirectory() as work:
        command = [sys.executable, "-B", "-m", "monai.bundle", "run", "--config_file", str(config), "--device", "cpu"]
        command += ["--dataset_dir", str(Path(image).resolve()), "--output_dir", str(Path(work, "masks"))]
        result = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
        masks = list(Path(work, "masks").glob("*_seg.*"))
        if result.returncode != 0 or len(masks) != 1:
            last = (result.stderr.strip() or "no message").splitlines()[-1]
            raise ParityError(f"the bundle gives no mask of {image} ({last})")
        return np.asarray(Image.open(masks[0]) if masks[0].suffix == ".png" else nib.load(masks[0]).dataobj)
