# SPDX-License-Identifier: Apache-2.0
"""The runs of a grid, and what may change between two calls of it."""

from __future__ import annotations

import dataclasses

import pytest

from pipeline.errors import InputError
from pipeline.grid import Grid, Outcome
from pipeline.grid.grid import run_grid

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
    runs = {run.name: run for run in _grid(tmp_path).planned_runs()}
    assert len(runs) == 14
    assert list(runs)[:4] == ["teacher", "enet_alone_3", "enet_kd_3", "paraphraser_64x64"]
    assert runs["enet_alone_3"].needs == ()
    assert runs["enet_kd_3"].needs == ("teacher",)
    assert runs["erfnet_flow_4"].needs == ("teacher", "paraphraser_64x64")
    assert not runs["paraphraser_64x64"].in_comparison


def test_options_of_the_commands_by_hand(tmp_path):
    runs = {run.name: run for run in _grid(tmp_path).planned_runs()}
    training, evaluation, last = runs["erfnet_flow_4"].steps
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
        "arm": "flow",
        "seed": 4,
        "student": "erfnet",
        "teacher": str(tmp_path / "grid/teacher/model.pt"),
        "paraphraser": str(tmp_path / "grid/paraphraser_64x64/paraphraser.pt"),
    }
    assert evaluation.options["checkpoint"] == str(folder / "model.pt")
    assert (last.options["checkpoint"], last.options["run_dir"]) == (
        str(folder / "model_last.pt"),
        str(folder / "report_last"),
    )
    assert runs["erfnet_flow_4"].proof == folder / "report_last/summary.json"
    teacher = runs["teacher"].steps[0]
    assert (teacher.config, teacher.options["width"], teacher.options["seed"]) == ("train", 0.25, 3)
    assert "learning_rate" not in runs["paraphraser_64x64"].steps[0].options  # its own, not the networks'


def test_methods_without_paraphrasers_train_none(tmp_path):
    names = [run.name for run in _grid(tmp_path, methods={"kd": {"method": "kd"}}).planned_runs()]
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
    monkeypatch.setattr("pipeline.grid.grid.execute_runs", lambda *_: Outcome())
    monkeypatch.setattr("pipeline.grid.grid._check_options", lambda *_: None)  # has tests of its own above
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


def test_a_grid_goes_on_in_a_folder_that_was_moved(tmp_path, monkeypatch):
    """The cache lies in the grid's folder, by its whole path."""
    options = {"epochs": 2, "cache_dir": str(tmp_path / "grid/cache")}
    _begun(tmp_path, monkeypatch, training=options)
    (tmp_path / "grid").rename(tmp_path / "moved")
    _begun(tmp_path, monkeypatch, run_dir=str(tmp_path / "moved"), training={**options, "cache_dir": "elsewhere"})


def test_students_methods_and_seeds_may_be_added(tmp_path, monkeypatch):
    _begun(tmp_path, monkeypatch)
    more = {"students": ["mobile_unet"], "seeds": [3, 4, 5], "methods": {"at": {"method": "at"}}}
    _begun(tmp_path, monkeypatch, **more)
    with pytest.raises(InputError, match="method flow was"):  # though the call between did not have it
        run_grid(_grid(tmp_path, methods={"flow": {"method": "kd"}}), compare=print)


FOLDS = {"a": {"validation": ["1"], "test": ["2"]}, "b": {"validation": ["3"], "test": ["4"]}}


def test_each_fold_has_its_teacher_paraphrasers_and_patients(tmp_path):
    """One student, three methods, two seeds, two folds: 12 runs, two teachers, two paraphrasers; seeds outermost."""
    runs = {run.name: run for run in _grid(tmp_path, students=["enet"], folds=FOLDS).planned_runs()}
    assert len(runs) == 16
    firsts = ["a_teacher", "a_enet_alone_3", "a_enet_kd_3", "a_paraphraser_64x64", "a_enet_flow_3", "b_teacher"]
    assert list(runs)[:6] == firsts
    flow = runs["b_enet_flow_4"]
    assert flow.needs == ("b_teacher", "b_paraphraser_64x64")
    assert flow.steps[0].options["teacher"] == str(tmp_path / "grid/b_teacher/model.pt")
    for name in ("b_teacher", "b_paraphraser_64x64", "b_enet_alone_3", "b_enet_flow_4"):
        assert all(step.options["patients"] == FOLDS["b"] for step in runs[name].steps)


def test_students_may_have_methods_seeds_and_options_of_their_own(tmp_path):
    students = {"enet": {"options": {"learning_rate": 0.1}}, "erfnet": {"methods": ["kd"], "seeds": [4, 9]}}
    runs = {run.name: run for run in _grid(tmp_path, students=students).planned_runs()}
    assert [name for name in runs if name.startswith("erfnet")] == ["erfnet_kd_4", "erfnet_kd_9"]
    assert len([name for name in runs if name.startswith("enet")]) == 6
    assert runs["enet_kd_3"].steps[0].options["learning_rate"] == 0.1
    assert runs["erfnet_kd_9"].steps[0].options["learning_rate"] == 0.01
    assert runs["teacher"].steps[0].options["seed"] == 3


def test_an_arm_without_method_trains_alone_with_its_options(tmp_path):
    methods = {"balanced": {"method": None, "loss": "dice_ce"}}
    runs = {run.name: run for run in _grid(tmp_path, methods=methods, students=["enet"]).planned_runs()}
    step = runs["enet_balanced_3"].steps[0]
    assert (step.config, step.options["loss"], step.options["network"]) == ("train", "dice_ce", "enet")
    assert not {"method", "student", "teacher"} & set(step.options)
    assert runs["enet_balanced_3"].needs == ()


TIMED = {**METHODS, "alone_long": {"method": None, "time_of": "flow"}}


def test_equal_time_by_hand(tmp_path):
    """Alone took 60 s for 20 epochs, the method 150 s for as many: 50 epochs alone take as long."""
    runs = {run.name: run for run in _grid(tmp_path, methods=TIMED, students=["enet"]).planned_runs()}
    long = runs["enet_alone_long_4"]
    assert set(long.needs) == {"enet_flow_4", "enet_alone_4"}
    for name, seconds in (("enet_alone_4", 60.0), ("enet_flow_4", 150.0)):
        runs[name].folder.mkdir(parents=True)
        (runs[name].folder / "time.json").write_text(f'{{"epochs": 20, "seconds": {seconds}}}')
    training = long.steps[0]
    assert "time_of" not in training.options
    assert training.final_options() == {**training.options, "epochs": 50}
    (runs["enet_flow_4"].folder / "time.json").write_text('{"epochs": 20, "seconds": 0.1}')
    assert training.final_options()["epochs"] == 1  # none would be no training
    for name, seconds in (("enet_alone_4", 50.0), ("enet_flow_4", 75.0)):  # what the cores worked goes first
        told = f'{{"epochs": 20, "seconds": 9.0, "cpu_seconds": {seconds}}}'
        (runs[name].folder / "time.json").write_text(told)
    assert training.final_options()["epochs"] == 30
    (runs["enet_flow_4"].folder / "time.json").unlink()
    with pytest.raises(InputError, match="enet_flow_4 does not tell how long"):
        training.final_options()


def test_an_empty_mapping_of_folds_is_the_datasets_own_splits(tmp_path):
    runs, of_none = (_grid(tmp_path, **options).planned_runs() for options in ({"folds": {}}, {}))
    assert [run.name for run in runs] == [run.name for run in of_none]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"students": {"enet": {"method": ["kd"]}}}, "has .'method'.; give methods"),
        ({"students": {"enet": {"methods": ["dk"]}}}, "has the method dk"),
        ({"students": {"enet": {"seeds": []}}}, "seeds of enet"),
        ({"folds": {"../a": FOLDS["a"]}}, "names folders"),
        ({"methods": {"kd": {"method": "kd", "time_of": "alone"}, "alone": None}}, "for method: null alone"),
        ({"methods": {**TIMED, "alone_long": {"method": None, "time_of": "x"}}}, "has the time of x"),
        ({"methods": {**TIMED, "alone": {"method": None, "loss": "ce"}}}, "no method with its other options"),
    ],
)
def test_bad_students_folds_and_times(tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        _grid(tmp_path, **changes).planned_runs()


def test_folds_and_options_of_students_stay_and_folds_may_be_added(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.grid.grid.load_dataset", lambda *_, **__: None)
    _begun(tmp_path, monkeypatch, folds={"a": FOLDS["a"]}, students={"enet": {"options": {"epochs": 3}}})
    _begun(tmp_path, monkeypatch, folds=FOLDS, students={"enet": {"options": {"epochs": 3}}})
    with pytest.raises(InputError, match="fold a was"):
        run_grid(_grid(tmp_path, folds={"a": FOLDS["b"]}), compare=print)
    with pytest.raises(InputError, match="options of enet was"):
        run_grid(_grid(tmp_path), compare=print)


def test_teachers_of_all_folds_alone_are_not_compared(tmp_path, monkeypatch):
    grid = _grid(tmp_path, students=["enet"], folds=FOLDS)
    done = ["a_teacher", "b_teacher", "a_enet_kd_3"]
    monkeypatch.setattr("pipeline.grid.grid.execute_runs", lambda *_: Outcome(done=done, left=["b_enet_kd_3"]))
    monkeypatch.setattr("pipeline.grid.grid._check_options", lambda *_: None)
    monkeypatch.setattr("pipeline.grid.grid.load_dataset", lambda *_, **__: None)
    compared = []
    for more in ([], ["b_enet_kd_3"]):
        done += more
        with pytest.raises(SystemExit):
            run_grid(grid, compare=compared.append)
    assert [[folder.name for folder in folders] for folders in compared] == [
        ["a_teacher", "a_enet_kd_3", "b_teacher", "b_enet_kd_3"]
    ]
