# SPDX-License-Identifier: Apache-2.0
"""Trying to train with few labels: which patients keep their labels, and hiding the labels of the others."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.data.dataset.case_files import written_alike
from pipeline.data.dataset.declaration import Case
from pipeline.errors import InputError

LABELLED_FILE = "labelled_patients.json"


def check_share(share: Any) -> float:
    """Return a share of unlabelled items in each batch if it is a number from 0 to below 1; `InputError` otherwise."""
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
        raise InputError(f"--unlabelled_share is {share!r}; give a number from 0 to below 1, such as 0.5")
    return share


def hide_labels(
    cases: Sequence[Case],
    number: int | None = None,
    fraction: float | None = None,
    patients: Sequence[Any] | str | None = None,
    seed: int = 0,
) -> tuple[Case, ...]:
    """Return training cases of which only some keep their label; a patient keeps all labels or none.

    The patients with labels are put into a random order, and the first of them keep theirs. So a smaller set of
    patients is always part of a larger one: the 10 % are among the 20 %. The order depends on the seed and on the
    patients' ids, not on the order of the cases, so that a fold without some patients has the others in the same order.

    Args:
        cases: of the training split; those without a label stay so.
        number: most cases that keep their label. Patients stay whole, so fewer cases keep it where the next patient
            would be too many. Give only one of number, fraction and patients; with none of them all labels stay.
        fraction: share of the labelled patients, above 0 and up to 1, rounded to whole patients, at least one.
        patients: ids of the patients who keep their labels, or the path of a list that an earlier run wrote.
        seed: of the random order.

    Raises:
        InputError: more than one choice, a number or fraction that cannot be met, or a patient who is not there.
    """
    given = [
        name for name, value in (("cases", number), ("fraction", fraction), ("patients", patients)) if value is not None
    ]
    if not given:
        return tuple(cases)
    if len(given) > 1:
        raise InputError(f"--labelled_{given[0]} and --labelled_{given[1]} exclude each other; give one")
    labelled = [case for case in cases if case.label is not None]
    ordered = sorted({written_alike(case.patient) for case in labelled}, key=lambda patient: _lot(seed, patient))
    if patients is not None:
        kept = _named(patients, ordered)
    elif fraction is not None:
        kept = ordered[: _count_of_fraction(fraction, len(ordered))]
    else:
        kept = _first_with(number, ordered, labelled)
    return tuple(case if written_alike(case.patient) in set(kept) else replace(case, label=None) for case in cases)


def labelled_patients(cases: Sequence[Case]) -> list[str]:
    """Return the patients of labelled cases, sorted, in the form that `hide_labels` takes."""
    return sorted({written_alike(case.patient) for case in cases if case.label is not None})


def _lot(seed: int, patient: str) -> str:
    return hashlib.sha256(f"{seed} {patient}".encode()).hexdigest()


def _count_of_fraction(fraction: Any, patients: int) -> int:
    good = isinstance(fraction, int | float) and not isinstance(fraction, bool) and 0 < fraction <= 1
    if not good:
        raise InputError(f"--labelled_fraction is {fraction!r}; give a share of the patients, above 0 and up to 1")
    return max(1, round(fraction * patients))


def _first_with(number: Any, ordered: Sequence[str], labelled: Sequence[Case]) -> list[str]:
    """Return the first patients, as many as have up to `number` cases together."""
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise InputError(f"--labelled_cases is {number!r}; give a whole number from 1")
    if not labelled:
        raise InputError("--labelled_cases: no training case has a label")
    if number > len(labelled):
        raise InputError(f"--labelled_cases is {number}, but {len(labelled)} training cases have a label; give fewer")
    kept: list[str] = []
    for patient in ordered:
        number -= sum(written_alike(case.patient) == patient for case in labelled)
        if number < 0:
            break
        kept.append(patient)
    if not kept:
        raise InputError(f"--labelled_cases: the patient {ordered[0]} has more cases than that; give more")
    return kept


def _named(patients: Any, known: Sequence[str]) -> list[str]:
    """Return the ids that a user listed, or that a file lists."""
    if isinstance(patients, str):
        patients = _read_list(Path(patients))
    if not isinstance(patients, list | tuple) or not patients:
        raise InputError(f"--labelled_patients is {patients!r}; give a list such as ['7', '12'], or the file of one")
    named = [written_alike(str(patient)) for patient in patients]
    for patient in named:
        if patient not in known:
            near = difflib.get_close_matches(patient, known, n=1, cutoff=0)
            hint = f"did you mean {near[0]!r}?" if near else "no training case has a label"
            raise InputError(f"--labelled_patients: {patient!r} has no labelled training case; {hint}")
    return named


def _read_list(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"--labelled_patients: cannot read {file} as a JSON list ({error}); give one") from error
