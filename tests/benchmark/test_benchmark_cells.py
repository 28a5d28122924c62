# SPDX-License-Identifier: Apache-2.0
"""The runs of a grid, and what may change between two calls of it."""

from __future__ import annotations

import dataclasses

import pytest

from pipeline.benchmark import Grid, Outcome
from pipeline.benchmark.grid import run_grid
from pipeline.errors import InputError

METHODS = {"alone": None, "kd": {"method": "kd"}, "flow": {"method": "graph_flow", "preset": "paper"}}


def _grid(tmp_path, **changes) -> Grid:
    given = {
        "dataset_dir": "data",
        "run_dir": str(tmp_path / "grid"),
        "configs": "bundles/synapse/configs",
        "students": ["enet", "erfnet"],
        "methods": METHODS,
        "seeds": [3, 4],
        "training": {"epochs": 2, "batch_size": 4, "learning_rate": 0.01},
        "teacher": {"network": "fanet", "width": 0.25},
    }
    return Grid(**{**given, **changes})


def test_runs_of_a_grid_by_hand(tmp_path):
    """Two students, three methods, two seeds: 12 runs, the teacher, one paraphraser, since both have 64 channels."""
    cells = {cell.name: cell for cell in _grid(tmp_path).cells()}
    assert len(cells) == 14
    assert list(cells)[:4] == ["teacher", "enet_alone_3", "enet_kd_3", "paraphraser_64x64"]
    assert cells["enet_alone_3"].needs == ()
    assert cells["enet_kd_3"].needs == ("teacher",)
    assert cells["erfnet_flow_4"].needs == ("teacher", "paraphraser_64x64")
    assert not cells["paraphraser_64x64"].in_comparison


def test_options_of_the_commands_by_hand(tmp_path):
    cells = {cell.name: cell for cell in _grid(tmp_path).cells()}
    training, evaluation = cells["erfnet_flow_4"].steps
    folder = tmp_path / "grid" / "erfnet_flow_4"
    assert (training.config, evaluation.config) == ("distill", "evaluate")
    assert training.options == {
        "dataset_dir": "data",
        "run_dir": str(folder),
        "resume": "auto",
        "epochs": 2,
        "batch_size": 4,
        "learning_rate": 0.01,
        "method": "graph_flow",
        "preset": "paper",
        "seed": 4,
        "student": "erfnet",
        "teacher": str(tmp_path / "grid/teacher/model.pt"),
        "paraphraser": str(tmp_path / "grid/paraphraser_64x64/paraphraser.pt"),
    }
    assert evaluation.options["checkpoint"] == str(folder / "model.pt")
    assert cells["erfnet_flow_4"].proof == folder / "report/summary.json"
    teacher = cells["teacher"].steps[0]
    assert (teacher.config, teacher.options["width"], teacher.options["seed"]) == ("train", 0.25, 3)
    assert "learning_rate" not in cells["paraphraser_64x64"].steps[0].options  # its own, not the networks'


def test_methods_without_paraphrasers_train_none(tmp_path):
    names = [cell.name for cell in _grid(tmp_path, methods={"kd": {"method": "kd"}}).cells()]
    assert not any(name.startswith("paraphraser") for name in names)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"students": []}, "students of the benchmark"),
        ({"seeds": [1, 1]}, "seeds of the benchmark"),
        ({"methods": {"../x": None}}, "names folders"),
        ({"training": {"epocs": 2}}, "did you mean --epochs"),
        ({"training": {"epochs": 0}}, "--epochs"),
        ({"methods": {"kd": {"metod": "kd"}}}, "did you mean --method"),
    ],
)
def test_bad_grids_end_before_any_run(tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        run_grid(_grid(tmp_path, **changes), compare=print)
    assert not (tmp_path / "grid").exists()


def _begun(tmp_path, monkeypatch, **changes) -> Grid:
    """Return a grid of which a first call has noted the settings, without running anything."""
    monkeypatch.setattr("pipeline.benchmark.grid.run_cells", lambda *_: Outcome())
    monkeypatch.setattr("pipeline.benchmark.grid._check_options", lambda *_: None)  # has tests of its own above
    grid = _grid(tmp_path, **changes)
    run_grid(grid, compare=print)
    return grid


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"training": {"epochs": 3}}, "training was"),
        ({"dataset_dir": "other"}, "dataset_dir was"),
        ({"methods": {**METHODS, "kd": {"method": "kd", "settings": {"temperature": 1}}}}, "method kd was"),
        ({"seeds": [5]}, "first seed was 3"),
    ],
)
def test_a_grid_does_not_go_on_with_other_settings(tmp_path, monkeypatch, change, words):
    grid = _begun(tmp_path, monkeypatch)
    with pytest.raises(InputError, match=words):
        run_grid(dataclasses.replace(grid, **change), compare=print)


def test_students_methods_and_seeds_may_be_added(tmp_path, monkeypatch):
    _begun(tmp_path, monkeypatch)
    more = {"students": ["mobile_unet"], "seeds": [3, 4, 5], "methods": {"at": {"method": "at"}}}
    _begun(tmp_path, monkeypatch, **more)
    with pytest.raises(InputError, match="method flow was"):  # though the call between did not have it
        run_grid(_grid(tmp_path, methods={"flow": {"method": "kd"}}), compare=print)
