# SPDX-License-Identifier: Apache-2.0
"""Who trains, who chooses the model, who is scored: splits by patient, from lists, fractions or a file."""

from __future__ import annotations

import difflib
import json
import random
from collections.abc import Mapping
from pathlib import Path

from pipeline.data import SPLITS
from pipeline.errors import InputError

# Without any request of the user: a fifth is scored and a tenth chooses the model.
DEFAULT_FRACTIONS = {"validation": "0.1", "test": "0.2"}

SplitRequests = Mapping[str, str | None]


def read_split_file(path: str | Path) -> dict[str, str]:
    """Return the requests in a JSON file `{"training": [...], "validation": [...], "test": [...]}` (case ids)."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the split file {path}: {error}; give a JSON file of case lists") from error
    if not isinstance(content, dict) or not set(content) <= set(SPLITS) or not content:
        raise InputError(f"{path}: a split file is an object with some of the keys {', '.join(SPLITS)}")
    for split, cases in content.items():
        if not isinstance(cases, list) or not all(isinstance(case, str) for case in cases):
            raise InputError(f"{path}: {split} must be a list of case ids")
    return {split: ",".join(cases) for split, cases in content.items()}


def assign(
    patients: Mapping[str, str], requests: SplitRequests, seed: int = 0
) -> tuple[dict[str, set[str]], list[str]]:
    """Return the case ids of each split, and the problems with the requests.

    `patients`: case id to patient. `requests`: for each split ids separated by commas (of cases or patients), a
    fraction of all patients, or None. Lists are served first; fractions are drawn by `seed` from the patients that are
    left; without a request for training, all that is left trains.
    """
    given = {split: request for split, request in requests.items() if request is not None}
    given = given or dict(DEFAULT_FRACTIONS)
    splits: dict[str, set[str]] = {split: set() for split in SPLITS}
    problems: list[str] = []
    for split, request in given.items():
        if _fraction(request) is None:
            chosen, unknown = named(request, patients)
            splits[split] |= chosen
            problems += [f"--{split}: {problem}" for problem in unknown]
    problems += _in_two(splits)
    fractions = {split: _fraction(request) for split, request in given.items() if _fraction(request) is not None}
    problems += _draw(splits, patients, fractions, seed)
    left = sorted(set(patients) - set().union(*splits.values()))
    if "training" not in given:
        splits["training"] |= set(left)
    elif left and "training" not in fractions:
        problems.append(f"in no split: {', '.join(left)}; name them in one, or leave out --training")
    return splits, problems + _leaks(splits, patients)


def _fraction(request: str | None) -> float | None:
    """Return a request such as "0.2" as a number, and None for a list of ids (a bare "7" is an id)."""
    try:
        return float(request) if request and "." in request else None
    except ValueError:
        return None


def named(request: str, patients: Mapping[str, str]) -> tuple[set[str], list[str]]:
    """Return the cases that `request` names, by their id or their patient's, and a problem for each unknown name."""
    chosen: set[str] = set()
    problems = []
    for name in filter(None, (part.strip() for part in request.split(","))):
        cases = {name} if name in patients else {case for case, patient in patients.items() if patient == name}
        if not cases:
            close = difflib.get_close_matches(name, [*patients, *patients.values()], n=1)
            problems.append(f"no case or patient {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
        chosen |= cases
    return chosen, problems


def _in_two(splits: Mapping[str, set[str]]) -> list[str]:
    places: dict[str, list[str]] = {}
    for split, cases in splits.items():
        for case in sorted(cases):
            places.setdefault(case, []).append(split)
    twice = {case: " and in ".join(found) for case, found in places.items() if len(found) > 1}
    return [f"case {case} is in {found}; keep it in one" for case, found in twice.items()]


def _draw(
    splits: dict[str, set[str]], patients: Mapping[str, str], fractions: Mapping[str, float], seed: int
) -> list[str]:
    """Move drawn patients into `splits`; a request that is no fraction, or more than is left, is a problem."""
    wrong = [f"--{split} {value:g} is not between 0 and 1" for split, value in fractions.items() if not 0 < value < 1]
    if wrong:
        return wrong
    taken = {patients[case] for cases in splits.values() for case in cases}
    free = sorted(set(patients.values()) - taken)
    random.Random(seed).shuffle(free)
    for split in (name for name in ("test", "validation", "training") if name in fractions):
        count = max(1, round(fractions[split] * len(set(patients.values()))))
        if count > len(free):
            return [f"--{split} {fractions[split]:g} asks for {count} patients, but {len(free)} are left"]
        drawn, free = set(free[:count]), free[count:]
        splits[split] |= {case for case, patient in patients.items() if patient in drawn}
    return []


def _leaks(splits: Mapping[str, set[str]], patients: Mapping[str, str]) -> list[str]:
    """Return patients whose scans were named into different splits (one scan in two is told by `_in_two`)."""
    scans: dict[str, dict[str, str]] = {}
    for split, cases in splits.items():
        for case in cases:
            scans.setdefault(patients[case], {})[case] = split
    places = {patient: sorted(set(found.values())) for patient, found in scans.items()}
    return [
        f"patient {patient} is in {' and in '.join(found)}; keep all scans of a patient in one split"
        for patient, found in sorted(places.items())
        if len(found) > 1
    ]
