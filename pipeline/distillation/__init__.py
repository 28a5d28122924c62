# SPDX-License-Identifier: Apache-2.0
"""Distillation: taps, methods and the distiller that joins them."""

from pipeline.distillation.build import build_distiller
from pipeline.distillation.catalogue import METHODS, needs_paraphrasers, needs_teacher
from pipeline.distillation.distiller import Distiller
from pipeline.distillation.method import DistillationMethod, NetworkPair, Tapped
from pipeline.distillation.methods.adversarial import AdversarialDistillation, discriminator_loss, gradient_penalty
from pipeline.distillation.methods.graph_flow import Graph, GraphFlow, GraphFlowLoss, salience_graph, variation_graph
from pipeline.distillation.methods.graph_flow_preset import (
    PRESETS,
    GraphFlowPreset,
    build_graph_flow,
    graph_flow_preset,
)
from pipeline.distillation.methods.kd import KnowledgeDistillation, KnowledgeDistillationLoss
from pipeline.distillation.schedule import Schedule
from pipeline.distillation.taps import FeatureTaps
from pipeline.distillation.terms import describe_terms

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
    "build_graph_flow",
    "describe_terms",
    "discriminator_loss",
    "gradient_penalty",
    "graph_flow_preset",
    "needs_paraphrasers",
    "needs_teacher",
    "salience_graph",
    "variation_graph",
]
