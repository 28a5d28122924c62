# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gc
import threading
import weakref

import pytest

from pipeline.files.read_ahead import ReadAhead


class Voxels:
    """Something that a weak reference can watch."""


def test_results_come_in_order():
    assert list(ReadAhead(lambda number: number**2, range(5))) == [0, 1, 4, 9, 16]
    assert list(ReadAhead(str, [])) == []


def test_the_next_is_read_while_one_is_worked_on_and_no_more():
    begun = [threading.Event() for _ in range(3)]
    ahead = ReadAhead(lambda number: begun[number].set(), range(3))
    next(ahead)
    assert begun[1].wait(10)
    assert not begun[2].is_set()


def test_the_iteration_goes_on_after_an_error():
    ahead = ReadAhead(lambda number: 6 // number, [1, 0, 2])
    assert next(ahead) == 6
    with pytest.raises(ZeroDivisionError):
        next(ahead)
    assert list(ahead) == [3]


def test_a_result_that_is_let_go_leaves_memory():
    ahead = ReadAhead(lambda _: Voxels(), range(3))
    watched = weakref.ref(next(ahead))
    gc.collect()
    assert watched() is None
