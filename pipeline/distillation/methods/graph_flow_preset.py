# SPDX-License-Identifier: Apache-2.0
"""Graph Flow whole: its graph terms, knowledge distillation and the adversary, with presets of all settings.

What the graph terms add to `kd` depends on the student (preset `bounded`, 64 x 64; CHAOS MR: Dice of five folds; a
tenth of EBHI-Seg: mean IoU of three seeds). ERFNet gains: 0.697 where kd has 0.689, and 0.652 where kd has 0.570 (in a
second grid 0.654 and 0.610; kd and edges alone 0.654). ENet doesn't: 0.708 where kd has 0.707 (two seeds), and 0.706
where kd has 0.720. At a better learning rate ENet loses by graph_flow, in one seed of three: 0.712 where it has 0.721
alone and 0.730 with kd; Mobile U-Net has 0.735, 0.732 and 0.740. kd and `review`, which need no paraphraser, gave
ERFNet 0.703 and 0.651, ENet 0.730 and 0.740 in later grids; they are the default of distill.yaml. With all labels of
EBHI-Seg, ERFNet had 0.768 (kd 0.760; ahead in two of three seeds) and ENet 0.780 (kd 0.783). Mobile U-Net lost a little
on CHAOS MR, 0.783 where it has 0.788 alone, and with all labels of EBHI-Seg, 0.765 where it has 0.769; both are within
chance. With these weights, the gradients of vertices and edges are 0.11 and 0.13 of the segmentation loss's on CHAOS
MR, 0.18 and 0.19 on EBHI-Seg (medians over students and steps).

The preset `paper`, without discriminator, loses: ENet has a mean IoU of 0.679 with it on a tenth of EBHI-Seg, where it
has 0.698 alone. The difference of -0.020 is beyond chance (-0.027 to -0.013; three seeds). At a better learning rate it
has 0.714, alone 0.721. With all labels it lost too: 0.765, alone 0.774. On CHAOS MR it has 0.660, alone 0.700 (two
seeds; beyond chance).

Five earlier runs, in the training loop and on the patients that `kd.py` names, had shown no gain for ENet and Mobile
U-Net. ENet had 0.764 and 0.760 with kd (two seeds). With centred graph terms, each held at a share of 0.1, it had 0.756
to 0.758, with windows at the maxima of either network and with or without adapters. Mobile U-Net had 0.865 with kd, and
0.852 with graph terms at a share of 0.3. In ERFNet on a tenth of EBHI-Seg (two seeds), shares of 0.03 and 0.3, a start
in the middle and a ramp were worse in validation than these weights from the first step on. Long runs were not tried.
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
