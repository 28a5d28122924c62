# SPDX-License-Identifier: Apache-2.0
"""Mutual learning from a bundle: both students are trained alike."""

from __future__ import annotations

from ast import literal_eval

from monai.bundle import create_workflow

from tests.bundles.bundle_commands import config_files


def test_the_second_student_has_the_runs_loss_rate_and_decay(dataset_dir, tmp_path):
    """Without the config, a pair has a cross-entropy, another rate and no decay."""
    options = {"dataset_dir": str(dataset_dir), "run_dir": str(tmp_path / "run"), "student": "enet"}
    chosen = {"method": "dml", "loss": "dice_ce", "learning_rate": 0.02, "weight_decay": 0.1, "size": 64}
    files = literal_eval(config_files("synapse", "distill"))
    parser = create_workflow(config_file=files, workflow_type="train", **options, **chosen).parser
    method = parser.get_parsed_content("distiller").methods["dml"]
    assert method.pair.segmentation_loss is parser.get_parsed_content("loss_function")
    assert [(group["lr"], group["weight_decay"]) for group in method.optimizer.param_groups] == [(0.02, 0.1)]
