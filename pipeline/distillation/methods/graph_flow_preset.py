# SPDX-License-Identifier: Apache-2.0
"""Graph Flow whole: its graph terms, knowledge distillation and the adversary, with presets of all settings.

What the graph terms add to `kd` depends on the student (preset `bounded`, 64 x 64). ERFNet gains: a mean IoU of 0.654
on a tenth of EBHI-Seg (kd 0.610, better control 0.605; three seeds), 0.768 with all its labels (kd 0.760, better
control 0.709; ahead of kd in two of three seeds), and a Dice of 0.697 on CHAOS MR (kd 0.689, alone 0.681; one seed). On
the tenth it is the edges that do it. ENet and Mobile U-Net gain nothing beyond kd. On the tenth ENet loses, in one seed
of three: 0.712 where it has 0.721 alone and 0.730 with kd; Mobile U-Net has 0.735 (alone 0.732, kd 0.740). On CHAOS MR
ENet has 0.703 (alone 0.700, kd 0.701; two seeds) and Mobile U-Net 0.783 (alone 0.788, kd 0.783; one seed). So kd and
`review`, which need no paraphraser and do as much for ERFNet, are the default of distill.yaml.

With these weights, the gradients of vertices and edges are 0.11 and 0.13 of the segmentation loss's on CHAOS MR, 0.18
and 0.19 on EBHI-Seg (medians over students and steps). In ERFNet on a tenth of EBHI-Seg (two seeds), shares of 0.03 and
0.3, a start in the middle and a ramp were worse in validation than these weights from the first step on.

The preset `paper`, without discriminator, loses in ENet, beyond chance: a mean IoU of 0.714 on a tenth of EBHI-Seg
(alone 0.721), 0.765 with all labels (alone 0.774), and a Dice of 0.660 on CHAOS MR (alone 0.700). See docs/results.md
and docs/experiments.md.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipeline.distillation.adapters import identity_adapter
from pipeline.distillation.method import DistillationMethod, NetworkPair
from pipeline.distillation.methods.adversary import build_adversary
from pipeline.distillation.methods.graph_flow import GraphFlow, GraphFlowLoss
from pipeline.distillation.methods.kd import BALANCE, TEMPERATURE, KnowledgeDistillation
from pipeline.distillation.paraphrased import check_paraphrasers
from pipeline.errors import InputError


@dataclass(frozen=True)
class GraphFlowPreset:
    """How variation graphs are compared, and the weight of each term beside the cross-entropy, whose weight is 1.

    The pull of the adversary's weight depends on the image size and grows in training, see `adversary.py`. So
    `adversarial` may also be a share of the gradient, `{"share": 0.1}`.
    """

    edge: str
    reduction: str
    node_norm: str
    vertices: float
    edges: float
    adversarial: float | Mapping[str, float]
    kd: float
    patch: int = 3
    temperature: float = TEMPERATURE
    balance: float = BALANCE
    confidence: float = 0.0
    adversarial_kind: str = "wgan-gp"
    centred: bool = False
    adapter: bool = False


PRESETS = {
    # Best row of the published ablation: (lambda_1 .. lambda_4) = (1e-5, 1e-9, 0.1, 1) on plain sums of dot products.
    # The authors' logits term is a plain mean over pixels; its temperature is unknown: 1, as in related code.
    "paper": GraphFlowPreset(
        "dot", "sum", "none", vertices=1e-5, edges=1e-9, adversarial=0.1, kd=1.0, temperature=1.0, balance=0.0
    ),
    # The same idea free of batch size, channels, patch and scale of the activations. It leaves the discriminator out,
    # which takes two thirds of a step's time.
    "bounded": GraphFlowPreset(
        "cosine", "mean", "bounded", vertices=4.0, edges=3.0, adversarial=0.0, kd=1.0, centred=True, adapter=True
    ),
}


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


def build_graph_flow(pair: NetworkPair, *, preset: str = "bounded", **settings: Any) -> dict[str, DistillationMethod]:
    """Return the methods that make up Graph Flow by name; `settings` are fields of `GraphFlowPreset` to change.

    Raises:
        InputError: an unknown preset or setting, paraphrasers that are missing or belong to other networks, images too
            small for the discriminator.
    """
    chosen = graph_flow_preset(preset, settings)
    check_paraphrasers("graph_flow", pair)
    loss = GraphFlowLoss(chosen.patch, chosen.edge, chosen.reduction, chosen.node_norm, chosen.centred)
    adapters = tuple(identity_adapter(c, pair.spatial_dims) for c in pair.student_channels) if chosen.adapter else None
    methods: dict[str, DistillationMethod] = {}
    if chosen.kd != 0:
        methods["kd"] = KnowledgeDistillation(
            pair,
            weight=chosen.kd,
            temperature=chosen.temperature,
            balance=chosen.balance,
            confidence=chosen.confidence,
        )
    methods["graph_flow"] = GraphFlow(loss, pair.paraphrasers, chosen.vertices, chosen.edges, adapters)
    if chosen.adversarial != 0:  # a discriminator of weight 0 would only cost time
        methods["adversary"] = build_adversary(
            "graph_flow", "adversarial", pair, chosen.adversarial, chosen.adversarial_kind
        )
    return methods
