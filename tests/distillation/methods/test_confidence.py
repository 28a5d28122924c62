# SPDX-License-Identifier: Apache-2.0
"""`confidence` of methods that have kd, or a term like it, as a part: by hand, as in kd itself, then bad input."""

from __future__ import annotations

from math import log

import pytest
import torch

from pipeline.distillation.methods.coco import build_coco
from pipeline.distillation.methods.emkd import EfficientMedical
from pipeline.distillation.methods.graph_flow_preset import build_graph_flow
from pipeline.distillation.methods.kd import KnowledgeDistillation
from pipeline.distillation.methods.skd import build_skd, pixel_cross_entropy
from pipeline.errors import InputError
from pipeline.unlabelled import UNLABELLED
from tests.distillation.tiny_pair import tiny_batch, tiny_pair, views

# The part that is kd, or like it, and the name of its term.
PARTS = {
    "graph_flow": (lambda pair, **settings: build_graph_flow(pair, **settings)["kd"], "kd"),
    "coco": (lambda pair, **settings: build_coco(pair, **settings)["kd"], "kd"),
    "emkd": (EfficientMedical, "emkd_prediction"),
    "skd": (lambda pair, **settings: build_skd(pair, **settings)["skd"], "skd_pixel"),
}


def terms_of(name: str, **settings: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the part's term and kd's own, on two images of which the second has no label."""
    build, term = PARTS[name]
    pair, (images, labels) = tiny_pair(student=(4, 5)), tiny_batch()
    labels[1] = UNLABELLED
    student, teacher = views(pair, images)
    kd = KnowledgeDistillation(pair, **settings)
    return build(pair, **settings)(student, teacher, labels)[term], kd(student, teacher, labels)["kd"]


def test_skd_by_hand():
    """Teacher (.9, .1) and (.6, .4), student (.5, .5): log 2 at each pixel; unsure of the second one."""
    teacher = torch.tensor([[0.9, 0.6], [0.1, 0.4]]).log()[None, :, None]
    labels = torch.tensor([UNLABELLED, UNLABELLED])[None, None, None]
    found = pixel_cross_entropy(torch.zeros_like(teacher), teacher, labels, confidence=0.8)
    assert float(found) == pytest.approx(log(2) / 2)  # the mean of both
    labels[..., 1] = 0
    found = pixel_cross_entropy(torch.zeros_like(teacher), teacher, labels, confidence=0.8)
    assert float(found) == pytest.approx(log(2))


@pytest.mark.parametrize("balance", [0.0, 0.5])
@pytest.mark.parametrize("confidence", [0.0, 0.54, 1.0])
@pytest.mark.parametrize("name", ["graph_flow", "coco", "emkd"])
def test_the_term_is_that_of_kd(name, confidence, balance):
    found, expected = terms_of(name, confidence=confidence, balance=balance)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", PARTS)
def test_a_higher_confidence_leaves_out_more(name):
    """The tiny teacher's likeliest class has 0.517 to 0.567."""
    values = [float(terms_of(name, confidence=confidence)[0].detach()) for confidence in (0.0, 0.5, 0.54, 0.6)]
    assert values[0] == values[1] > values[2] > values[3] > 0  # what has a label always counts


@pytest.mark.parametrize("confidence", [-0.1, 1.1, float("nan"), True, "0.9"])
@pytest.mark.parametrize("name", PARTS)
def test_what_is_no_probability_is_refused(name, confidence):
    with pytest.raises(InputError, match=r"confidence is .*; it must be a finite number from 0 to 1"):
        PARTS[name][0](tiny_pair(student=(4, 5)), confidence=confidence)
