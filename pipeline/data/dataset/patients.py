# SPDX-License-Identifier: Apache-2.0
"""Other splits than `dataset.json` declares: the folds of a cross-validation, or fewer training cases."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.data.dataset.case_files import written_alike
from pipeline.data.dataset.declaration import SPLITS, Case, listed
from pipeline.errors import InputError

Splits = Mapping[str, tuple[Case, ...]]


def split_by_patients(splits: Splits, patients: Mapping[str, Iterable[Any]]) -> dict[str, tuple[Case, ...]]:
    """Return the cases of `splits`, distributed anew by `patients`; all cases of a patient stay together.

    Validation and test stay as they were if `patients` has no list for them. Patients in no list train. If "training"
    has a list too, only its patients train, and patients in no list are left out.

    Args:
        splits: name of the split to its cases, as `dataset.json` declares them.
        patients: name of the split to the ids of its patients; numbers are taken as text.

    Raises:
        InputError: a split or patient that is not there, or a patient in two splits.
    """
    cases = [case for split in SPLITS for case in splits[split]]
    named = _named(patients, {written_alike(case.patient) for case in cases})
    for split in ("validation", "test"):
        named.setdefault(split, {written_alike(case.patient) for case in splits[split]})
    held_out = named["validation"] | named["test"]
    named.setdefault("training", {written_alike(case.patient) for case in cases} - held_out)
    for first, second in (("training", "validation"), ("training", "test"), ("validation", "test")):
        if both := sorted(named[first] & named[second]):
            raise InputError(f"--patients: {listed(both)} would be in {first} and {second}; name each in one list")
    return {split: tuple(case for case in cases if written_alike(case.patient) in named[split]) for split in SPLITS}


def _named(patients: Any, known: set[str]) -> dict[str, set[str]]:
    """Return the lists that a user gave as sets of ids; `InputError` for what is none, or not there."""
    if not isinstance(patients, Mapping) or not all(isinstance(ids, list | tuple) for ids in patients.values()):
        raise InputError(f"--patients is {patients!r}; give lists of patients, such as {{'test': ['7', '12']}}")
    named = {}
    for split, ids in patients.items():
        if split not in SPLITS:
            raise InputError(f"--patients names the split {split!r}; there are {listed(SPLITS)}")
        named[split] = {written_alike(str(patient)) for patient in ids}
        for patient in sorted(named[split] - known):
            near = difflib.get_close_matches(patient, known, n=1, cutoff=0)
            raise InputError(f"--patients: {split} names {patient!r}, who is not there; did you mean {near[0]!r}?")
    return named
