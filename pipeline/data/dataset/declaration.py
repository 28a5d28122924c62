# SPDX-License-Identifier: Apache-2.0
"""The content of a `dataset.json`, read key by key, so that all mistakes can be reported and not only the first."""

from __future__ import annotations

import difflib
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import Path
from typing import Any, TypeVar

from pipeline.data.dataset.intensity import IntensityRule
from pipeline.errors import InputError
from pipeline.files.texts import read_json

DATASET_FILE = "dataset.json"
SPLITS = ("training", "validation", "test")
# Decathlon's `modality` names every channel: one for scans and grey slides, three for slides in colour.
GREY_SLIDE, COLOUR_SLIDE = "grey slide", "RGB slide"
CHANNELS = {COLOUR_SLIDE: ("red", "green", "blue")}
_REQUIRED_KEYS = ("name", "modality", "labels", "intensity", *SPLITS)
_OPTIONAL_KEYS = ("spacing_known", "tile_px")
_CASE_KEYS = ("case", "patient", "image", "label")
# A key so similar to an optional one is a misspelling of it; Decathlon's own further keys (licence, release) are not.
_MISSPELT = 0.8
_NO_NAME = ("Cc", "Cs")  # control characters and halves of a surrogate pair, by Unicode's names
_MAX_LABELS = 255  # label maps are uint8, and 255 in a batch means that there is no label
_Parsed = TypeVar("_Parsed")


@dataclass(frozen=True)
class Case:
    """One scan: its unique id, its patient, and the paths of image and label (`label` is None where there is none)."""

    case: str
    patient: str
    image: Path
    label: Path | None


@dataclass(frozen=True)
class Declaration:
    """The content of a `dataset.json`; unusable parts are None or left out, and `problems` lists them."""

    path: Path
    name: str | None
    modality: str | None
    labels: dict[int, str] | None
    intensity: IntensityRule | None
    spacing_known: bool
    tile_px: int | None
    splits: dict[str, tuple[Case, ...]]
    problems: tuple[InputError, ...]
    content: Mapping[str, Any]

    @property
    def cases(self) -> list[tuple[str, Case]]:
        """Every usable case with its split, in the order of the splits."""
        return [(split, case) for split, cases in self.splits.items() for case in cases]


def read_declaration(folder: str | os.PathLike[str]) -> Declaration:
    """Read the `dataset.json` of a folder, or that file itself.

    Raises `InputError` only where nothing can be used: no file, no JSON, no object.
    """
    path = Path(folder)
    path = path / DATASET_FILE if path.is_dir() else path
    content = read_content(path)
    problems: list[InputError] = []
    _tried(problems, _check_keys, content)

    def parsed(key: str, parse: Callable[[Any], _Parsed]) -> _Parsed | None:
        """Return what `parse` makes of a key; None where it is missing (told above) or unusable."""
        return _tried(problems, parse, content[key]) if key in content else None

    name, tile_px = parsed("name", _parse_name), parsed("tile_px", _parse_tile_px)
    spacing_known = parsed("spacing_known", _parse_spacing_known)
    modality = parsed("modality", _parse_modality)
    labels, intensity = parsed("labels", parse_labels), parsed("intensity", IntensityRule.from_dict)
    if modality in (GREY_SLIDE, COLOUR_SLIDE) and content.get("tile_px") is None:
        problems.append(InputError(f"modality {modality!r} without tile_px; give a tile's side in pixels of the slide"))
    splits = {split: _parse_split(problems, path.parent, split, content.get(split, [])) for split in SPLITS}
    known = True if spacing_known is None else spacing_known
    return Declaration(path, name, modality, labels, intensity, known, tile_px, splits, tuple(problems), content)


def _tried(problems: list[InputError], parse: Callable[..., _Parsed], *arguments: Any) -> _Parsed | None:
    """Return what `parse` returns; where it raises `InputError`, note that and return None."""
    try:
        return parse(*arguments)
    except InputError as error:
        problems.append(error)
        return None


def read_content(path: Path) -> dict[str, Any]:
    """Return what the JSON file at `path` holds; `InputError` where it is missing or no JSON object."""
    if not path.is_file():
        raise InputError(f"no {DATASET_FILE} at {path}; make a dataset folder with python -m data_prep.folder")
    try:
        content = read_json(path, _without_duplicates)
    except JSONDecodeError as error:
        raise InputError(f"{path} is not JSON: {error.msg} in line {error.lineno}; correct that line") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}; give a JSON file in UTF-8") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, lists nested thousands deep
        raise InputError(f"{path} cannot be parsed: {error}; write it with python -m data_prep.folder") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a dataset; see python -m data_prep.folder")
    return content


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse an object that names a key twice: JSON readers keep the last and drop the first in silence."""
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise InputError(f"key {listed(twice(keys))} stands twice in one object; keep one")
    return content


def _check_keys(content: Mapping[str, Any]) -> None:
    if "intensity" not in content and ("channel_names" in content or "tensorImageSize" in content):
        raise InputError("is of another tool, nnU-Net or Decathlon; python -m data_prep.check FOLDER tells the way")
    missing = [key for key in _REQUIRED_KEYS if key not in content]
    if missing:
        close = difflib.get_close_matches(missing[0], set(content) - set(_REQUIRED_KEYS), n=1)
        hint = f"did you mean it by {close[0]!r}?" if close else "python -m data_prep.folder writes all of them"
        raise InputError(f"lacks the key {listed(missing)}; {hint}")
    _check_misspelt(content, _OPTIONAL_KEYS)


def _check_misspelt(content: Mapping[str, Any], optional: Collection[str]) -> None:
    """Refuse a misspelt optional key: without this check, the default would be used in silence."""
    for key in content:
        close = [] if key in optional else difflib.get_close_matches(key, optional, n=1, cutoff=_MISSPELT)
        if close:
            raise InputError(f"the key {key!r} is unknown; did you mean {close[0]!r}?")


def _parse_name(name: Any) -> str:
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"name is {name!r}; name must be text")
    return name


def _parse_tile_px(tile_px: Any) -> int | None:
    if tile_px is not None and (isinstance(tile_px, bool) or not isinstance(tile_px, int) or tile_px < 1):
        raise InputError(f"tile_px is {tile_px!r}; it must be the side of a training tile in pixels of the slide")
    return tile_px


def _parse_spacing_known(known: Any) -> bool:
    if not isinstance(known, bool):
        raise InputError(f"spacing_known is {known!r}; it must be true or false")
    return known


def _parse_modality(content: Any) -> str:
    names = tuple(content.values()) if isinstance(content, dict) else ()
    for modality, channels in CHANNELS.items():
        if names == channels:
            return modality
    if len(names) != 1 or not isinstance(names[0], str) or not names[0].strip():
        raise InputError(
            f'modality is {content!r}; it must name one image channel, such as {{"0": "CT"}}, or red, green and blue'
        )
    return names[0]


def parse_labels(content: Any) -> dict[int, str]:
    """Return Decathlon labels (`{"0": "background", "1": "liver"}`) as value to name, sorted by value.

    Raises `InputError` unless the values count up from 0 without a gap, 0 is the background, and each name is unique.
    """
    if not isinstance(content, Mapping) or len(content) < 2:
        raise InputError('labels must name one organ at least; write an object {"0": "background", "1": "liver"}')
    try:
        labels = dict(sorted((int(value), name) for value, name in content.items()))
    except (TypeError, ValueError):
        raise InputError(
            f"labels: the keys {listed(map(str, content))} must be whole numbers; number them from 0 on"
        ) from None
    if list(labels) != list(range(len(content))):
        raise InputError(
            f"labels: the values {listed(map(str, labels))} must count 0, 1, 2, … without a gap; renumber them"
        )
    if len(labels) > _MAX_LABELS:
        raise InputError(f"labels: {len(labels)} values do not fit a label map; {_MAX_LABELS} is the most")
    names = list(labels.values())
    if any(not isinstance(name, str) or not name.strip() for name in names) or len(set(names)) < len(names):
        raise InputError(f"labels: the names {names} must be text, not empty, each used once; rename some")
    if names[0] != "background":
        raise InputError(f"labels: value 0 is {names[0]!r}; 0 must be 'background'")
    return labels


def _parse_split(problems: list[InputError], folder: Path, split: str, entries: Any) -> tuple[Case, ...]:
    if not isinstance(entries, list):
        problems.append(
            InputError(f"{split} must be a list of cases, not a {type(entries).__name__}; write [] for none")
        )
        return ()
    cases = [_parse_case(problems, folder, f"{split}[{index}]", entry) for index, entry in enumerate(entries)]
    return tuple(case for case in cases if case is not None)


def _parse_case(problems: list[InputError], folder: Path, where: str, entry: Any) -> Case | None:
    known = len(problems)
    # Training and test may hold scans that nobody labelled; a best model is chosen by the labels of validation.
    needed = [key for key in _CASE_KEYS if key != "label" or where.startswith("validation")]
    _tried(problems, _check_entry, where, entry, needed)
    if len(problems) > known:
        return None
    given = {key: entry[key] for key in _CASE_KEYS if entry.get(key) is not None or key in needed}
    for key, value in given.items():
        _tried(problems, _check_text, f"{where}: {key}", value)
    if len(problems) > known:
        return None
    paths = {
        key: _tried(problems, path_inside, folder, f"{where}: {key}", given[key])
        for key in ("image", "label")
        if key in given
    }
    _tried(problems, _check_id, where, given["case"])
    if len(problems) > known:
        return None
    return Case(given["case"], given["patient"], paths["image"], paths.get("label"))


def _check_entry(where: str, entry: Any, needed: Collection[str]) -> None:
    if not isinstance(entry, dict):
        raise InputError(
            f"{where} must be an object, not a {type(entry).__name__}; give case, patient, image and label"
        )
    missing = [key for key in needed if key not in entry]
    if missing:
        raise InputError(f"{where} lacks {listed(missing)}; give case, patient, image and label")
    try:
        _check_misspelt(entry, ("label",))
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _check_text(where: str, value: Any) -> None:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where} is {value!r}; it must be text")


def _check_id(where: str, case: str) -> None:
    if any(character in "/\\" or unicodedata.category(character) in _NO_NAME for character in case):
        raise InputError(
            f"{where}: case {case!r} holds a slash or a control character; ids name files, so leave it out"
        )


def path_inside(folder: Path, where: str, relative: str) -> Path:
    """Return `folder / relative`; a path that names a place outside the folder is refused (links are followed)."""
    if any(unicodedata.category(character) in _NO_NAME for character in relative):
        raise InputError(f"{where} {relative!r} holds a control character; rename the file without it")
    path = Path(os.path.normpath(relative))
    if path.is_absolute() or path.parts[:1] == ("..",):
        raise InputError(f"{where} {relative!r} leaves the dataset folder; give a path (or a link) inside it")
    return folder / path


def twice(names: Iterable[str]) -> list[str]:
    """Return the names that occur more than once, in order, each once."""
    return [name for name, count in Counter(names).items() if count > 1]


def listed(names: Iterable[str]) -> str:
    """Return names as one text, with commas between them."""
    return ", ".join(names)
