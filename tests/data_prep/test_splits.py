# SPDX-License-Identifier: Apache-2.0
"""Splits by patient: lists and fractions by hand, and requests that cannot be met."""

import json

import pytest

from data_prep.splits import assign, read_split_file
from pipeline.errors import InputError

OWN = {case: case for case in "abcdefghij"}


def test_lists_and_the_rest_trains():
    splits, problems = assign(OWN, {"test": "a,c", "validation": " j "})
    assert problems == []
    assert splits == {"test": {"a", "c"}, "validation": {"j"}, "training": set("bdefghi")}


def test_fractions_count_patients():
    splits, problems = assign(OWN, {"test": "0.3", "validation": "0.1"})
    assert problems == []
    assert [len(splits[name]) for name in ("training", "validation", "test")] == [6, 1, 3]
    assert set().union(*splits.values()) == set(OWN)


def test_no_request_at_all_means_a_tenth_and_a_fifth():
    splits, _ = assign(OWN, {"training": None, "validation": None, "test": None})
    assert [len(splits[name]) for name in ("training", "validation", "test")] == [7, 1, 2]


def test_the_seed_decides():
    draws = [assign(OWN, {"test": "0.5"}, seed)[0]["test"] for seed in (0, 0, 1)]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]


def test_a_patient_is_never_divided():
    patients = {f"scan{index}": f"patient{index // 3}" for index in range(30)}
    splits, problems = assign(patients, {"test": "0.3", "validation": "0.2"}, seed=4)
    assert problems == []
    owners = [{patients[case] for case in cases} for cases in splits.values()]
    assert sum(map(len, owners)) == 10
    assert len(splits["test"]) == 9


def test_a_patient_can_be_named():
    splits, _ = assign({"a1": "anna", "a2": "anna", "b": "bert"}, {"test": "anna"})
    assert splits["test"] == {"a1", "a2"}


def test_lists_come_before_fractions():
    splits, problems = assign(OWN, {"test": "a,b,c,d,e,f,g", "validation": "0.2"})
    assert problems == []
    assert len(splits["validation"]) == 2
    assert splits["validation"] < set("hij")


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        ({"test": "a,zz"}, "--test: no case or patient 'zz'"),
        ({"test": "a", "validation": "a"}, "case a is in validation and in test"),
        ({"test": "1.5"}, "--test 1.5 is not between 0 and 1"),
        ({"test": "0.0"}, "--test 0 is not between 0 and 1"),
        ({"test": "0.6", "validation": "0.6"}, "asks for 6 patients, but 4 are left"),
        ({"training": "a,b", "test": "c"}, "in no split: d, e, f, g, h, i, j"),
    ],
)
def test_requests_that_cannot_be_met(requests, message):
    assert any(message in problem for problem in assign(OWN, requests)[1])


def test_a_patient_divided_by_lists_is_a_problem():
    _, problems = assign({"a1": "anna", "a2": "anna", "b": "bert"}, {"test": "a1"})
    assert problems == ["patient anna is in test and in training; keep all scans of a patient in one split"]


def test_a_mistyped_id_gets_the_nearest():
    _, problems = assign({"chaos_36": "chaos_36", "chaos_01": "chaos_01"}, {"test": "caos_36"})
    assert problems == ["--test: no case or patient 'caos_36'; did you mean 'chaos_36'?"]


def test_a_split_file(tmp_path):
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"training": ["a", "b"], "test": ["c"]}))
    assert read_split_file(path) == {"training": "a,b,", "test": "c,"}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"train": ["a"]}', '{"test": "a"}', '{"test": [1]}'])
def test_files_that_are_no_split(tmp_path, text):
    path = tmp_path / "split.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"split\.json"):
        read_split_file(path)
