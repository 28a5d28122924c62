# SPDX-License-Identifier: Apache-2.0
"""Who trains, who chooses the model, who is scored: splits by patient, from lists, fractions or a file."""

from __future__ import annotations

import argparse
import difflib
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.data import SPLITS
from pipeline.data.scans.case_names import bare_name, case_of_file
from pipeline.errors import InputError
from pipeline.files.texts import read_json

# Without any request of the user: a fifth is scored and a tenth chooses the model.
DEFAULT_FRACTIONS = {"validation": "0.1", "test": "0.2"}

SplitRequests = Mapping[str, str | None]


def add_split_options(command: argparse.ArgumentParser, images: str) -> None:
    """Add the options that decide who trains and who is scored; `images` is what a patient may have several of."""
    add = command.add_argument
    add("--split", metavar="FILE", help='JSON {"training": [], "validation": [], "test": []}, or splits_final.json')
    add("--fold", type=int, metavar="N", help="which fold of nnU-Net's splits_final.json, from 0 on")
    request = "case or patient ids separated by commas, or a fraction of the patients"
    add("--training", "--train", metavar="SPLIT", help=f"{request}; default: all that is left")
    add("--validation", metavar="SPLIT", help=f"{request}; default 0.1 if no split is given at all")
    add("--test", metavar="SPLIT", help=f"{request}; default 0.2 if no split is given at all")
    add("--seed", type=int, default=0, help="of the draw by fractions (default 0)")
    add("--patients", metavar="CSV", help=f"columns case and patient, where patients have several {images}")


def split_requests_of(given: argparse.Namespace) -> SplitRequests:
    """Return what the options of `add_split_options` ask for; `InputError` where they contradict each other."""
    requests = {split: getattr(given, split) for split in SPLITS}
    if given.split is None:
        if given.fold is not None:
            raise InputError("--fold chooses from nnU-Net's splits_final.json; name that file with --split")
        return requests
    if any(request is not None for request in requests.values()):
        raise InputError("give --split alone, or --training, --validation and --test")
    return dict(read_split_file(given.split, given.fold))


def read_split_file(path: str | Path, fold: int | None = None) -> dict[str, str]:
    """Return the requests of a split file, as lists of case ids.

    The file is a JSON object `{"training": [...], "validation": [...], "test": [...]}`, or nnU-Net's
    `splits_final.json`, a list of objects `{"train": [...], "val": [...]}` from which `fold` chooses one, from 0 on.
    Raises `InputError` for another file, and for a fold that is not there, not given, or given without need.
    """
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the split file {path}: {error}; give a JSON file of case lists") from error
    if isinstance(content, list):
        content = _fold_of(path, content, fold)
    elif fold is not None:
        raise InputError(f"{path} has no folds; leave out --fold, or give nnU-Net's splits_final.json")
    if not isinstance(content, dict) or not set(content) <= set(SPLITS) or not content:
        raise InputError(f"{path}: a split file is an object with some of the keys {', '.join(SPLITS)}")
    for split, cases in content.items():
        if not isinstance(cases, list) or not all(isinstance(case, str) for case in cases):
            raise InputError(f"{path}: {split} must be a list of case ids")
    return {split: list_request(cases) for split, cases in content.items()}


def _fold_of(path: str | Path, folds: list[Any], fold: int | None) -> dict[str, Any]:
    if not folds or any(not isinstance(entry, dict) or not {"train", "val"} <= entry.keys() for entry in folds):
        raise InputError(
            f'{path}: a list of folds has entries {{"train": [...], "val": [...]}}, as nnU-Net writes them'
        )
    if fold is None or not 0 <= fold < len(folds):
        said = "" if fold is None else f"fold {fold} is not there: "
        raise InputError(
            f"{path}: {said}it holds {len(folds)} folds; choose one by --fold 0 to --fold {len(folds) - 1}"
        )
    return {"training": folds[fold]["train"], "validation": folds[fold]["val"]}


def list_request(cases: Iterable[str]) -> str:
    """Return case ids as a request; the comma at its end makes a lone id such as "1.5" no fraction."""
    return "".join(f"{case}," for case in cases)


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
    if patients and not splits["training"] and not problems:
        problems.append(_nobody_trains(splits, patients))
    return splits, problems + _leaks(splits, patients)


def _nobody_trains(splits: Mapping[str, set[str]], patients: Mapping[str, str]) -> str:
    held = " and ".join(f"{len(splits[split])} in {split}" for split in ("validation", "test") if splits[split])
    total = f"{len(patients)} cases" if len(patients) > 1 else "the one case"
    return f"no case is left to train on: of {total}, {held or 'none is named'}; add cases, or let fewer be held out"


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
        cases = _cases_of(name, patients)
        if not cases:
            close = difflib.get_close_matches(name, [*patients, *patients.values()], n=1)
            problems.append(f"no case or patient {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
        chosen |= cases
    return chosen, problems


def _cases_of(name: str, patients: Mapping[str, str]) -> set[str]:
    """Return the case of this id, or the cases of this patient, or the case whose file has this name."""
    if name in patients:
        return {name}
    by_file = bare_name(case_of_file(name))
    return {case for case, patient in patients.items() if patient == name} or {by_file} & patients.keys()


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
