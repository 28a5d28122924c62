# SPDX-License-Identifier: Apache-2.0
"""What MONAI would import, call and evaluate of a config, without doing it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ComponentLocator, ConfigParser, ReferenceResolver

from pipeline.check_config.expressions import (
    Imported,
    import_of,
    objection_to_option,
    objection_to_text,
    objections_to_expression,
    substituted,
)
from pipeline.check_config.names import objection_to_chain, objection_to_module, objection_to_name
from pipeline.check_config.text import MOST_BYTES, pitfalls
from pipeline.errors import InputError

# Keys whose text MONAI's components look up as the name of a class to call.
_NAME_KEYS = ("backbone", "merger_cls", "reader", "writer")
_LOOKED_UP = ("_target_", *_NAME_KEYS)
_MOST_PASSES = 8
_MOST_STEPS = 200_000
_GLOBALS = {"monai": "monai", "torch": "torch", "np": "numpy", "numpy": "numpy"}  # MONAI imports them for every config

_UNREADABLE = (OSError, AttributeError, KeyError, IndexError, TypeError, ValueError, RecursionError)

Imports = dict[str, list[Imported]]


@dataclass(frozen=True, order=True)
class Finding:
    """One thing in a config that is outside the allow-list: the path of keys to it, and what it is.

    `files`: those that it may come from; the last of them that has the key is most likely to.
    """

    files: tuple[str, ...]
    key: str
    what: str

    @property
    def file(self) -> str:
        """The file to name."""
        return self.files[-1]

    def __str__(self) -> str:
        return " ".join(f"{self.file}: {self.key}: {self.what}".split())


def find(files: Sequence[str | os.PathLike[str]]) -> list[Finding]:
    """Return what is outside the allow-list in config files, merged as `monai.bundle run` merges them.

    Macros (`%file::key`) are followed, and the files that they name are looked at too. `files`: YAML or JSON, the later
    ones over the earlier. Raises `InputError` for a file that cannot be read, and for macros and aliases that grow
    without end.
    """
    config = _Config([Path(file) for file in files])
    return config.findings(config.imports())


def find_in_each(files: Sequence[str | os.PathLike[str]]) -> list[Finding]:
    """Return what `find` does of each file by itself, so that none hides another's values; they share their imports."""
    configs = [_Config([Path(file)]) for file in files]
    imports: Imports = {}
    for config in configs:
        for name, meanings in config.imports().items():
            known = imports.setdefault(name, [])
            known.extend(meaning for meaning in meanings if meaning not in known)
    return sorted({finding for config in configs for finding in config.findings(imports)})


class _BoundedParser(ConfigParser):
    """MONAI's own resolving of macros and relative ids, stopped before it outgrows memory, and with a list of files."""

    def __init__(self, config: Any) -> None:
        self.steps = 0
        self.sources: dict[str, Path] = {}
        self.files: dict[str, ConfigParser] = {}
        super().__init__(config)

    def __getattr__(self, id: str) -> Any:
        # MONAI's own would evaluate the config for any attribute that is not there.
        raise AttributeError(id)

    def _do_resolve(self, config: Any, id: str = "") -> Any:
        self._count(1, id)
        if isinstance(config, str):
            macro = self.resolve_relative_ids(id, config)
            path, part = self.split_path_id(macro[1:]) if macro.startswith("%") else ("", "")
            if path:
                self.sources[id] = _checked(Path(path), id)
                if path not in self.files:  # MONAI reads the file again for every macro
                    self.files[path] = ConfigParser(self.load_config_file(path))
                resolved = deepcopy(self.files[path][part])
                self._count(_size(resolved), id)
                return resolved
        resolved = super()._do_resolve(config, id)
        if resolved is not config:
            self._count(_size(resolved), id)
        return resolved

    def _count(self, steps: int, id: str) -> None:
        self.steps += steps
        if self.steps > _MOST_STEPS:
            raise InputError(f"{id}: macros or aliases make more than {_MOST_STEPS} values; give a plain config")


class _Config:
    """Config files after each round of MONAI's resolving, as items by id."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files
        for file in files:
            _checked(file, "the command line")
            list(pitfalls(file))  # refuses what is too large or no YAML before MONAI reads it
        self.rounds: list[list[tuple[str, Any]]] = []
        self.sources: dict[str, Path] = {}
        self.keys: list[tuple[Path, set[str]]] = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # repeated keys and renamed ones are findings or harmless
            self._load()

    def _load(self) -> None:
        try:
            for file in self.files:
                self.keys.append((file, _top_keys(file)))
            parser = _BoundedParser(ConfigParser.load_config_files([str(file) for file in self.files]))
            for _ in range(_MOST_PASSES):
                parser.resolve_macro_and_relative_ids()
                items = _collected(parser.get(), "")
                if self.rounds and items == self.rounds[-1]:
                    break
                self.rounds.append(items)
        except InputError:
            raise
        except (*_UNREADABLE, yaml.YAMLError) as error:
            raise InputError(f"{self.files[-1]} is no config that MONAI can read: {error}; correct it") from error
        self.sources = parser.sources

    def findings(self, imports: Imports) -> list[Finding]:
        """Return what is outside the allow-list, and what the files say other than it seems; files of macros too."""
        files = {*self.files, *self.sources.values()}
        found = {Finding((str(file),), key, what) for file in files for key, what in pitfalls(file)}
        return sorted(found | {Finding(self.files_of(id_), id_, what) for id_, what in self.objections(imports)})

    def files_of(self, id_: str) -> tuple[str, ...]:
        """Return the file whose macro made an item, else all files with its key at their top."""
        for source in sorted(self.sources, key=len, reverse=True):
            if f"{id_}::".startswith(f"{source}::"):
                return (str(self.sources[source]),)
        top = id_.split("::")[0]
        return tuple(str(file) for file, keys in self.keys if top in keys) or tuple(map(str, self.files))

    def imports(self) -> Imports:
        """Return what imported names stand for, those outside the allow-list left out."""
        found: Imports = {name: [(import_module(module), ())] for name, module in _GLOBALS.items()}
        for items in self.rounds:
            for _, value in items:
                statement = import_of(value[1:]) if isinstance(value, str) and value.startswith("$") else None
                if statement is not None and _objection_to_import(statement) is None:
                    name, meant = _imported(statement)
                    if meant not in found.setdefault(name, []):
                        found[name].append(meant)
        return found

    def objections(self, imports: Imports) -> Iterator[tuple[str, str]]:
        """Yield the id of each item with something outside the allow-list, and what that is."""
        for pairs in self.rounds:
            items = dict(reversed(pairs))  # of two with one id, MONAI resolves references to the first
            held = _holding_imports(pairs)
            for id_, value in pairs:
                key = id_.rpartition("::")[2]
                if isinstance(value, str) and not (key in _LOOKED_UP and not value.startswith("$")):
                    yield from ((id_, what) for what in _objections_to_string(value, imports, held))
                if key == "_target_":
                    yield from ((id_, what) for what in _objections_to_target(value, items, imports))
                elif key in _NAME_KEYS:
                    yield from ((id_, what) for what in _objections_to_named(value, items, imports))
                elif key in ("_mode_", "_debug_") and value not in ("default", "callable", False, None):
                    yield id_, f"{key} {value!r}, which can wait for a debugger"
                objection = objection_to_option(key, value)
                if objection is not None:
                    yield id_, objection


def _objections_to_string(text: str, imports: Imports, held: dict[str, Any]) -> list[str]:
    if text.startswith("$"):
        statement = import_of(text[1:])
        if statement is not None:
            objection = _objection_to_import(statement)
            return [] if objection is None else [objection]
        replaced = substituted(text)[1:]
        if import_of(replaced) is not None:
            return ["an import that only the references make one"]
        return [f"{what}, in {_short(text)}" for what in objections_to_expression(replaced, imports, held)]
    if text.startswith("@") and ReferenceResolver.normalize_id(text)[1:] in held:
        return [f"{text} is, or holds, an import"]
    objection = objection_to_text(text)
    return [] if objection is None else [f"text {text!r}: {objection}"]


def _objections_to_target(value: Any, items: dict[str, Any], imports: Imports) -> list[str]:
    """Return what speaks against what a component calls: a name, or an expression that is one of a module's."""
    value = _followed(value, items)
    if not isinstance(value, str):
        return [f"_target_ {_short(value)} is no name"]
    if value.startswith("$"):
        module, _, path = value[1:].strip().partition(".")
        if module not in imports or not all(part.isidentifier() for part in path.split(".")):
            return [f"_target_ {_short(value)} is computed"]
        return [
            f"_target_ {value}: {objection}"
            for start, taken in imports[module]
            if (objection := objection_to_chain(start, [*taken, *path.split(".")])) is not None
        ]
    if value.startswith(("@", "%")):
        return [f"_target_ {value} names nothing in the config"]
    places = _locator().get_component_module_name(value)
    places = [places] if isinstance(places, str) else places
    names = [f"{place}.{value}" for place in places] if places else [value]
    return [f"_target_ {value}: {objection}" for name in names if (objection := objection_to_name(name)) is not None]


@cache
def _locator() -> ComponentLocator:
    return ComponentLocator()


def _objections_to_named(value: Any, items: dict[str, Any], imports: Imports) -> list[str]:
    """Return what speaks against text that a component may look up as the name of a class: only dotted text is."""
    value = _followed(value, items)
    if isinstance(value, list):
        return [what for item in value for what in _objections_to_named(item, items, imports)]
    if not isinstance(value, str) or not (value.startswith("$") or "." in value):
        return []
    return [what.replace("_target_", "name", 1) for what in _objections_to_target(value, items, imports)]


def _followed(value: Any, items: dict[str, Any]) -> Any:
    """Return what plain references (`@other::key`) lead to."""
    seen: set[str] = set()
    while isinstance(value, str) and value.startswith("@") and value not in seen:
        seen.add(value)
        value = items.get(ReferenceResolver.normalize_id(value[1:]), value)
    return value


def _objection_to_import(statement: Any) -> str | None:
    alias = statement.names[0]
    if (alias.asname or "").startswith("_") or getattr(statement, "level", 0):
        return f"import of {alias.name} as {alias.asname}"
    if not hasattr(statement, "module"):
        return objection_to_module(alias.name)
    objection = objection_to_module(statement.module)
    if objection is not None or objection_to_module(f"{statement.module}.{alias.name}") is None:
        return objection
    return objection_to_chain(import_module(statement.module), [alias.name], expression=True)


def _imported(statement: Any) -> tuple[str, Imported]:
    """Return the name that an import of the allow-list binds, and what that stands for."""
    alias = statement.names[0]
    name = alias.asname or alias.name
    if hasattr(statement, "module"):
        return name, (import_module(statement.module), (alias.name,))
    return name, (import_module(alias.name), ())


def _holding_imports(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the ids of all imports, and of all items around them."""
    held = {}
    for id_, value in items:
        if isinstance(value, str) and value.startswith("$") and import_of(value[1:]) is not None:
            parts = id_.split("::")
            held.update({"::".join(parts[:count]): value for count in range(len(parts) + 1)})
    return held


def _collected(config: Any, id_: str) -> list[tuple[str, Any]]:
    """Return all items with their ids in MONAI's order, the inner before the outer; keys with :: may repeat an id."""
    items = []
    if isinstance(config, dict | list):
        for _, below, value in ReferenceResolver.iter_subconfigs(id_, config):
            items += _collected(value, below)
    return [*items, (id_, config)]


def _top_keys(file: Path) -> set[str]:
    """Return the keys at the top of the config into which a file writes."""
    config = ConfigParser.load_config_file(file)
    if not isinstance(config, dict) or not all(isinstance(key, str) for key in config):
        raise InputError(f"{file} is no config: at its top it needs keys that are text; put numbers, on, no in quotes")
    return {ReferenceResolver.split_id(key.lstrip("+"))[0] for key in config}


def _checked(file: Path, key: str) -> Path:
    if not file.is_file():
        raise InputError(f"no such config file: {file} (named by {key}); check the path")
    if file.stat().st_size > MOST_BYTES:
        raise InputError(f"{file} is larger than {MOST_BYTES} bytes; give a config")
    return file


def _size(value: Any) -> int:
    if isinstance(value, dict | list):
        return 1 + sum(_size(item) for item in (value.values() if isinstance(value, dict) else value))
    return 1


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
