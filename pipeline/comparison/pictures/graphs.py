# SPDX-License-Identifier: Apache-2.0
"""The graphs that Graph Flow compares, of teacher and student in one image: places of nodes and changes of edges."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from monai.utils import convert_to_tensor
from scipy.cluster.hierarchy import leaves_list, linkage
from torch import Tensor, nn

from pipeline.comparison.runs import Run, method_label
from pipeline.data import Case, Dataset, preprocessing_of, read_label, read_volume, resize_images
from pipeline.data.dataset.dataset import SLIDES
from pipeline.data.scans.axial_view import radiological_view, slice_with_most_organs
from pipeline.data.slides.open import open_slide
from pipeline.distillation import (
    FeatureTaps,
    Graph,
    GraphFlowLoss,
    GraphFlowPreset,
    graph_flow_preset,
    salience_graph,
    variation_graph,
)
from pipeline.errors import InputError
from pipeline.evaluation.masks.files import read_mask
from pipeline.inference import as_loaded
from pipeline.networks import PaddedInferer, SavedModel, load_model
from pipeline.training import load_paraphrasers
from pipeline.training.run_folder import RECORD_FILE

METHOD = "graph_flow"
MOST_CHORDS = 40
_COLUMNS = ("shallow tap: nodes", "deep tap: nodes", "shallow: edges", "deep: edges", "change of edges",
            "largest changes")  # fmt: skip
_CHANGES = "PuOr"


@dataclass(frozen=True)
class GraphView:
    """One network's graphs of one image.

    Attributes:
        name: who it is.
        positions: of the maximum of each channel, shallow and deep, (C, 2) rows and columns as shares of the image.
        shares: side of a salient window as share of the image, (rows, columns), shallow and deep.
        graphs: salience graphs, shallow and deep, of a batch of one.
        variation: the change from the one to the other.
    """

    name: str
    positions: tuple[np.ndarray, np.ndarray]
    shares: tuple[tuple[float, float], tuple[float, float]]
    graphs: tuple[Graph, Graph]
    variation: Graph


def draws_graphs(run: Run) -> bool:
    """Tell whether a run was distilled by Graph Flow, alone or in a mix."""
    return METHOD in (method_label(run.recipe.get("distillation")) or run.method or "")


def graph_figure(dataset: Dataset, case: str, student: Run, teacher: Run) -> tuple[Figure, str] | None:
    """Draw the graphs of a student's run and of its teacher, with the settings of the run; returns a remark as well.

    Networks are in evaluation mode. The teacher's taps pass its paraphrasers where the run's folder or its recorded
    command leads to them, as they did in training; otherwise they are taken as they are, and the remark says so.
    Returns None for 3D networks: their windows are cubes, which a picture of a slice cannot show.

    Raises `InputError` for a case that the dataset lacks, and for files that cannot be read.
    """
    models = [load_model(run.checkpoint) for run in (teacher, student)]
    if any(getattr(model.network, "spatial_dims", 2) != 2 for model in models):
        return None
    scored = _case(dataset, case)
    images = [network_input(dataset, scored, model) for model in models]
    teacher_taps, student_taps = (taps_of(model, image) for model, image in zip(models, images, strict=True))
    preset = _preset(student.recipe)
    loss = GraphFlowLoss(preset.patch, preset.edge, preset.reduction, preset.node_norm)
    paraphrasers = find_paraphrasers(student, models[0].sha256)
    if paraphrasers is not None:
        with torch.no_grad():
            teacher_taps = tuple(p.encode(tap) for p, tap in zip(paraphrasers, teacher_taps, strict=True))
    name = "teacher, paraphrased" if paraphrasers is not None else "teacher"
    views = [graph_view(name, teacher_taps, loss), graph_view("student", student_taps, loss)]
    remark = _remark(loss, student_taps, teacher_taps, paraphrasers is not None)
    if preset.adapter:
        remark += " The student's taps are shown before the adapters, which trained beside it and are not in model.pt."
    return draw_graphs(views, images[1], loss, flipped=dataset.kind != SLIDES), remark


def taps_of(model: SavedModel, image: Tensor) -> tuple[Tensor, ...]:
    """Return the shallow and the deep feature map (1, C, h, w) of an image (1, C, H, W) in evaluation mode."""
    taps = FeatureTaps(model.network, model.network.taps)
    try:
        with torch.inference_mode():
            PaddedInferer()(image, model.network)
        return tuple(tap.float().clone() for tap in taps.take())
    finally:
        taps.remove()


def graph_view(name: str, taps: Sequence[Tensor], loss: GraphFlowLoss) -> GraphView:
    """Return the graphs of a shallow and a deep feature map (1, C, h, w) as `loss` builds them."""
    graphs = tuple(salience_graph(tap, loss.patch, loss.edge, loss.node_norm) for tap in taps)
    positions, shares = [], []
    for tap in taps:
        height, width = tap.shape[-2:]
        place = tap[0].flatten(1).argmax(dim=1).numpy()
        positions.append(np.stack([(place // width + 0.5) / height, (place % width + 0.5) / width], axis=1))
        shares.append((loss.patch / height, loss.patch / width))
    return GraphView(name, tuple(positions), tuple(shares), graphs, variation_graph(*graphs))


def network_input(dataset: Dataset, case: Case, model: SavedModel) -> Tensor:
    """Return the image that a picture of graphs is about, (1, C, size, size) in [0, 1] as the network sees it.

    For a scan it is the slice with most labelled pixels, for a slide the tile with most in a grid from the top left.
    """
    preprocessing = preprocessing_of(model.preprocessing)
    if dataset.kind == SLIDES:
        image = preprocessing.of_image(_tile(dataset, case, model))
    else:
        volume = read_volume(case.image)
        label = read_label(case.label, like=volume, labels=dataset.labels)
        prepared = preprocessing({"image": as_loaded(volume), "label": as_loaded(label)})
        image = prepared["image"][..., slice_with_most_organs(prepared["label"][0].numpy())]
    return resize_images(convert_to_tensor(image, track_meta=False)[None], (model.size, model.size))


def _tile(dataset: Dataset, case: Case, model: SavedModel) -> Tensor:
    side = model.tile_px or dataset.tile_px
    with open_slide(case.image) as slide:
        label = read_mask(case.label, dataset.labels, (slide.height, slide.width))
        places = [(top, left) for top in range(0, max(1, slide.height - side + 1), side)
                  for left in range(0, max(1, slide.width - side + 1), side)]  # fmt: skip
        top, left = max(places, key=lambda p: np.count_nonzero(label[p[0] : p[0] + side, p[1] : p[1] + side]))
        pixels = slide.read(top, left, min(side, slide.height), min(side, slide.width)).astype(np.float32)
    channels = model.network_arguments["in_channels"]
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    return image if channels == len(image) else image.mean(dim=0, keepdim=True)


def find_paraphrasers(student: Run, teacher_sha256: str) -> tuple[nn.Module, nn.Module] | None:
    """Return the paraphrasers of a run: paraphraser.pt in its folder or the file its command named, None without.

    A file that is no longer there, or is of another teacher, counts as none.
    """
    in_grid = sorted(student.path.parent.glob("*paraphraser*/paraphraser.pt"))  # a grid has them beside its runs
    for path in [student.path / "paraphraser.pt", *_named_paraphraser(student.path / RECORD_FILE), *in_grid]:
        if path.is_file():
            try:
                return load_paraphrasers(path, teacher_sha256)
            except InputError:  # the file that trained this run has been replaced since; the remark says "none"
                continue
    return None


def _named_paraphraser(record: Path) -> list[Path]:
    words = shlex.split(str(json.loads(record.read_text(encoding="utf-8")).get("command", "")))
    return [Path(after) for word, after in pairwise(words) if word == "--paraphraser"]


def _preset(recipe: Mapping[str, Any]) -> GraphFlowPreset:
    """Return how a run compared graphs."""
    distillation: Mapping[str, Any] = recipe.get("distillation") or {}
    settings = dict(distillation.get("settings") or {})
    preset = distillation.get("preset") or "bounded"
    part = (distillation.get("methods") or distillation.get("terms") or {}).get(METHOD)
    if isinstance(part, Mapping):
        preset = part.get("preset", preset)
        settings = dict(part)
    known = {field.name for field in fields(GraphFlowPreset)}
    return graph_flow_preset(preset, {key: value for key, value in settings.items() if key in known})


def _remark(loss: GraphFlowLoss, student: Sequence[Tensor], teacher: Sequence[Tensor], paraphrased: bool) -> str:
    edges = "cosines" if loss.edge == "cosine" else "dot products"
    text = f"Windows are {loss.patch} x {loss.patch}, edges are {edges}."
    if not paraphrased:
        text += " The teacher's taps are shown as they are: its paraphrasers were not found."
    if [tap.shape[1] for tap in student] != [tap.shape[1] for tap in teacher]:
        return f"{text} They have other channels than the student's, so nodes do not correspond."
    vertices, edge_loss = (float(term) for term in loss(tuple(student), tuple(teacher)))
    return f"{text} In this image the vertices term is {vertices:.3g} and the edges term {edge_loss:.3g}."


def _case(dataset: Dataset, name: str) -> Case:
    for case in dataset.test:
        if case.case == name and case.label is not None:
            return case
    raise InputError(f"dataset '{dataset.name}' has no labelled test case {name}; give the one of the runs' reports")


def draw_graphs(views: Sequence[GraphView], image: Tensor, loss: GraphFlowLoss, flipped: bool) -> Figure:
    """Draw a row for each network: nodes over the image, the edges of both taps, their change as matrix and as chords.

    Channels are in the order of a clustering of the first network's deep edges, in every row with as many channels.

    Args:
        views: the graphs of each network, a row each.
        image: (1, C, size, size) in [0, 1], from `network_input`.
        loss: tells whether edges are cosines, for the range of colours.
        flipped: turn slices of scans to the view of radiologists.
    """
    figure = Figure(figsize=(2.05 * len(_COLUMNS), 2.3 * len(views) + 0.5), layout="constrained")
    axes = figure.subplots(len(views), len(_COLUMNS), squeeze=False)
    order = channel_order(views[0].graphs[1].edges[0].numpy())
    for row, view in zip(axes, views, strict=True):
        count = view.variation.edges.shape[1]
        own = order if count == len(order) else channel_order(view.graphs[1].edges[0].numpy())
        for axis, positions, shares in zip(row[:2], view.positions, view.shares, strict=True):
            _draw_nodes(axis, image, positions, shares, flipped)
        edges = [graph.edges[0].numpy()[np.ix_(own, own)] for graph in (*view.graphs, view.variation)]
        limits = [1.0, 1.0, 1.0] if loss.edge == "cosine" else [_limit(edges[0]), _limit(edges[1]), _limit(edges[2])]
        for axis, matrix, limit in zip(row[2:5], edges, limits, strict=True):
            drawn = axis.imshow(matrix, cmap=_CHANGES, vmin=-limit, vmax=limit, interpolation="nearest")
            _hide_frame(axis)
            bar = figure.colorbar(drawn, ax=axis, location="bottom", shrink=0.8, pad=0.02, ticks=[-limit, 0, limit])
            bar.ax.set_xticklabels([f"{tick:.2g}" for tick in (-limit, 0, limit)], fontsize=7)
        sizes = view.variation.vertices[0].norm(dim=1).numpy()[own]
        _draw_chords(row[5], edges[2], sizes)
        row[0].set_ylabel(f"{view.name}\n{count} nodes", fontsize=8.5)
    for axis, title in zip(axes[0], _COLUMNS, strict=True):
        axis.set_title(title, fontsize=8.5)
    return figure


def _limit(matrix: np.ndarray) -> float:
    return float(np.abs(matrix).max()) or 1.0


def channel_order(edges: np.ndarray) -> np.ndarray:
    """Return the channels (C,) in an order that puts similar rows of `edges` (C, C) together (average linkage)."""
    return leaves_list(linkage(edges, "average")) if len(edges) > 2 else np.arange(len(edges))


def _draw_nodes(axis: Axes, image: Tensor, positions: np.ndarray, shares: tuple[float, float], flipped: bool) -> None:
    """Draw the image in grey and, over it, how many channels have their salient window at each place."""
    grey = image[0].mean(dim=0).numpy()
    counts = window_counts(grey.shape, positions, shares)
    grey, counts = (radiological_view(grey), radiological_view(counts)) if flipped else (grey, counts)
    axis.imshow(grey, cmap="gray", vmin=0, vmax=1.6)
    axis.imshow(np.ma.masked_equal(counts, 0), cmap="plasma", alpha=0.85, vmin=0, interpolation="nearest")
    _hide_frame(axis)
    axis.set_xlabel(f"1 to {counts.max()} channels a place", fontsize=7)


def _hide_frame(axis: Axes) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)


def window_counts(shape: tuple[int, int], positions: np.ndarray, shares: tuple[float, float]) -> np.ndarray:
    """Return how many salient windows cover each pixel of an image: (H, W) int.

    Args:
        shape: H and W.
        positions: (C, 2) centres of the windows as shares of the image, rows and columns.
        shares: side of a window as share of the image, in rows and columns.
    """
    counts = np.zeros(shape, int)
    for centre in positions:
        low = [round((c - share / 2) * length) for c, share, length in zip(centre, shares, shape, strict=True)]
        high = [round((c + share / 2) * length) for c, share, length in zip(centre, shares, shape, strict=True)]
        counts[max(low[0], 0) : high[0], max(low[1], 0) : high[1]] += 1
    return counts


def _draw_chords(axis: Axes, change: np.ndarray, sizes: np.ndarray) -> None:
    """Draw channels on a circle, as large as their change, and the edges that change most: solid up, dashed down."""
    count = len(change)
    angles = 2 * np.pi * np.arange(count) / count
    places = np.stack([np.sin(angles), np.cos(angles)], axis=1)
    first, second = np.triu_indices(count, 1)
    strongest = np.argsort(-np.abs(change[first, second]), kind="stable")[:MOST_CHORDS]
    for i, j in zip(first[strongest], second[strongest], strict=True):
        grew = change[i, j] > 0
        colour, line = ("#542788", "-") if grew else ("#B35806", (0, (3, 1.5)))
        axis.plot(*places[[i, j]].T, color=colour, linestyle=line, linewidth=0.8, alpha=0.8, zorder=1)
    axis.scatter(*places.T, s=3 + 22 * sizes / (sizes.max() or 1), color="#333333", zorder=2)
    axis.set(aspect="equal", xlim=(-1.15, 1.15), ylim=(-1.15, 1.15))
    axis.set_axis_off()
