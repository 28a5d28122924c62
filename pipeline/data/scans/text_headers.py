# SPDX-License-Identifier: Apache-2.0
"""The text headers of NRRD and MetaImage files, checked line by line before a library in C++ parses them.

Those parsers write past their buffers if a header has a wrong number of dimensions or a very long value. So every line
must be one that the format defines, with as many numbers as there are dimensions. A header also must not name files
outside its folder.
"""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.errors import InputError

_MOST_HEADER_BYTES = 1 << 20
_MOST_CHARACTERS = 1000  # of a line; matrices of four dimensions take 400
_MOST_COMMENT = 4000  # of lines that the parsers skip or keep whole
_CONTROL = r"[\x00-\x08\x0a-\x1f\x7f]"
_INTEGER = r"[-+]?\d{1,9}"
_SIZE = r"\d{1,9}"
_NUMBER = r"[-+]?(\d{1,40}\.?\d{0,40}|\.\d{1,40})([eE][-+]?\d{1,3})?"
_BOOLEAN = r"[TF1](rue|alse)?|0"
# How many values a field has: one a dimension, a matrix of them, or one a dimension of space.
_ONCE, _SQUARE, _OF_SPACE = "dimensions", "dimensions squared", "space"
_MOST_SPACE = 4

# MetaImage: pattern of one value, and how many there are.
_META_FIELDS: dict[str, tuple[str, str]] = {
    "NDims": ("[2-5]", "1"),
    "DimSize": (_SIZE, _ONCE),
    **dict.fromkeys(("ElementSpacing", "ElementSize", "Offset", "Position", "Origin"), (_NUMBER, _ONCE)),
    "CenterOfRotation": (_NUMBER, _ONCE),
    **dict.fromkeys(("TransformMatrix", "Rotation", "Orientation"), (_NUMBER, _SQUARE)),
    **dict.fromkeys(("HeaderSize", "ID", "ParentID"), (_INTEGER, "1")),
    **dict.fromkeys(("ElementNumberOfChannels",), (_SIZE, "1")),
    "CompressedDataSize": (r"\d{1,15}", "1"),
    **dict.fromkeys(("ElementMin", "ElementMax"), (_NUMBER, "1")),
    "Color": (_NUMBER, "4"),
    "SequenceID": (_NUMBER, _ONCE),
    **dict.fromkeys(("BinaryData", "BinaryDataByteOrderMSB", "ElementByteOrderMSB", "CompressedData"), (_BOOLEAN, "1")),
    **dict.fromkeys(("ElementType", "Modality", "ObjectType", "ObjectSubType", "DistanceUnits"), (r"[\w?]{1,40}", "1")),
    "AnatomicalOrientation": (r"[A-Za-z?]{1,5}", "1"),
    "ElementDataFile": (r"\S.{0,254}", "1"),
}

_VECTOR = rf"\(\s*{_NUMBER}(\s*,\s*{_NUMBER}){{1,3}}\s*\)"
_QUOTED = r'"[^"]{0,100}"'
# NRRD: pattern of one value, and how many there are; blanks within a field's name do not count.
_NRRD_SPELT: dict[str, tuple[str, str]] = {
    "type": (r"[a-z0-9_ ]{1,30}", "1"),
    "dimension": ("[2-5]", "1"),
    "space": (r"[\w -]{1,40}", "1"),
    "space dimension": ("[1-4]", "1"),
    "sizes": (_SIZE, _ONCE),
    "space directions": (rf"({_VECTOR}|none)", _ONCE),
    "space origin": (_VECTOR, "1"),
    "measurement frame": (rf"({_VECTOR}|none)", _OF_SPACE),
    **dict.fromkeys(("spacings", "thicknesses", "axis mins", "axis maxs"), (rf"({_NUMBER}|nan|NaN)", _ONCE)),
    **dict.fromkeys(("kinds", "centers", "centerings"), (r"[\w?-]{1,40}", _ONCE)),
    **dict.fromkeys(("labels", "units"), (_QUOTED, _ONCE)),
    "space units": (_QUOTED, _OF_SPACE),
    "encoding": (r"raw|gzip|gz|ascii|txt|text|hex|bzip2|bz2", "1"),
    "endian": ("little|big", "1"),
    **dict.fromkeys(("line skip", "byte skip"), (_INTEGER, "1")),
    **dict.fromkeys(("old min", "old max", "min", "max"), (_NUMBER, "1")),
    **dict.fromkeys(("content", "sample units"), (r".{0,255}", "1")),
    **dict.fromkeys(("number", "block size"), (_SIZE, "1")),
    "data file": (r"\S.{0,254}", "1"),
}
_NRRD_FIELDS = {name.replace(" ", ""): rule for name, rule in _NRRD_SPELT.items()}

Header = tuple[dict[str, str], int]


def meta_header(path: Path) -> Header:
    """Return the fields of a MetaImage header by lower-case name, and the byte where it ends.

    Raises `InputError` for a line that is none of the format, a field that is there twice or has other than its number
    of values, and for a header without dimensions or without `ElementDataFile`, which is its last line.
    """
    fields: dict[str, str] = {}
    given: set[str] = set()
    dimensions = 0
    text, end = _start_of(path), 0
    if not re.search(r"^ElementDataFile\s*=", text, flags=re.MULTILINE):
        raise InputError(f"{path} has no ElementDataFile, so no voxels; give a MetaImage file")
    while "ElementDataFile" not in given:
        line, end = _line(path, text, end)
        if not line.strip():
            continue
        name, equals, value = line.partition("=")
        name, value = name.strip(), value.strip()
        if not equals or ":" in name or not name.isascii() or not name or name in given:
            raise _damaged(path, line)
        if name in _META_FIELDS:
            _check_values(path, line, value, *_META_FIELDS[name], dimensions)
            dimensions = int(value) if name == "NDims" else dimensions
        given.add(name)
        fields[name.lower()] = value
    return fields, end


def nrrd_header(path: Path) -> Header:
    """Return the fields of a NRRD header by lower-case name, and the byte where the data begin.

    Raises `InputError` as `meta_header` does; an empty line ends the header, or the file where the data lie elsewhere.
    """
    text = _start_of(path)
    magic, end = _line(path, text, 0)
    if not re.fullmatch("NRRD000[1-5]", magic):
        raise InputError(f"{path} does not begin as NRRD files do (NRRD0004); give a NRRD file")
    fields: dict[str, str] = {}
    dimensions = 0
    while end < len(text):
        line, end = _line(path, text, end)
        if not line:
            break
        field = re.match(r"([A-Za-z ]{1,40}):(?!=)", line)
        if line.startswith("#") or (field is None and ":=" in line):
            continue
        name = "" if field is None else field[1].lower().replace(" ", "")
        if field is None or name not in _NRRD_FIELDS or name in {key.replace(" ", "") for key in fields}:
            raise _damaged(path, line)
        value = line[field.end() :].strip()
        _check_values(path, line, value, *_NRRD_FIELDS[name], dimensions)
        dimensions = int(value) if name == "dimension" else dimensions
        fields[field[1].lower().strip()] = value
    return fields, end


def file_beside(path: Path, name: str) -> Path:
    """Return the file of voxels that the header at `path` names; `InputError` where it lies outside that folder."""
    data = path.parent / name
    folders = (path.parent.resolve(), path.resolve().parent)  # header and voxels may be links into one other folder
    if not any(data.resolve().is_relative_to(folder) for folder in folders):
        raise InputError(f"{path}: its voxel file {name} lies outside its folder; put it beside the header")
    if not data.is_file():
        raise InputError(f"{path}: its voxel file {data} is missing; put it beside the header")
    return data


def _start_of(path: Path) -> str:
    with open(path, "rb") as file:
        return file.read(_MOST_HEADER_BYTES).decode("latin-1")


def _line(path: Path, text: str, start: int) -> tuple[str, int]:
    """Return the line that begins at a character, and where the next one does."""
    end = text.find("\n", start)
    stop = len(text) if end < 0 else end
    line = text[start:stop].removesuffix("\r")
    free = line.startswith(("#", "Comment")) or ":=" in line
    if start >= len(text):
        raise InputError(f"{path}: the header ends early; download or export it again")
    if len(line) > (_MOST_COMMENT if free else _MOST_CHARACTERS) or re.search(_CONTROL, line):
        raise _damaged(path, line)
    return line, min(stop + 1, len(text))


def _check_values(path: Path, line: str, value: str, pattern: str, count: str, dimensions: int) -> None:
    """Refuse a line that does not hold `count` values of the pattern."""
    if count in (_ONCE, _SQUARE) and not dimensions:
        raise InputError(f"{path}: the header says {line[:40]!r} before the number of dimensions; export it again")
    exact = {_ONCE: dimensions, _SQUARE: dimensions**2}.get(count)
    least, most = (1, _MOST_SPACE) if count == _OF_SPACE else (exact or int(count),) * 2
    if not re.fullmatch(rf"({pattern})(\s+({pattern})){{{least - 1},{most - 1}}}", value):
        raise _damaged(path, line)


def _damaged(path: Path, line: str) -> InputError:
    shown = line if len(line) <= 60 else f"{line[:57]}..."
    return InputError(f"{path}: damaged header at {shown!r}; download or export it again")
