# SPDX-License-Identifier: Apache-2.0
"""The scans that a user names, one after another, preprocessed and ready for a MONAI evaluator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from monai.data import DataLoader, MetaTensor
from torch.utils.data import default_collate

from pipeline.data.dataset.intensity import doubt_modality
from pipeline.data.preprocessing import Preprocessing
from pipeline.data.scans.volumes import Volume, metadata_of, read_volume, signed_values
from pipeline.files.read_ahead import ReadAhead
from pipeline.inference.inputs import SourceDataset
from pipeline.inference.scans.modality import modality_told
from pipeline.inference.scans.scan_files import NOUN, find_scans
from pipeline.inference.sources import Inputs, Source


class ScanDataset(SourceDataset):
    """Reads scans one after another: items are `{"image": MetaTensor (1, X, Y, Z), preprocessed, "case": str}`.

    While a scan is segmented, the next is read.

    The image records what was done to it, which `Preprocessing.to_own_grid` undoes for its labels. A scan that cannot
    be read is logged, kept in `failures`, and skipped, so that one bad file does not stop a folder; a single bad scan
    raises `InputError`. `geometry_of(case)` tells what grid a scan came on. Under torch.distributed each rank reads its
    share. Use it with `scan_loader`, or with a `DataLoader` of batch size 1 and no workers.

    With `modality`, that of a model's training data, a scan that seems to be of another modality gets a note.
    """

    noun = NOUN

    def __init__(self, inputs: Inputs, preprocessing: Preprocessing, modality: str | None = None) -> None:
        super().__init__(find_scans(inputs))
        self.modality = modality
        self.preprocessing = preprocessing
        self._geometries: dict[str, Volume] = {}
        self._volumes: Iterator[Volume] = iter(())

    def _begin(self, sources: Sequence[Source]) -> None:
        self._volumes = ReadAhead(read_volume, [source.path for source in sources])

    def _item(self, source: Source) -> dict[str, Any]:
        volume = self._with_doubts(next(self._volumes))
        self._geometries[source.case] = _without_voxels(volume)
        image = as_loaded(volume)
        del volume  # or its voxels would stay in memory together with the preprocessed ones
        return {"image": self.preprocessing.of_image(image), "case": source.case}

    def _with_doubts(self, volume: Volume) -> Volume:
        """Return the volume, with a note where it is unlike the model's training data."""
        if self.modality is None or not volume.array.size:
            return volume
        low, high = float(volume.array.min()), float(volume.array.max())
        doubt = doubt_modality(self.modality, low, high, modality_told(volume.path))
        return volume if doubt is None else replace(volume, notes=(*volume.notes, doubt))

    def geometry_of(self, case: str) -> Volume:
        """Return path, affine, header and notes of a scan that was read; its array has its shape but no memory."""
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
    """Return a loader with one scan per batch; the batch shares the scan's memory, while collating would copy it."""
    return DataLoader(scans, batch_size=1, num_workers=0, collate_fn=_one_scan)


def _one_scan(items: list[dict[str, Any]]) -> dict[str, Any]:
    (item,) = items
    return {key: _as_batch(value) if isinstance(value, MetaTensor) else [value] for key, value in item.items()}


def _as_batch(volume: MetaTensor) -> MetaTensor:
    batch = MetaTensor(volume.as_tensor()[None], meta=default_collate([volume.meta]))
    batch.applied_operations = [volume.applied_operations]
    batch.is_batch = True
    return batch
