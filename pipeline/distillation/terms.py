# SPDX-License-Identifier: Apache-2.0
"""Which methods a distillation has: by name with their defaults, or as a config lists them, with class and settings."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.distillation.catalogue import METHODS
from pipeline.distillation.schedule import TIMES, Schedule, parse_schedule
from pipeline.errors import InputError


@dataclass(frozen=True)
class Term:
    """A method of a distillation: what builds it for a pair of networks, its settings and when it counts."""

    build: Callable[..., Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    schedule: Schedule = field(default_factory=Schedule)


def chosen_terms(
    terms: Mapping[str, Callable[..., Any]] | None,
    method: str | None = None,
    methods: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    preset: str = "bounded",
) -> dict[str, Term]:
    """Return the methods of a distillation by name: of `methods`, else `method`, else `terms`.

    Args:
        terms: name to a class or function of the methods, or a `functools.partial` of it with its settings, as a config
            has them with `_mode_: callable`. `start`, `end`, `ramp` and `share` among the settings are the schedule's.
        method: a key of `METHODS`.
        methods: several keys, with a weight or a mapping for `parse_schedule`.
        settings: single settings of `method`.
        preset: of graph_flow, where `method` or `methods` name it.

    Raises:
        InputError: an unknown name or setting, or settings without the method that they belong to.
    """
    if settings and (methods or method is None):
        raise InputError(
            "--settings belong to a single --method; beside --methods they stand with the weight, and those of the "
            "config's terms are given as --terms::kd::temperature 1"
        )
    if methods or method is not None:
        wanted = {str(name): parse_schedule(entry) for name, entry in (methods or {}).items()}
        wanted = wanted or {method: (Schedule(), dict(settings or {}))}
        return {
            name: Term(_named(name), {"preset": preset, **changes} if name == "graph_flow" else changes, schedule)
            for name, (schedule, changes) in wanted.items()
        }
    if not terms:
        raise InputError("the config lists no terms; give --method kd, or another of python -m pipeline.distillation")
    return {str(name): _from_config(str(name), term) for name, term in terms.items()}


def describe_terms(terms: Mapping[str, Callable[..., Any]] | None) -> dict[str, dict[str, Any]]:
    """Return class and parameters of each term of a config as primitives, for recipes."""
    described = {}
    for name, term in (terms or {}).items():
        build, settings = _parts(term)
        described[str(name)] = {"class": f"{build.__module__}.{build.__qualname__}", **settings}
    return described


def settings_of(builder: Callable[..., Any]) -> dict[str, Any]:
    """Return the settings that a method takes by name, with their defaults."""
    parameters = inspect.signature(builder).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


def check_settings(name: str, builder: Callable[..., Any], settings: Mapping[str, Any]) -> None:
    """Refuse (`InputError`) a setting that a method does not have, with the nearest that it has."""
    kinds = {parameter.kind for parameter in inspect.signature(builder).parameters.values()}
    if inspect.Parameter.VAR_KEYWORD in kinds:
        return  # it knows its settings itself
    known = settings_of(builder)
    for setting in settings:
        if setting not in known:
            nearest = difflib.get_close_matches(setting, known, n=1, cutoff=0) or ["none"]
            raise InputError(f"the method '{name}' has no setting '{setting}'; did you mean '{nearest[0]}'?")


def _named(name: str) -> Callable[..., Any]:
    if name not in METHODS:
        nearest = difflib.get_close_matches(name, METHODS, n=1, cutoff=0)[0]
        raise InputError(f"unknown distillation method '{name}'; did you mean '{nearest}'? Known: {', '.join(METHODS)}")
    return METHODS[name]


def _from_config(name: str, term: Any) -> Term:
    build, settings = _parts(term)
    if not callable(build):
        raise InputError(f"the term {name} is {term!r}; give _target_, a class of the methods, and _mode_: callable")
    times = {key: settings.pop(key) for key in TIMES if key in settings}
    if times.get("share") is not None and "weight" in settings:
        raise InputError(f"the term {name} has a weight and a share; a share sets the weight by the gradients")
    return Term(build, settings, Schedule(**times))


def _parts(term: Any) -> tuple[Any, dict[str, Any]]:
    return (term.func, dict(term.keywords)) if isinstance(term, functools.partial) else (term, {})
