# SPDX-License-Identifier: Apache-2.0
"""Names of label values when finished masks are scored: from a list, any `dataset.json`, or the numbers themselves."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data.dataset.dataset import SCANS, SLIDES
from pipeline.data.dataset.declaration import DATASET_FILE, read_content
from pipeline.data.dataset.label_names import label_names, names_in_order
from pipeline.data.scans.slicer import names_of_segments
from pipeline.data.scans.volumes import label_counts, read_label
from pipeline.errors import InputError


@dataclass(frozen=True)
class ScoredOrgans:
    """Names of label values, and what else a `dataset.json` says about them.

    `organs`: value to name, without the background; None if they are to be read from the label files. `kind`: "scans"
    or "slides". `spacing_known`: False if the dataset has no voxel size. `dataset`: its name, if there is one.
    """

    organs: dict[int, str] | None = None
    kind: str = SCANS
    spacing_known: bool = True
    dataset: str | None = None


def organs_given(names: str | None, dataset: str | os.PathLike[str] | None) -> ScoredOrgans:
    """Return what `--organs` ("liver,spleen") or `--dataset` says; the numbers themselves where neither is given.

    `dataset` is a `dataset.json` of this project, Decathlon or nnU-Net, or the folder with it. Only its labels count:
    images, splits and intensity rule may be missing. Raises `InputError`.
    """
    if names is not None and dataset is not None:
        raise InputError("give --organs or --dataset, not both: they name the same values")
    if names is not None:
        return ScoredOrgans(_without_background(names_in_order(names)))
    return ScoredOrgans() if dataset is None else _organs_of_dataset(Path(dataset))


def _organs_of_dataset(path: Path) -> ScoredOrgans:
    path = path / DATASET_FILE if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"no {DATASET_FILE} at {path}; correct --dataset, or name the organs by --organs")
    content = read_content(path)
    try:
        organs = _without_background(label_names(content))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    name = content.get("name")
    return ScoredOrgans(
        organs,
        SCANS if content.get("tile_px") is None else SLIDES,
        content.get("spacing_known") is not False,
        name if isinstance(name, str) else None,
    )


def organs_of_files(predictions: Iterable[Path], labels: Iterable[Path]) -> dict[int, str]:
    """Return the organs of some cases where nothing else names them: segments of 3D Slicer, or `label 1`, `label 2`.

    Raises `InputError` if all labels are empty, and where some files name their segments and others do not.
    """
    labels = list(labels)
    named = names_of_segments([*predictions, *labels])
    if named is not None:
        return _without_background(named)
    values: set[int] = set()
    for path in labels:
        values.update(np.flatnonzero(label_counts(read_label(path).array)).tolist())
    if not values - {0}:
        raise InputError(f"no label file holds an organ, all voxels are 0 ({labels[0].parent}); check the labels")
    return {value: f"label {value}" for value in sorted(values - {0})}


def _without_background(labels: dict[int, str]) -> dict[int, str]:
    return {value: name for value, name in labels.items() if value != 0}
