# SPDX-License-Identifier: Apache-2.0
"""Config files as text: overlays that lack the file they change, and numbers that YAML takes for text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from monai.bundle import ConfigParser

from pipeline.errors import InputError

# Numbers to everyone but YAML 1.1, which wants a dot in the mantissa and a sign in the exponent: 1e-4 is text.
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+")


def check(files: Sequence[str]) -> None:
    """Check the files of `--config_file`, in their order.

    Raises:
        InputError: a file's `overlay_of` names one that is not before it, or a value looks like a number and is none.
    """
    for index, file in enumerate(files):
        base = ConfigParser.load_config_file(file).get("overlay_of")
        if base is not None and base not in (Path(before).name for before in files[:index]):
            both = f"['{Path(file).with_name(base)}','{file}']"
            raise InputError(f'{file} says only what differs from {base}; name both: --config_file "{both}"')
        for line, value in _numbers_read_as_text(Path(file)):
            raise InputError(f"{file}, line {line}: {value} is read as text; write it as 1.0e-4 is written")


def _numbers_read_as_text(file: Path) -> Iterator[tuple[int, str]]:
    """Yield line and value of each number without quotes that YAML reads as text; a JSON file has none."""
    if file.suffix.lower() == ".json":
        return
    resolver = yaml.SafeLoader("")
    for token in yaml.scan(file.read_text(encoding="utf-8")):
        plain = isinstance(token, yaml.ScalarToken) and token.plain and _NUMBER.fullmatch(token.value)
        if plain and resolver.resolve(yaml.ScalarNode, token.value, (True, False)) == "tag:yaml.org,2002:str":
            yield token.start_mark.line + 1, token.value
