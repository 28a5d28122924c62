# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.comparison import Run, arrange, read_runs
from pipeline.comparison.runs import method_label, network_label, network_labels
from pipeline.errors import InputError
from pipeline.evaluation.provenance import sha256_of
from pipeline.networks import build_network, save_model
from tests.comparison.run_folders import make_scan_run, make_slide_run, taught_by

DICE = {"case_1": {"liver": 0.9, "spleen": 0.5}, "case_2": {"liver": 0.8, "spleen": 0.0}}
MAPS = {"a": (np.eye(4, dtype=np.uint8), np.eye(4, dtype=np.uint8))}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A teacher, a student alone and two methods, the second of two seeds. Tests must not write into them."""
    folder = tmp_path_factory.mktemp("runs")
    teacher = make_scan_run(folder / "teacher", DICE, network="fanet", width=0.0625, epochs=3)
    graph = taught_by(teacher, "graph_flow", preset="paper")
    return {
        "teacher": teacher,
        "alone": make_scan_run(folder / "alone", DICE),
        "kd_1": make_scan_run(folder / "kd_1", DICE, distillation=taught_by(teacher), seed=1),
        "kd_0": make_scan_run(folder / "kd_0", DICE, distillation=taught_by(teacher), seed=0),
        "graph": make_scan_run(folder / "graph", DICE, distillation=graph),
    }


@pytest.fixture(scope="module")
def runs(folders) -> dict[str, Run]:
    return dict(zip(folders, read_runs(folders.values()), strict=True))


@pytest.fixture
def alone(folders, tmp_path) -> Path:
    """A copy of the student alone, to be spoilt."""
    return shutil.copytree(folders["alone"], tmp_path / "run")


def varied(run: Run, **changes: Any) -> Run:
    """Return a run with other settings, as if it had been read; `distillation` goes into its recipe."""
    recipe = {**run.recipe, "distillation": changes.pop("distillation", run.recipe["distillation"])}
    return replace(run, recipe=recipe, **changes)


def with_recipe(run: Run, **settings: Any) -> Run:
    return replace(run, recipe={**run.recipe, **settings})


class TestLabels:
    @pytest.mark.parametrize(
        ("distillation", "label"),
        [
            (None, None),
            ({"method": "kd", "preset": "paper"}, "kd"),
            ({"method": "graph_flow", "preset": "bounded"}, "graph_flow"),
            ({"method": "graph_flow", "methods": None, "preset": "paper"}, "graph_flow (paper)"),
            (
                {"method": "graph_flow", "preset": "bounded", "methods": {"graph_flow": 1.0, "kd": 0.5}},
                "graph_flow + 0.5 kd",
            ),
            (
                {"method": None, "terms": {"kd": {"class": "KnowledgeDistillation", "weight": 0.5}, "at": {}}},
                "0.5 kd + at",
            ),
            ({"method": "at", "terms": {"kd": {"class": "KnowledgeDistillation"}}}, "at"),
            ({"method": "kd", "methods": {"kd": {"weight": 2, "temperature": 3}, "at": 1}}, "2 kd + at"),
        ],
    )
    def test_methods(self, distillation, label):
        assert method_label(distillation) == label

    @pytest.mark.parametrize(
        ("arguments", "label"),
        [
            ({"name": "enet", "in_channels": 1, "out_channels": 2}, "ENet"),
            ({"name": "fanet", "in_channels": 1, "out_channels": 2, "width": 0.25}, "FANet 0.25"),
            ({"name": "fanet", "in_channels": 1, "out_channels": 2, "width": None}, "FANet"),
            ({"name": "mobile_unet", "bottleneck_channels": 8}, "Mobile U-Net bottleneck_channels=8"),
            (
                {"name": "monai.networks.nets.SegResNet", "spatial_dims": 3, "init_filters": 8},
                "SegResNet init_filters=8",
            ),
        ],
    )
    def test_networks(self, arguments, label):
        assert network_label(arguments) == label

    def test_options_that_all_of_a_class_have_are_left_out(self):
        unet = {"name": "monai.networks.nets.UNet", "in_channels": 1, "strides": [2, 2]}
        networks = [{**unet, "channels": [16, 32]}, {**unet, "channels": [8, 16]}, {"name": "enet", "in_channels": 1}]
        assert network_labels(networks) == ["UNet channels=[16, 32]", "UNet channels=[8, 16]", "ENet"]
        assert network_labels(networks[1:]) == ["UNet", "ENet"]
        assert network_labels([{"name": "mobile_unet", "bottleneck_channels": 8}]) == [
            "Mobile U-Net bottleneck_channels=8"
        ]


class TestArms:
    def test_teacher_first_then_alone_then_methods_whatever_the_order(self, runs):
        comparison = arrange([runs[name] for name in ("kd_1", "graph", "alone", "teacher", "kd_0")])
        labels = ["teacher FANet 0.0625", "ENet alone", "ENet + graph_flow (paper)", "ENet + kd"]
        assert [arm.label for arm in comparison.arms] == labels
        assert [run.seed for run in comparison.arms[3].runs] == [0, 1]
        assert (comparison.kind, comparison.dataset, comparison.organs) == ("scans", "toy", ("liver", "spleen"))
        assert comparison.cases == ("case_1", "case_2")
        assert comparison.teacher is comparison.arms[0]
        assert comparison.control("ENet") is comparison.arms[1]

    def test_what_must_be_known_is_said(self, runs):
        comparison = arrange(list(runs.values()))
        assert comparison.title == "Does a teacher help? toy: 2 cases, 1 to 2 seeds"
        told = " ".join(comparison.notes)
        assert "the same 2 cases of toy" in told
        assert "Fewer than 3 seeds (ENet alone 1, ENet + graph_flow (paper) 1, ENet + kd 2)" in told
        assert "differ in epochs: teacher FANet 0.0625: 3; ENet alone: 2" in told
        assert "ENet + kd has the seeds 0, 1, ENet alone 0." in told
        assert "differ in size" not in told

    def test_other_labels_are_told(self, runs):
        """The student alone with all labels, the other taught with those of two patients, then of one in a seed."""
        few = {name: with_recipe(runs[name], labelled_patients=["p1", "p7"]) for name in ("teacher", "kd_0", "kd_1")}
        told = " ".join(arrange([runs["alone"], *few.values()]).notes)
        assert "differ in labelled patients: teacher FANet 0.0625: 2 (p1, p7); ENet alone: all; ENet + kd: 2" in told
        seeds = [few["teacher"], few["kd_0"], with_recipe(runs["kd_1"], labelled_patients=["p7"])]
        assert "ENet + kd: 2 (p1, p7), 1 (p7)." in " ".join(arrange(seeds).notes)
        assert "labelled" not in " ".join(arrange(list(few.values())).notes)

    def test_other_lengths_of_an_epoch_are_told(self, runs):
        longer = with_recipe(runs["kd_0"], epoch_iterations=40)
        assert "differ in epoch iterations: " in " ".join(arrange([runs["teacher"], runs["alone"], longer]).notes)

    def test_runs_of_one_arm_agree_in_shares_and_views_and_arms_need_not(self, runs):
        seeds = [with_recipe(runs[f"kd_{seed}"], unlabelled_share=0.5, student_view="strong") for seed in (0, 1)]
        rest = [with_recipe(runs[name], unlabelled_share=0.0, student_view="same") for name in ("teacher", "alone")]
        told = " ".join(arrange([*rest, *seeds]).notes)
        assert "share" not in told.replace("share of a gap", "")
        assert "view" not in told
        mixed = " ".join(arrange([*rest, seeds[0], runs["kd_1"]]).notes)
        assert "The runs of ENet + kd differ in unlabelled share: 0.5, 0.0." in mixed
        assert "The runs of ENet + kd differ in student view: strong, same." in mixed

    def test_without_the_teacher_that_is_said_and_the_rest_stands(self, runs):
        comparison = arrange([runs["alone"], runs["graph"]], "My title")
        assert comparison.title == "My title"
        assert comparison.teacher is None
        assert "is not among the runs" in comparison.notes[-1]

    def test_another_seed_of_the_teacher_taught_nobody(self, runs):
        idle = varied(runs["teacher"], path=Path("idle"), seed=7, model_sha256="cafe")
        comparison = arrange([*runs.values(), idle])
        assert [run.path.name for run in comparison.teacher.runs] == ["teacher"]
        assert "idle taught nobody and is left out." in comparison.notes
        assert all("FANet" not in arm.label for arm in comparison.arms[1:])

    def test_settings_tell_methods_of_one_name_apart(self, runs):
        other = {"method": "graph_flow", "preset": "paper", "settings": {"adversarial": 0}}
        labels = [arm.label for arm in arrange([*runs.values(), varied(runs["graph"], distillation=other)]).arms]
        assert "ENet + graph_flow (paper) (adversarial=0)" in labels
        assert "ENet + graph_flow (paper) (defaults)" in labels
        assert "ENet + kd" in labels

    def test_several_students(self, runs):
        erfnet = varied(runs["alone"], network="ERFNet", model_sha256="cafe")
        labels = [arm.label for arm in arrange([erfnet, *runs.values()]).arms]
        assert labels[:3] == ["teacher FANet 0.0625", "ERFNet alone", "ENet alone"]

    def test_single_methods_come_before_mixes(self, runs):
        methods = ["graph_flow + 0.5 kd", "zz", "kd", "graph_flow"]
        arms = arrange([runs["alone"], *(varied(runs["kd_0"], method=method) for method in methods)]).arms
        assert [arm.method for arm in arms] == [None, "graph_flow", "kd", "zz", "graph_flow + 0.5 kd"]

    def test_slides_have_no_organs(self, tmp_path):
        (run,) = read_runs([make_slide_run(tmp_path / "run", MAPS, {1: "cancer"})])
        comparison = arrange([run, replace(run, seed=1)])
        assert (comparison.kind, comparison.organs) == ("slides", ())
        assert comparison.title == "Does a teacher help? tissue: 1 image, 2 seeds"


class TestScores:
    def test_a_missed_organ_has_the_diagonal(self, runs):
        scores = runs["alone"].scores
        assert scores["hd95_penalised_mm"].tolist() == [3.0, 3.0, 3.0, 10.0]
        assert scores["hd95_mm"].tolist() == [3.0, 3.0, 3.0, np.inf]

    def test_names_come_back_as_they_were(self, tmp_path):
        dice = {"NA": {"=liver": 0.5}, "-001": {"=liver": 0.5}}
        (run,) = read_runs([make_scan_run(tmp_path / "run", dice)])
        assert run.cases == ("-001", "NA")
        assert run.organs == ("=liver",)

    def test_a_recipe_without_a_mix_is_read(self, tmp_path):
        old = {"method": "graph_flow", "preset": "bounded", "settings": {}, "teacher_sha256": "ab"}
        (run,) = read_runs([make_scan_run(tmp_path / "run", DICE, distillation=old)])
        assert (run.method, run.teacher_sha256) == ("graph_flow", "ab")


def spoil_text(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


DAMAGE = {
    "no folder": (shutil.rmtree, "is no folder"),
    "no record": (lambda run: (run / "run.json").unlink(), "has no run.json"),
    "no model": (lambda run: (run / "model.pt").unlink(), "has no model.pt"),
    "no report": (lambda run: shutil.rmtree(run / "report"), "holds no report"),
    "record is no JSON": (lambda run: (run / "run.json").write_text("{"), "cannot be read as JSON"),
    "summary is no JSON": (lambda run: (run / "report/summary.json").write_text("nan,"), "cannot be read as JSON"),
    "summary is a list": (lambda run: (run / "report/summary.json").write_text("[]"), "holds no settings"),
    "summary lacks cases": (lambda run: spoil_text(run / "report/summary.json", '"cases"', '"others"'), "lacks its"),
    "summary of other cases": (lambda run: spoil_text(run / "report/summary.json", "case_2", "c"), "other cases"),
    "no shapes": (lambda run: spoil_text(run / "report/summary.json", '"shape"', '"form"'), "shape and spacing"),
    "model was trained again": (lambda run: (run / "model.pt").write_bytes(b"other"), "evaluate the run again"),
    "not numbers": (lambda run: spoil_text(run / "report/per_case.csv", "0.900000", "high"), "column dice"),
    "a column is gone": (lambda run: spoil_text(run / "report/per_case.csv", "hd95_mm", "hd"), "no column hd95_mm"),
    "a cell too many": (lambda run: spoil_text(run / "report/per_case.csv", "0.9", "0,9"), "line 2 has 12 cells"),
    "unknown status": (lambda run: spoil_text(run / "report/per_case.csv", "missed", "fine"), "unknown status 'fine'"),
    "binary": (lambda run: (run / "report/per_case.csv").write_bytes(b"\xff\x00"), "cannot be read as a table"),
    "empty": (lambda run: (run / "report/per_case.csv").write_text(""), "cannot be read as a table"),
    "a row is gone": (
        lambda run: (run / "report/per_case.csv").write_text(
            "\n".join((run / "report/per_case.csv").read_text().splitlines()[:-1])
        ),
        "lacks rows",
    ),
    "a row comes twice": (lambda run: spoil_text(run / "report/per_case.csv", "case_2", "case_1"), "twice"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_run_is_refused_in_one_line(damage, alone):
    spoil, message = DAMAGE[damage]
    spoil(alone)
    with pytest.raises(InputError, match=message) as caught:
        read_runs([alone])
    assert str(alone) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_that_does_not_say_how_it_was_trained(alone):
    labels = dict(enumerate(["background", "liver", "spleen"]))
    network = build_network("enet", out_channels=3)
    save_model(alone / "model.pt", network, labels=labels, preprocessing=[], size=32, modality="MR")
    summary = alone / "report/summary.json"
    sha256 = json.loads(summary.read_text())["checkpoint"]["sha256"]
    spoil_text(summary, sha256, sha256_of(alone / "model.pt"))
    with pytest.raises(InputError, match="does not say how it was trained"):
        read_runs([alone])


def scored(run: Run, dice: dict[str, dict[str, float]], **changes: Any) -> Run:
    """Return a run that was scored on other cases or organs."""
    rows = [
        {"case": case, "organ": organ, "label": label, "volume_label_ml": 5.0}
        for case, organs in dice.items()
        for label, organ in enumerate(organs, start=1)
    ]
    return replace(run, path=Path("other"), scores=pd.DataFrame(rows), **changes)


APART = {
    "datasets": (DICE, {"dataset": "elsewhere"}, "the dataset is toy and elsewhere"),
    "kinds": (DICE, {"kind": "slides"}, "the kind is scans and slides"),
    "fewer cases": ({"case_1": DICE["case_1"]}, {}, "2 and 1 cases, case_2 is in one of them alone"),
    "other cases": ({"case_1": DICE["case_1"], "case_3": DICE["case_2"]}, {}, "2 and 2 cases, case_2"),
    "organs": ({case: {"liver": 0.9, "kidney": 0.5} for case in DICE}, {}, "organs, kidney is in one of them alone"),
    "order of organs": ({case: {"spleen": 0.9, "liver": 0.5} for case in DICE}, {}, "organs have another order"),
}


@pytest.mark.parametrize("difference", APART)
def test_runs_of_other_data_are_refused(difference, runs):
    dice, changes, message = APART[difference]
    with pytest.raises(InputError, match=message) as caught:
        arrange([runs["alone"], scored(runs["alone"], dice, seed=1, **changes)])
    assert str(runs["alone"].path) in str(caught.value)
    assert "and other cannot be compared" in str(caught.value)


def test_labels_that_are_not_the_same_are_refused(runs):
    scores = runs["alone"].scores.assign(volume_label_ml=6.0)
    with pytest.raises(InputError, match="labels differ in size"):
        arrange([runs["alone"], replace(runs["alone"], seed=1, scores=scores)])


def test_equal_arm_and_seed_are_refused(runs):
    with pytest.raises(InputError, match="are both ENet alone of seed 0"):
        arrange([*runs.values(), replace(runs["alone"], path=Path("again"))])


def test_teachers_of_two_networks_are_refused(runs):
    wide = varied(runs["teacher"], network="FANet 0.125", model_sha256="cafe")
    with pytest.raises(InputError, match="several teachers"):
        arrange([*runs.values(), wide, varied(runs["kd_0"], teacher_sha256="cafe", seed=5)])


def test_one_run_is_no_comparison(runs):
    with pytest.raises(InputError, match="1 run given"):
        arrange([runs["alone"]])
