# SPDX-License-Identifier: Apache-2.0
"""The guard at the door of every bundle config: its `initialize` checks and starts before anything is built."""

from __future__ import annotations

import difflib
import inspect
import re
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
# The keys of configs that are paths.
PATHS = ("dataset_dir", "run_dir", "checkpoint", "input", "output_dir", "teacher", "paraphraser", "cache_dir")
_NO_HASH = "MONAI takes # in a path for ::; rename it, or give a link to it"
_SYNTAX = ("@", "$", "%")  # with which MONAI begins references, expressions and macros
_OPTION = re.compile("--.|-[A-Za-z]")  # as fire knows it


def check_command_line(arguments: Sequence[str] | None = None) -> None:
    """Make errors readable, join the other processes, and check what was typed, before MONAI evaluates any of it.

    MONAI accepts an override of a key that no config has (`--epocs 3`) in silence.

    Args:
        arguments: the command line, `sys.argv[1:]` by default; without a config file there is nothing to check.

    Raises:
        InputError: a config file that is an overlay stands alone or holds a number that YAML reads as text, an override
            names no key of the config or cannot be its value, or a path would not be taken as it was typed.
    """
    report_input_errors()
    distributed.start()  # first: the others must learn of what is refused below
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _options(arguments)
    files = _config_files(options)
    if not files:
        return
    check_paths(arguments)
    config_files.check(files)
    check_overrides(arguments)
    given = {**ConfigParser.load_config_files(files), **options}
    for key in PATHS:  # of files, where a path may also be an expression or a reference
        if "#" in (path := str(given.get(key, ""))) and not path.startswith(_SYNTAX):
            raise InputError(f"{key} {path}: {_NO_HASH}")


def start(required: Mapping[str, Any], seed: int = 0) -> None:
    """Check that all paths are given, which MONAI would report deep inside what needs them; seed every generator.

    Args:
        required: paths that have no default, by key; those that are None are reported together.
        seed: seed of Python, numpy and torch.

    Raises:
        InputError: a required path is missing, or no text.
    """
    missing = [f"--{key}" for key, value in required.items() if value is None]
    if missing:
        raise InputError(f"not given on the command line: {', '.join(missing)}")
    for key, value in required.items():
        if not isinstance(value, str):  # a file may hold a number
            raise InputError(f"--{key} is read as {value!r}, not as a path: write ./{value}")
    set_determinism(seed + 1000 * distributed.rank())  # weights come from rank 0; dropout must differ


def bundle_root(arguments: Sequence[str] | None = None) -> str:
    """Return the folder of the bundle whose config the command line names, "." where it names none.

    A config cannot tell where it lies, and a bundle must run from any directory.
    """
    files = _config_files(_options(sys.argv[1:] if arguments is None else arguments))
    return str(Path(files[0]).resolve().parents[1]) if files else "."


def name_of(component: Any, option: str) -> str:
    """Return what a run's record calls a component: `option`, or its class where a config has one of another package.

    Args:
        component: what the config built, or None.
        option: the value of the option that chooses among this package's own.
    """
    if isinstance(component, list):
        return ", ".join(name_of(part, option) for part in component)
    kind = type(component)
    own = component is None or kind.__module__.partition(".")[0] == __name__.partition(".")[0]
    return option if own else f"{kind.__module__}.{kind.__qualname__}"


def check_paths(arguments: Sequence[str]) -> None:
    """Refuse paths that would not arrive as they were typed.

    Fire reads an argument as Python (`patient#2` is `patient` and a comment, `a,b` a pair, `2024` a number). MONAI then
    takes `@`, `$` and `%` at the beginning for its own syntax, and any `#` for `::`.

    Raises:
        InputError: the first such path, with what to write instead.
    """
    for name, text in _typed(arguments).items():
        if text is None or name in RUN_ARGUMENTS:
            continue
        read = DefaultParseValue(text)
        if name not in PATHS:
            if isinstance(read, str) and read != text.strip("'\""):
                raise InputError(f"--{name} {text} is read as {read!r}; put quotes into it: \"'{text}'\"")
            continue
        if "#" in text:
            raise InputError(f"--{name} {text}: {_NO_HASH}")
        if text.startswith(_SYNTAX):
            raise InputError(
                f"--{name} {text}: MONAI takes {text[:1]} for its own syntax, not for a path: write ./{text}"
            )
        if read != text:
            raise InputError(f"--{name} is read as {read!r}, not as a path: write ./{text}")


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
        elif depth and keys[0] in config.get("grid", {}):
            return  # --training::size 64: an option of another config, which the grid checks before its first run
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
    options = {name: True if text is None else DefaultParseValue(text) for name, text in _typed(arguments).items()}
    if "args_file" in options:
        return {**ConfigParser.load_config_file(str(options["args_file"])), **options}
    return options


def _typed(arguments: Sequence[str]) -> dict[str, str | None]:
    """Return the options of a command line as they were typed, None for one without a value."""
    typed: dict[str, str | None] = {}
    for index, argument in enumerate(arguments):
        if not _OPTION.match(argument):
            continue
        name, equals, value = argument.lstrip("-").partition("=")
        following = arguments[index + 1] if index + 1 < len(arguments) else "--"
        typed[name] = value if equals else None if _OPTION.match(following) or following == "--" else following
    return typed


def _config_files(options: Mapping[str, Any]) -> list[str]:
    """Return the files of `--config_file` (a path, a list, or paths with commas), none where it is not given."""
    files = options.get("config_file", [])
    if not isinstance(files, str):
        return [str(file) for file in files]
    return [files] if Path(files).is_file() else files.split(",")
