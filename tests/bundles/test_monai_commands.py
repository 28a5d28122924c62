# SPDX-License-Identifier: Apache-2.0
"""What MONAI offers for any bundle, beside `run`, works on these: from another directory, on copies of them."""

from __future__ import annotations

import sys
from ast import literal_eval
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from monai.bundle import ConfigWorkflow

from pipeline.networks import load_model
from tests.bundles.bundle_commands import ROOT, assert_done, config_files, elsewhere, run, run_program
from tests.bundles.untrained import untrained


@pytest.fixture(scope="module")
def checkpoint(dataset_dir, tmp_path_factory) -> Path:
    return untrained(tmp_path_factory.mktemp("model") / "model.pt", dataset_dir, "mobile_unet")


def bundle_command(verb: str, *arguments: object):
    return run_program([sys.executable, "-m", "monai.bundle", verb, *map(str, arguments)])


def export(verb: str, file: Path, checkpoint: Path):
    configs = elsewhere() / "copies/synapse/configs"
    return bundle_command(
        verb,
        *("--net_id", "network_def", "--filepath", file, "--ckpt_file", checkpoint, "--key_in_ckpt", "state_dict"),
        *("--meta_file", configs / "metadata.json", "--config_file", configs / "inference.yaml"),
        *("--checkpoint", checkpoint),
    )


@pytest.mark.parametrize("bundle", ["synapse", "gastric"])
def test_verify_metadata(bundle):
    metadata = elsewhere() / "copies" / bundle / "configs/metadata.json"
    schema = ROOT / "bundles/metadata_schema.json"
    assert_done(bundle_command("verify_metadata", "--meta_file", metadata, "--filepath", schema))


def test_ckpt_export_gives_a_torchscript_archive_of_the_trained_network(checkpoint, tmp_path):
    assert_done(export("ckpt_export", tmp_path / "model.ts", checkpoint))
    images = torch.rand(2, 1, 64, 64)
    scripted = torch.jit.load(tmp_path / "model.ts").eval()
    torch.testing.assert_close(scripted(images), load_model(checkpoint).network(images))


def test_onnx_export_gives_the_trained_network(checkpoint, tmp_path):
    assert_done(export("onnx_export", tmp_path / "model.onnx", checkpoint))
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    images = torch.rand([side if isinstance(side, int) else 1 for side in given.shape])
    (logits,) = session.run(None, {given.name: images.numpy()})
    np.testing.assert_allclose(logits, load_model(checkpoint).network(images).detach(), atol=1e-4)


def test_a_config_workflow_trains_from_python(dataset_dir, tmp_path):
    workflow = ConfigWorkflow(
        literal_eval(config_files("synapse", "train")),
        workflow_type="train",
        logging_file=False,
        **{"dataset_dir": str(dataset_dir), "run_dir": str(tmp_path / "run"), "network": "enet", "size": 32},
        **{"epochs": 1, "batch_size": 4, "device": "cpu"},
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    workflow.run()
    workflow.finalize()
    assert workflow.trainer.state.epoch == 1
    assert load_model(tmp_path / "run/model.pt").network_arguments["name"] == "enet"


def test_tracking_by_mlflow(dataset_dir, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    options = ["--network", "enet", "--size", "32", "--epochs", "1", "--batch_size", "4", "--tracking", "mlflow"]
    assert_done(run("synapse", "train", "--dataset_dir", dataset_dir, "--run_dir", tmp_path / "run", *options))
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'run' / 'mlruns.db'}")
    experiment = client.get_experiment_by_name("monai_experiment")
    (tracked,) = client.search_runs([experiment.experiment_id])
    assert {"train_loss", "val_mean_dice"} <= tracked.data.metrics.keys()
