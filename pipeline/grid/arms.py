# SPDX-License-Identifier: Apache-2.0
"""What a benchmark config says of its students and methods, checked: who is trained in which way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import InputError

_KEYS = ("methods", "seeds", "options")
Methods = Mapping[str, Mapping[str, Any] | None]


@dataclass(frozen=True)
class Student:
    """The methods and seeds of one network, and options that its trainings have beside those of all students."""

    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)


def read_students(
    students: Sequence[str] | Mapping[str, Mapping[str, Any] | None], methods: Methods, seeds: Sequence[int]
) -> dict[str, Student]:
    """Return the students of a benchmark by the name of their network.

    Args:
        students: names, or name to `methods` (names), `seeds` and `options`, each with the grid's own as default.
        methods: all methods of the grid.
        seeds: of students that have none of their own.

    Raises:
        InputError: lists that are empty or name a thing twice, names unfit for folders, and methods that are not there.
    """
    check_names("methods", list(methods))
    _check_list("seeds", seeds)
    _check_list("students", list(students))
    given = students if isinstance(students, Mapping) else dict.fromkeys(students)
    found = {}
    for name, content in given.items():
        content = content or {}
        if unknown := set(content) - set(_KEYS):
            raise InputError(f"the student {name} of the benchmark has {sorted(unknown)}; give {', '.join(_KEYS)}")
        mine = Student(
            tuple(content.get("methods", methods)), tuple(content.get("seeds", seeds)), content.get("options", {})
        )
        _check_list(f"methods of {name}", mine.methods)
        _check_list(f"seeds of {name}", mine.seeds)
        _check_methods(name, mine.methods, methods)
        found[name] = mine
    return found


def is_alone(options: Mapping[str, Any] | None) -> bool:
    """Return whether an arm is a training without a teacher: null, or options with `method: null`."""
    return options is None or (options.get("method", "") is None and not options.get("methods"))


def same_but_for_time(arm: str, methods: Methods, names: Sequence[str]) -> str:
    """Return the one of `names` that is the arm `arm` but for its `time_of`.

    Raises:
        InputError: there is none.
    """
    rest = _plain(methods[arm])
    controls = [name for name in names if is_alone(methods[name]) and "time_of" not in (methods[name] or {})]
    for name in controls:
        if _plain(methods[name]) == rest:
            return name
    raise InputError(
        f"the method {arm} of the benchmark has time_of, but there is no method with its other options "
        f"({rest or 'null'}), which tells how long an epoch takes: add one"
    )


def check_names(what: str, names: Sequence[str]) -> None:
    """Refuse (`InputError`) names of folders that are none, empty lists and names given twice."""
    _check_list(what, names)
    for name in names:
        if not str(name).replace("_", "").replace("-", "").isalnum():
            raise InputError(f"{name!r}, of the {what} of the benchmark, names folders: give letters, digits, - and _")


def _check_list(what: str, names: Sequence[Any]) -> None:
    if not names or len(set(names)) != len(names):
        raise InputError(f"{what} of the benchmark are {list(names)}; give each once, and one at least")


def _check_methods(student: str, names: Sequence[str], methods: Methods) -> None:
    """Refuse methods that the grid does not have, and a `time_of` that is not among the student's or of no control."""
    for name in names:
        if name not in methods:
            raise InputError(f"the student {student} of the benchmark has the method {name}; there are {list(methods)}")
        other = (methods[name] or {}).get("time_of")
        if other is None:
            continue
        if not is_alone(methods[name]):
            raise InputError(f"the method {name} of the benchmark has time_of, which is for method: null alone")
        if other not in names or "time_of" in (methods[other] or {}):
            raise InputError(f"the method {name} of the benchmark has the time of {other}; give one that {student} has")
        same_but_for_time(name, methods, names)


def _plain(options: Mapping[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (options or {}).items() if key not in ("method", "time_of")}
