# SPDX-License-Identifier: Apache-2.0
r"""Synapse (BTCV abdomen CT): raw img/label NIfTI, or TransUNet's npz slices and h5 volumes; published 18/12 split.

python -m data_prep.synapse --source DOWNLOAD --output DATASET
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from data_prep.building import LINKS, by_split, copy_or_link, finish, print_summary, refuse, relocated, warn
from data_prep.splits import named
from data_prep.synapse_protocol import BTCV_LABELS, BTCV_TO_SYNAPSE, LABELS, TEST, TRAINING, VALIDATION
from data_prep.synapse_slices import SliceCases
from pipeline.command_line import CommandLine
from pipeline.data import CT_WINDOW, Case, Dataset, read_label, read_volume, scan_suffix, write_label_map
from pipeline.errors import InputError, run_command
from pipeline.files.atomic import new_folder

_RAW = re.compile(r"(img|label)(\d{4})\.nii(\.gz)?")


class Cases(Protocol):
    """What a form of the data offers."""

    spacing_known: bool
    problems: list[str]
    warnings: list[str]
    notes: list[str]

    @property
    def cases(self) -> set[str]:
        """Ids of all cases that were found."""

    def missing(self) -> list[str]:
        """Return one line for each case of the protocol that is absent or incomplete."""

    def description(self) -> str:
        """Return what was found, for the user."""

    def write(self, case: str, folder: Path, link: str | None) -> Case:
        """Write image and label of one case into a dataset folder; raises `InputError` for a bad case."""


class RawCases:
    """The cases of a folder with `img0001.nii.gz` and `label0001.nii.gz`, together or in folders below."""

    spacing_known = True

    def __init__(self, source: Path) -> None:
        self._files: dict[str, dict[str, Path]] = {"img": {}, "label": {}}
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self.notes: list[str] = []
        for path in sorted(source.rglob("*.nii*")):
            if match := _RAW.fullmatch(path.name):
                found, case = self._files[match[1]], f"case{match[2]}"
                if case in found:
                    self.problems.append(f"two files of one name: {found[case]} and {path}; keep one")
                found[case] = path

    @property
    def cases(self) -> set[str]:
        """Ids of the cases with image and label."""
        return self._files["img"].keys() & self._files["label"].keys()

    def missing(self) -> list[str]:
        """Return one line for each case of the protocol without image or label."""
        lines = []
        for case in sorted((*TRAINING, *TEST)):
            absent = [f"{kind}{case[4:]}.nii.gz" for kind, found in self._files.items() if case not in found]
            lines += [f"{case}: no {' and no '.join(absent)}"] if absent else []
        return lines

    def description(self) -> str:
        """Return what was found, for the user."""
        return f"{len(self._files['img'])} images and {len(self._files['label'])} labels of BTCV (NIfTI)"

    def write(self, case: str, folder: Path, link: str | None = None) -> Case:
        """Copy or link the image, and write its label with the 13 organs of BTCV made the 8 of Synapse."""
        source = self._files["img"][case]
        image = read_volume(source)
        label = read_label(self._files["label"][case], like=image, labels=BTCV_LABELS)
        self.warnings += [f"{case}: {note}" for note in (*image.notes, *label.notes)]
        image_path = folder / "images" / f"{case}{scan_suffix(source)}"
        label_path = folder / "labels" / f"{case}.nii.gz"
        copy_or_link(source, image_path, link)
        write_label_map(label_path, to_synapse(label.array), like=image)
        return Case(case, case, image_path, label_path)


def to_synapse(labels: np.ndarray) -> np.ndarray:
    """Return uint8 labels 0..8 of Synapse from 0..13 of BTCV; organs that Synapse does not score become background."""
    table = np.zeros(len(BTCV_LABELS), dtype=np.uint8)
    table[list(BTCV_TO_SYNAPSE)] = list(BTCV_TO_SYNAPSE.values())
    return table[labels]


def find_cases(source: str | Path) -> Cases:
    """Return the cases of `source`, in whichever form they are; `InputError` where it holds neither form, or both."""
    root = Path(source)
    if not root.is_dir():
        raise InputError(f"no folder at {root}; give the folder that Synapse was unpacked into")
    raw, slices = RawCases(root), SliceCases(root)
    if raw.cases and slices.cases:
        raise InputError(f"{root} holds raw BTCV and TransUNet's form; point --source at the folder of one")
    if not raw.cases and not slices.cases:
        raise InputError(
            f"no Synapse data in {root}: expected img0001.nii.gz with label0001.nii.gz, or case0005_slice000.npz "
            "with case0001.npy.h5"
        )
    return raw if raw.cases else slices


def convert(
    source: str | Path,
    output: str | Path,
    *,
    validation: Sequence[str] = VALIDATION,
    allow_missing: bool = False,
    name: str = "synapse",
    link: str | None = None,
) -> Dataset:
    """Write the dataset folder `output` from Synapse in `source`; returns the dataset.

    `validation`: cases taken from the 18 that train. `allow_missing`: go on with the cases that are there. Raises
    `InputError` after listing every problem that was found.
    """
    cases = find_cases(source)
    print(f"found {cases.description()}")
    missing = cases.missing()
    problems = cases.problems + ([] if allow_missing else missing) + _unfit(validation)
    wanted = [case for case in sorted((*TRAINING, *TEST)) if case in cases.cases]
    with new_folder(output) as folder:
        written = []
        # What is incomplete is told at once; conversion takes minutes.
        refuse(problems, source)
        for case in tqdm(wanted, desc="converting", unit="case", disable=None):
            try:
                written.append(cases.write(case, folder, link))
            except InputError as error:
                problems.append(f"{case}: {error}" if case not in str(error) else str(error))
        refuse(problems, source)
        training = set(TRAINING) - set(validation)
        splits = by_split(written, {"training": training, "validation": validation, "test": TEST})
        dataset = Dataset(name, folder, "CT", LABELS, CT_WINDOW, **splits, spacing_known=cases.spacing_known)
        dataset = finish(folder, dataset)
    _report(cases, missing, dataset)
    return relocated(dataset, output)


def _unfit(validation: Sequence[str]) -> list[str]:
    chosen, problems = named(",".join(validation), {case: case for case in TRAINING})
    problems += ["--validation takes all training cases; leave some"] if chosen >= set(TRAINING) else []
    return [f"--validation: {problem} (it is taken from the 18 training cases)" for problem in problems]


def _report(cases: Cases, missing: list[str], dataset: Dataset) -> None:
    """Warn about all that is allowed but worth knowing."""
    for line in cases.notes:
        print(line)
    for line in (*missing, *cases.warnings):
        warn(line)
    others = cases.cases - {*TRAINING, *TEST}
    if others:
        warn(f"{len(others)} cases outside the published split are left out: {', '.join(sorted(others))}")
    if not cases.spacing_known:
        warn("this form has no voxel size: written as 1 mm, and distances will be in voxels, not in mm")
    for split in ("training", "validation", "test"):
        if not dataset.split(split):
            warn(f"the {split} split is empty")


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    command = CommandLine(prog="python -m data_prep.synapse", description=__doc__.split("\n")[0])
    add = command.add_argument
    add("--source", required=True, metavar="DIR", help="folder of the unpacked download; searched in depth")
    add("--output", required=True, metavar="DIR", help="the dataset folder to make; must not exist")
    add(
        "--validation",
        default=",".join(VALIDATION),
        metavar="CASES",
        help="cases of the 18 that choose the model instead of training, or 'none' (default: %(default)s)",
    )
    add("--allow-missing", action="store_true", help="go on with the cases and slices that are there")
    add("--name", default="synapse", help="of the dataset (default: %(default)s)")
    add("--link", nargs="?", const="symbolic", choices=LINKS, help="link raw images instead of copying them")
    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    given = parser().parse_args(arguments)
    none = given.validation.strip().lower() == "none"
    validation = [] if none else [case.strip() for case in given.validation.split(",")]
    dataset = convert(
        given.source,
        given.output,
        validation=validation,
        allow_missing=given.allow_missing,
        name=given.name,
        link=given.link,
    )
    print_summary(dataset)
    return 0


if __name__ == "__main__":
    run_command(main)
