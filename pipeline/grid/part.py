# SPDX-License-Identifier: Apache-2.0
"""A part of a grid by names: some of its students, methods, seeds, folds and amounts of labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from pipeline.errors import InputError
from pipeline.grid.arms import read_students
from pipeline.grid.grid import Grid

_KINDS = ("students", "methods", "seeds", "folds", "labels")


def part_of(grid: Grid, only: Mapping[str, Sequence[Any] | None]) -> Grid:
    """Return the grid without what `only` leaves out; all that stays keeps its own options, seeds and teacher.

    Args:
        grid: the whole.
        only: students, methods, seeds, folds and labels that stay, each a list of names; None or no list leaves all. A
            student without any of these methods or seeds is left out.

    Raises:
        InputError: another key, no list, a name that the grid does not have, or nothing left.
    """
    if unknown := set(only) - set(_KINDS):
        raise InputError(f"--only has {sorted(unknown)}; give {', '.join(_KINDS)}")
    only = {kind: names for kind, names in only.items() if names is not None}
    students = read_students(grid.students, grid.methods, grid.seeds)
    there = {
        "students": students,
        "methods": grid.methods,
        "seeds": {seed for student in students.values() for seed in student.seeds},
        "folds": grid.folds or {},
        "labels": grid.labels or {},
    }
    for kind, names in only.items():
        if not isinstance(names, Sequence) or isinstance(names, str) or not names:
            raise InputError(f"--only::{kind} is {names!r}; give a list with quoted names, as \"['a', 'b']\"")
        if missing := [name for name in names if name not in there[kind]]:
            raise InputError(f"--only::{kind} has {missing}; this grid has {list(there[kind]) or 'none'}")
    kept = {
        name: {
            **asdict(student),
            "methods": _kept(student.methods, only.get("methods")),
            "seeds": _kept(student.seeds, only.get("seeds")),
        }
        for name, student in students.items()
        if name in only.get("students", students)
    }
    kept = {name: content for name, content in kept.items() if content["methods"] and content["seeds"]}
    if not kept:
        raise InputError(f"--only {dict(only)} leaves nothing: its students have none of its methods and seeds")
    return replace(
        grid, students=kept, folds=_named(grid.folds, only.get("folds")), labels=_named(grid.labels, only.get("labels"))
    )


def _kept(names: Sequence[Any], only: Sequence[Any] | None) -> list[Any]:
    return [name for name in names if only is None or name in only]


def _named(contents: Mapping[str, Any] | None, only: Sequence[str] | None) -> Mapping[str, Any] | None:
    return contents if only is None or contents is None else {name: contents[name] for name in contents if name in only}
