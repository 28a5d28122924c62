# SPDX-License-Identifier: Apache-2.0
"""When a method counts, and several methods in one run."""

from __future__ import annotations

import re

import pytest
import torch

from pipeline.distillation import Schedule, build_distiller
from pipeline.distillation.gradient_shares import gradient_shares
from pipeline.distillation.method import label_cross_entropy
from pipeline.distillation.schedule import parse_schedule
from pipeline.errors import InputError
from pipeline.networks import build_network


@pytest.mark.parametrize(
    ("schedule", "progress", "factor"),
    [
        (Schedule(), 0.0, 1.0),
        (Schedule(0.5), 0.99, 0.5),
        (Schedule(2.0, start=0.2, end=0.6), 0.1, 0.0),
        (Schedule(2.0, start=0.2, end=0.6), 0.2, 2.0),
        (Schedule(2.0, start=0.2, end=0.6), 0.6, 0.0),
        (Schedule(2.0, ramp=0.5), 0.25, 1.0),  # half of the way up
        (Schedule(2.0, start=0.5, ramp=0.2), 0.55, 0.5),
        (Schedule(2.0, start=0.5, ramp=0.2), 0.9, 2.0),
        (Schedule(share=0.3, ramp=0.5), 0.25, 0.5),  # the rest of the factor comes from the gradients
    ],
)
def test_factor_by_hand(schedule, progress, factor):
    assert schedule.factor(progress) == pytest.approx(factor)


@pytest.mark.parametrize(
    "wrong",
    [
        {"weight": -1},
        {"weight": float("nan")},
        {"weight": "1"},
        {"weight": True},
        {"start": 0.5, "end": 0.5},
        {"end": 1.5},
        {"start": 0.8, "ramp": 0.3},
        {"share": -0.1},
        {"share": "0.3"},
    ],
)
def test_impossible_schedules_are_refused(wrong):
    with pytest.raises(InputError):
        Schedule(**wrong)


def test_an_entry_is_a_weight_or_a_mapping_with_settings_beside_it():
    assert parse_schedule(0.5) == (Schedule(0.5), {})
    assert parse_schedule({"weight": 2, "end": 0.5, "temperature": 1}) == (Schedule(2, end=0.5), {"temperature": 1})


def _distiller(**options):
    teacher, student = (build_network(name, 1, 3) for name in ("erfnet", "enet"))  # taps of 64 channels both
    return build_distiller(options.pop("method", "kd"), teacher, student, 3, 1, **options)


def _run(distiller, student):
    images, labels = torch.rand(2, 1, 64, 64), torch.zeros(2, 1, 64, 64)
    return distiller(images, labels, student(images))


def test_a_mix_has_all_terms_and_adds_them_by_weight():
    student = build_network("enet", 1, 3)
    mix = {"graph_flow": {"weight": 1, "adversarial": 0}, "kd": {"weight": 0.5, "temperature": 1}}
    distiller = build_distiller("unused", build_network("erfnet", 1, 3), student, 3, 1, methods=mix)
    terms = _run(distiller, student)
    assert set(terms) == {"kd", "vertices", "edges", "kd_kd"}  # graph_flow has kd too: kd's get its name
    graph = distiller.weights["vertices"] * terms["vertices"] + distiller.weights["edges"] * terms["edges"]
    expected = terms["kd"] + graph + 0.5 * terms["kd_kd"]
    torch.testing.assert_close(distiller.total(terms), expected)


def test_graph_terms_hold_a_share_without_kd():
    mix = {"kd": 1, "graph_flow": {"share": 0.3, "kd": 0}}
    student = build_network("enet", 1, 3)
    distiller = build_distiller("unused", build_network("erfnet", 1, 3), student, 3, 1, methods=mix)
    assert list(distiller.weights) == ["kd", "vertices", "edges"]
    assert distiller.groups == {"kd": "kd", "graph_flow": "graph_flow"}
    assert distiller.shares.wanted == {"graph_flow": 0.3}


@pytest.mark.parametrize(
    ("name", "setting", "term"),
    [("graph_flow", "adversarial", "adversarial"), ("coco", "adversarial", "adversarial"), ("skd", "holistic", None)],
)
def test_the_adversary_holds_a_share_of_its_own(name, setting, term):
    """Its gradient is a tenth as long as the labels' loss's, in this first step exactly; the other terms are free."""
    torch.manual_seed(0)
    student, term = build_network("enet", 1, 3), term or "skd_holistic"
    distiller = build_distiller(
        name, build_network("erfnet", 1, 3), student, 3, 1, settings={setting: {"share": 0.1}}, size=64
    )
    images, labels = torch.rand(2, 1, 64, 64), torch.zeros(2, 1, 64, 64)
    logits, parameters = student(images), list(student.parameters())
    terms, segmentation = distiller(images, labels, logits), label_cross_entropy(logits, labels)
    distiller.follow_shares(terms, segmentation, parameters)
    weighted = distiller.weighted(terms)
    shares = gradient_shares({term: weighted.pop(term)}, segmentation, parameters)
    assert float(shares[term]) == pytest.approx(0.1, rel=1e-4)
    assert all(torch.equal(value, distiller.weights[one] * terms[one]) for one, value in weighted.items())


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"share": -1}, "the share of adversarial is -1; it must be a finite number above 0"),
        ({"shares": 0.1}, "adversarial is {'shares': 0.1}; give a weight, or {'share': 0.1}"),
    ],
)
def test_a_bad_share_of_the_adversary_is_refused(value, words):
    with pytest.raises(InputError, match=re.escape(words)):
        build_distiller(
            "coco", build_network("erfnet", 1, 3), build_network("enet", 1, 3), 3, 1, settings={"adversarial": value}
        )


def test_a_method_stops_where_its_schedule_ends_and_is_not_computed_then():
    student = build_network("enet", 1, 3)
    mix = {"kd": {"weight": 1, "end": 0.5}}
    distiller = build_distiller("unused", build_network("erfnet", 1, 3), student, 3, total_steps=4, methods=mix)
    ran = []
    for _ in range(4):
        ran.append("kd" in _run(distiller, student))
        distiller.after_step()
    assert ran == [True, True, False, False]


def test_the_position_in_the_schedule_survives_a_resume():
    student = build_network("enet", 1, 3)
    options = {"total_steps": 4, "methods": {"kd": {"weight": 1, "end": 0.5}}}
    first, second = (build_distiller("x", build_network("erfnet", 1, 3), student, 3, **options) for _ in range(2))
    for _ in range(2):
        _run(first, student)
        first.after_step()
    assert _run(first, student) == {}
    assert set(_run(second, student)) == {"kd"}
    second.load_training_state(first.training_state())
    assert _run(second, student) == {}
    assert float(second.total({})) == 0.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "graf_flow"}, "did you mean 'graph_flow'"),
        ({"methods": {"kdd": 1}}, "did you mean 'kd'"),
        ({"methods": {"kd": {"weight": 1, "temprature": 2}}}, "did you mean 'temperature'"),
        ({"methods": {"kd": -1}}, "weight"),
        ({"methods": {"kd": {"weight": 1, "share": 0.3}}}, "a weight or a share, not both"),
        ({"methods": {"kd": 1}, "settings": {"temperature": 2}}, "beside --methods they stand with the weight"),
        ({"method": "kd", "settings": {"warmth": 2}}, "no setting 'warmth'"),
    ],
)
def test_bad_mixes_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        _distiller(**options)
