# SPDX-License-Identifier: Apache-2.0
"""The part of this project's source that a standalone bundle needs, as the bundle's package `scripts`.

The definitions are copied from the project's own modules, with all definitions that they use and nothing else. So the
bundle gives the same results, and needs only the packages that these definitions import.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from pipeline import __version__
from pipeline.errors import InputError
from pipeline.lazy_names import home_of

PACKAGE = "pipeline"
SCRIPTS = "scripts"
_Import = ast.Import | ast.ImportFrom


def script_name(name: str) -> str:
    """Return the dotted name that a class or function of this project has in a bundle.

    Names of the packages that hand it on become that of the module which defines it. Raises `InputError` for a name
    that this project does not define.
    """
    module, _, own = name.rpartition(".")
    return f"{SCRIPTS}{_defining_module(module, own).removeprefix(PACKAGE)}.{own}"


def bundle_scripts(names: Iterable[str]) -> dict[PurePosixPath, str]:
    """Return the files of `scripts` that define `names`, dotted ones of this project: path in the bundle and text.

    Raises `InputError` for a name that this project does not define.
    """
    wanted: dict[str, set[str]] = {}
    to_do = [(name.rpartition(".")[0], name.rpartition(".")[2]) for name in names]
    while to_do:
        module, name = to_do.pop()
        module = _defining_module(module, name)
        if name not in wanted.setdefault(module, set()):
            wanted[module].add(name)
            to_do += _needs(module, name)
    files = {_path_of(module): _text(module, chosen) for module, chosen in wanted.items()}
    folders = {folder for path in files for folder in path.parents if folder.name}
    return {**{folder / "__init__.py": "" for folder in folders}, **files}


@dataclass(frozen=True)
class _Source:
    """A module as text, and what its names are bound by: statements of its own, or imports (statement and alias)."""

    lines: list[str]
    statements: list[ast.stmt]
    own: dict[str, ast.stmt] = field(default_factory=dict)
    imported: dict[str, tuple[_Import, ast.alias]] = field(default_factory=dict)


@functools.cache
def _source(module: str) -> _Source:
    text = importlib.util.find_spec(module).loader.get_source(module)
    source = _Source(text.splitlines(), ast.parse(text).body)
    for statement in source.statements:
        if isinstance(statement, _Import):
            for alias in statement.names:
                bound = alias.asname or alias.name.partition(".")[0]
                source.imported[bound] = (statement, alias)
        else:
            source.own.update(dict.fromkeys(_bound(statement), statement))
    return source


def _bound(statement: ast.stmt) -> set[str]:
    """Return the names that a statement of a module defines."""
    if isinstance(statement, ast.ClassDef | ast.FunctionDef):
        return {statement.name}
    return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def _used(statement: ast.stmt) -> set[str]:
    return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}


def _is_of_project(statement: _Import) -> bool:
    return isinstance(statement, ast.ImportFrom) and f"{statement.module}.".startswith(f"{PACKAGE}.")


def _defining_module(module: str, name: str) -> str:
    """Return where `name` is defined that `module` defines or imports from elsewhere in this project."""
    if f"{module}.".startswith(f"{PACKAGE}.") and importlib.util.find_spec(module) is not None:
        source = _source(module)
        if name in source.own:
            return module
        if name in source.imported:
            statement, alias = source.imported[name]
            if _is_of_project(statement):
                return _defining_module(statement.module, alias.name)
        if home := home_of(module, name):
            return _defining_module(home, name)
    raise InputError(f"{module}.{name} is no class or function of {PACKAGE} that a bundle can carry; check the name")


def _needs(module: str, name: str) -> Iterator[tuple[str, str]]:
    """Yield module and name of what a definition uses of this project."""
    source = _source(module)
    for used in _used(source.own[name]) - {name}:
        if used in source.own:
            yield module, used
        elif used in source.imported and _is_of_project(source.imported[used][0]):
            statement, alias = source.imported[used]
            yield statement.module, alias.name


def _path_of(module: str) -> PurePosixPath:
    return PurePosixPath(SCRIPTS, *module.split(".")[1:]).with_suffix(".py")


def _text(module: str, names: set[str]) -> str:
    """Return the module with the definitions of `names` alone, and the imports that these need."""
    source = _source(module)
    kept = [one for one in source.statements if any(source.own.get(name) is one for name in names)]
    used = set().union(*map(_used, kept))
    head = [
        source.lines[0],
        f"# From {module} of graphflow-segmentation {__version__}.",
        f'"""{ast.get_docstring(ast.Module(source.statements, []), clean=False)}"""',
        "",
        "from __future__ import annotations",
        "",
        *_import_lines(module, used),
    ]
    return "\n".join(head) + "\n" + "".join(f"\n\n{_lines_of(source, one)}\n" for one in kept)


def _import_lines(module: str, used: set[str]) -> Iterator[str]:
    """Yield the imports of what is used: those of other packages, then those of `scripts`, one line for each module."""
    source = _source(module)
    of_modules: dict[str, list[str]] = {}
    for name in sorted(used & source.imported.keys()):
        statement, alias = source.imported[name]
        what = alias.name + (f" as {alias.asname}" if alias.asname else "")
        if isinstance(statement, ast.Import):
            yield f"import {what}"
        elif _is_of_project(statement):
            of_modules.setdefault(_relative(_defining_module(statement.module, alias.name), module), []).append(what)
        elif statement.module != "__future__":
            of_modules.setdefault(statement.module, []).append(what)
    for origin, names in sorted(of_modules.items(), key=lambda item: (item[0].startswith("."), item[0])):
        yield f"from {origin} import {', '.join(names)}"


def _relative(origin: str, module: str) -> str:
    """Return how `module` names the module `origin`: up to `scripts`, and down again."""
    return "." * module.count(".") + origin.partition(".")[2]


def _lines_of(source: _Source, statement: ast.stmt) -> str:
    """Return a statement as it is written, with its decorators and the comment above it."""
    first = min([statement.lineno, *(one.lineno for one in getattr(statement, "decorator_list", []))]) - 1
    while source.lines[first - 1].startswith("#"):
        first -= 1
    return "\n".join(source.lines[first : statement.end_lineno])
