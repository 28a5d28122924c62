# SPDX-License-Identifier: Apache-2.0
"""Methods of distillation by the names that users type, and the presets of Graph Flow."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from pipeline.distillation.adversarial import AdversarialDistillation
from pipeline.distillation.distiller import Distiller
from pipeline.distillation.graph_flow import GraphFlow, GraphFlowLoss
from pipeline.distillation.logits import LogitsDistillation
from pipeline.distillation.method import DistillationMethod
from pipeline.errors import InputError
from pipeline.networks.discriminator import SMALLEST, Discriminator


@dataclass(frozen=True)
class GraphFlowPreset:
    """How variation graphs are compared, and the weight of each term beside the cross-entropy, whose weight is 1."""

    edge: str
    reduction: str
    node_norm: str
    vertices: float
    edges: float
    adversarial: float
    logits: float
    patch: int = 3
    temperature: float = 4.0
    adversarial_kind: str = "wgan-gp"


PRESETS = {
    # Best row of the published ablation: (lambda_1 .. lambda_4) = (1e-5, 1e-9, 0.1, 1) on plain sums of dot products.
    "paper": GraphFlowPreset("dot", "sum", "none", vertices=1e-5, edges=1e-9, adversarial=0.1, logits=1.0),
    # The same idea free of batch size, channel count, patch and activation scale, so that weights of one fit any pair.
    "normalised": GraphFlowPreset("cosine", "mean", "l2", vertices=1.0, edges=1.0, adversarial=0.1, logits=1.0),
}
METHODS = ("graph_flow", "kd")


def graph_flow_preset(name: str, changes: Mapping[str, Any] | None = None) -> GraphFlowPreset:
    """Return a preset by name with single settings changed, for example {"adversarial": 0, "patch": 9}.

    Raises:
        InputError: the preset or a setting is unknown.
    """
    if name not in PRESETS:
        raise InputError(f"unknown graph flow preset '{name}'; choose one of {', '.join(PRESETS)}")
    known = asdict(PRESETS[name])
    for setting in changes or {}:
        if setting not in known:
            near = difflib.get_close_matches(setting, known, n=1, cutoff=0) or list(known)
            raise InputError(f"graph flow has no setting '{setting}'; did you mean '{near[0]}'?")
    return replace(PRESETS[name], **dict(changes or {}))


def build_distiller(
    method: str,
    teacher: nn.Module,
    student: nn.Module,
    out_channels: int,
    total_steps: int,
    paraphrasers: tuple[nn.Module, nn.Module] | None = None,
    preset: str = "normalised",
    settings: Mapping[str, Any] | None = None,
    inferer: Any = None,
    size: int | None = None,
) -> Distiller:
    """Return the distiller for one method.

    Args:
        method: "graph_flow" or "kd" (logits distillation alone).
        teacher: trained network with `taps` and `tap_channels`.
        student: network to train, likewise.
        out_channels: K of both networks.
        total_steps: training steps of the whole run, for schedules.
        paraphrasers: trained (shallow, deep) paraphrasers; needed by graph_flow unless the taps' channels are equal.
        preset: a key of `PRESETS`; `kd` takes its weight and temperature from there too.
        settings: single settings of the preset to change.
        inferer: how a network is run on a batch, for the teacher.
        size: side of the slices, checked against what the discriminator needs.

    Raises:
        InputError: an unknown name, paraphrasers that are missing or belong to other networks, slices too small for
            the discriminator.
    """
    if method not in METHODS:
        near = difflib.get_close_matches(str(method), METHODS, n=1, cutoff=0)[0]
        raise InputError(f"unknown distillation method '{method}'; did you mean '{near}'? Known: {', '.join(METHODS)}")
    chosen = graph_flow_preset(preset, settings)
    methods: dict[str, DistillationMethod] = {"kd": LogitsDistillation(chosen.logits, chosen.temperature)}
    if method == "graph_flow":
        _check_paraphrasers(teacher, student, paraphrasers)
        loss = GraphFlowLoss(chosen.patch, chosen.edge, chosen.reduction, chosen.node_norm)
        methods["graph_flow"] = GraphFlow(loss, paraphrasers, chosen.vertices, chosen.edges)
        if chosen.adversarial != 0:  # a discriminator that nobody listens to would only cost time
            if size is not None and size < SMALLEST:
                raise InputError(
                    f"the discriminator of graph_flow needs slices of {SMALLEST} pixels, the teacher's have {size}: "
                    "pass --settings \"{'adversarial': 0}\" to leave it out, or train a teacher at a larger --size"
                )
            discriminator = Discriminator(out_channels)
            methods["adversary"] = AdversarialDistillation(
                discriminator, total_steps, chosen.adversarial, chosen.adversarial_kind
            )
    return Distiller(teacher, student, methods, inferer=inferer)


def _check_paraphrasers(
    teacher: nn.Module, student: nn.Module, paraphrasers: tuple[nn.Module, nn.Module] | None
) -> None:
    if paraphrasers is None:
        if teacher.tap_channels != student.tap_channels:
            raise InputError(
                f"graph_flow compares taps of {student.tap_channels} channels with the teacher's "
                f"{teacher.tap_channels}: train paraphrasers with the paraphrase config and pass --paraphraser FILE"
            )
        return
    takes = tuple(paraphraser.in_channels for paraphraser in paraphrasers)
    gives = tuple(paraphraser.factor_channels for paraphraser in paraphrasers)
    if takes != tuple(teacher.tap_channels) or gives != tuple(student.tap_channels):
        raise InputError(
            f"the paraphrasers turn {takes} into {gives} channels, but the teacher's taps have {teacher.tap_channels} "
            f"and the student's {student.tap_channels}: train paraphrasers for this pair with the paraphrase config"
        )
