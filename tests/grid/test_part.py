# SPDX-License-Identifier: Apache-2.0
"""A part of a grid, chosen by names."""

from __future__ import annotations

import dataclasses

import pytest

from pipeline.errors import InputError
from pipeline.grid import Grid, part_of

GRID = Grid(
    dataset_dir="data",
    run_dir="grid",
    configs="bundles/synapse/configs",
    students={
        "enet": {"options": {"learning_rate": 0.1}},
        "erfnet": {"methods": ["alone", "kd"], "seeds": [4, 9]},
    },
    methods={"alone": None, "kd": {"method": "kd"}, "coco": {"method": "coco"}},
    seeds=[3, 4],
    folds={"a": {"test": ["1"]}, "b": {"test": ["2"]}},
)


def _names(**only) -> list[str]:
    return [run.name for run in part_of(GRID, only).planned_runs() if not run.name.endswith("teacher")]


def test_a_part_by_hand():
    assert _names(students=["enet"], methods=["alone", "kd"], folds=["b"]) == [
        "b_enet_alone_3",
        "b_enet_kd_3",
        "b_enet_alone_4",
        "b_enet_kd_4",
    ]
    assert _names(methods=["coco"], folds=["a"]) == ["a_enet_coco_3", "a_enet_coco_4"]  # erfnet has no coco
    assert _names(seeds=[9], folds=["a"]) == ["a_erfnet_alone_9", "a_erfnet_kd_9"]


def test_what_stays_keeps_options_and_teacher():
    """The same runs, with the same commands, as in the whole grid: so a part goes on with a grid and a grid with it."""
    whole = {run.name: run for run in GRID.planned_runs()}
    for only in ({}, {"students": None}, {"students": ["enet"]}, {"seeds": [4]}, {"methods": ["kd"]}, {"folds": ["b"]}):
        part = part_of(GRID, only).planned_runs()
        assert part
        assert all(run == whole[run.name] for run in part)
    assert {run.name for run in part_of(GRID, {}).planned_runs()} == set(whole)


def test_amounts_of_labels_by_name():
    labels = {"few": {"labelled_cases": 1}, "all": {}}
    grid = dataclasses.replace(GRID, labels=labels, training={"epoch_iterations": 40})
    assert part_of(grid, {"labels": ["all"]}).labels == {"all": {}}


@pytest.mark.parametrize(
    ("only", "words"),
    [
        ({"student": ["enet"]}, r"--only has \['student'\]; give students"),
        ({"students": "enet"}, "--only::students is 'enet'; give a list with quoted"),
        ({"students": []}, "give a list"),
        ({"students": ["unet"]}, r"has \['unet'\]; this grid has \['enet', 'erfnet'\]"),
        ({"labels": ["few"]}, "this grid has none"),
        ({"students": ["erfnet"], "methods": ["coco"]}, "leaves nothing"),
    ],
)
def test_parts_that_are_not_there(only, words):
    with pytest.raises(InputError, match=words):
        part_of(GRID, only)
