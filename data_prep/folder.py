# SPDX-License-Identifier: Apache-2.0
r"""Any folder of scans and any folder of labels, matched by file name, become a dataset folder.

python -m data_prep.folder --images IMAGES --labels LABELS --output DATASET --modality CT \
    --organs "liver,right kidney,left kidney,spleen" --test case_07,case_09 --validation 0.2
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_prep.building import (
    LINKS,
    by_split,
    copy_or_link,
    finish,
    print_summary,
    refuse,
    relocated,
    warn,
    write_nifti,
)
from data_prep.splits import SplitRequests, assign, read_split_file
from pipeline.data import (
    SPLITS,
    Case,
    Dataset,
    IntensityRule,
    Volume,
    default_intensity,
    doubt_hounsfield,
    parse_labels,
    read_label,
    read_volume,
    scan_suffix,
    write_label_map,
)
from pipeline.errors import InputError, run_command
from pipeline.files.atomic import new_folder

_NIFTI = (".nii", ".nii.gz")
# nnU-Net numbers the channels of an image; the label has the bare name.
_FIRST_CHANNEL = "_0000"


@dataclass(frozen=True)
class NetworkPair:
    """A scan and its label, as found on disk."""

    case: str
    image: Path
    label: Path


def find_pairs(images: str | Path, labels: str | Path) -> tuple[list[NetworkPair], list[str]]:
    """Return scans and labels of one name, sorted, and a problem for each file without its partner.

    A scan is a file that `read_volume` reads, or a folder with a DICOM series. `case_0000.nii.gz` belongs to the
    label `case.nii.gz`. Raises `InputError` for folders that do not exist.
    """
    scans, problems = _scans(Path(images), "image")
    maps, more = _scans(Path(labels), "label")
    problems += more
    for name in [name for name in scans if name.endswith(_FIRST_CHANNEL) and name not in maps]:
        bare = name.removesuffix(_FIRST_CHANNEL)
        if bare in maps and bare not in scans:
            scans[bare] = scans.pop(name)
    problems += [f"image {scans[name]} has no label of its name in {labels}" for name in sorted(scans.keys() - maps)]
    problems += [f"label {maps[name]} has no image of its name in {images}" for name in sorted(maps.keys() - scans)]
    return [NetworkPair(name, scans[name], maps[name]) for name in sorted(scans.keys() & maps)], problems


def _scans(folder: Path, kind: str) -> tuple[dict[str, Path], list[str]]:
    """Return the scans in `folder` by stem, and a problem for each stem that two files share."""
    if not folder.is_dir():
        raise InputError(f"no folder of {kind}s at {folder}; correct the path")
    found: dict[str, Path] = {}
    problems = []
    for path in sorted(folder.iterdir()):
        suffix = scan_suffix(path)
        if path.name.startswith(".") or (suffix is None and not path.is_dir()):
            continue
        stem = path.name[: -len(suffix)] if suffix else path.name
        if stem in found:
            problems.append(f"two {kind}s of one name: {found[stem].name} and {path.name} in {folder}; keep one")
        found[stem] = path
    return found, problems


def read_patients(path: str | Path | None, cases: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return case to patient from a CSV file with the columns `case` and `patient`; without one, each is its own."""
    if path is None:
        return {case: case for case in cases}, []
    listed, problems = listed_patients(path)
    problems += [f"{path}: no patient for case {case}" for case in cases if not listed.get(case)]
    return {case: listed.get(case) or case for case in cases}, problems


def listed_patients(path: str | Path) -> tuple[dict[str, str], list[str]]:
    """Return all cases of such a file with their patients, and a problem for each case with two."""
    listed: dict[str, str] = {}
    problems = []
    for row in read_rows(path, ("case", "patient")):
        case, patient = row["case"], row["patient"]
        if listed.setdefault(case, patient) != patient:
            problems.append(f"{path}: case {case} has two patients, {listed[case]} and {patient}")
    return listed, problems


def read_rows(path: str | Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Return the rows of a CSV file, stripped, as column to text; `InputError` where one of `columns` is missing."""
    names = " and ".join(filter(None, (", ".join(columns[:-1]), columns[-1])))
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read {path}: {error}; give a CSV file with the columns {names}") from error
    if not rows or not set(columns) <= set(rows[0]):
        raise InputError(f"{path} lacks the columns {names} in its first line")
    return [{column: (row[column] or "").strip() for column in columns} for row in rows]


def read_labels(organs: str | None, labels_json: str | None) -> dict[int, str]:
    """Return value to name, from organ names in the order 1, 2, 3, … or from a JSON file.

    The file holds `{"0": "background", "1": "liver"}`, or the reverse, alone or under the key `labels`.
    """
    if organs is not None:
        names = [name.strip() for name in organs.split(",")]
        return parse_labels({str(value): name for value, name in enumerate(["background", *names])})
    try:
        content = json.loads(Path(labels_json or "").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f'cannot read {labels_json}: {error}; give a JSON file such as {{"1": "liver"}}') from error
    content = content.get("labels", content) if isinstance(content, dict) else content
    if isinstance(content, dict) and content and all(isinstance(value, int) for value in content.values()):
        content = {str(value): name for name, value in content.items()}
    if isinstance(content, dict):
        content = {"0": "background", **content}
    return parse_labels(content)


class Checker:
    """Reads every pair once and keeps what is wrong with it, what is odd, and which organs were seen."""

    def __init__(self, labels: dict[int, str], modality: str, rule: IntensityRule) -> None:
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self.seen: dict[str, set[int]] = {}
        self._labels = labels
        self._in_hu = modality.upper() == "CT" and rule == default_intensity("CT")
        self._contents: dict[str, str] = {}

    def read(self, pair: NetworkPair) -> tuple[Volume, Volume] | None:
        """Return image and label of a good pair; of a bad one, None, with the problem noted."""
        try:
            image = read_volume(pair.image)
            label = read_label(pair.label, like=image, labels=self._labels)
        except InputError as error:
            self.problems.append(f"case {pair.case}: {error}")
            return None
        self._check_repeated(pair, image)
        self._note_oddities(pair, image, label)
        return image, label

    def _check_repeated(self, pair: NetworkPair, image: Volume) -> None:
        """Find one scan under two names, also when it was saved in another format."""
        content = hashlib.blake2b(np.ascontiguousarray(image.array).view(np.uint8)).hexdigest() + str(image.array.shape)
        other = self._contents.setdefault(content, pair.case)
        if other != pair.case:
            self.problems.append(f"cases {other} and {pair.case} hold the same image; keep one of them")

    def _note_oddities(self, pair: NetworkPair, image: Volume, label: Volume) -> None:
        self.seen[pair.case] = set(np.unique(label.array).tolist()) - {0}
        self.warnings += [f"case {pair.case}: {note}" for note in (*image.notes, *label.notes)]
        if not self.seen[pair.case]:
            self.warnings.append(f"case {pair.case}: the label {pair.label.name} is empty")
        low, high = image.array.min(), image.array.max()
        doubt = doubt_hounsfield(low, high) if self._in_hu else None
        if doubt is not None:
            self.warnings.append(f"case {pair.case}: {doubt}")
        if low == high:
            self.warnings.append(f"case {pair.case}: all voxels are {low:g}")


def convert(
    images: str | Path,
    labels: str | Path,
    output: str | Path,
    modality: str,
    organs: dict[int, str],
    requests: SplitRequests | None = None,
    *,
    seed: int = 0,
    patients: str | Path | None = None,
    intensity: IntensityRule | None = None,
    name: str | None = None,
    link: str | None = None,
) -> Dataset:
    """Check all scans and labels and write the dataset folder `output`; returns the dataset.

    `organs`: value to name, with 0 the background. `requests`: see `data_prep.splits.assign`. `link`: "hard" or
    "symbolic" instead of copies. NIfTI files stay as they are; other formats become NIfTI. Raises `InputError` after
    listing every problem that was found; nothing is left of a folder that could not be finished.
    """
    check_folders_apart(Path(images), Path(labels), Path(output))
    rule = intensity or default_intensity(modality)
    pairs, problems = find_pairs(images, labels)
    if not pairs:
        refuse(problems, images)
        raise InputError(f"no scans in {images}; give a folder of {', '.join(_NIFTI)} or other volumes")
    patient_of, more = read_patients(patients, [pair.case for pair in pairs])
    splits, wrong = assign(patient_of, requests or {}, seed)
    problems += more + wrong
    checker = Checker(organs, modality, rule)
    with new_folder(output) as folder:
        cases = []
        for pair in tqdm(pairs, desc="reading", unit="case", disable=None):
            volumes = checker.read(pair)
            if volumes is not None:
                cases.append(_write(pair, patient_of[pair.case], volumes, folder, link))
        refuse(problems + checker.problems, images)
        dataset = Dataset(
            name or Path(output).resolve().name, folder, modality, organs, rule, **by_split(cases, splits)
        )
        dataset = finish(folder, dataset)
    for warning in checker.warnings + _gaps(dataset, checker):
        warn(warning)
    return relocated(dataset, output)


def check_folders_apart(images: Path, labels: Path, output: Path) -> None:
    """Refuse (`InputError`) one folder for images and labels, and an output inside of what is read."""
    if images.resolve() == labels.resolve():
        raise InputError(f"{images} is given for images and for labels; they lie in two folders")
    for folder in (images, labels):
        if output.resolve() == folder.resolve() or folder.resolve() in output.resolve().parents:
            raise InputError(f"the output {output} lies in {folder}, which is read; choose another output folder")


def _write(pair: NetworkPair, patient: str, volumes: tuple[Volume, Volume], folder: Path, link: str | None) -> Case:
    image, label = volumes
    paths = {}
    for kind, source in (("images", pair.image), ("labels", pair.label)):
        suffix = scan_suffix(source)
        paths[kind] = folder / kind / f"{pair.case}{suffix if suffix in _NIFTI else '.nii.gz'}"
        if suffix in _NIFTI:
            copy_or_link(source, paths[kind], link)
        elif kind == "images":
            write_nifti(paths[kind], image.array, image.affine)
        else:
            write_label_map(paths[kind], label.array, like=image)
    return Case(pair.case, patient, paths["images"], paths["labels"])


def _gaps(dataset: Dataset, checker: Checker) -> list[str]:
    """Return what the splits lack: cases at all, or organs that training would never see."""
    gaps = [f"the {split} split is empty" for split in SPLITS if not dataset.split(split)]
    seen = set().union(*(checker.seen[case.case] for case in dataset.training))
    missing = [organ for value, organ in dataset.organs.items() if value not in seen]
    return gaps + [f"no training case has a {organ}" for organ in missing]


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    command = argparse.ArgumentParser(prog="python -m data_prep.folder", description=__doc__.split("\n")[0])
    add = command.add_argument
    add("--images", required=True, metavar="DIR", help="scans: NIfTI, NRRD, MetaImage, or one folder a DICOM series")
    add("--labels", required=True, metavar="DIR", help="label maps with the file names of their scans")
    add("--output", required=True, metavar="DIR", help="the dataset folder to make; must not exist")
    add("--modality", required=True, choices=("CT", "MR"), help="decides the default intensity rule")
    names = command.add_mutually_exclusive_group(required=True)
    names.add_argument("--organs", metavar="NAMES", help='names of the labels 1, 2, …: "liver,right kidney"')
    names.add_argument("--labels-json", metavar="FILE", help='JSON with the names: {"1": "liver"}')
    add_split_options(command, "scans")
    add("--intensity", nargs=3, metavar=("RULE", "LOW", "HIGH"), help="window -125 275, or percentiles 0.5 99.5")
    add("--name", help="of the dataset; default: the name of the output folder")
    add("--link", nargs="?", const="symbolic", choices=LINKS, help="link NIfTI files instead of copying them")
    return command


def add_split_options(command: argparse.ArgumentParser, images: str) -> None:
    """Add the options that decide who trains and who is scored; `images` is what a patient may have several of."""
    add = command.add_argument
    add("--split", metavar="FILE", help='JSON with lists of case ids: {"training": [], "validation": [], "test": []}')
    request = "case or patient ids separated by commas, or a fraction of the patients"
    add("--training", "--train", metavar="SPLIT", help=f"{request}; default: all that is left")
    add("--validation", metavar="SPLIT", help=f"{request}; default 0.1 if no split is given at all")
    add("--test", metavar="SPLIT", help=f"{request}; default 0.2 if no split is given at all")
    add("--seed", type=int, default=0, help="of the draw by fractions (default 0)")
    add("--patients", metavar="CSV", help=f"columns case and patient, where patients have several {images}")


def split_requests_of(given: argparse.Namespace) -> dict[str, str | None]:
    """Return the requests that the options of `add_split_options` hold, from the split file if there is one."""
    requests: dict[str, str | None] = {split: getattr(given, split) for split in SPLITS}
    if given.split is None:
        return requests
    if any(requests.values()):
        raise InputError("give --split alone, or --training, --validation and --test")
    return dict(read_split_file(given.split))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    given = parser().parse_args(arguments)
    dataset = convert(
        given.images,
        given.labels,
        given.output,
        given.modality,
        read_labels(given.organs, given.labels_json),
        split_requests_of(given),
        seed=given.seed,
        patients=given.patients,
        intensity=None if given.intensity is None else _rule(*given.intensity),
        name=given.name,
        link=given.link,
    )
    if given.patients is None:
        print("each case counts as a patient of its own; give --patients where some share one")
    print_summary(dataset)
    return 0


def _rule(kind: str, low: str, high: str) -> IntensityRule:
    try:
        return IntensityRule(kind, float(low), float(high))
    except ValueError as error:
        message = str(error) if isinstance(error, InputError) else f"{low} and {high} must be numbers"
        raise InputError(f"--intensity: {message}") from error


if __name__ == "__main__":
    run_command(main)
