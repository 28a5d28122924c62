# SPDX-License-Identifier: Apache-2.0
"""The dataset folder: images, labels and one `dataset.json` that declares all that later steps need."""

from __future__ import annotations

import difflib
import filecmp
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.atomic import write_json
from pipeline.data.intensity import IntensityRule
from pipeline.errors import InputError

DATASET_FILE = "dataset.json"
SPLITS = ("training", "validation", "test")
_REQUIRED_KEYS = ("name", "modality", "labels", "intensity", *SPLITS)
_MAX_LABELS = 256  # label maps are uint8
# Decathlon's `modality` names every channel: one for scans and grey slides, three for slides in colour.
GREY_SLIDE, COLOUR_SLIDE = "grey slide", "RGB slide"
SCANS, SLIDES = "scans", "slides"
_BUNDLES = {SCANS: "bundles/synapse", SLIDES: "bundles/gastric"}
_CHANNELS = {COLOUR_SLIDE: ("red", "green", "blue")}


@dataclass(frozen=True)
class Case:
    """One scan: its unique id, whose it is, and where image and label lie (`label` is None where nobody drew one)."""

    case: str
    patient: str
    image: Path
    label: Path | None


@dataclass(frozen=True)
class Dataset:
    """What `dataset.json` declares.

    `labels` maps every value of the label maps to its name and begins with 0, the background. `spacing_known` is False
    where the source kept no voxel size: distances are then in voxels, not millimetres. `tile_px`, of slides alone, is
    how many pixels of a slide the side of one training tile spans, whatever size the tile is stored in.
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
        return _CHANNELS.get(self.modality, (self.modality,))

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
    def demands(self) -> dict[str, Any]:
        """What a model must have been trained with to fit this dataset; `pipeline.networks.load_model` compares it."""
        return {
            "labels": self.labels,
            "intensity": self.intensity.to_dict(),
            "in_channels": self.in_channels,
            "tile_px": self.tile_px,
        }

    def split(self, name: str) -> tuple[Case, ...]:
        """Return the cases of the split "training", "validation" or "test" (maybe none); `InputError` for another."""
        if name not in SPLITS:
            raise InputError(f"split {name!r} is unknown; {_nearest(name, SPLITS)}")
        return getattr(self, name)

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
            raise InputError(f"no label for {_listed(unlabelled)} in split '{split}' of {where}: add the label files")
        return [{"case": case.case, "image": str(case.image), "label": str(case.label)} for case in cases]

    def label_of(self, organ: str) -> int:
        """Return the label value of `organ`; `InputError` with the nearest name for an organ that is not here."""
        for value, name in self.labels.items():
            if name == organ:
                return value
        raise InputError(f"organ {organ!r} is not in dataset '{self.name}'; {_nearest(organ, self.organs.values())}")


def load_dataset(folder: str | os.PathLike[str], kind: str | None = None) -> Dataset:
    """Read and check a dataset folder, or its `dataset.json`; `kind` is what it must hold, "scans" or "slides".

    Everything that would make training or scores silently wrong raises `InputError`, one line that names file and key:
    missing keys or files (all of them), two cases of one id, one patient or one image in two places, labels that do
    not count up from 0, paths that leave the folder.
    """
    path = Path(folder)
    path = path / DATASET_FILE if path.is_dir() else path
    content = _read_json(path)
    try:
        dataset = _parse(path, content)
        if kind not in (None, dataset.kind):
            raise InputError(f"holds {dataset.kind}, not {kind}; {_BUNDLES[dataset.kind]} is the bundle for them")
        _check_unique(dataset)
        _check_files(dataset)
        _check_same_content(dataset)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return dataset


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


def parse_labels(content: Any) -> dict[int, str]:
    """Return Decathlon labels (`{"0": "background", "1": "liver"}`) as value to name, sorted by value.

    Raises `InputError` unless the values count up from 0 without a gap, 0 is the background, and each name is unique.
    """
    if not isinstance(content, Mapping) or len(content) < 2:
        raise InputError('labels must be an object such as {"0": "background", "1": "liver"}, with one organ at least')
    try:
        labels = dict(sorted((int(value), name) for value, name in content.items()))
    except (TypeError, ValueError):
        raise InputError(f"labels: the keys {_listed(map(str, content))} must be whole numbers from 0 on") from None
    if list(labels) != list(range(len(content))):
        raise InputError(f"labels: the values {_listed(map(str, labels))} must count 0, 1, 2, … without a gap")
    if len(labels) > _MAX_LABELS:
        raise InputError(f"labels: {len(labels)} values do not fit a label map; {_MAX_LABELS} is the most")
    names = list(labels.values())
    if any(not isinstance(name, str) or not name.strip() for name in names) or len(set(names)) < len(names):
        raise InputError(f"labels: the names {names} must be text, not empty, each used once")
    if names[0] != "background":
        raise InputError(f"labels: value 0 is {names[0]!r}; 0 must be 'background'")
    return labels


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"no {DATASET_FILE} at {path}; make a dataset folder with python -m data_prep.folder")
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_duplicates)
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON: {error.msg} in line {error.lineno}; correct that line") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}; give a JSON file in UTF-8") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a dataset; see python -m data_prep.folder")
    return content


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse an object that names a key twice: JSON readers keep the last and drop the first in silence."""
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise InputError(f"key {_listed(_twice(keys))} stands twice in one object; keep one")
    return content


def _parse(path: Path, content: dict[str, Any]) -> Dataset:
    """Return what `content` declares; keys and types are checked here, files and leaks elsewhere."""
    missing = [key for key in _REQUIRED_KEYS if key not in content]
    if missing:
        close = difflib.get_close_matches(missing[0], set(content) - set(_REQUIRED_KEYS), n=1)
        hint = f"did you mean it by {close[0]!r}?" if close else "python -m data_prep.folder writes all of them"
        raise InputError(f"lacks the key {_listed(missing)}; {hint}")
    if not isinstance(content["name"], str) or not content["name"].strip():
        raise InputError("name must be text")
    tile_px = content.get("tile_px")
    if tile_px is not None and (isinstance(tile_px, bool) or not isinstance(tile_px, int) or tile_px < 1):
        raise InputError(f"tile_px is {tile_px!r}; it must be the side of a training tile in pixels of the slide")
    if not isinstance(content.get("spacing_known", True), bool):
        raise InputError("spacing_known must be true or false")
    return Dataset(
        name=content["name"],
        folder=path.parent,
        modality=_parse_modality(content["modality"]),
        labels=parse_labels(content["labels"]),
        intensity=IntensityRule.from_dict(content["intensity"]),
        spacing_known=content.get("spacing_known", True),
        tile_px=tile_px,
        **{split: _parse_split(path.parent, split, content[split]) for split in SPLITS},
    )


def _parse_modality(content: Any) -> str:
    names = tuple(content.values()) if isinstance(content, dict) else ()
    for modality, channels in _CHANNELS.items():
        if names == channels:
            return modality
    if len(names) != 1 or not isinstance(names[0], str):
        raise InputError('modality must name one image channel, such as {"0": "CT"}, or red, green and blue')
    return names[0]


def _parse_split(folder: Path, split: str, entries: Any) -> tuple[Case, ...]:
    if not isinstance(entries, list):
        raise InputError(f"{split} must be a list of cases")
    return tuple(_parse_case(folder, f"{split}[{index}]", entry) for index, entry in enumerate(entries))


def _parse_case(folder: Path, where: str, entry: Any) -> Case:
    if not isinstance(entry, dict):
        raise InputError(f"{where} must be an object with case, patient, image and label")
    # Only the test split may hold scans that nobody labelled: nothing learns from it.
    needed = ["case", "patient", "image"] + (["label"] if not where.startswith("test") else [])
    missing = [key for key in needed if key not in entry]
    if missing:
        raise InputError(f"{where} lacks {_listed(missing)}; give case, patient, image and label")
    given = {key: entry[key] for key in (*needed, "label") if entry.get(key) is not None or key in needed}
    for key, value in given.items():
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{where}: {key} is {value!r}; it must be text")
    if any(character in given["case"] for character in "/\\\0"):
        raise InputError(f"{where}: case {given['case']!r} holds a slash; ids name files, so leave it out")
    label = given.get("label")
    return Case(
        case=given["case"],
        patient=given["patient"],
        image=_inside(folder, f"{where}: image", given["image"]),
        label=None if label is None else _inside(folder, f"{where}: label", label),
    )


def _inside(folder: Path, where: str, relative: str) -> Path:
    """Return `folder / relative`; a path that names a place outside the folder is refused (links are followed)."""
    path = Path(os.path.normpath(relative))
    if path.is_absolute() or path.parts[:1] == ("..",):
        raise InputError(f"{where} {relative!r} leaves the dataset folder; give a path (or a link) inside it")
    return folder / path


def _cases(dataset: Dataset) -> list[tuple[str, Case]]:
    return [(split, case) for split in SPLITS for case in dataset.split(split)]


def _check_unique(dataset: Dataset) -> None:
    """Refuse two cases of one id and a patient in two splits: scores would then be of scans that training saw."""
    cases = _cases(dataset)
    duplicates = _twice([case.case for _, case in cases])
    if duplicates:
        raise InputError(f"case {_listed(duplicates)} is listed twice; give each scan one id")
    splits: dict[str, set[str]] = defaultdict(set)
    for split, case in cases:
        splits[case.patient].add(split)
    leaks = [f"{patient} ({', '.join(sorted(found))})" for patient, found in splits.items() if len(found) > 1]
    if leaks:
        raise InputError(f"patient in more than one split: {_listed(leaks)}; move all scans of a patient into one")


def _check_files(dataset: Dataset) -> None:
    """Refuse files that do not exist, all of them in one message, and one file in two places (links included)."""
    named: list[tuple[str, Path]] = []
    for _, case in _cases(dataset):
        named.append((case.case, case.image))
        if case.label is not None:
            named.append((case.case, case.label))
    missing = [f"{case} ({path.relative_to(dataset.folder)})" for case, path in named if not path.exists()]
    if missing:
        raise InputError(f"{len(missing)} missing files: {_listed(missing)}; restore them or take the cases out")
    owners: dict[tuple[int, int], list[str]] = defaultdict(list)
    for case, path in named:
        status = path.stat()
        owners[status.st_dev, status.st_ino].append(f"{path.name} of {case}")
    shared = [" and ".join(owner) for owner in owners.values() if len(owner) > 1]
    if shared:
        raise InputError(f"one file in two places: {_listed(shared)}; each image and each label needs its own file")


def _check_same_content(dataset: Dataset) -> None:
    """Refuse one scan under two ids; only files of equal size are read, up to the first byte that differs."""
    sizes: dict[int, list[Case]] = defaultdict(list)
    for _, case in _cases(dataset):
        if case.image.is_file():
            sizes[case.image.stat().st_size].append(case)
    for group in sizes.values():
        seen: dict[bytes, Case] = {}
        for case in group if len(group) > 1 else ():
            other = seen.setdefault(_sample(case.image), case)
            if other is not case and filecmp.cmp(case.image, other.image, shallow=False):
                raise InputError(f"cases {other.case} and {case.case} hold the same image; keep one of them")


def _sample(path: Path, length: int = 1 << 16) -> bytes:
    """Return some bytes from the middle of a file, where scans of one size differ (headers and air do not)."""
    with open(path, "rb") as file:
        file.seek(path.stat().st_size // 2)
        return file.read(length)


def _entry(case: Case, folder: Path) -> dict[str, str]:
    entry = {"case": case.case, "patient": case.patient, "image": _relative(case.image, folder)}
    return entry if case.label is None else {**entry, "label": _relative(case.label, folder)}


def _relative(path: Path, folder: Path) -> str:
    try:
        return str(PurePosixPath(Path(os.path.abspath(path)).relative_to(os.path.abspath(folder))))
    except ValueError:
        raise InputError(f"{path} lies outside the dataset folder {folder}; copy or link it there") from None


def _twice(names: list[str]) -> list[str]:
    """Return the names that occur more than once, in order, each once."""
    return [name for name, count in Counter(names).items() if count > 1]


def _nearest(name: str, known: Iterable[str]) -> str:
    choices = list(known)
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"it has {_listed(choices)}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
