# SPDX-License-Identifier: Apache-2.0
"""The dataset folder: images, labels and one `dataset.json` that declares all that later steps need."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.data.dataset.case_files import check_cases
from pipeline.data.dataset.declaration import (
    CHANNELS,
    COLOUR_SLIDE,
    DATASET_FILE,
    GREY_SLIDE,
    SPLITS,
    Case,
    Declaration,
    listed,
    parse_labels,
    read_declaration,
)
from pipeline.data.dataset.intensity import IntensityRule
from pipeline.data.dataset.labelled import check_share, hide_labels, labelled_patients
from pipeline.data.dataset.patients import split_by_patients
from pipeline.errors import InputError
from pipeline.files.atomic import write_json

__all__ = [
    "COLOUR_SLIDE",
    "DATASET_FILE",
    "GREY_SLIDE",
    "SCANS",
    "SLIDES",
    "SPLITS",
    "Case",
    "Dataset",
    "load_dataset",
    "parse_labels",
    "write_dataset_json",
]

SCANS, SLIDES = "scans", "slides"
_BUNDLES = {SCANS: "bundles/synapse", SLIDES: "bundles/gastric"}


@dataclass(frozen=True)
class Dataset:
    """What `dataset.json` declares.

    `labels` maps every value of the label maps to its name and begins with 0, the background. `spacing_known` is False
    where the source kept no voxel size: distances are then in voxels, not millimetres. `tile_px`, only for slides, is
    the number of slide pixels along the side of one training tile, whatever size the tile is stored in.
    """

    name: str
    folder: Path
    modality: str
    labels: dict[int, str]
    intensity: IntensityRule
    training: tuple[Case, ...]
    validation: tuple[Case, ...]
    test: tuple[Case, ...]
    spacing_known: bool = True
    tile_px: int | None = None

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of an image's channels: three for slides in colour, else the modality alone."""
        return CHANNELS.get(self.modality, (self.modality,))

    @property
    def kind(self) -> str:
        """What the images are, "scans" or "slides"."""
        return SCANS if self.tile_px is None else SLIDES

    @property
    def in_channels(self) -> int:
        """Number of channels that a network sees."""
        return len(self.channels)

    @property
    def organs(self) -> dict[int, str]:
        """Label value to organ name, without the background."""
        return {value: name for value, name in self.labels.items() if value != 0}

    @property
    def out_channels(self) -> int:
        """Number of classes that a network tells apart, background included."""
        return len(self.labels)

    @property
    def model_requirements(self) -> dict[str, Any]:
        """What a model must have been trained with to fit this dataset; `pipeline.networks.load_model` compares it."""
        return {
            "labels": self.labels,
            "in_channels": self.in_channels,
            "tile_px": self.tile_px,
        }

    def split(self, name: str) -> tuple[Case, ...]:
        """Return the cases of the split "training", "validation" or "test" (maybe none); `InputError` for another."""
        if name not in SPLITS:
            raise InputError(f"split {name!r} is unknown; {_nearest(name, SPLITS)}")
        return getattr(self, name)

    @property
    def labelled_patients(self) -> list[str]:
        """Ids of the patients of training cases with a label, sorted."""
        return labelled_patients(self.training)

    @property
    def unlabelled_cases(self) -> list[str]:
        """Ids of the training cases without a label."""
        return [case.case for case in self.training if case.label is None]

    def training_datalist(self, unlabelled_share: float | None = 0.0) -> list[dict[str, str]]:
        """Return the training cases with a label as `datalist` does, and after them `{"case", "image"}` of the others.

        `unlabelled_share` of each batch: 0 leaves the others out, more adds them, None adds them if there are any.

        Raises `InputError` if the split has no case, no case with a label, or none without a label where a share of
        them is wanted, and for a share that is no number from 0 to below 1.
        """
        wanted = unlabelled_share is None or check_share(unlabelled_share) > 0
        where = self.folder / DATASET_FILE
        labelled = [case for case in self.training if case.label is not None]
        if self.training and not labelled:
            raise InputError(f"no training case of {where} has a label: add labels, or move labelled cases into it")
        entries = replace(self, training=tuple(labelled)).datalist("training")
        if not wanted:
            return entries
        others = [{"case": case.case, "image": str(case.image)} for case in self.training if case.label is None]
        if not others and unlabelled_share:
            raise InputError(
                f"--unlabelled_share: every training case of {where} has a label; leave it out, hide labels by "
                "--labelled_fraction, or add cases without a label"
            )
        return entries + others

    def datalist(self, split: str) -> list[dict[str, str]]:
        """Return the split as MONAI wants it: `{"case", "image", "label"}` with paths as text.

        Raises `InputError` for a split without cases and for cases without a label: both would only show later, as an
        empty loop or a missing key.
        """
        cases = self.split(split)
        where = self.folder / DATASET_FILE
        if not cases:
            raise InputError(f"no case in split '{split}' of {where}: add cases to it or choose another split")
        unlabelled = [case.case for case in cases if case.label is None]
        if unlabelled:
            raise InputError(f"no label for {listed(unlabelled)} in split '{split}' of {where}: add the label files")
        return [{"case": case.case, "image": str(case.image), "label": str(case.label)} for case in cases]


def load_dataset(
    folder: str | os.PathLike[str],
    kind: str | None = None,
    patients: Mapping[str, Iterable[str]] | None = None,
    labelled_cases: int | None = None,
    labelled_fraction: float | None = None,
    labelled_patients: Sequence[str] | str | None = None,
    labelled_seed: int = 0,
) -> Dataset:
    """Read and check a dataset folder, or its `dataset.json`.

    Args:
        folder: of the dataset.
        kind: what it must hold, "scans" or "slides".
        patients: the patients of splits in place of those that `dataset.json` declares: see `split_by_patients`.
        labelled_cases: number of training cases that keep their label; all other labels are hidden. See `hide_labels`.
        labelled_fraction: the same as a share of the patients, above 0 and up to 1.
        labelled_patients: the same as a list of patients.
        labelled_seed: seed of the choice of patients.

    Everything that would make training or scores silently wrong raises `InputError`, one line that names file and key:
    missing keys or files (all of them), two cases of one id, a patient in two splits, an image of two cases, label
    values that do not count up from 0, paths that leave the folder.
    """
    declared = read_declaration(folder)
    try:
        dataset = _dataset(declared)
        if kind not in (None, dataset.kind):
            raise InputError(f"holds {dataset.kind}, not {kind}; {_BUNDLES[dataset.kind]} is the bundle for them")
        check_cases(dataset.folder, declared.cases)
        if patients is not None:
            dataset = replace(dataset, **split_by_patients(declared.splits, patients))
        kept = hide_labels(dataset.training, labelled_cases, labelled_fraction, labelled_patients, labelled_seed)
        dataset = replace(dataset, training=kept)
    except InputError as error:
        raise InputError(f"{declared.path}: {error}") from error
    return dataset


def _dataset(declared: Declaration) -> Dataset:
    """Return the dataset of a declaration; raises the first problem of the declaration, if it has any."""
    if declared.problems:
        raise declared.problems[0]
    return Dataset(
        name=declared.name,
        folder=declared.path.parent,
        modality=declared.modality,
        labels=declared.labels,
        intensity=declared.intensity,
        spacing_known=declared.spacing_known,
        tile_px=declared.tile_px,
        **declared.splits,
    )


def write_dataset_json(folder: str | os.PathLike[str], dataset: Dataset) -> Path:
    """Write `dataset.json` into `folder`, with the paths of all cases relative to it; returns its path.

    Raises `InputError` for a case whose files do not lie under `folder`.
    """
    root = Path(folder)
    splits = {name: [_entry(case, root) for case in dataset.split(name)] for name in SPLITS}
    content = {
        "name": dataset.name,
        "modality": {str(index): name for index, name in enumerate(dataset.channels)},
        "labels": {str(value): name for value, name in sorted(dataset.labels.items())},
        "intensity": dataset.intensity.to_dict(),
        "spacing_known": dataset.spacing_known,
        **({} if dataset.tile_px is None else {"tile_px": dataset.tile_px}),
        "numTraining": len(dataset.training),
        "numTest": len(dataset.test),
        **splits,
    }
    write_json(root / DATASET_FILE, content)
    return root / DATASET_FILE


def _entry(case: Case, folder: Path) -> dict[str, str]:
    entry = {"case": case.case, "patient": case.patient, "image": _relative(case.image, folder)}
    return entry if case.label is None else {**entry, "label": _relative(case.label, folder)}


def _relative(path: Path, folder: Path) -> str:
    try:
        return str(PurePosixPath(Path(os.path.abspath(path)).relative_to(os.path.abspath(folder))))
    except ValueError:
        raise InputError(f"{path} lies outside the dataset folder {folder}; copy or link it there") from None


def _nearest(name: str, known: Iterable[str]) -> str:
    choices = list(known)
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"it has {listed(choices)}"
