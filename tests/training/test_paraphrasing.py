# SPDX-License-Identifier: Apache-2.0
"""Paraphrasers: that they learn to reconstruct, belong to one teacher, and that a missing one is an error."""

from __future__ import annotations

import pytest
import torch

from pipeline.errors import InputError
from pipeline.networks import build_network
from pipeline.training import (
    ReconstructionLoss,
    TeacherReconstruction,
    load_paraphrasers,
    save_paraphrasers,
    unexplained_variance,
)


def make_network() -> TeacherReconstruction:
    torch.manual_seed(0)
    return TeacherReconstruction(build_network("fanet", width=0.125), (24, 24))


def test_training_lowers_the_error_and_leaves_the_teacher_alone():
    network, images = make_network(), torch.rand(2, 1, 32, 32)
    teacher = network._frozen[0]
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    start = unexplained_variance(network, [images])
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(30):
        optimizer.zero_grad()
        ReconstructionLoss()(network.train()(images), None).backward()
        optimizer.step()
    end = unexplained_variance(network, [images])
    assert all(after < 0.7 * first for first, after in zip(start, end, strict=True))
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_only_the_paraphrasers_are_parameters():
    network = make_network()
    assert all(name.startswith("paraphrasers.") for name, _ in network.named_parameters())


def test_loss_is_the_sum_of_mean_squared_errors():
    pairs = [(torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 2.0)), (torch.zeros(1), torch.ones(1))]
    assert ReconstructionLoss()(pairs, None) == 4 + 1


def test_round_trip_gives_the_same_factors_frozen(tmp_path):
    network = make_network()
    save_paraphrasers(tmp_path / "p.pt", network.paraphrasers, "abc")
    loaded = load_paraphrasers(tmp_path / "p.pt", "abc")
    tap = torch.randn(1, network.paraphrasers[0].in_channels, 8, 8)
    torch.testing.assert_close(loaded[0].encode(tap), network.paraphrasers[0].encode(tap))
    assert not any(parameter.requires_grad for paraphraser in loaded for parameter in paraphraser.parameters())


def test_taps_of_volumes_are_reconstructed_and_come_back_from_the_file(tmp_path):
    shape = {"spatial_dims": 3, "blocks_down": (1, 1, 1), "blocks_up": (1, 1), "init_filters": 8}
    network = TeacherReconstruction(build_network("monai.networks.nets.SegResNet", **shape), (3, 4))
    images = torch.rand(1, 1, 8, 8, 4)
    assert all(reconstruction.shape == tap.shape for reconstruction, tap in network(images))
    assert all(share > 0 for share in unexplained_variance(network, [images]))
    save_paraphrasers(tmp_path / "p.pt", network.paraphrasers, "abc")
    tap = torch.rand(1, network.paraphrasers[1].in_channels, 4, 4, 2)
    loaded = load_paraphrasers(tmp_path / "p.pt", "abc")
    torch.testing.assert_close(loaded[1].encode(tap), network.paraphrasers[1].encode(tap))
    assert loaded[1].encode(tap).shape == (1, 4, 4, 4, 2)


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no paraphraser file"), (b"", "cannot be read"), ({"a": 1}, "is not a paraphraser")]
)
def test_missing_or_foreign_file_is_an_error(tmp_path, content, message):
    path = tmp_path / "p.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(InputError, match=f"{message}.*run the paraphrase config"):
        load_paraphrasers(path, "abc")


def test_paraphrasers_of_another_teacher_are_refused(tmp_path):
    save_paraphrasers(tmp_path / "p.pt", make_network().paraphrasers, "abc")
    with pytest.raises(InputError, match="another teacher"):
        load_paraphrasers(tmp_path / "p.pt", "def")
