# SPDX-License-Identifier: Apache-2.0
"""Distillation: taps, methods and the distiller that joins them."""

from pipeline.distillation.build import build_distiller
from pipeline.distillation.catalogue import METHODS, needs_paraphrasers
from pipeline.distillation.distiller import Distiller
from pipeline.distillation.method import DistillationMethod, NetworkPair, Tapped
from pipeline.distillation.methods.adversarial import AdversarialDistillation, discriminator_loss, gradient_penalty
from pipeline.distillation.methods.graph_flow import Graph, GraphFlow, GraphFlowLoss, salience_graph, variation_graph
from pipeline.distillation.methods.graph_flow_preset import PRESETS, GraphFlowPreset, graph_flow_preset
from pipeline.distillation.methods.kd import KnowledgeDistillation, KnowledgeDistillationLoss
from pipeline.distillation.schedule import Schedule
from pipeline.distillation.taps import FeatureTaps

__all__ = [
    "METHODS",
    "PRESETS",
    "AdversarialDistillation",
    "DistillationMethod",
    "Distiller",
    "FeatureTaps",
    "Graph",
    "GraphFlow",
    "GraphFlowLoss",
    "GraphFlowPreset",
    "KnowledgeDistillation",
    "KnowledgeDistillationLoss",
    "NetworkPair",
    "Schedule",
    "Tapped",
    "build_distiller",
    "discriminator_loss",
    "gradient_penalty",
    "graph_flow_preset",
    "needs_paraphrasers",
    "salience_graph",
    "variation_graph",
]
