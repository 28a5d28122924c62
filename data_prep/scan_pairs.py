# SPDX-License-Identifier: Apache-2.0
"""Which label map belongs to which scan: by equal names, by what tools append to them, or by patterns of a user."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.splits import SplitRequests
from pipeline.data import scan_suffix
from pipeline.data.scans.case_names import FIRST_CHANNEL, bare_names, case_of_file, match_names
from pipeline.errors import InputError

# What a line about a scan without a label ends with.
LABEL_OR_TRAIN = "add it, or give --train-unlabelled"
_CASE = "{case}"
_OTHER_CHANNEL = re.compile(r"(.+)_000[1-9]")


@dataclass(frozen=True)
class ScanPair:
    """A scan and its label, as found on disk."""

    case: str
    image: Path
    label: Path


@dataclass
class FoundScans:
    """What a folder holds: pairs and scans without labels by case name, and what its own files say about them.

    `labels` (value to name), `modality` ("CT" or "MR") and `requests` (the split) are None or empty where no file says
    so. `problems` stop a conversion, `warnings` do not. `layout` names whose convention the folder follows.
    """

    source: Path
    pairs: list[ScanPair] = field(default_factory=list)
    unlabelled: dict[str, Path] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    labels: dict[int, str] | None = None
    modality: str | None = None
    requests: SplitRequests = field(default_factory=dict)
    layout: str = "a folder of images and one of labels"


def find_pairs(images: str | Path, labels: str | Path, unlabelled: bool = False) -> FoundScans:
    """Return scans and labels of one name, sorted, and a problem for each file without its partner.

    A scan is a file that `read_volume` reads, or a folder with a DICOM series. `case_0000.nii.gz` belongs to the
    label `case.nii.gz`, and `case.nrrd` to `case.seg.nrrd`. With `unlabelled`, scans without a label are no problem.
    Raises `InputError` for folders that do not exist and for images of several channels.
    """
    scans, problems = named_scans(Path(images), "image")
    maps, more = named_scans(Path(labels), "label")
    _refuse_channels(scans, Path(images))
    matched = match_names(scans, maps)
    found = FoundScans(Path(images), problems=problems + more)
    found.pairs = [ScanPair(case, scans[image], maps[label]) for case, (image, label) in sorted(matched.items())]
    left = scans.keys() - {image for image, _ in matched.values()}
    if unlabelled:
        found.unlabelled = {bare: scans[name] for name, bare in sorted(bare_names(left).items())}
    else:
        found.problems += [
            f"image {scans[name]} has no label of its name in {labels}; {LABEL_OR_TRAIN}" for name in sorted(left)
        ]
    alone = maps.keys() - {label for _, label in matched.values()}
    found.problems += [f"label {maps[name]} has no image of its name in {images}" for name in sorted(alone)]
    return found


def named_scans(folder: Path, kind: str) -> tuple[dict[str, Path], list[str]]:
    """Return the scans in `folder` by name without suffix, and a problem for each name that two files share."""
    if not folder.is_dir():
        raise InputError(f"no folder of {kind}s at {folder}; correct the path")
    entries = (path for path in sorted(folder.iterdir()) if not path.name.startswith("."))
    return _by_name(((case_of_file(path), path) for path in entries if is_scan(path)), kind, folder)


def is_scan(path: Path) -> bool:
    """Tell whether a path may be a scan by its name: a file of a known format, or a folder (of DICOM slices)."""
    return scan_suffix(path) is not None or path.is_dir()


def _by_name(files: Iterable[tuple[str, Path]], kind: str, folder: Path) -> tuple[dict[str, Path], list[str]]:
    found: dict[str, Path] = {}
    problems = []
    for name, path in files:
        if name in found:
            names = " and ".join(str(file.relative_to(folder)) for file in (found[name], path))
            problems.append(f"two {kind}s of one name: {names} in {folder}; keep one")
        found[name] = path
    return found, problems


def _refuse_channels(scans: Mapping[str, Path], folder: Path) -> None:
    """Refuse nnU-Net's images of several channels: networks here see one."""
    for name in sorted(scans):
        match = _OTHER_CHANNEL.fullmatch(name)
        if match and match[1] + FIRST_CHANNEL in scans:
            raise InputError(
                f"{folder} holds several channels of {match[1]} ({match[1]}{FIRST_CHANNEL}, {name}), and a network here"
                f' sees one; choose it by --image-pattern "{_CASE}{FIRST_CHANNEL}" with --images and --labels'
            )


class NamePattern:
    """A path below a folder with `{case}` in it, such as `{case}/t2.nii.gz` or `*/{case}_seg`.

    `*` stands for anything but a slash, and a second `{case}` for the same text. Without a suffix of a format, all of
    them fit, and folders too.
    """

    def __init__(self, text: str) -> None:
        if _CASE not in text:
            raise InputError(
                f'pattern {text!r} lacks {_CASE}, which stands for the name of the case, as in "{_CASE}_t2"'
            )
        parts = re.split(r"(\{case\}|\*)", text)
        self.literal_length = sum(len(part) for part in parts if part not in (_CASE, "*"))
        wild, case = {"*": "[^/]*", _CASE: "(?P<case>[^/]+)"}, 0
        expression = ""
        for part in parts:
            expression += "(?P=case)" if part == _CASE and case else wild.get(part, re.escape(part))
            case += part == _CASE
        self._any_suffix = scan_suffix(text) is None
        self._expression = re.compile(expression, flags=re.DOTALL)
        names = "".join("*" if part in wild else glob.escape(part) for part in parts)
        self._glob = re.sub(r"\*+", "*", names + "*" * self._any_suffix)  # two in a row would search folders below

    def files(self, folder: Path) -> Iterator[tuple[str, Path]]:
        """Yield case and path of every scan below `folder` that fits, sorted; hidden files are passed over."""
        for path in sorted(folder.glob(self._glob)):
            relative = path.relative_to(folder)
            name = relative.with_name(case_of_file(path)) if self._any_suffix else relative
            match = self._expression.fullmatch(name.as_posix())
            if match and is_scan(path) and not any(part.startswith(".") for part in relative.parts):
                yield match["case"], path


def find_by_patterns(
    images: Path, labels: Path, image_pattern: str, label_pattern: str, unlabelled: bool = False
) -> FoundScans:
    """Return the pairs whose paths below `images` and `labels` fit the patterns, matched by `{case}`.

    A file that fits both belongs to the pattern that says more about it: `{case}_seg` of the two that `{case}` fits.
    With `unlabelled`, scans without a label are no problem.
    Raises `InputError` for patterns without `{case}`, folders that are not there, and patterns that nothing fits.
    """
    wanted = {"image": (images, NamePattern(image_pattern)), "label": (labels, NamePattern(label_pattern))}
    files = {}
    for kind, (folder, pattern) in wanted.items():
        if not folder.is_dir():
            raise InputError(f"no folder of {kind}s at {folder}; correct the path")
        files[kind] = list(pattern.files(folder))
    weaker, stronger = sorted(wanted, key=lambda kind: wanted[kind][1].literal_length)
    claimed = {path for _, path in files[stronger]}
    files[weaker] = [(case, path) for case, path in files[weaker] if path not in claimed]
    for kind, (folder, _) in wanted.items():
        if not files[kind]:
            pattern = image_pattern if kind == "image" else label_pattern
            raise InputError(f"no {kind} below {folder} fits the pattern {pattern!r}; correct --{kind}-pattern")
    scans, problems = _by_name(files["image"], "image", images)
    maps, more = _by_name(files["label"], "label", labels)
    found = FoundScans(images, layout="names that fit the patterns", problems=problems + more)
    found.pairs = [ScanPair(case, scans[case], maps[case]) for case in sorted(scans.keys() & maps.keys())]
    alone = {case: scans[case] for case in sorted(scans.keys() - maps.keys())}
    if unlabelled:
        found.unlabelled = alone
    else:
        found.problems += [f"{path} has no label of case {case}; {LABEL_OR_TRAIN}" for case, path in alone.items()]
    found.problems += [f"{maps[case]} has no image of case {case}" for case in sorted(maps.keys() - scans.keys())]
    return found
