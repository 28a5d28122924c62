# SPDX-License-Identifier: Apache-2.0
"""Which patients keep their labels: nested, by whole patients, the same for every order of the cases."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from pipeline.data.dataset.declaration import Case
from pipeline.data.dataset.labelled import hide_labels, labelled_patients
from pipeline.errors import InputError

# Ten patients with one, two, three, one, ... cases: eighteen and one.
CASES = tuple(
    Case(f"{patient}_{number}", f"p{patient}", Path(f"{patient}_{number}.png"), Path(f"{patient}_{number}_label.png"))
    for patient in range(10)
    for number in range(1 + patient % 3)
)


def kept(cases=CASES, **options) -> list[str]:
    return labelled_patients(hide_labels(cases, **options))


def test_nothing_is_hidden_unless_asked():
    assert hide_labels(CASES) == CASES
    assert hide_labels(CASES, fraction=1) == CASES
    assert hide_labels(CASES, fraction=1.0) == CASES


@pytest.mark.parametrize(("fraction", "patients"), [(0.001, 1), (0.1, 1), (0.26, 3), (0.5, 5), (0.96, 10)])
def test_fraction_is_of_the_patients_and_one_at_least(fraction, patients):
    assert len(kept(fraction=fraction)) == patients


@pytest.mark.parametrize("seed", range(5))
def test_fewer_are_among_more(seed):
    sets = [set(kept(fraction=share / 10, seed=seed)) for share in range(1, 11)]
    assert all(few < more for few, more in itertools.pairwise(sets))
    numbers = [set(kept(number=number, seed=seed)) for number in range(3, len(CASES) + 1)]
    assert all(few <= more for few, more in itertools.pairwise(numbers))
    assert all(few in sets for few in numbers)  # both go by one order


def test_number_counts_cases_of_whole_patients():
    for number in range(3, len(CASES) + 1):
        cases = hide_labels(CASES, number=number)
        labelled = [case for case in cases if case.label is not None]
        assert number - 3 < len(labelled) <= number
        for case in cases:
            assert (case.label is not None) == (case.patient in labelled_patients(cases))


def test_seed_chooses_others_and_the_order_of_cases_does_not():
    assert kept(fraction=0.5, seed=1) != kept(fraction=0.5, seed=2)
    assert kept(CASES[::-1], fraction=0.5) == kept(fraction=0.5)


def test_fold_without_some_patients_orders_the_others_alike():
    order: list[str] = []
    for tenths in range(1, 11):
        order += sorted(set(kept(fraction=tenths / 10)) - set(order))
    fold = [case for case in CASES if case.patient not in ("p0", "p3")]
    others = [patient for patient in order if patient not in ("p0", "p3")]
    assert kept(fold, fraction=0.5) == sorted(others[:4])


def test_named_patients_by_list_or_by_the_file_of_a_run(tmp_path):
    assert kept(patients=["p3", " p7"]) == ["p3", "p7"]
    (tmp_path / "list.json").write_text(json.dumps(["p1"]), encoding="utf-8")
    assert kept(patients=str(tmp_path / "list.json")) == ["p1"]


def test_patients_who_had_no_label_stay_without():
    cases = [Case("u", "u", Path("u.png"), None), *CASES]
    hidden = hide_labels(cases, fraction=0.5)
    assert hidden[0].label is None
    assert labelled_patients(hidden) == kept(fraction=0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 0}, "--labelled_fraction is 0; give a share of the patients, above 0"),
        ({"fraction": 1.01}, "--labelled_fraction is 1.01"),
        ({"fraction": True}, "--labelled_fraction is True"),
        ({"fraction": float("nan")}, "--labelled_fraction is nan"),
        ({"number": 0}, "--labelled_cases is 0; give a whole number from 1"),
        ({"number": 2.0}, "--labelled_cases is 2.0"),
        ({"number": 99}, "--labelled_cases is 99, but 19 training cases have a label"),
        ({"number": 1, "fraction": 0.5}, "--labelled_cases and --labelled_fraction exclude each other"),
        ({"patients": ["p33"]}, "'p33' has no labelled training case; did you mean 'p3'?"),
        ({"patients": []}, "--labelled_patients is \\[\\]"),
        ({"patients": "nowhere.json"}, "cannot read nowhere.json as a JSON list"),
    ],
)
def test_bad_choices_are_one_line(options, message):
    with pytest.raises(InputError, match=message):
        hide_labels(CASES, **options)


def test_one_case_of_a_patient_with_more_is_refused():
    only = [case for case in CASES if case.patient == "p2"]
    with pytest.raises(InputError, match="the patient p2 has more cases than that"):
        hide_labels(only, number=1)
