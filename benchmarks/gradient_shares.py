# SPDX-License-Identifier: Apache-2.0
"""How strongly each method's default weights pull at a student: gradients as shares of the segmentation loss's.

Each student trains alone, by its labels. At some of its steps every method is measured on it as it then is, on the same
few batches: adapters have first had some steps on the frozen student, while discriminators and peers are untrained.
By default everything is drawn and trained on the spot; --dataset and --teacher measure on data of your own.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from monai.bundle import ConfigParser
from torch import nn

from data_prep.phantom_ct import make
from pipeline.data import load_dataset
from pipeline.distillation import METHODS, Distiller, build_distiller
from pipeline.distillation.build import build_method
from pipeline.distillation.gradient_shares import gradient_shares
from pipeline.distillation.method import NetworkPair
from pipeline.errors import InputError
from pipeline.networks import Paraphraser, build_network, load_model
from pipeline.training import ReconstructionLoss, TeacherReconstruction, segmentation_loss

BUNDLES = {"scans": "bundles/synapse/configs/train.yaml", "slides": "bundles/gastric/configs/train.yaml"}
TEACHER = {"name": "monai.networks.nets.UNet", "channels": (16, 32, 64, 128), "strides": (2, 2, 2), "num_res_units": 2}
BATCH, LEARNING_RATE, MEASURED_BATCHES, ADAPTER_STEPS = 8, 3e-3, 3, 20
Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Material:
    """What all measurements share.

    Attributes:
        batches: augmented (images, labels), (B, C, S, S) and (B, 1, S, S), in a fixed order.
        in_channels: C.
        out_channels: number of classes.
        loss: the segmentation loss.
    """

    batches: Sequence[Batch]
    in_channels: int
    out_channels: int
    loss: nn.Module

    def endless(self) -> Iterator[Batch]:
        """Yield the batches again and again."""
        while True:
            yield from self.batches


def read_material(folder: str, size: int, loss: str, count: int) -> Material:
    """Return `count` batches of a dataset's training split, read and augmented as its bundle does it."""
    parser = ConfigParser()
    parser.read_config(BUNDLES[load_dataset(folder).kind])
    parser.update({"dataset_dir": str(folder), "size": size})
    parser.get_parsed_content("imports")
    dataset, slices = (parser.get_parsed_content(name) for name in ("dataset_folder", "train::dataset"))
    augmentation, random = parser.get_parsed_content("slice_augmentation"), torch.Generator().manual_seed(0)
    batches = []
    while len(batches) < count:
        for chosen in torch.randperm(len(slices), generator=random).split(BATCH):
            batches.append(augmentation(*slices.batch(chosen).values()))
    return Material(batches[:count], dataset.in_channels, dataset.out_channels, segmentation_loss(loss))


def train(network: nn.Module, material: Material, steps: Sequence[int]) -> Iterator[nn.Module]:
    """Train by the labels alone; yield a copy of the network at each of the steps."""
    optimizer, batches, done = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE), material.endless(), 0
    for step in sorted(steps):
        for images, labels in islice(batches, step - done):
            optimizer.zero_grad()
            material.loss(network.train()(images), labels).backward()
            optimizer.step()
        done = step
        yield copy.deepcopy(network)


def train_paraphrasers(
    teacher: nn.Module, channels: Sequence[int], material: Material, steps: int
) -> tuple[Paraphraser, Paraphraser]:
    """Return paraphrasers of the teacher's taps after so many steps."""
    network, loss = TeacherReconstruction(copy.deepcopy(teacher), channels), ReconstructionLoss()
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    for images, labels in islice(material.endless(), steps):
        optimizer.zero_grad()
        loss(network(images), labels).backward()
        optimizer.step()
    return tuple(network.paraphrasers.eval())


def fitting(
    methods: Sequence[str],
    teacher: nn.Module,
    student: nn.Module,
    paraphrasers: tuple[nn.Module, nn.Module],
    material: Material,
) -> list[str]:
    """Return the methods that take these networks and classes; print why the others do not, as logit_std of two."""
    taps, size = (tuple(teacher.tap_channels), tuple(student.tap_channels)), material.batches[0][0].shape[-1]
    pair, found = NetworkPair(teacher, student, *taps, material.out_channels, paraphrasers=paraphrasers, size=size), []
    for method in methods:
        try:
            build_method(method, pair)
        except InputError as refusal:
            print(f"left out: {refusal}")
        else:
            found.append(method)
    return found


def train_adapters(distiller: Distiller, student: nn.Module, material: Material) -> None:
    """Let the adapters of all methods learn on the frozen student."""
    adapted = {name: method for name, method in distiller.methods.items() if method.adapter_parameters()}
    if not adapted:
        return
    alone = Distiller(distiller.teacher, student, adapted).train()
    optimizer = torch.optim.Adam(alone.adapter_parameters(), lr=LEARNING_RATE)
    for images, labels in islice(material.endless(), MEASURED_BATCHES, MEASURED_BATCHES + ADAPTER_STEPS):
        with torch.no_grad():
            logits = student(images)
        optimizer.zero_grad()
        alone.total(alone(images, labels, logits)).backward()
        optimizer.step()


def shares_of(
    methods: Sequence[str],
    teacher: nn.Module,
    student: nn.Module,
    paraphrasers: tuple[nn.Module, nn.Module],
    material: Material,
) -> dict[tuple[str, str], tuple[float, float]]:
    """Return weight and mean share of the gradient of each (method, term), all with their defaults, on a student.

    All methods are built at once, so that they share its passes: none sees another.
    """
    torch.manual_seed(0)
    teacher, student = copy.deepcopy(teacher), copy.deepcopy(student).train()
    every, size = dict.fromkeys(methods, 1.0), material.batches[0][0].shape[-1]
    distiller = build_distiller(
        "", teacher, student, material.out_channels, 1000, paraphrasers, size=size, methods=every
    ).train()
    train_adapters(distiller, student, material)
    found: dict[str, list[float]] = {}
    for images, labels in material.batches[:MEASURED_BATCHES]:
        logits = student(images)
        terms = distiller.weighted(distiller(images, labels, logits))
        parameters = list(student.parameters())
        for term, share in gradient_shares(terms, material.loss(logits, labels), parameters).items():
            found.setdefault(term, []).append(float(share))
    owners = {term: distiller.groups[part] for part, method in distiller.methods.items() for term in method.weights}
    return {(owners[term], term): (distiller.weights[term], statistics.mean(shares)) for term, shares in found.items()}


def print_table(measured: Mapping[str, Sequence[Mapping[tuple[str, str], tuple[float, float]]]]) -> None:
    """Print a line for each term of each method.

    Args:
        measured: for each student and step, what `shares_of` returns.
    """
    print(f"{'method':<12} {'term':<18} {'weight':>8}" + "".join(f" {name:>26}" for name in measured) + "   median")
    for (method, term), (weight, _) in next(iter(measured.values()))[0].items():
        shares = {student: [step[method, term][1] for step in steps] for student, steps in measured.items()}
        cells = "".join(f" {' '.join(f'{share:8.2g}' for share in found):>26}" for found in shares.values())
        median = statistics.median(share for found in shares.values() for share in found)
        print(f"{method:<12} {term:<18} {weight:8.2g}{cells} {median:8.2g}")


def measure(options: argparse.Namespace, folder: str) -> None:
    """Measure all methods on a dataset folder and print the table."""
    torch.manual_seed(0)
    material = read_material(folder, options.size, options.loss, 100)
    kinds, steps = (material.in_channels, material.out_channels), [int(step) for step in options.steps.split(",")]
    if options.teacher is None:
        (teacher,) = train(build_network(TEACHER, *kinds), material, [options.teacher_steps])
    else:
        teacher = load_model(options.teacher).network
    measured, methods = {}, []
    for name in options.students:
        student = build_network(name, *kinds)
        paraphrasers = train_paraphrasers(teacher, student.tap_channels, material, options.teacher_steps)
        methods = methods or fitting(options.methods, teacher, student, paraphrasers, material)
        measured[name] = [
            shares_of(methods, teacher, snapshot, paraphrasers, material)
            for snapshot in train(student, material, steps)
        ]
    print_table(measured)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print gradient shares of all methods at the students' steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", help="a folder with a dataset.json, by default phantoms that are drawn now")
    parser.add_argument("--teacher", help="model.pt of a teacher's run, by default a small U-Net that is trained now")
    parser.add_argument("--teacher_steps", type=int, default=100, help="of that U-Net and of the paraphrasers")
    parser.add_argument("--students", nargs="+", default=["mobile_unet", "enet", "erfnet"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, metavar="METHOD")
    parser.add_argument("--steps", default="0,100,300", help="steps of the student at which to measure")
    parser.add_argument("--size", type=int, default=64, help="side of the images in pixels")
    parser.add_argument("--loss", default="dice_ce", help="the segmentation loss: ce or dice_ce")
    options = parser.parse_args(arguments)
    print(f"gradients as shares of {options.loss}'s at steps {options.steps}, {options.size} x {options.size} pixels")
    if options.dataset is not None:
        measure(options, options.dataset)
        return
    with tempfile.TemporaryDirectory() as folder:
        make(f"{folder}/phantoms", cases=6, size=options.size, slices=16)
        measure(options, f"{folder}/phantoms")


if __name__ == "__main__":
    main()
