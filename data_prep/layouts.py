# SPDX-License-Identifier: Apache-2.0
"""Folders as other tools lay them out: Medical Segmentation Decathlon, nnU-Net, 3D Slicer, images beside labels."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.scan_pairs import LABEL_OR_TRAIN, FoundScans, ScanPair, find_pairs, is_scan, named_scans
from data_prep.splits import list_request
from pipeline.data import DATASET_FILE, scan_suffix
from pipeline.data.dataset.declaration import path_inside, read_content
from pipeline.data.dataset.label_names import label_names
from pipeline.data.scans.case_names import FIRST_CHANNEL, bare_name, bare_names, case_of_file
from pipeline.errors import InputError

DECATHLON = "a folder of the Medical Segmentation Decathlon"
NNUNET, SLICER = "a folder of nnU-Net", "a folder of 3D Slicer"
MODALITIES = {"ct": "CT", "mr": "MR", "mri": "MR"}
# Folders of images and labels by these names are taken without being named.
_FOLDERS = (("imagesTr", "labelsTr"), ("images", "labels"))
_TEST_FOLDERS = ("imagesTs", "labelsTs")
_SEGMENTATION = ".seg"
_MOST_NAMED = 5


def layout_of(folder: Path) -> str | None:
    """Return in whose layout a folder is, None for one that `read_source` cannot read, or for no folder."""
    if not folder.is_dir():
        return None
    if (folder / DATASET_FILE).is_file():
        content = read_content(folder / DATASET_FILE)
        if _is_own(content):
            return None
        if "channel_names" in content:
            return NNUNET
        if isinstance(content.get("training"), list) or "numTraining" in content:
            return DECATHLON
    pair = _folders_of(folder)
    if pair is not None:
        return f"a folder of {pair[0]} and {pair[1]}"
    return SLICER if _segmentations(folder) else None


def import_command(folder: Path) -> str:
    """Return the command that imports a folder of a known layout; words in capitals are for the user to fill in."""
    words = ["python", "-m", "data_prep.folder", "--source", str(folder)]
    described = (folder / DATASET_FILE).is_file()
    content = read_content(folder / DATASET_FILE) if described else {}
    command = shlex.join(words)
    if _modality_of(content) is None:
        command += " --modality CT-OR-MR"
    if not described and layout_of(folder) != SLICER:
        command += " --organs NAME,NAME"
    return f"{command} --output NEW-FOLDER"


def read_source(folder: Path, unlabelled: bool = False) -> FoundScans:
    """Return what a folder of a known layout holds; `InputError` for another, with what is expected.

    `dataset.json` names labels, modality and, in Decathlon's form, the files and their split. Scans without a label
    (`imagesTs`, Decathlon's `test` list) are kept apart. With `unlabelled`, they may be among those that train, too.
    """
    if not folder.is_dir():
        raise InputError(f"no folder at {folder}; correct --source")
    layout, path = layout_of(folder), folder / DATASET_FILE
    if layout is None:
        raise InputError(_not_known(folder))
    content = read_content(path) if path.is_file() else {}
    try:
        _refuse_channels(content)
        labels = label_names(content) if "labels" in content else None
        found = _listed(folder, content, unlabelled) if isinstance(content.get("training"), list) else None
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    found = _lying(folder, unlabelled) if found is None else found
    if not content.get("test"):
        _add_test_folders(found, folder)
    found.layout, found.modality, found.labels = layout, _modality_of(content), labels
    _check_count(found, content)
    return found


def _is_own(content: Mapping[str, Any]) -> bool:
    """Tell whether a `dataset.json` is this project's, perhaps with mistakes: others have no intensity rule, no ids."""
    entries = content.get("training")
    return "intensity" in content or (
        isinstance(entries, list) and any(isinstance(entry, dict) and "case" in entry for entry in entries)
    )


def _folders_of(folder: Path) -> tuple[str, str] | None:
    return next((pair for pair in _FOLDERS if all((folder / name).is_dir() for name in pair)), None)


def _segmentations(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*.seg.nrrd") if not path.name.startswith(".")]


def _not_known(folder: Path) -> str:
    if (folder / DATASET_FILE).is_file() and _is_own(read_content(folder / DATASET_FILE)):
        return f"{folder} is a dataset folder already; train on it, or check it with python -m data_prep.check"
    below = [path for path in sorted(folder.iterdir()) if path.is_dir() and layout_of(path) is not None]
    if below:
        return f"{folder} holds {len(below)} datasets, such as {below[0]}; give one of them as --source"
    return (
        f"{folder} is in no layout known here (imagesTr and labelsTr, images and labels, case.nrrd with case.seg.nrrd);"
        " give --images and --labels, or --image-pattern and --label-pattern"
    )


def _refuse_channels(content: Mapping[str, Any]) -> None:
    """Refuse images of several channels: networks here see one."""
    channels = _channels(content)
    if len(channels) > 1:
        first = f"imagesTr/{{case}}_0000 takes {channels[0]}" if "channel_names" in content else "save one as 3D files"
        raise InputError(
            f"images of {len(channels)} channels ({', '.join(channels)}), and a network here sees one; choose it by "
            f"--image-pattern and --label-pattern ({first})"
        )


def _channels(content: Mapping[str, Any]) -> list[str]:
    named = content.get("channel_names", content.get("modality"))
    return [str(name) for name in (named.values() if isinstance(named, Mapping) else () if named is None else (named,))]


def _modality_of(content: Mapping[str, Any]) -> str | None:
    """Return CT or MR where `dataset.json` says one of them; None for other words, such as T2."""
    channels = _channels(content)
    return MODALITIES.get(channels[0].strip().lower()) if len(channels) == 1 else None


def _listed(folder: Path, content: Mapping[str, Any], unlabelled: bool) -> FoundScans:
    """Return the scans that a Decathlon `dataset.json` lists: `training`, perhaps `validation`, and `test`."""
    found = FoundScans(folder)
    names: dict[str, list[str]] = {}
    for split in ("training", "validation", "test"):
        entries = content.get(split, [])
        if not isinstance(entries, list):
            raise InputError(f"{split} must be a list of scans, not a {type(entries).__name__}")
        taken = (_take(found, folder, split, entry, unlabelled) for entry in entries)
        names[split] = [case for case in taken if case is not None]
    # The lists are the split where they hold more than what trains.
    if names["validation"] or names["test"]:
        found.requests = {split: list_request(names[split]) for split in ("validation", "test") if names[split]}
    _note_unlisted(found)
    return found


def _take(found: FoundScans, folder: Path, split: str, entry: Any, unlabelled: bool) -> str | None:
    """Add the scan of one entry, a path or an object, to `found`; return its case if it has a label."""
    image, label = (entry.get("image"), entry.get("label")) if isinstance(entry, Mapping) else (entry, None)
    if isinstance(image, list):
        raise InputError(f"{split}: images of several channels ({image[0]}, …), and a network here sees one")
    if not isinstance(image, str) or not isinstance(label, str | None):
        raise InputError(f'{split} holds {entry!r}; each entry is a path, or {{"image": path, "label": path}}')
    paths = [_existing(path_inside(folder, split, path)) for path in (image, label) if path is not None]
    case = bare_name(case_of_file(paths[0]))
    if label is None and split == "training" and not unlabelled:
        found.problems.append(f"{split}: {image} has no label in {DATASET_FILE}; {LABEL_OR_TRAIN}")
    elif label is None and split == "validation":
        found.problems.append(f"{split}: {image} has no label in {DATASET_FILE}")
    elif label is not None:
        absent = [path for path in paths if not path.exists()]
        found.problems += [f"{split}: {path} is not there, though {DATASET_FILE} names it" for path in absent]
        found.pairs.append(ScanPair(case, *paths))
        return case
    elif paths[0].exists():
        found.unlabelled[case] = paths[0]
    else:
        found.warnings.append(f"{paths[0]} is not there, though {DATASET_FILE} names it; it has no label, so go on")
    return None


def _existing(path: Path) -> Path:
    """Return a path, or that of its first channel: older versions of nnU-Net list `a.nii.gz` for `a_0000.nii.gz`."""
    channel = path.with_name(f"{case_of_file(path)}{FIRST_CHANNEL}{scan_suffix(path) or ''}")
    return channel if channel.exists() and not path.exists() else path


def _note_unlisted(found: FoundScans) -> None:
    """Warn of scans that lie beside the listed ones and are not listed."""
    listed = {path for pair in found.pairs for path in (pair.image, pair.label)} | set(found.unlabelled.values())
    for beside in sorted({pair.image.parent for pair in found.pairs}):
        files = sorted(beside.iterdir()) if beside.is_dir() else ()
        left = [path.name for path in files if scan_suffix(path) and path.name[0] != "." and path not in listed]
        if left:
            names = ", ".join(left[:_MOST_NAMED]) + (", …" if len(left) > _MOST_NAMED else "")
            found.warnings.append(f"not listed in {DATASET_FILE}, so left out: {len(left)} files of {beside} ({names})")


def _lying(folder: Path, unlabelled: bool) -> FoundScans:
    """Return the scans that lie in the folders for images and labels, or side by side as Slicer saves them."""
    pair = _folders_of(folder)
    if pair is None:
        if not _segmentations(folder):
            raise InputError(f"no folders imagesTr and labelsTr in {folder}; give --images and --labels")
        return _side_by_side(folder)
    found = find_pairs(folder / pair[0], folder / pair[1], unlabelled)
    found.source = folder
    return found


def _add_test_folders(found: FoundScans, folder: Path) -> None:
    """Add the scans of `imagesTs`: the test split where `labelsTs` holds their labels, else scans to segment."""
    images, labels = (folder / name for name in _TEST_FOLDERS)
    if not images.is_dir():
        return
    if not labels.is_dir():
        scans, problems = named_scans(images, "image")
        found.unlabelled |= {bare: scans[name] for name, bare in bare_names(scans).items()}
        found.problems += problems
        return
    test = find_pairs(images, labels, unlabelled=True)
    found.pairs += test.pairs
    found.unlabelled |= test.unlabelled
    found.problems += test.problems
    if test.pairs:
        found.requests = {**found.requests, "test": list_request(pair.case for pair in test.pairs)}


def _side_by_side(folder: Path) -> FoundScans:
    """Return the pairs case.nrrd and case.seg.nrrd of one folder; the scan may have another format."""
    found = FoundScans(folder)
    scans, found.problems = named_scans(folder, "file")
    scans = {name: path for name, path in scans.items() if is_scan(path) and path.is_file()}
    drawn = {name.removesuffix(_SEGMENTATION): name for name in scans if name.endswith(_SEGMENTATION)}
    for case, label in drawn.items():
        if case in scans:
            found.pairs.append(ScanPair(case, scans[case], scans[label]))
        else:
            found.problems.append(f"label {scans[label]} has no image of its name beside it")
    found.unlabelled = {name: scans[name] for name in sorted(scans.keys() - drawn.keys() - set(drawn.values()))}
    return found


def _check_count(found: FoundScans, content: Mapping[str, Any]) -> None:
    """Warn of another number of training scans with a label than `dataset.json` declares."""
    declared = content.get("numTraining")
    training = len(found.pairs) - sum(request.count(",") for request in found.requests.values())
    if isinstance(declared, int) and declared != training:
        found.warnings.append(f"numTraining is {declared}, but there are {training} labelled scans to train on")
