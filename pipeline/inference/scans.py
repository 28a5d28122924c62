# SPDX-License-Identifier: Apache-2.0
"""The scans that a user names, one after another, oriented and ready for a MONAI evaluator."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from monai.data import DataLoader, MetaTensor
from torch.utils.data import IterableDataset, default_collate, get_worker_info

from pipeline.data.dicom import is_dicom_folder
from pipeline.data.volumes import SUFFIXES, Volume, metadata_of, read_volume, scan_suffix, signed_values, to_ras
from pipeline.errors import InputError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scan:
    """A scan on disk: a file, or a folder with one DICOM series. `case` names its outputs."""

    case: str
    path: Path


Inputs = str | os.PathLike[str] | Sequence[str | os.PathLike[str] | Scan]


@dataclass(frozen=True)
class Failure:
    """A scan that could not be segmented, and why."""

    case: str
    file: str
    error: str


def find_scans(inputs: Inputs) -> list[Scan]:
    """Return the scans behind `inputs`: a file, a folder of files and DICOM series folders, one series, or a list.

    A `Scan` in a list keeps the case name that it has; files bear the name of the file, series that of the folder.
    Hidden files and files of other formats in a folder are passed over. Raises `InputError` for paths that are
    missing (all of them in one message), a folder without scans, and two scans of one case name.
    """
    given = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
    paths = [item.path if isinstance(item, Scan) else Path(item) for item in given]
    missing = [str(path) for path in paths if not path.exists()]
    if missing or not paths:
        raise InputError(f"no such file or folder: {', '.join(missing) or 'nothing given'}; check the path")
    scans = [scan for item in given for scan in ([item] if isinstance(item, Scan) else _behind(Path(item)))]
    twice = [case for case, count in Counter(scan.case for scan in scans).items() if count > 1]
    if twice:
        files = ", ".join(str(scan.path) for scan in scans if scan.case == twice[0])
        raise InputError(f"two scans named {twice[0]} would share one output: {files}; rename or remove one")
    return scans


def _behind(path: Path) -> list[Scan]:
    # A folder named like a file is no folder of scans: read_volume says so.
    return _in_folder(path) if path.is_dir() and scan_suffix(path) is None else [Scan(_case_of(path), path)]


def _in_folder(folder: Path) -> list[Scan]:
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
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


def rank_and_ranks() -> tuple[int, int]:
    """Return this process's rank and the number of processes, (0, 1) outside torch.distributed."""
    running = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if running else (0, 1)


class ScanDataset(IterableDataset):
    """Reads scans one at a time: items are `{"image": MetaTensor (1, X, Y, Z) in RAS, raw values, "case": str}`.

    A scan that cannot be read is logged, kept in `failures`, and skipped, so that one bad file does not stop a folder;
    a single bad scan raises `InputError`. `place(case)` tells where a scan came from. Under torch.distributed each
    rank reads its share. Use it with `scan_loader`, or with a `DataLoader` of batch size 1 and no workers.
    """

    def __init__(self, inputs: Inputs) -> None:
        self.scans = find_scans(inputs)
        self.failures: list[Failure] = []
        self._places: dict[str, Volume] = {}
        self._started: dict[str, float] = {}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if get_worker_info() is not None:
            raise InputError("scans are read in the main process, which keeps the failures: set num_workers to 0")
        self.failures.clear()
        rank, ranks = rank_and_ranks()
        # A generator would hold each scan while it waits; map and filter keep none.
        return filter(None, map(self._read, self.scans[rank::ranks]))

    def _read(self, scan: Scan) -> dict[str, Any] | None:
        """Return the item of a scan, None where it cannot be read and there are others."""
        self._started[scan.case] = time.perf_counter()
        try:
            volume = read_volume(scan.path)
        except InputError as error:
            if len(self.scans) == 1:
                raise
            logger.warning("%s skipped: %s", scan.case, error)
            self.failures.append(Failure(scan.case, str(scan.path), str(error)))
            return None
        self._places[scan.case] = _without_voxels(volume)
        return {"image": ras_tensor(volume), "case": scan.case}

    def place(self, case: str) -> Volume:
        """Return path, affine, header and notes of a scan that was read; its array has the shape but no memory."""
        return self._places[case]

    def seconds_since_start(self, case: str) -> float:
        """Return the seconds since the reading of a scan began."""
        return time.perf_counter() - self._started[case]


def _without_voxels(volume: Volume) -> Volume:
    return replace(volume, array=np.broadcast_to(volume.array.dtype.type(0), volume.array.shape))


def ras_tensor(volume: Volume) -> MetaTensor:
    """Return a scan as (1, X, Y, Z) in RAS, raw values, with MONAI's metadata.

    Shares memory with the scan where no axis is flipped; `signed_values` tells the type.
    """
    array, affine = to_ras(volume.array, volume.affine)
    array = signed_values(array)
    if min(array.strides) < 0:
        array = array.copy(order="K")  # torch knows no negative strides; "K" keeps slices together in memory
    meta = metadata_of(affine, array.shape)
    meta.update(original_affine=volume.affine.copy(), original_channel_dim=0, filename_or_obj=str(volume.path))
    return MetaTensor(torch.from_numpy(array)[None], meta=meta)


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
