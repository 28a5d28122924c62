# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from pipeline.errors import InputError
from pipeline.inference import backend_of
from pipeline.processes import bfloat16
from pipeline.training.trainer import autocast_dtype


@pytest.fixture
def emulating(monkeypatch):
    monkeypatch.setattr(bfloat16, "has_bfloat16", lambda: False)
    monkeypatch.delenv(bfloat16.EMULATE, raising=False)


def test_a_processor_that_only_emulates_it_says_so(emulating):
    for refused in (lambda: autocast_dtype("bfloat16", "cpu"), lambda: backend_of("auto", "cpu", "bfloat16")):
        with pytest.raises(InputError, match="only emulates bfloat16, several times slower than float32"):
            refused()


def test_it_can_be_had_all_the_same(emulating, monkeypatch):
    monkeypatch.setenv(bfloat16.EMULATE, "1")
    bfloat16.check_bfloat16("cpu")


def test_gpus_and_processors_that_have_it_are_not_asked(emulating, monkeypatch):
    bfloat16.check_bfloat16("cuda")
    monkeypatch.setattr(bfloat16, "has_bfloat16", lambda: True)
    bfloat16.check_bfloat16("cpu")
