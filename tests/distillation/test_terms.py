# SPDX-License-Identifier: Apache-2.0
"""Methods as a config lists them: class, settings, and when they count."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from pipeline.distillation import (
    KnowledgeDistillation,
    build_distiller,
    build_graph_flow,
    check_teacher_given,
    describe_terms,
)
from pipeline.distillation.schedule import Schedule
from pipeline.distillation.terms import chosen_terms
from pipeline.errors import InputError
from pipeline.networks import Paraphraser, build_network

CLASSES = 3
KD = partial(KnowledgeDistillation, weight=0.5, temperature=2.0, balance=0.5)


def distiller_of(terms=None, method=None, **options):
    torch.manual_seed(0)
    teacher, student = build_network("erfnet", 1, CLASSES), build_network("enet", 1, CLASSES)
    paraphrasers = tuple(Paraphraser(64, 64).eval() for _ in range(2))
    return student, build_distiller(method, teacher, student, CLASSES, 10, paraphrasers, terms=terms, **options)


def test_a_term_of_the_config_is_the_method_of_the_same_settings():
    images, labels = torch.rand(2, 1, 64, 64), torch.randint(CLASSES, (2, 1, 64, 64))
    totals = []
    for options in ({"terms": {"kd": KD}}, {"method": "kd", "settings": {"weight": 0.5}}):
        student, distiller = distiller_of(**options)
        totals.append(distiller.total(distiller(images, labels, student.eval()(images))))
    assert distiller.weights == {"kd": 0.5}
    assert torch.equal(*totals)


def test_terms_are_summed_with_their_weights_and_schedules():
    graph_flow = partial(build_graph_flow, kd=0.0, vertices=2.0, edges=0.0, start=0.5, ramp=0.1)
    _, distiller = distiller_of({"kd": KD, "graph_flow": graph_flow})
    assert {term: weight for term, weight in distiller.weights.items() if weight} == {"kd": 0.5, "vertices": 2.0}
    assert chosen_terms({"graph_flow": graph_flow})["graph_flow"].schedule == Schedule(start=0.5, ramp=0.1)


def test_a_method_by_name_takes_the_place_of_the_terms():
    _, distiller = distiller_of({"kd": KD}, "at")
    assert set(distiller.weights) == {"at"}
    _, distiller = distiller_of({"kd": KD}, methods={"at": 2.0, "sp": 1.0})
    assert set(distiller.weights) == {"at", "sp"}


def test_paraphraser_that_no_term_uses_is_told(caplog):
    distiller_of({"kd": KD})
    assert "the paraphraser is not used: kd compares no paraphrased taps" in caplog.text
    caplog.clear()
    distiller_of(method="graph_flow")
    assert "is not used" not in caplog.text


def test_description_is_class_and_settings():
    assert describe_terms({"kd": KD, "plain": KnowledgeDistillation}) == {
        "kd": {
            "class": "pipeline.distillation.methods.kd.KnowledgeDistillation",
            "weight": 0.5,
            "temperature": 2.0,
            "balance": 0.5,
        },
        "plain": {"class": "pipeline.distillation.methods.kd.KnowledgeDistillation"},
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "lists no terms; give --method kd"),
        ({"terms": {"kd": KD}, "settings": {"temperature": 1.0}}, "--settings belong to a single --method"),
        ({"terms": {"kd": {"weight": 1.0}}}, "the term kd is .* give _target_"),
        ({"terms": {"kd": partial(KnowledgeDistillation, share=0.3, weight=1.0)}}, "a weight and a share"),
        ({"terms": {"kd": partial(KnowledgeDistillation, warmth=1)}}, "no setting 'warmth'"),
        ({"terms": {"kd": partial(KnowledgeDistillation, start=2.0)}}, "cannot run from 2.0"),
    ],
)
def test_terms_that_cannot_be_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        distiller_of(**options)


@pytest.mark.parametrize(
    ("teacher", "chosen", "words"),
    [
        (None, {"method": "kd"}, "kd learns from a teacher; give --teacher"),
        (None, {"methods": {"dml": 1.0, "kd": 1.0}}, "kd learns from a teacher"),
        ("model.pt", {"method": "mean_teacher"}, "mean_teacher learns from no teacher; leave --teacher out"),
        ("model.pt", {"methods": {"dml": 1.0, "mean_teacher": 1.0}}, "dml and mean_teacher learn from no teacher"),
    ],
)
def test_a_teacher_is_given_where_one_is_needed_and_nowhere_else(teacher, chosen, words):
    with pytest.raises(InputError, match=words):
        check_teacher_given(teacher, terms=None, **chosen)


def test_a_mix_with_one_method_that_needs_a_teacher_takes_one():
    check_teacher_given("model.pt", terms=None, methods={"dml": 1.0, "kd": 1.0})
    check_teacher_given(None, terms=None, method="mean_teacher")
