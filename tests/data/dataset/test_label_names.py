# SPDX-License-Identifier: Apache-2.0
"""Names of label values in the forms that other tools write."""

from __future__ import annotations

import pytest

from pipeline.data.dataset.label_names import label_names, names_in_order
from pipeline.errors import InputError

LABELS = {0: "background", 1: "liver", 2: "spleen"}


@pytest.mark.parametrize(
    "content",
    [
        {"0": "background", "1": "liver", "2": "spleen"},
        {"2": "spleen", "1": " liver"},
        {"0": "Background", "1": "liver", "2": "spleen"},
        {"background": 0, "liver": 1, "spleen": 2},
        {"background": "0", "liver": "1", "spleen": "2"},
        {"labels": {"background": 0, "liver": 1, "spleen": 2}, "numTraining": 3},
    ],
)
def test_both_directions(content):
    assert label_names(content) == LABELS


def test_values_may_have_gaps():
    assert label_names({"liver": 1, "aorta": 7}) == {0: "background", 1: "liver", 7: "aorta"}


def test_an_organ_may_be_a_number():
    # Vertebrae are numbered; the value is then the key, as in Decathlon's form.
    assert label_names({"1": "7"}) == {0: "background", 1: "7"}


def test_names_in_order():
    assert names_in_order("liver, spleen") == LABELS


@pytest.mark.parametrize("names", ["", "liver,,spleen", "liver,liver", "background,liver"])
def test_names_that_are_none(names):
    with pytest.raises(InputError, match="organs"):
        names_in_order(names)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"background": 0, "whole tumour": [1, 2, 3], "core": [2, 3]}, "whole tumour, core are regions"),
        ({"background": 0, "liver": 1, "ignore": 2}, "'ignore' marks voxels"),
        ({"0": "air", "1": "liver"}, "value 0 is 'air'"),
        ({"0": "background"}, "name one organ"),
        ({"liver": 1, "spleen": 1}, "each value needs one name"),
        ({"1": "liver", "2": "liver"}, "each value needs one name"),
        ({"1": ""}, "each value needs one name"),
        ({"liver": -1}, "names no value"),
        ({"liver": 256}, "names no value"),
        ({"liver": 1.5}, "names no value"),
        ({"liver": True}, "names no value"),
        ([], "must be an object"),
        ({}, "must be an object"),
        ("liver", "must be an object"),
    ],
)
def test_labels_that_are_none(content, message):
    with pytest.raises(InputError, match=message):
        label_names(content)
