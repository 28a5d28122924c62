# SPDX-License-Identifier: Apache-2.0
"""Every method of distillation by name: what builds it for a pair of networks, or why it makes no sense here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.distillation.graph_flow_preset import build_graph_flow
from pipeline.distillation.logits import LogitsDistillation
from pipeline.distillation.method import Pair


def _kd(pair: Pair, *, weight: float = 1.0, temperature: float = 4.0) -> LogitsDistillation:
    return LogitsDistillation(weight, temperature)


# A builder takes a `Pair`, then settings as keywords, which users may give: most are the method's class itself.
METHODS: dict[str, Callable[..., Any]] = {
    "graph_flow": build_graph_flow,
    "kd": _kd,
}
UNSUITED: dict[str, str] = {}
