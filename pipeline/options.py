# SPDX-License-Identifier: Apache-2.0
"""The options of configs and commands, with default and comment: for `python -m pipeline options` and the docs.

A config's options are the keys of its first block, above the line "what is built from it".
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from pipeline.errors import InputError

_BLOCK = "# ---"  # begins the line above a block of keys
_INDENT = 20  # of a comment that goes on in the next line
_LONGEST = 40  # characters of a default that are shown
_LINE = 120


@dataclass(frozen=True)
class Option:
    """An option as it is typed, its default as text ("" for none), and what it means."""

    name: str
    default: str
    meaning: str


def config_files(given: Sequence[str]) -> list[Path]:
    """Return the files of configs, each overlay behind the file that it changes.

    Args:
        given: paths, or one text as `--config_file` takes it, "['train.yaml','distill.yaml']" or "a.yaml,b.yaml".

    Raises:
        InputError: a file is missing or is no YAML mapping.
    """
    names = [str(name) for text in given for name in (yaml.safe_load(text) if text[:1] == "[" else text.split(","))]
    files: list[Path] = []
    for path in map(Path, names):
        base = _content(path).get("overlay_of")
        if base is not None and base not in (file.name for file in files):
            files.append(path.with_name(base))
        files.append(path)
    return files


def config_options(files: Sequence[Path]) -> list[Option]:
    """Return the options of configs that are named together; a later file's default replaces an earlier one's.

    Raises `InputError` for a file that is missing or no YAML mapping, and for one without a block of options.
    """
    options: dict[str, Option] = {}
    for file in files:
        for option in _options_of(file):
            earlier = options.get(option.name)
            meaning = option.meaning or (earlier.meaning if earlier else "")
            options[option.name] = Option(option.name, option.default, meaning)
    if not options:
        raise InputError(f"{', '.join(map(str, files))}: no block of options; name a config such as train.yaml")
    return list(options.values())


def _content(file: Path) -> dict:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or "it is no YAML file"
        near = sorted(path.name for path in file.parent.glob("*.yaml")) if file.parent.is_dir() else []
        there = f"; {file.parent} holds {', '.join(near)}" if near else ""
        raise InputError(f"cannot read {file}: {reason}{there}") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} holds no keys; name a config such as train.yaml")
    return content


def _options_of(file: Path) -> Iterator[Option]:
    """Yield the keys of a file's first block."""
    content, text = _content(file), file.read_text(encoding="utf-8")
    lines = text.splitlines()
    blocks = [number for number, line in enumerate(lines) if line.startswith(_BLOCK)]
    if not blocks:
        return
    first, end = blocks[0], blocks[1] if len(blocks) > 1 else len(lines)
    for key, value in yaml.compose(text).value:
        if first < key.start_mark.line < end:
            yield Option(f"--{key.value}", _default(content[key.value]), _comment(lines, key, value))


def _default(value: object) -> str:
    """Return a default as one would type it; what the config computes is told as that."""
    if value is None:
        return ""
    if isinstance(value, str) and value[:1] == "@":
        return f"that of --{value[1:]}"
    if isinstance(value, str) and value[:1] == "$":
        return "computed"
    return textwrap.shorten(str(value), _LONGEST, placeholder=" …") if isinstance(value, dict | list) else str(value)


def _comment(lines: Sequence[str], key: yaml.Node, value: yaml.Node) -> str:
    """Return what stands behind a key's value and goes on below, or else what stands above the key."""
    simple = not isinstance(value, yaml.CollectionNode) or value.flow_style
    mark = value.end_mark if simple else key.end_mark
    line, below = lines[mark.line], mark.line + 1
    behind = line[mark.column :].lstrip(": ")
    if behind.startswith("#"):
        parts = [behind]
        while below < len(lines) and lines[below].lstrip().startswith("#") and lines[below].startswith(" " * _INDENT):
            parts.append(lines[below])
            below += 1
    else:
        above = key.start_mark.line
        while lines[above - 1].startswith("#") and not lines[above - 1].startswith(_BLOCK):
            above -= 1
        parts = list(lines[above : key.start_mark.line])
    return " ".join(part.strip().lstrip("#").strip() for part in parts)


def command_options(parser: argparse.ArgumentParser) -> list[Option]:
    """Return the options of a command, without --help; positions by the name that its help shows."""
    options = []
    for action in parser._actions:  # argparse has no public list of them
        if isinstance(action, argparse._HelpAction):
            continue
        name = ", ".join(action.option_strings) or str(action.metavar or action.dest)
        meaning = (action.help or "") % {**vars(action), "prog": parser.prog}
        if action.choices:
            meaning = f"{' or '.join(map(str, action.choices))}" + (f": {meaning}" if meaning else "")
        default = "" if action.default in (None, False, argparse.SUPPRESS) else str(action.default)
        options.append(Option(name, default, meaning + ("; required" if action.required else "")))
    return options


def as_text(options: Sequence[Option]) -> str:
    """Return lines for a terminal: option, default, meaning, wrapped."""
    name = max(len(option.name) for option in options) + 2
    default = max(len(option.default) for option in options) + 2
    return "\n".join(
        textwrap.fill(
            f"{option.name:<{name}}{option.default:<{default}}{option.meaning}",
            _LINE,
            subsequent_indent=" " * (name + default),
        )
        for option in options
    )


def as_table(options: Sequence[Option]) -> str:
    """Return a Markdown table."""
    rows = [(f"`{option.name}`", f"`{option.default}`" if option.default else "", option.meaning) for option in options]
    escaped = [tuple(cell.replace("|", "\\|") for cell in row) for row in rows]
    return "\n".join(
        ["| option | default | meaning |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in escaped)]
    )
