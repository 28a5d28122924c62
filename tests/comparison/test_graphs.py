# SPDX-License-Identifier: Apache-2.0
"""Pictures of graphs: where nodes sit, what networks saw, and which paraphrasers were theirs."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.comparison import read_runs
from pipeline.comparison.pictures.graphs import (
    channel_order,
    find_paraphrasers,
    graph_figure,
    graph_view,
    network_input,
    taps_of,
    window_counts,
)
from pipeline.data import read_volume
from pipeline.data.slides.open import open_slide
from pipeline.distillation import GraphFlowLoss, salience_graph
from pipeline.errors import InputError
from pipeline.inference import segment
from pipeline.networks import Paraphraser, load_model
from pipeline.training import save_paraphrasers
from tests.comparison.picture_runs import slide_run
from tests.preprocessing import scan_preprocessing


class TestGraphs:
    def test_windows_are_counted_where_they_lie(self):
        positions = np.array([[0.5, 0.5], [0.5, 0.5], [0.0, 1.0]])
        counts = window_counts((8, 8), positions, (0.25, 0.5))
        expected = np.zeros((8, 8), int)
        expected[3:5, 2:6] = 2
        expected[:1, 6:] = 1  # cut off by the border
        np.testing.assert_array_equal(counts, expected)

    def test_nodes_sit_at_the_maxima_and_edges_are_those_of_the_loss(self):
        shallow, deep = torch.zeros(1, 2, 4, 8), torch.zeros(1, 2, 4, 8)
        shallow[0, 0, 1, 2], shallow[0, 1, 3, 7], deep[0, :, 0, 0] = 1, 2, 3
        view = graph_view("student", (shallow, deep), GraphFlowLoss(patch=3, edge="dot"))
        np.testing.assert_allclose(view.positions[0], [[1.5 / 4, 2.5 / 8], [3.5 / 4, 7.5 / 8]])
        assert view.shares == ((3 / 4, 3 / 8),) * 2
        assert view.graphs[0].edges[0].tolist() == [[1, 2], [2, 4]]  # 1 and 2 in the middle of both windows
        assert view.variation.edges[0].tolist() == [[8, 7], [7, 5]]
        assert torch.equal(view.graphs[0].vertices, salience_graph(shallow).vertices)

    def test_channels_with_like_edges_stand_together(self):
        groups = np.array([0, 1, 0, 1, 1, 0])
        order = channel_order((groups[:, None] == groups).astype(float))
        assert np.abs(np.diff(groups[order])).sum() == 1
        assert channel_order(np.eye(1)).tolist() == [0]

    def test_taps_leave_the_network_as_it_was(self, runs):
        model = load_model(runs["alone"] / "model.pt")
        shallow, deep = taps_of(model, torch.rand(1, 1, 32, 32))
        assert (shallow.shape, deep.shape) == ((1, 64, 8, 8), (1, 64, 8, 8))
        assert all(not module._forward_hooks for module in model.network.modules())

    def test_the_network_sees_what_it_sees_in_inference(self, scans, runs):
        model = replace(load_model(runs["alone"] / "model.pt"), preprocessing=scan_preprocessing(scans.intensity))
        seen: list[torch.Tensor] = []
        model.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        segment(read_volume(scans.test[0].image), model)
        torch.testing.assert_close(network_input(scans, scans.test[0], model), seen[0][2:3])

    def test_of_a_slide_it_sees_the_tile_with_most_label(self, tmp_path):
        dataset, run = slide_run(tmp_path)
        image = network_input(dataset, dataset.test[0], load_model(run.checkpoint))
        with open_slide(dataset.test[0].image) as slide:
            expected = slide.read(0, 0, 32, 32)[..., 0] / 255
        np.testing.assert_allclose(image[0, 0].numpy(), expected, atol=1e-6)

    def test_paraphrasers_are_those_that_the_command_named(self, runs, tmp_path):
        (run,) = read_runs([runs["graph"]])
        assert find_paraphrasers(run, "teacher") is None
        path = tmp_path / "with space" / "paraphraser.pt"
        record = {"command": f"python -m monai.bundle run --paraphraser '{path}' --seed 0"}
        (run.path / "run.json").write_text(json.dumps(record))
        assert find_paraphrasers(run, "teacher") is None
        path.parent.mkdir()
        save_paraphrasers(path, [Paraphraser(4, 2), Paraphraser(6, 2)], "teacher")
        shallow, deep = find_paraphrasers(run, "teacher")
        assert (shallow.in_channels, deep.in_channels) == (4, 6)
        assert find_paraphrasers(run, "another teacher") is None

    def test_figure_has_teacher_and_student_and_says_what_is_missing(self, scans, runs):
        teacher, _, student = read_runs(runs.values())
        figure, remark = graph_figure(scans, "case_1", student, teacher)
        assert [axis.get_ylabel() for axis in figure.axes if axis.get_ylabel()] == [
            "teacher\n64 nodes",
            "student\n64 nodes",
        ]
        assert "paraphrasers were not found" in remark
        assert "edges are cosines" in remark
        with pytest.raises(InputError, match="no labelled test case case_9"):
            graph_figure(scans, "case_9", student, teacher)
