# SPDX-License-Identifier: Apache-2.0
"""The folds of a cross-validation as one run, which has been tested on the cases of all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from statistics import fmean

import pandas as pd

from pipeline.comparison.run_files import CASE_COLUMN
from pipeline.comparison.runs import Run, settings_label


def pooled(runs: Sequence[Run]) -> list[Run]:
    """Return the runs in order of appearance, with the folds of a cross-validation joined into one run.

    Runs are folds of one run if they have the same network, method, settings and seed, each has its own splits (the
    option `patients`), and no case was tested in two of them. Other runs stay as they are.
    """
    groups: dict[object, list[Run]] = {}
    for run in runs:
        has_folds = bool(run.recipe.get("patients"))
        key = (run.network, run.method, run.is_alone, settings_label(run), run.seed) if has_folds else run
        groups.setdefault(key, []).append(run)
    return [run for group in groups.values() for run in ([_pool(group)] if _are_folds(group) else group)]


def _are_folds(runs: Sequence[Run]) -> bool:
    return len(runs) > 1 and all(set(one.cases).isdisjoint(other.cases) for one, other in combinations(runs, 2))


def _pool(runs: Sequence[Run]) -> Run:
    """Return folds as one run; single values, such as the folder, are the first fold's."""
    # By their cases, so that the folds of a student and those of its teacher are in one order.
    folds = tuple(sorted(runs, key=lambda run: run.cases))
    epochs = round(fmean(run.epochs for run in folds))
    whole = _with_all_cases(folds, lambda run: run)
    return replace(
        whole,
        model_sha256=" + ".join(run.model_sha256 for run in folds),
        teacher_sha256=None if whole.is_alone else " + ".join(str(run.teacher_sha256) for run in folds),
        epochs=epochs,
        recipe={**whole.recipe, "epochs": epochs},
        validation=fmean(run.validation for run in folds),
        last=_with_all_cases(folds, lambda run: run.last) if all(run.last for run in folds) else None,
        folds=folds,
    )


def _with_all_cases(folds: Sequence[Run], of_fold: Callable[[Run], Run]) -> Run:
    """Return the first of some runs with the scores of all."""
    runs = [of_fold(run) for run in folds]
    scores = pd.concat([run.scores for run in runs])
    return replace(
        runs[0],
        scores=scores.sort_values([CASE_COLUMN[runs[0].kind], "label"], kind="stable", ignore_index=True),
        summary={**runs[0].summary, "cases": [case for run in runs for case in run.summary.get("cases", [])]},
    )
