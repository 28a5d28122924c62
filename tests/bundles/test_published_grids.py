# SPDX-License-Identifier: Apache-2.0
"""The configs of the comparisons on real data: which runs they plan, without the data."""

from __future__ import annotations

from pipeline.grid import Grid
from tests.bundles.planned_grids import grid_of

ARMS_OF_ALL = {"alone", "alone_balanced", "kd", "kd_review", "graph_flow", "alone_review_time"}


def arms(planned: Grid, start: str) -> dict[str, set[str]]:
    """Return the arms of each seed among the runs whose names begin with `start`."""
    found: dict[str, set[str]] = {}
    for run in planned.planned_runs():
        if run.name.startswith(start):
            arm, seed = run.name.removeprefix(start).rsplit("_", 1)
            found.setdefault(seed, set()).add(arm)
    return found


def test_on_chaos_enet_has_every_arm_in_two_seeds_of_each_fold():
    planned = grid_of("synapse", ["benchmark", "chaos_mr"])
    for fold in "abcde":
        enet = arms(planned, f"{fold}_enet_")
        assert enet.keys() == {"0", "1"}
        assert enet["0"] == enet["1"] == set(planned.methods)
        for student in ("mobile_unet", "erfnet"):
            assert arms(planned, f"{fold}_{student}_") == {"0": ARMS_OF_ALL}


def test_on_ebhi_seg_every_student_has_three_seeds():
    planned = grid_of("gastric", ["benchmark", "ebhi_seg"])
    assert arms(planned, "tenth_enet_") == {seed: set(planned.methods) for seed in "012"}
    for student in ("mobile_unet", "erfnet"):
        assert arms(planned, f"tenth_{student}_") == dict.fromkeys("012", ARMS_OF_ALL)


def test_the_ablation_is_of_kd_and_each_term_of_graph_flow():
    planned = grid_of("gastric", ["benchmark", "ebhi_seg", "ablation"])
    terms = {"kd", "kd_vertices", "kd_edges", "kd_adversarial", "graph_terms", "graph_flow", "graph_flow_adversarial"}
    assert arms(planned, "tenth_erfnet_") == {seed: {"alone", "alone_balanced"} | terms for seed in "012"}
    assert not arms(planned, "tenth_enet_")
