# SPDX-License-Identifier: Apache-2.0
"""Training that begins with an earlier model: its weights to the bit, or one line on what doesn't fit."""

from __future__ import annotations

import pytest
import torch

from pipeline.data import CT_WINDOW
from pipeline.errors import InputError
from pipeline.networks import build_network, save_model
from pipeline.training import take_weights
from tests.preprocessing import scan_preprocessing
from tests.training.tiny_run import make_run

LABELS = {0: "background", 1: "liver"}
FITTING = {"labels": LABELS, "in_channels": 1, "tile_px": None}


@pytest.fixture
def earlier(tmp_path):
    torch.manual_seed(1)
    network = build_network("enet", 1, 2)
    preprocessing = scan_preprocessing(CT_WINDOW)
    save_model(tmp_path / "model.pt", network, labels=LABELS, preprocessing=preprocessing, size=64, modality="CT")
    return network, tmp_path / "model.pt"


def test_weights_are_those_of_the_file(earlier):
    before, file = earlier
    torch.manual_seed(2)
    network = build_network("enet", 1, 2)
    take_weights(network, file, FITTING)
    assert all(torch.equal(one, other) for one, other in zip(before.parameters(), network.parameters(), strict=True))
    assert network.training


def test_without_a_file_nothing_changes():
    network = build_network("enet", 1, 2)
    before = [parameter.clone() for parameter in network.parameters()]
    take_weights(network, None, FITTING)
    assert all(torch.equal(one, other) for one, other in zip(before, network.parameters(), strict=True))


def test_another_network_is_refused(earlier):
    with pytest.raises(InputError, match=r"holds the network .*enet.*, this run trains .*mobile_unet"):
        take_weights(build_network("mobile_unet", 1, 2), earlier[1], FITTING)


def test_other_organs_are_refused(earlier):
    with pytest.raises(InputError, match="trained on other organs"):
        take_weights(build_network("enet", 1, 2), earlier[1], {**FITTING, "labels": {0: "background", 1: "spleen"}})


def test_a_resume_with_more_epochs_names_the_way_to_train_on(tmp_path):
    def with_epochs(epochs: int, **options):
        trainer, _ = make_run(tmp_path / "last.pt", epochs=epochs, **options)
        saver = trainer.before_run[0].__self__
        saver.recipe = {"epochs": epochs}
        return trainer

    with_epochs(1).run()
    with pytest.raises(InputError, match=r"epochs was 1, is 2; resume with the same, or train on .*--initial_weights "):
        with_epochs(2, resume=True).run()
