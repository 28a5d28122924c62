# SPDX-License-Identifier: Apache-2.0
r"""Scans with labels become a dataset folder: Decathlon's or nnU-Net's layout, two folders, or names by pattern.

python -m data_prep.folder --source Task02_Heart --modality MR --output DATASET
python -m data_prep.folder --images IMAGES --labels LABELS --output DATASET --modality CT \
    --organs "liver,right kidney,left kidney,spleen" --test case_07,case_09 --validation 0.2
python -m data_prep.folder --source PATIENTS --image-pattern "{case}/t2.nii.gz" --label-pattern "{case}/*_seg" \
    --output DATASET --modality MR --organs "tumour"
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

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
from data_prep.layouts import MODALITIES, read_source
from data_prep.patients import read_patients
from data_prep.scan_pairs import FoundScans, ScanPair, find_by_patterns, find_pairs
from data_prep.scan_reader import ScanReader
from data_prep.splits import DEFAULT_FRACTIONS, SplitRequests, add_split_options, assign, split_requests_of
from pipeline.command_line import CommandLine
from pipeline.data import (
    DATASET_FILE,
    SPLITS,
    Case,
    Dataset,
    IntensityRule,
    Volume,
    default_intensity,
    parse_labels,
    scan_suffix,
    write_label_map,
)
from pipeline.data.dataset.declaration import read_content, twice
from pipeline.data.dataset.label_names import label_names, names_in_order
from pipeline.data.scans.formats import NIFTI_SUFFIXES
from pipeline.data.scans.slicer import names_of_segments
from pipeline.errors import InputError, run_command
from pipeline.files.atomic import new_folder
from pipeline.files.texts import read_json

UNLABELLED = "unlabelled"
_ANY_NAME = "{case}"


def read_labels(organs: str | None, labels_json: str | None) -> dict[int, str]:
    """Return value to name, from organ names in the order 1, 2, 3, … or from a JSON file.

    The file holds `{"0": "background", "1": "liver"}`, or the reverse, alone or under the key `labels`. Raises
    `InputError` for a file that cannot be read, and for values that do not count up from 0.
    """
    if organs is not None:
        return names_in_order(organs)
    try:
        return parse_labels(label_names(read_json(labels_json or "")))
    except InputError as error:
        raise InputError(f"{labels_json}: {error}") from error
    except (OSError, ValueError) as error:
        raise InputError(f'cannot read {labels_json}: {error}; give a JSON file such as {{"1": "liver"}}') from error


def convert(
    found: FoundScans,
    output: str | Path,
    modality: str,
    labels: dict[int, str],
    requests: SplitRequests | None = None,
    *,
    seed: int = 0,
    patients: str | Path | None = None,
    intensity: IntensityRule | None = None,
    name: str | None = None,
    link: str | None = None,
    train_unlabelled: bool = False,
) -> Dataset:
    """Check all scans and labels that were found and write the dataset folder `output`; returns the dataset.

    `labels`: value to name, with 0 the background. `requests`: see `data_prep.splits.assign`. `link`: "hard" or
    "symbolic" instead of copies. NIfTI files stay as they are; other formats become NIfTI. Scans without labels go to
    the folder `unlabelled`. With `train_unlabelled` they become training cases instead, but for scans of patients in
    validation or test. Raises `InputError` after listing every problem that was found; nothing is left of a folder
    that could not be finished.
    """
    rule = intensity or default_intensity(modality)
    if not found.pairs:
        refuse(found.problems, found.source)
        raise InputError(f"no scans with labels in {found.source}; give {', '.join(NIFTI_SUFFIXES)} or other volumes")
    labelled = [pair.case for pair in found.pairs]
    unlabelled = sorted(found.unlabelled.keys() - set(labelled)) if train_unlabelled else []
    patient_of, problems = read_patients(patients, labelled + unlabelled)
    splits, wrong = assign({case: patient_of[case] for case in labelled}, requests or {}, seed)
    problems += wrong + [f"two scans of the name {case}; rename one" for case in twice([*labelled, *found.unlabelled])]
    training, notes = _unlabelled_training(unlabelled, patient_of, splits)
    reader = ScanReader(labels, modality, rule)
    with new_folder(output) as folder:
        cases: list[Case] = []
        for pair in tqdm(found.pairs, desc="reading", unit="case", disable=None):
            volumes = reader.read(pair)
            if volumes is not None:
                cases.append(_write_pair(pair, patient_of[pair.case], volumes, folder, link))
        cases += _write_unlabelled(found, reader, training, folder, link)
        refuse(found.problems + problems + reader.problems, found.source)
        splits["training"] |= training.keys()
        dataset = Dataset(
            name or Path(output).resolve().name, folder, modality, labels, rule, **by_split(cases, splits)
        )
        dataset = finish(folder, dataset)
    for warning in found.warnings + notes + reader.warnings + _gaps(dataset, reader):
        warn(warning)
    return relocated(dataset, output)


def check_folders_apart(images: Path, labels: Path, output: Path) -> None:
    """Refuse (`InputError`) one folder for images and labels, and an output inside of what is read."""
    if images.resolve() == labels.resolve():
        raise InputError(f"{images} is given for images and for labels; they lie in two folders")
    for folder in (images, labels):
        check_output_apart(folder, output)


def check_output_apart(folder: Path, output: Path) -> None:
    """Refuse (`InputError`) an output inside of a folder that is read."""
    if output.resolve() == folder.resolve() or folder.resolve() in output.resolve().parents:
        raise InputError(f"the output {output} lies in {folder}, which is read; choose another output folder")


def _write_pair(pair: ScanPair, patient: str, volumes: tuple[Volume, Volume], folder: Path, link: str | None) -> Case:
    image, label = volumes
    image_path = _write_image(pair.case, image, pair.image, folder / "images", link)
    suffix = scan_suffix(pair.label)
    label_path = folder / "labels" / f"{pair.case}{suffix if suffix in NIFTI_SUFFIXES else '.nii.gz'}"
    if suffix in NIFTI_SUFFIXES:
        copy_or_link(pair.label, label_path, link)
    else:
        write_label_map(label_path, label.array, like=image)
    return Case(pair.case, patient, image_path, label_path)


def _write_unlabelled(
    found: FoundScans, reader: ScanReader, training: Mapping[str, str], folder: Path, link: str | None
) -> list[Case]:
    """Write the scans without a label; return those of `training` (case to patient) as cases."""
    cases = []
    for case, path in found.unlabelled.items():
        image = reader.read_image(case, path)
        if image is None:
            continue
        written = _write_image(case, image, path, folder / ("images" if case in training else UNLABELLED), link)
        if case in training:
            cases.append(Case(case, training[case], written, None))
    return cases


def _write_image(case: str, image: Volume, source: Path, folder: Path, link: str | None) -> Path:
    suffix = scan_suffix(source)
    path = folder / f"{case}{suffix if suffix in NIFTI_SUFFIXES else '.nii.gz'}"
    if suffix in NIFTI_SUFFIXES:
        copy_or_link(source, path, link)
    else:
        write_nifti(path, image.array, image.affine)
    return path


def _unlabelled_training(
    unlabelled: Iterable[str], patient_of: Mapping[str, str], splits: Mapping[str, Collection[str]]
) -> tuple[dict[str, str], list[str]]:
    """Return the scans without a label that train, with their patients, and a warning for each other one.

    No scan of a patient in validation or test trains.
    """
    held = {patient_of[case]: split for split in ("validation", "test") for case in splits[split]}
    left = {case: held[patient_of[case]] for case in unlabelled if patient_of[case] in held}
    notes = [
        f"scan {case} has no label and does not train, because its patient {patient_of[case]} is in {split}"
        for case, split in left.items()
    ]
    return {case: patient_of[case] for case in unlabelled if case not in left}, notes


def _gaps(dataset: Dataset, reader: ScanReader) -> list[str]:
    """Return what the splits lack: cases at all, or organs that training would never see."""
    gaps = [f"the {split} split is empty" for split in SPLITS if not dataset.split(split)]
    seen = set().union(*(reader.seen.get(case.case, ()) for case in dataset.training))
    missing = [organ for value, organ in dataset.organs.items() if value not in seen]
    return gaps + [f"no training case has a {organ}" for organ in missing]


def find_scans(given: argparse.Namespace) -> FoundScans:
    """Return the scans that the command line names; `InputError` where its options contradict each other."""
    patterns = given.image_pattern, given.label_pattern
    if given.source is not None:
        if given.images is not None or given.labels is not None:
            raise InputError("give --source alone, or --images and --labels")
        source = Path(given.source)
        check_output_apart(source, Path(given.output))
        if patterns == (None, None):
            return read_source(source, given.train_unlabelled)
        return _by_patterns(source, source, *patterns, given.train_unlabelled)
    if given.images is None or given.labels is None:
        raise InputError("give --source, or --images and --labels")
    images, labels, output = Path(given.images), Path(given.labels), Path(given.output)
    if patterns == (None, None):
        check_folders_apart(images, labels, output)
        return find_pairs(images, labels, given.train_unlabelled)
    check_output_apart(images, output)
    check_output_apart(labels, output)
    return _by_patterns(images, labels, *patterns, given.train_unlabelled)


def _by_patterns(
    images: Path, labels: Path, image_pattern: str | None, label_pattern: str | None, unlabelled: bool
) -> FoundScans:
    found = find_by_patterns(images, labels, image_pattern or _ANY_NAME, label_pattern or _ANY_NAME, unlabelled)
    described = images / DATASET_FILE
    if described.is_file():
        try:
            found.labels = label_names(read_content(described))
        except InputError as error:
            found.warnings.append(f"{described} is not used: {error}")
    return found


def _labels_of(given: argparse.Namespace, found: FoundScans) -> dict[int, str]:
    """Return value to name from the command line, else from what was found."""
    if given.organs is not None or given.labels_json is not None:
        return read_labels(given.organs, given.labels_json)
    labels = found.labels or names_of_segments(pair.label for pair in found.pairs)
    if labels is None:
        raise InputError(f"nothing in {found.source} names the organs; give --organs, or --labels-json FILE")
    try:
        return parse_labels(labels)
    except InputError as error:
        raise InputError(f"{found.source / DATASET_FILE}: {error}") from error


def _modality_of(given: argparse.Namespace, found: FoundScans) -> str:
    if given.modality is None and found.modality is None:
        raise InputError(f"nothing in {found.source} says whether it is CT or MR; give --modality")
    if None not in (given.modality, found.modality) and given.modality != found.modality:
        raise InputError(
            f"--modality {given.modality}, but {found.source / DATASET_FILE} says {found.modality}; correct either"
        )
    return given.modality or found.modality


def _requests_of(given: argparse.Namespace, found: FoundScans) -> SplitRequests:
    """Return the split that the command line asks for, on top of the one that the folder has."""
    asked = {split: request for split, request in split_requests_of(given).items() if request is not None}
    own = dict(found.requests)
    if own and not asked and "validation" not in own:
        asked = {"validation": DEFAULT_FRACTIONS["validation"]}
    return {**own, **asked}


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    command = CommandLine(prog="python -m data_prep.folder", description=__doc__.split("\n")[0])
    add = command.add_argument
    add("--source", metavar="DIR", help="a folder in the layout of Decathlon, nnU-Net or 3D Slicer")
    add("--images", metavar="DIR", help="instead: scans as NIfTI, NRRD, MetaImage, or one folder a DICOM series")
    add("--labels", metavar="DIR", help="label maps with the file names of their scans")
    add("--image-pattern", metavar="PATTERN", help='path of a scan below its folder: "{case}/t2.nii.gz", "{case}_ct"')
    add("--label-pattern", metavar="PATTERN", help='path of a label: "{case}/*_seg"; {case} is what both have alike')
    add("--output", required=True, metavar="DIR", help="the dataset folder to make; must not exist")
    add("--modality", type=_modality, metavar="{CT,MR}", help="decides the intensity rule; else as dataset.json says")
    names = command.add_mutually_exclusive_group()
    names.add_argument("--organs", metavar="NAMES", help='names of the labels 1, 2, …: "liver,right kidney"')
    names.add_argument("--labels-json", metavar="FILE", help='JSON with the names: {"1": "liver"} or {"liver": 1}')
    add_split_options(command, "scans")
    add("--train-unlabelled", action="store_true", help="scans without a label become training cases without one")
    add("--intensity", nargs=3, metavar=("RULE", "LOW", "HIGH"), help="window -125 275, or percentiles 0.5 99.5")
    add("--name", help="of the dataset; default: the name of the output folder")
    add("--link", nargs="?", const="symbolic", choices=LINKS, help="link NIfTI files instead of copying them")
    return command


def _modality(text: str) -> str:
    try:
        return MODALITIES[text.strip().lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither CT nor MR") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    given = parser().parse_args(arguments)
    found = find_scans(given)
    dataset = convert(
        found,
        given.output,
        _modality_of(given, found),
        _labels_of(given, found),
        _requests_of(given, found),
        seed=given.seed,
        patients=given.patients,
        intensity=None if given.intensity is None else _rule(*given.intensity),
        name=given.name,
        link=given.link,
        train_unlabelled=given.train_unlabelled,
    )
    print(f"read {given.source or given.images}: {found.layout}")
    if given.patients is None:
        print("each case counts as a patient of its own; give --patients where some share one")
    print_summary(dataset)
    if dataset.unlabelled_cases:
        print(f"  without label: {len(dataset.unlabelled_cases)} of the training cases")
    to_segment = len(found.unlabelled) - len(dataset.unlabelled_cases)
    if to_segment:
        print(f"  without label: {to_segment} scans to segment, in {dataset.folder / UNLABELLED}")
    return 0


def _rule(kind: str, low: str, high: str) -> IntensityRule:
    try:
        return IntensityRule(kind, float(low), float(high))
    except ValueError as error:
        message = str(error) if isinstance(error, InputError) else f"{low} and {high} must be numbers"
        raise InputError(f"--intensity: {message}") from error


if __name__ == "__main__":
    run_command(main)
