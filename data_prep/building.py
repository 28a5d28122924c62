# SPDX-License-Identifier: Apache-2.0
"""What all converters share: a folder that appears whole, files copied or linked, problems told all at once."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np

from pipeline.data import SPLITS, Case, Dataset, load_dataset, write_dataset_json
from pipeline.errors import InputError

LINKS = ("hard", "symbolic")
_MOST_NAMES = 50


def refuse(problems: Sequence[str], where: str | os.PathLike[str]) -> None:
    """Raise `InputError` when there are problems, after listing each on a line of its own on stderr."""
    if not problems:
        return
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    raise InputError(f"{count} in {where}, listed above; nothing was written: correct them and run this again")


def copy_or_link(source: Path, target: Path, link: str | None = None) -> None:
    """Copy `source` to `target`, or link it there ("hard" or "symbolic"); hard links need one file system."""
    target.parent.mkdir(parents=True, exist_ok=True)
    real = source.resolve()
    if link == "symbolic":
        target.symlink_to(real)
    elif link == "hard":
        try:
            target.hardlink_to(real)
        except OSError as error:
            raise InputError(f"no hard link to {real}: {error.strerror}; use --link symbolic, or copy") from error
    else:
        shutil.copyfile(real, target)


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    """Write `array` (x, y, z) as NIfTI in its own dtype, with `affine` as sform and qform, in mm."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


def finish(folder: Path, dataset: Dataset) -> Dataset:
    """Write `dataset.json` into `folder` and return the dataset as every later step will load it."""
    write_dataset_json(folder, dataset)
    return load_dataset(folder)


def by_split(cases: Sequence[Case], splits: dict[str, Collection[str]]) -> dict[str, tuple[Case, ...]]:
    """Return the cases of each split, in their order; `splits` names the case ids of each."""
    return {name: tuple(case for case in cases if case.case in splits.get(name, ())) for name in SPLITS}


def relocated(dataset: Dataset, folder: str | os.PathLike[str]) -> Dataset:
    """Return `dataset` with its folder, and so all its paths, at `folder`."""
    target = Path(folder)

    def move(path: Path | None) -> Path | None:
        """Return the same file below the new folder."""
        return None if path is None else target / path.relative_to(dataset.folder)

    splits = {
        name: tuple(replace(case, image=move(case.image), label=move(case.label)) for case in dataset.split(name))
        for name in SPLITS
    }
    return replace(dataset, folder=target, **splits)


def print_summary(dataset: Dataset) -> None:
    """Print what was written: folder, rule, organs (of slides: classes) and the cases of each split."""
    rule = dataset.intensity
    print(f"wrote {dataset.folder}: '{dataset.name}', {dataset.modality}, {rule.kind} {rule.low:g}..{rule.high:g}")
    kind = "organs" if dataset.tile_px is None else f"tiles of {dataset.tile_px} pixels, classes"
    print(f"  {kind}: {', '.join(f'{value} {name}' for value, name in dataset.organs.items())}")
    for split in SPLITS:
        cases = dataset.split(split)
        patients = len({case.patient for case in cases})
        names = [case.case for case in cases]
        # Tiles come in thousands.
        shown = names if len(names) <= _MOST_NAMES else [*names[:3], "…", names[-1]]
        print(f"  {split}: {len(cases)} cases of {patients} patients{': ' if names else ''}{' '.join(shown)}")


def warn(message: str) -> None:
    """Print one line about something that is allowed, but that a user should know."""
    print(f"warning: {message}", file=sys.stderr)
