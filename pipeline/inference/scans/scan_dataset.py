# SPDX-License-Identifier: Apache-2.0
"""The scans that a user names, one after another, preprocessed and ready for a MONAI evaluator."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import DataLoader, MetaTensor
from torch.utils.data import default_collate

from pipeline.data.preprocessing import Preprocessing
from pipeline.data.scans.dicom_folders import is_dicom_folder
from pipeline.data.scans.volumes import SUFFIXES, Volume, metadata_of, read_volume, scan_suffix, signed_values
from pipeline.errors import InputError
from pipeline.inference.inputs import Inputs, Source, SourceDataset, find_sources, visible_entries


@dataclass(frozen=True)
class Scan(Source):
    """A scan on disk: a file, or a folder with one DICOM series. `case` names its outputs."""


def find_scans(inputs: Inputs) -> list[Source]:
    """Return the scans of `inputs`: a file, a folder of files and DICOM series folders, one series, or a list.

    A `Scan` in a list keeps the case name that it has; files bear the name of the file, series that of the folder.
    Hidden files and files of other formats in a folder are passed over. Raises `InputError` for paths that are
    missing (all of them in one message), a folder without scans, and two scans of one case name.
    """
    return find_sources(inputs, ScanDataset.noun, _scans_in)


def _scans_in(path: Path) -> list[Source]:
    # A folder named like a file is no folder of scans: read_volume says so.
    return _in_folder(path) if path.is_dir() and scan_suffix(path) is None else [Scan(_case_of(path), path)]


def _in_folder(folder: Path) -> list[Source]:
    entries = visible_entries(folder)
    scans = [Scan(_case_of(path), path) for path in entries if scan_suffix(path) is not None or _is_series(path)]
    if is_dicom_folder(folder):
        if scans:
            raise InputError(f"{folder} holds DICOM slices and {scans[0].path.name}; give them folders of their own")
        return [Scan(_case_of(folder), folder)]
    if not scans:
        raise InputError(f"no scan in {folder}; give {', '.join(SUFFIXES)} files or DICOM series folders")
    return scans


def _is_series(path: Path) -> bool:
    return path.is_dir() and is_dicom_folder(path)


def _case_of(path: Path) -> str:
    suffix = scan_suffix(path)
    return os.path.basename(os.path.abspath(path)) if suffix is None else path.name[: -len(suffix)]


class ScanDataset(SourceDataset):
    """Reads scans one at a time: items are `{"image": MetaTensor (1, X, Y, Z), preprocessed, "case": str}`.

    The image records what was done to it, which `Preprocessing.to_own_grid` undoes for its labels. A scan that cannot
    be read is logged, kept in `failures`, and skipped, so that one bad file does not stop a folder; a single bad scan
    raises `InputError`. `geometry_of(case)` tells what grid a scan came on. Under torch.distributed each rank reads its
    share. Use it with `scan_loader`, or with a `DataLoader` of batch size 1 and no workers.
    """

    noun = "scan"

    def __init__(self, inputs: Inputs, preprocessing: Preprocessing) -> None:
        super().__init__(find_scans(inputs))
        self.preprocessing = preprocessing
        self._geometries: dict[str, Volume] = {}

    def _item(self, source: Source) -> dict[str, Any]:
        volume = read_volume(source.path)
        self._geometries[source.case] = _without_voxels(volume)
        image = as_loaded(volume)
        del volume  # or its voxels would stay beside the preprocessed ones
        return {"image": self.preprocessing.of_image(image), "case": source.case}

    def geometry_of(self, case: str) -> Volume:
        """Return path, affine, header and notes of a scan that was read; its array has the shape but no memory."""
        return self._geometries[case]


def _without_voxels(volume: Volume) -> Volume:
    return replace(volume, array=np.broadcast_to(volume.array.dtype.type(0), volume.array.shape))


def as_loaded(volume: Volume) -> MetaTensor:
    """Return a scan (X, Y, Z) as `LoadImaged` with `VolumeReader` gives it; it shares the scan's memory.

    MONAI's loader would copy it into another order in memory.
    """
    array = signed_values(volume.array)
    if min(array.strides) < 0:
        array = array.copy(order="K")  # torch knows no negative strides; "K" keeps slices together in memory
    meta = {**metadata_of(volume.affine, array.shape), "filename_or_obj": str(volume.path)}
    return MetaTensor(torch.from_numpy(array), meta=meta)


def scan_loader(scans: ScanDataset) -> DataLoader:
    """Return a loader of one scan a batch; the batch shares the scan's memory, where collating would copy it."""
    return DataLoader(scans, batch_size=1, num_workers=0, collate_fn=_one_scan)


def _one_scan(items: list[dict[str, Any]]) -> dict[str, Any]:
    (item,) = items
    return {key: _as_batch(value) if isinstance(value, MetaTensor) else [value] for key, value in item.items()}


def _as_batch(volume: MetaTensor) -> MetaTensor:
    batch = MetaTensor(volume.as_tensor()[None], meta=default_collate([volume.meta]))
    batch.applied_operations = [volume.applied_operations]
    batch.is_batch = True
    return batch
