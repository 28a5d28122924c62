# SPDX-License-Identifier: Apache-2.0
"""Options that need a teacher are refused without one, short batches too; a teacher with other labels is told of."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.errors import InputError
from pipeline.training import check_labels_fill_a_batch, check_needs_distillation, tell_of_other_labels


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unlabelled_share": 0.5}, "a training without distillation learns nothing from cases without a label"),
        ({"view": "strong"}, "--student_view strong: only a distillation gives the student another view"),
    ],
)
def test_what_only_a_distillation_uses_is_refused_without_one(options, message):
    with pytest.raises(InputError, match=message):
        check_needs_distillation(None, **options)
    check_needs_distillation(object(), **options)
    check_needs_distillation(None)


def test_fewer_labelled_items_than_a_batch_are_refused_where_cases_lack_a_label():
    """Teacher and student alone once had short batches where those of a distilled student were full."""
    few, complete = (SimpleNamespace(folder=Path("D"), unlabelled_cases=cases) for cases in (["x"], []))
    message = r"a batch has 4 labelled items, but training has 3, since not all cases of D.dataset\.json have .* 3 "
    with pytest.raises(InputError, match=message):
        check_labels_fill_a_batch(range(3), 4, few)
    check_labels_fill_a_batch(range(4), 4, few)
    check_labels_fill_a_batch(range(3), 4, complete)
    check_labels_fill_a_batch(range(3), 4, few, unlabelled_share=0.5)  # the sampler of shared batches refuses these


@pytest.mark.parametrize(
    ("teachers", "students", "told"),
    [
        (None, ["3", "5"], "from the labels of all patients, this run has those of 2 patients; to compare"),
        (["3"], None, "from the labels of 1 patient, this run has those of all patients; to compare"),
        (["3", "5"], ["3", "6"], "of 2 patients, this run has those of 2 patients, not the same ones; to compare"),
        (["3", "5"], ["3", "5"], ""),
        (None, None, ""),
    ],
)
def test_a_teacher_with_other_labels_is_told_of(teachers, students, told, caplog):
    """A student of two labelled patients once learned from a teacher that had had all labels, without a word."""
    dataset = SimpleNamespace(labelled_patients=students, unlabelled_cases=[] if students is None else ["x"])
    tell_of_other_labels(SimpleNamespace(extra={"recipe": {"labelled_patients": teachers}}), dataset)
    assert [told in record.getMessage() for record in caplog.records] == ([True] if told else [])


@pytest.mark.parametrize("teacher", [None, SimpleNamespace(extra={}), SimpleNamespace(extra={"recipe": {"seed": 0}})])
def test_nothing_is_said_of_a_teacher_that_does_not_tell(teacher, caplog):
    tell_of_other_labels(teacher, SimpleNamespace(labelled_patients=["3"], unlabelled_cases=["x"]))
    assert not caplog.records
