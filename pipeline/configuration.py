# SPDX-License-Identifier: Apache-2.0
"""The guard at the door of every bundle config: its `initialize` calls `start` before anything is built."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser
from monai.bundle import run as bundle_run
from monai.utils import set_determinism

from pipeline import config_files
from pipeline.errors import InputError, report_input_errors
from pipeline.processes import distributed

# Arguments of `python -m monai.bundle run` itself; everything else on its command line overrides a key of the config.
RUN_ARGUMENTS = frozenset(inspect.signature(bundle_run).parameters) - {"override"}


def start(required: Mapping[str, Any], seed: int = 0, arguments: Sequence[str] | None = None) -> None:
    """Check the command line, make errors readable, join the other processes and seed every random generator.

    MONAI accepts an override of a key that no config has (`--epocs 3`) in silence, and reports a value that was not
    given as a failure deep inside the component that needed it.

    Args:
        required: paths that have no default, by key; those that are None are reported together.
        seed: seed of Python, numpy and torch.
        arguments: the command line, `sys.argv[1:]` by default.

    Raises:
        InputError: a config file that is an overlay stands alone or holds a number that YAML reads as text, an override
            names no key of the config or cannot be its value, or a required path is missing.
    """
    report_input_errors()
    arguments = sys.argv[1:] if arguments is None else arguments
    config_files.check(_config_files(_options(arguments)))
    check_overrides(arguments)
    missing = [f"--{key}" for key, value in required.items() if value is None]
    if missing:
        raise InputError(f"not given on the command line: {', '.join(missing)}")
    for key, value in required.items():
        if not isinstance(value, str):  # the command line turns 2024 into a number
            raise InputError(f"--{key} is read as {value!r}, not as a path: write ./{value}")
    distributed.start()
    set_determinism(seed + 1000 * distributed.rank())  # weights come from rank 0; dropout must differ


def bundle_root(arguments: Sequence[str] | None = None) -> str:
    """Return the folder of the bundle whose config the command line names, "." where it names none.

    A config cannot tell where it lies, and a bundle must run from any directory.
    """
    files = _config_files(_options(sys.argv[1:] if arguments is None else arguments))
    return str(Path(files[0]).resolve().parents[1]) if files else "."


def check_overrides(arguments: Sequence[str]) -> None:
    """Refuse overrides of `monai.bundle run` that name no key of its config files, or are of another kind than it.

    Args:
        arguments: command line without the program; without a config file there is nothing to check. Options of an
            `--args_file` count too.

    Raises:
        InputError: the first unknown key, with the nearest known one; or the first value that cannot be.
    """
    options = _options(arguments)
    files = _config_files(options)
    if not files:
        return
    parser = ConfigParser(ConfigParser.load_config_files(files))
    parser.resolve_macro_and_relative_ids()
    config = parser.get()
    list_of_options = f"python -m pipeline options {' '.join(files)}"
    if options.keys() & {"help", "h"}:
        raise InputError(f"the options of this config, with defaults and meaning: {list_of_options}")
    for name, value in options.items():
        if name not in RUN_ARGUMENTS:
            _check_key(name, config, list_of_options)
            _check_value(name, config.get(name), value)


def _check_key(name: str, config: dict[str, Any], list_of_options: str) -> None:
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
            raise InputError(f"unknown option --{name}; did you mean --{nearest}? All of them: {list_of_options}")


def _check_value(name: str, default: Any, value: Any) -> None:
    """Refuse a value of another kind than the default, and numbers below the least that makes sense."""
    if value is None and default is not None:
        raise InputError(f"--{name} None: MONAI passes such an option over; change it in the file, or give {{}}")
    if isinstance(default, str) and isinstance(value, Mapping) and "_target_" in value and "_mode_" not in value:
        raise InputError(
            f"--{name}: MONAI would build it before its channels are known; write 'name' for '_target_', or give "
            "--network_def a class with its channels"
        )
    if isinstance(default, bool):
        if name == "resume" and value == "auto":
            return
        if not isinstance(value, bool):
            raise InputError(f"--{name} is {value!r}; give True or False" + (" or auto" if name == "resume" else ""))
    elif isinstance(default, int | float):
        # Counts and sizes begin at 1; what is 0 by default, such as a seed, may be 0. Rates may be any fraction.
        least = 1 if isinstance(default, int) and default > 0 else 0
        kind = int if isinstance(default, int) else (int, float)
        if isinstance(value, bool) or not isinstance(value, kind) or not least <= value < float("inf"):
            what = "a whole number" if kind is int else "a number"
            raise InputError(f"--{name} is {value!r}; give {what} from {least}, such as {default}")


def _options(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the options of a command line, read as fire reads them, and under them those of its `--args_file`."""
    options: dict[str, Any] = {}
    for index, argument in enumerate(arguments):
        if not argument.startswith("--") or len(argument) == 2:
            continue
        name, equals, value = argument[2:].partition("=")
        following = arguments[index + 1] if index + 1 < len(arguments) else "--"
        if equals:
            options[name] = DefaultParseValue(value)
        else:
            options[name] = True if following.startswith("--") else DefaultParseValue(following)
    if "args_file" in options:
        return {**ConfigParser.load_config_file(str(options["args_file"])), **options}
    return options


def _config_files(options: Mapping[str, Any]) -> list[str]:
    """Return the files of `--config_file` (a path, a list, or paths with commas), none where it is not given."""
    files = options.get("config_file", [])
    if not isinstance(files, str):
        return [str(file) for file in files]
    return [files] if Path(files).is_file() else files.split(",")
