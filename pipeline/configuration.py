# SPDX-License-Identifier: Apache-2.0
"""The guard at the door of every bundle config: its `initialize` calls `start` before anything is built."""

from __future__ import annotations

import ast
import difflib
import inspect
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from monai.bundle import run as bundle_run
from monai.utils import set_determinism

from pipeline.errors import InputError, report_input_errors

# Arguments of `python -m monai.bundle run` itself; everything else on its command line overrides a key of the config.
RUN_ARGUMENTS = frozenset(inspect.signature(bundle_run).parameters) - {"override"}


def start(required: Mapping[str, Any], seed: int = 0, arguments: Sequence[str] | None = None) -> None:
    """Check the command line, make errors readable and seed every random generator.

    MONAI accepts an override of a key that no config has (`--epocs 3`) in silence, and reports a value that was not
    given as a failure deep inside the component that needed it.

    Args:
        required: values that have no default, by key; those that are None are reported together.
        seed: seed of Python, numpy and torch.
        arguments: the command line, `sys.argv[1:]` by default.

    Raises:
        InputError: an override names no key of the config, or a required value is missing.
    """
    report_input_errors()
    check_overrides(sys.argv[1:] if arguments is None else arguments)
    missing = [f"--{key}" for key, value in required.items() if value is None]
    if missing:
        raise InputError(f"not given on the command line: {', '.join(missing)}")
    set_determinism(seed)


def check_overrides(arguments: Sequence[str]) -> None:
    """Refuse overrides on the command line of `monai.bundle run` that name no key of its config files.

    Args:
        arguments: command line without the program; without `--config_file` there is nothing to check.

    Raises:
        InputError: the first unknown key, with the nearest known one.
    """
    options = _options(arguments)
    files = options.get("config_file")
    if files is None:
        return
    config = ConfigParser.load_config_files(_file_list(files))
    for name in options.keys() - RUN_ARGUMENTS:
        _check_key(name, config)


def _check_key(name: str, config: dict[str, Any]) -> None:
    level: Any = config
    for depth, part in enumerate(keys := name.replace("#", "::").split("::")):
        if isinstance(level, list):
            level = level[int(part)] if part.isdigit() and int(part) < len(level) else None
        elif not isinstance(level, dict):
            return  # a reference or an expression: what it holds is known only when it is evaluated
        elif part in level:
            level = level[part]
        elif "_target_" in level and depth:
            return  # an argument of a component that the config leaves at its default
        else:
            near = difflib.get_close_matches(part, level, n=1, cutoff=0)
            nearest = "::".join([*keys[:depth], *near])
            raise InputError(f"unknown option --{name}; did you mean --{nearest}?")


def _options(arguments: Sequence[str]) -> dict[str, str | None]:
    """Return the `--name value` and `--name=value` options of a command line."""
    options: dict[str, str | None] = {}
    for index, argument in enumerate(arguments):
        if not argument.startswith("--") or len(argument) == 2:
            continue
        name, equals, value = argument[2:].partition("=")
        following = arguments[index + 1] if index + 1 < len(arguments) else None
        options[name] = value if equals else following
    return options


def _file_list(files: str) -> list[str]:
    """Return the config files of one `--config_file` value: a path, a Python list of paths, or paths with commas."""
    if files.strip().startswith(("[", "(")):
        return [str(file) for file in ast.literal_eval(files)]
    return [files] if Path(files).is_file() else files.split(",")
