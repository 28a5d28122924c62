# SPDX-License-Identifier: Apache-2.0
"""Whether bfloat16 saves time on this processor."""

from __future__ import annotations

import os

import torch

from pipeline.errors import InputError

EMULATE = "GRAPHFLOW_EMULATE_BFLOAT16"


def has_bfloat16() -> bool:
    """Tell whether the CPU has instructions for bfloat16."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def check_bfloat16(device: str | torch.device) -> None:
    """Refuse bfloat16 on a CPU that only emulates it, at two to eight times the time of float32.

    Raises `InputError`, unless the environment variable `GRAPHFLOW_EMULATE_BFLOAT16` is 1.
    """
    if torch.device(device).type == "cpu" and os.environ.get(EMULATE) != "1" and not has_bfloat16():
        raise InputError(
            "this processor only emulates bfloat16, several times slower than float32; leave out --precision bfloat16, "
            f"or set {EMULATE}=1 to have it all the same"
        )
