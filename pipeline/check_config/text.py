# SPDX-License-Identifier: Apache-2.0
"""What YAML and JSON files say other than it seems: repeated keys, `no` that is False, `1e-4` that is text."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import yaml

from pipeline.errors import InputError

MOST_BYTES = 1 << 20
# Numbers to everyone but YAML 1.1, which wants a dot in the mantissa and a sign in the exponent.
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+|0o[0-7]+")
_TAGS = {
    "tag:yaml.org,2002:bool": (re.compile(r"true|false", re.IGNORECASE), "write true or false, or put it in quotes"),
    "tag:yaml.org,2002:int": (re.compile(r"[-+]?(0|[1-9]\d*)"), "write a plain decimal number, or put it in quotes"),
    "tag:yaml.org,2002:float": (re.compile(r"[-+]?[^:_]+"), "write it without : and _, or put it in quotes"),
    "tag:yaml.org,2002:timestamp": (re.compile("(?!)"), "put it in quotes"),
}
_TEXT = "tag:yaml.org,2002:str"
_MOST_NODES = 100_000


def pitfalls(file: Path) -> Iterator[tuple[str, str]]:
    """Yield (key path, what) for each value that is read as another than it seems, and each repeated key.

    Raises `InputError` for a file that is missing, too large, or no YAML or JSON at all; nothing in it is executed.
    """
    content = _content(file)
    if file.suffix.lower() == ".json":
        yield from _json_pitfalls(file, content)
        return
    try:
        node = yaml.compose(content, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        if node is not None:
            yield from _Nodes().walk(node, "")
    except yaml.YAMLError as error:
        raise InputError(f"{file} is no valid YAML: {error}; correct it (YAML takes no tabs)") from error
    except RecursionError as error:
        raise InputError(f"{file} is nested too deeply, or in itself; give a plain config") from error


def _content(file: Path) -> str:
    try:
        if file.stat().st_size > MOST_BYTES:
            raise InputError(f"{file} is larger than {MOST_BYTES} bytes; give a config")
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is no text in UTF-8; give a config") from error


def _json_pitfalls(file: Path, content: str) -> list[tuple[str, str]]:
    repeated: list[tuple[str, str]] = []

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        """Return the pairs as a dictionary; note keys that it cannot hold twice."""
        seen = dict(pairs)
        repeated.extend((key, "key given twice; the last one counts") for key in _twice([key for key, _ in pairs]))
        return seen

    try:
        json.loads(content, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is no valid JSON: {error}; correct it") from error
    return repeated


class _Nodes:
    """Walks the nodes of a YAML file, aliases as often as they are used, up to a limit."""

    def __init__(self) -> None:
        self.count = 0

    def walk(self, node: yaml.Node, path: str) -> Iterator[tuple[str, str]]:
        """Yield the pitfalls at and below a node."""
        self.count += 1
        if self.count > _MOST_NODES:
            raise InputError(f"more than {_MOST_NODES} values, at {path}; give a config without such aliases")
        if isinstance(node, yaml.ScalarNode):
            what = _misread(node)
            if what is not None:
                yield path, what
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                yield from self.walk(value, f"{path}::{index}" if path else str(index))
        elif isinstance(node, yaml.MappingNode):
            yield from self._mapping(node, path)

    def _mapping(self, node: yaml.MappingNode, path: str) -> Iterator[tuple[str, str]]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in _twice(keys):
            yield f"{path}::{key}" if path else key, "key given twice; the last one counts"
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else "?"
            below = f"{path}::{name}" if path else str(name)
            yield from self.walk(key, below)
            yield from self.walk(value, below)


def _misread(node: yaml.ScalarNode) -> str | None:
    if node.style:  # in quotes or a block: text, as it seems
        return None
    if node.tag == _TEXT and _NUMBER.fullmatch(node.value):
        return f"{node.value} is read as text; write it with a dot and a sign, as 1.0e-4"
    plain, remedy = _TAGS.get(node.tag, (None, ""))
    if plain is None or plain.fullmatch(node.value):
        return None
    return f"{node.value} is read as {node.tag.rpartition(':')[2]}; {remedy}"


def _twice(keys: list[str]) -> list[str]:
    return sorted(key for key, count in Counter(keys).items() if count > 1)
