# SPDX-License-Identifier: Apache-2.0
"""Components as plain data, `{"_target_": dotted name of a class, argument: value, ...}`: what model files keep.

A config's own words are not kept, since they refer to other parts of the config; here references and expressions have
become the values that they stand for. Nothing in a description runs code when it is read: `build` makes instances of
classes in trusted modules alone, and its arguments are numbers, text, lists and mappings.
"""

from __future__ import annotations

import inspect
import os
import pydoc
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from monai.bundle import ConfigComponent, ConfigParser

from pipeline.errors import InputError

TARGET = "_target_"
TRUST = "GRAPHFLOW_TRUSTED_MODULES"
Base = TypeVar("Base")


def describe(key: str) -> Any:
    """Return a part of the running config, a component or a list of them, as plain data.

    A config calls it, as `{_target_: pipeline.described.describe, key: preprocessing}`. MONAI hands no component the
    config of another, so the parser is found among the callers. Components that are `_disabled_` are left out of lists.

    Raises:
        InputError: the part is no component, or an argument cannot be described, such as a function.
    """
    return _described(_running_parser(), key)


def build(description: Mapping[str, Any], base: type[Base], modules: Sequence[str]) -> Base:
    """Return the instance that a component of `describe` stands for.

    Args:
        description: `_target_`, the dotted name of a class, and its arguments.
        base: what the class must derive from.
        modules: the modules whose classes may be built, those below them included. Those that the environment variable
            GRAPHFLOW_TRUSTED_MODULES names, with commas between them, are trusted too.

    Raises:
        InputError: a class of another module, no such class, arguments that it does not take, or components among them.
    """
    modules = (*modules, *filter(None, os.environ.get(TRUST, "").split(",")))
    name = description.get(TARGET)
    _check_trusted(name, modules)
    for key, value in description.items():
        if "'_target_'" in repr(value):
            raise InputError(f"{name} has a component as {key}; model files keep classes with plain arguments alone")
    try:
        component = pydoc.locate(name)
    except pydoc.ErrorDuringImport as error:
        raise InputError(f"{name} cannot be imported: {error.value}") from error
    if not (inspect.isclass(component) and issubclass(component, base)):
        raise InputError(f"{name} is not installed, or no {base.__name__}; put its module on PYTHONPATH")
    _check_trusted(dotted_name(component), modules)  # a module has what it imports from others too
    try:
        return component(**{key: value for key, value in description.items() if key != TARGET})
    except (InputError, NotImplementedError):  # the latter of what needs values, on the meta device
        raise
    except Exception as error:  # constructors raise many kinds
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{name} cannot be built from its description: {reason}") from error


def _check_trusted(name: Any, modules: Sequence[str]) -> None:
    if not isinstance(name, str) or not any(name.startswith(f"{module}.") for module in modules):
        raise InputError(
            f"{name!r} is none of {', '.join(modules)}; if you trust the file, "
            f"export {TRUST}={str(name).rpartition('.')[0]}"
        )


def dotted_name(component: Any) -> str:
    """Return module and name of a class or function."""
    return f"{component.__module__}.{component.__qualname__}"


def plain(where: str, value: Any) -> Any:
    """Return `value` in the types that `weights_only` loading knows, tuples as lists.

    numpy's scalars are not among them and become Python's. Raises `TypeError`, which names the place `where`, for
    anything that is neither plain nor made of plain values.
    """
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        value = value.item()
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Mapping):
        return {plain(where, key): plain(f"{where}.{key}", item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(f"{where}[{index}]", item) for index, item in enumerate(value)]
    raise TypeError(f"{where} is a {type(value).__name__}; model files hold numbers, text, lists and mappings of these")


def _running_parser() -> ConfigParser:
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, ConfigParser):
            return caller
        frame = frame.f_back
    raise RuntimeError("describe is called by a config; without one, write the description itself")


def _described(parser: ConfigParser, key: str) -> Any:
    config = parser[key]
    if isinstance(config, str) and config.startswith("@"):
        return _described(parser, config[1:])
    if isinstance(config, list):
        parts = [f"{key}::{index}" for index in range(len(config))]
        return [_described(parser, part) for part in parts if not _is_disabled(parser, part)]
    if ConfigComponent.is_instantiable(config):
        return _component(parser, key, config)
    raise InputError(f"{key} of the config is {config!r}; write a component with _target_ there, or a list of them")


def _component(parser: ConfigParser, key: str, config: Mapping[str, Any]) -> dict[str, Any]:
    target = ConfigComponent({**config, TARGET: _value(parser, f"{key}::{TARGET}")}, locator=parser.locator)
    name = target.resolve_module_name()
    component = pydoc.locate(name) if isinstance(name, str) else name
    if component is None:
        raise InputError(f"{key}: there is no {config[TARGET]}; check the name")
    described = {TARGET: dotted_name(component)}
    for argument in config.keys() - ConfigComponent.non_arg_keys:
        part = f"{key}::{argument}"
        if _holds_components(parser, part):
            described[argument] = _described(parser, part)
            continue
        value = _value(parser, part)
        try:
            described[argument] = dotted_name(value) if inspect.isclass(value) else plain(part, value)
        except TypeError as error:
            raise InputError(f"{error}; write a class of your own that needs no such argument") from error
    return dict(sorted(described.items()))


def _holds_components(parser: ConfigParser, key: str) -> bool:
    """Tell whether a part is a component, a reference to one, or a list of them."""
    config = parser[key]
    if isinstance(config, str) and config.startswith("@") and config[1:] in parser:
        return _holds_components(parser, config[1:])
    if isinstance(config, list):
        return bool(config) and all(_holds_components(parser, f"{key}::{index}") for index in range(len(config)))
    return ConfigComponent.is_instantiable(config)


def _is_disabled(parser: ConfigParser, key: str) -> bool:
    config = parser[key]
    if not isinstance(config, Mapping) or "_disabled_" not in config:
        return False
    return ConfigComponent({"_disabled_": _value(parser, f"{key}::_disabled_")}).is_disabled()


def _value(parser: ConfigParser, key: str) -> Any:
    # The resolver itself: the parser would begin anew while its first expression is still being evaluated.
    return parser.ref_resolver.get_resolved_content(key)
