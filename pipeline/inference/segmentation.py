# SPDX-License-Identifier: Apache-2.0
"""From scans and slides to label maps on their own grids: one volume in memory, or files and folders."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from monai.engines import SupervisedEvaluator

from pipeline.data.preprocessing import preprocessing_of
from pipeline.data.scans.volumes import Volume
from pipeline.errors import InputError
from pipeline.inference.backends import TORCH, backend_of, network_on
from pipeline.inference.logits import device_of
from pipeline.inference.scans.label_map_writer import LabelMapWriter, check_on_own_grid
from pipeline.inference.scans.patches import PatchInferer
from pipeline.inference.scans.scan_dataset import ScanDataset, as_loaded, scan_loader
from pipeline.inference.scans.slicewise import SliceWiseInferer
from pipeline.inference.slides.slide_dataset import SlideDataset, slide_batch, slide_loader
from pipeline.inference.slides.slide_writer import SlideLabelWriter
from pipeline.inference.slides.tiles import tile_inferer_of
from pipeline.inference.sources import Inputs
from pipeline.networks import SavedModel, for_inference

_SLICES_AS_PATCHES = 16


def inferer_of(
    model: SavedModel, slices_per_chunk: int | None = None, amp_dtype: str | None = None
) -> SliceWiseInferer | PatchInferer:
    """Return the inferer with the size that `model` was trained on, for preprocessed scans.

    A 3D network sees patches with together at most `slices_per_chunk` slices at once, at least one patch; None is 16.

    Raises `InputError` for a model of slides or of colour images.
    """
    if model.tile_px is not None:
        raise InputError("the checkpoint was trained on tiles of slides, not on scans; choose one trained on scans")
    channels = model.network_arguments["in_channels"]
    if channels != 1:
        raise InputError(f"the checkpoint takes {channels} channels, a scan has one; choose one trained on scans")
    if not isinstance(model.size, int):
        patches = max((slices_per_chunk or _SLICES_AS_PATCHES) // model.size[2], 1)
        return PatchInferer(model.size, patches_per_batch=patches, amp_dtype=amp_dtype)
    return SliceWiseInferer(model.size, slices_per_chunk, amp_dtype)


def segment(
    volume: Volume,
    model: SavedModel,
    slices_per_chunk: int | None = None,
    amp_dtype: str | None = None,
) -> np.ndarray:
    """Return the label map (x, y, z) uint8 of a scan, voxel for voxel on the scan's own grid and in its own order.

    Raises `InputError` for logits that are not finite and for a model of colour images.
    """
    return segment_by(for_inference(model.network), volume, model, slices_per_chunk, amp_dtype)


def segment_by(
    network: torch.nn.Module,
    volume: Volume,
    model: SavedModel,
    slices_per_chunk: int | None = None,
    amp_dtype: str | None = None,
) -> np.ndarray:
    """Return what `segment` does, by a network that stands for that of `model`."""
    inferer = inferer_of(model, slices_per_chunk, amp_dtype)
    preprocessing = preprocessing_of(model.preprocessing)
    image = preprocessing.of_image(as_loaded(volume))
    labels = inferer(image[None], network)[0]
    labels = preprocessing.to_own_grid()({"pred": labels, "image": image})["pred"]
    check_on_own_grid(labels, volume)
    return labels[0].numpy()


def segment_files(
    inputs: Inputs,
    output_dir: str | os.PathLike[str],
    model: SavedModel,
    slices_per_chunk: int | None = None,
    amp_dtype: str | None = None,
    overwrite: bool = False,
    output_format: str = "nifti",
    overlay: bool = False,
    backend: str = TORCH,
    organ_codes: Mapping[str, Any] | None = None,
) -> int:
    """Segment a file, a folder of scans or a DICOM series into `output_dir`; returns the exit code.

    Writes `CASE.nii.gz`, `CASE.json`, `failures.csv` and `manifest.csv`; what an earlier run has finished with the same
    input, model and settings is kept unless it is to be overwritten. With `output_format` "dicom-seg" a DICOM SEG
    `CASE.dcm` takes the place of `CASE.nii.gz`, with "both" it is added; its organs have the codes that `organ_codes`
    gives, {"liver": ["10200004", "Liver"]}, or else the known ones. With `overlay` there is also a picture
    `CASE_overlay.png`. `backend` is one of `backend_of`. Scans that cannot be read are recorded and skipped: the code
    is 0 when none failed, 1 when some did, 2 when all did. Raises `InputError` when a single scan is given and fails,
    and for what concerns all: the folder, the names, the model, the backend, DICOM SEG of other files, the codes.
    """
    preprocessing = preprocessing_of(model.preprocessing)
    scans = ScanDataset(inputs, preprocessing, model.modality)
    network, settings = _network_and_settings(model, backend, amp_dtype)
    writer = LabelMapWriter(
        output_dir, scans, model.labels, model.sha256, settings, overwrite, output_format, overlay, organ_codes
    )
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),  # where volumes stay; their chunks travel to the network
        val_data_loader=scan_loader(scans),
        network=network,
        inferer=inferer_of(model, slices_per_chunk, amp_dtype),
        postprocessing=preprocessing.to_own_grid(),
        val_handlers=[writer],
    )
    evaluator.run()
    return writer.exit_code


def _network_and_settings(
    model: SavedModel, backend: str, amp_dtype: str | None
) -> tuple[torch.nn.Module, dict[str, str]]:
    """Return the network as it will run, and what of that changes labels, for the manifest."""
    precision = amp_dtype or "float32"
    chosen = backend_of(backend, device_of(model.network, torch.device("cpu")), precision)
    return for_inference(network_on(model, chosen)), {"precision": precision, "backend": chosen}


def segment_slides(
    inputs: Inputs,
    output_dir: str | os.PathLike[str],
    model: SavedModel,
    overlap: float = 0.25,
    tiles_per_batch: int = 8,
    background: float | None = 220,
    amp_dtype: str | None = None,
    overwrite: bool = False,
    backend: str = TORCH,
) -> int:
    """Segment a slide, or a folder of slides, into `output_dir`; returns the exit code.

    Writes `CASE.tif`, `CASE_overview.png`, `CASE.json`, `failures.csv` and `manifest.csv`; what an earlier run has
    finished with the same input, model and settings is kept unless it is to be overwritten. `backend` is one of
    `backend_of`. Slides that cannot be read are recorded and passed over: the code is 0 when none failed, 1 when some
    did or have unreadable parts, 2 when all did. Raises `InputError` when a single slide is given and fails, and for
    what concerns all: the folder, the names, the model, the backend.
    """
    slides = SlideDataset(inputs)
    network, settings = _network_and_settings(model, backend, amp_dtype)
    settings = {"overlap": overlap, "background": background, **settings}
    writer = SlideLabelWriter(output_dir, slides, model.labels, model.sha256, settings, overwrite)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),  # slides stay on disk; their tiles travel to the network
        val_data_loader=slide_loader(slides),
        network=network,
        prepare_batch=slide_batch,
        inferer=tile_inferer_of(model, overlap, tiles_per_batch, background, amp_dtype),
        val_handlers=[writer],
        decollate=False,
    )
    evaluator.run()
    return writer.exit_code
