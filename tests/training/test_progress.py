# SPDX-License-Identifier: Apache-2.0
"""What a run says of itself: durations and smaller settings by hand, lines of a tiny run; it changes nothing."""

from __future__ import annotations

import logging

import pytest
import torch
from ignite.engine import Engine

from pipeline.networks import build_network
from pipeline.training import Progress, say_distillation_is_next, say_what_is_next
from pipeline.training import progress as module
from pipeline.training.progress import duration, smaller_settings
from tests.training.tiny_run import differences, make_run, whole_state


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (89, "89 s"),
        (90, "2 min"),
        (3600, "60 min"),
        (5400, "1.5 h"),
        (36000, "10 h"),
        (172800, "2.0 days"),
        (1e6, "11.6 days"),
    ],
)
def test_durations_by_hand(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("sides", "batch_size", "epochs", "options"),
    [
        ((224, 224), 24, 200, "--size 64 --batch_size 8 --epochs 20"),
        ((64, 64), 8, 200, "--epochs 20"),
        ((48, 48), 4, 10, ""),
        ((96, 96, 16), 24, 200, "--batch_size 8 --epochs 20"),  # the patch of a 3D network has an option of its own
    ],
)
def test_smaller_settings_name_what_is_larger(sides, batch_size, epochs, options):
    assert smaller_settings(sides, batch_size, epochs) == options


def lines_of_a_run(tmp_path, caplog, **options) -> list[str]:
    trainer, evaluator = make_run(tmp_path / "last.pt", epochs=2, **options)
    Progress(evaluator).attach(trainer)
    with caplog.at_level(logging.INFO, "pipeline.training.progress"):
        trainer.run()
    return [record.getMessage() for record in caplog.records if record.name == module.__name__]


def test_a_run_says_what_it_does_and_how_far_it_is(tmp_path, caplog):
    lines = lines_of_a_run(tmp_path, caplog)
    assert lines[0] == f"training TinyNetwork (0.00 M parameters) on cpu ({torch.get_num_threads()} threads) in float32"
    assert lines[1] == "6 images, 3 steps an epoch, 2 epochs"
    assert lines[2].startswith("epoch 1/2  step 1/3  about ")
    assert [line.split("  ")[0] for line in lines[3:]] == ["epoch 1/2", "epoch 2/2"]


def test_a_distillation_names_its_teacher_and_method(tmp_path, caplog):
    lines = lines_of_a_run(tmp_path, caplog, distilled=True)
    assert lines[1] == "its teacher: TinyNetwork (0.00 M parameters), by kd, graph_flow, adversary"


def test_a_long_run_on_a_cpu_names_smaller_settings(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(module, "seconds_of_an_image", lambda trainer, image: 1000.0)
    monkeypatch.setattr(module, "_SMALL", {"size": 32, "batch_size": 1, "epochs": 1})
    lines = lines_of_a_run(tmp_path, caplog)
    # 2 images a step, 3 steps an epoch, 2 epochs: 6,000 s and 12,000 s
    assert lines[2] == (
        "on this CPU an epoch takes about 1.7 h and the run about 3.3 h; to try things out: --size 32 --batch_size 1 "
        "--epochs 1 (of a FANet also --width 0.25)"
    )


@pytest.mark.parametrize("distilled", [False, True])
def test_saying_so_changes_nothing_of_the_run(tmp_path, distilled):
    for name in ("silent", "telling"):
        (tmp_path / name).mkdir()
        trainer, evaluator = make_run(tmp_path / name / "last.pt", distilled=distilled)
        if name == "telling":
            Progress(evaluator).attach(trainer)
        trainer.run()
    states = [whole_state(tmp_path / name / "last.pt") for name in ("silent", "telling")]
    assert differences(*states) == []


def test_the_end_names_model_score_and_next_command(caplog):
    evaluator = Engine(lambda engine, batch: None)
    evaluator.state.key_metric_name, evaluator.state.best_metric, evaluator.state.best_metric_epoch = "dice", 0.81234, 7
    with caplog.at_level(logging.INFO):
        say_what_is_next("runs/a b", "data", "bundles/synapse", evaluator)
    assert [record.getMessage() for record in caplog.records] == [
        "model: runs/a b/model.pt, dice 0.8123 in epoch 7",
        "next, its report on the test split: python -m monai.bundle run --config_file "
        "\"['bundles/synapse/configs/train.yaml','bundles/synapse/configs/evaluate.yaml']\" "
        "--dataset_dir data --checkpoint 'runs/a b/model.pt' --run_dir 'runs/a b/report'",
    ]


def test_paraphrasers_end_with_the_command_that_distils(caplog):
    with caplog.at_level(logging.INFO):
        say_distillation_is_next("runs/p/paraphraser.pt", "runs/t/model.pt", "enet", "data", "B")
    assert [record.getMessage() for record in caplog.records] == [
        "next, the distillation: python -m monai.bundle run --config_file "
        "\"['B/configs/train.yaml','B/configs/distill.yaml']\" --dataset_dir data --teacher runs/t/model.pt "
        "--paraphraser runs/p/paraphraser.pt --student enet --run_dir NEW_FOLDER"
    ]


def test_next_commands_keep_the_choice_of_patients_and_labels(caplog):
    patients = {"validation": ["7"], "test": ["3", "5"]}
    few = {"patients": patients, "labelled_cases": 2, "labelled_fraction": None, "labelled_seed": 0}
    with caplog.at_level(logging.INFO):
        say_distillation_is_next("p.pt", "t.pt", "enet", "data", "B", few)
        say_what_is_next("run", "data", "B", patients=patients)
    distillation, _, report = (record.getMessage() for record in caplog.records)
    choice = """--patients '{"validation": ["7"], "test": ["3", "5"]}'"""
    assert distillation.endswith(f"--student enet {choice} --labelled_cases 2 --run_dir NEW_FOLDER")
    assert report.endswith(choice)


def test_networks_are_called_by_their_names():
    network = build_network("enet", 1, 9)
    assert module._in_words(network) == "enet (0.35 M parameters)"
