# SPDX-License-Identifier: Apache-2.0
"""What a benchmark config says of its amounts of labels, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.errors import InputError
from pipeline.grid.arms import check_names

LABELLED = ("labelled_fraction", "labelled_cases", "labelled_patients", "labelled_seed")


def check_labels(labels: Mapping[str, Mapping[str, Any]], training: Mapping[str, Any]) -> None:
    """Refuse (`InputError`) amounts of labels that would not be comparable.

    Args:
        labels: name of an amount to the options that hide the others, which must be some of `LABELLED`.
        training: options of every training. Without `epoch_iterations` an epoch is a pass over the labelled images, so
            that more labels would mean more steps too.
    """
    check_names("labels", list(labels))
    for name, options in labels.items():
        if not isinstance(options, Mapping) or not set(options) <= set(LABELLED):
            raise InputError(
                f"{name}, of the labels of the benchmark, is {options}; give some of {', '.join(LABELLED)}, or {{}}, "
                "which hides none"
            )
    if training.get("epoch_iterations") is None:
        raise InputError(
            "the benchmark compares amounts of labels, but its training has no epoch_iterations, so more labels would "
            "mean more steps: give --training::epoch_iterations 40, or another number"
        )
