# SPDX-License-Identifier: Apache-2.0
"""Splits by lists of patients: what each list leaves to the others, and one error line for each way to get it wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.data import Case, load_dataset
from pipeline.data.dataset.patients import split_by_patients
from pipeline.errors import InputError
from tests.data.toy_datasets import Toy


def _case(name: str, patient: str) -> Case:
    return Case(name, patient, Path(f"{name}.png"), Path(f"{name}_label.png"))


SPLITS = {
    "training": (_case("a1", "1"), _case("a2", "1"), _case("b", "2"), _case("c", "3")),
    "validation": (_case("d", "4"),),
    "test": (_case("e", "5"), _case("f", "6")),
}


def _names(patients: dict) -> dict[str, list[str]]:
    return {split: [case.case for case in cases] for split, cases in split_by_patients(SPLITS, patients).items()}


def test_a_fold_by_hand():
    """Patients of no list train: those of the old test too."""
    fold = _names({"validation": ["2"], "test": ["1", "4"]})
    assert fold == {"training": ["c", "e", "f"], "validation": ["b"], "test": ["a1", "a2", "d"]}


def test_numbers_stand_for_their_digits():
    assert _names({"validation": [2], "test": [1]}) == _names({"validation": ["2"], "test": ["1"]})


def test_a_list_of_training_leaves_the_others_out_and_the_rest_as_it_was():
    assert _names({"training": ["1"]}) == {"training": ["a1", "a2"], "validation": ["d"], "test": ["e", "f"]}


def test_no_list_changes_nothing():
    assert split_by_patients(SPLITS, {}) == SPLITS


@pytest.mark.parametrize(
    ("patients", "words"),
    [
        ({"test": ["7"]}, "test names '7', who is not there"),
        ({"tests": ["1"]}, "the split 'tests'"),
        ({"validation": ["1"], "test": ["1"]}, "1 would be in validation and test"),
        ({"training": ["5"]}, "5 would be in training and test"),
        ({"test": ["4"]}, "4 would be in validation and test"),
        ({"test": "1"}, "give lists of patients"),
        (["1"], "give lists of patients"),
    ],
)
def test_bad_lists(patients, words):
    with pytest.raises(InputError, match=words):
        split_by_patients(SPLITS, patients)


def test_a_dataset_folder_with_other_splits(tmp_path):
    folder = Toy(tmp_path).written()
    dataset = load_dataset(folder, patients={"validation": ["pa"], "test": ["pb"]})
    assert [[case.case for case in dataset.split(name)] for name in ("training", "validation", "test")] == [
        ["c"],
        ["a"],
        ["b"],
    ]
    with pytest.raises(InputError, match=r"dataset.json: --patients"):
        load_dataset(folder, patients={"test": ["nobody"]})
