# SPDX-License-Identifier: Apache-2.0
"""Images a second and peak memory of each network, in inference and in training alone, with kd and with Graph Flow.

The teacher of the distillations is a FANet. It has random weights, for time and memory don't depend on them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from pipeline.distillation import Distiller, build_distiller
from pipeline.networks import Paraphraser, build_network
from pipeline.training import segmentation_loss
from pipeline.training.trainer import autocast_dtype

TEACHER = "fanet"


def images_per_second(work: Callable[[], object], batch: int, device: torch.device, seconds: float) -> float:
    """Return the images of `work`, one batch a call, done in a second, after three calls that warm up."""
    for _ in range(3):
        work()
    done, start = 0, _now(device)
    while _now(device) - start < seconds:
        for _ in range(5):
            work()
        done += 5
    return done * batch / (_now(device) - start)


def inference(network: nn.Module, images: torch.Tensor, dtype: torch.dtype | None) -> Callable[[], object]:
    """Return one forward pass without gradients."""
    network.eval()

    def work() -> object:
        with torch.inference_mode(), torch.autocast(images.device.type, dtype, enabled=dtype is not None):
            return network(images)

    return work


def training(
    network: nn.Module,
    distiller: Distiller | None,
    images: torch.Tensor,
    labels: torch.Tensor,
    dtype: torch.dtype | None,
) -> Callable[[], object]:
    """Return one step of training, with the default weights of a method if a distiller is given."""
    network.train()
    loss = segmentation_loss("ce")
    adapters = [] if distiller is None else distiller.adapter_parameters()
    optimizer = torch.optim.Adam([*network.parameters(), *adapters])

    def work() -> None:
        optimizer.zero_grad()
        with torch.autocast(images.device.type, dtype, enabled=dtype is not None):
            logits = network(images)
            terms = {} if distiller is None else distiller(images, labels, logits)
        total = loss(logits.float(), labels) + (0 if distiller is None else distiller.total(terms))
        total.backward()
        optimizer.step()
        if distiller is not None:
            distiller.after_step()

    return work


def distiller_of(method: str, teacher: nn.Module, student: nn.Module, classes: int) -> Distiller:
    """Return a method of distillation with its defaults; the paraphrasers of Graph Flow are untrained."""
    channels = zip(teacher.tap_channels, student.tap_channels, strict=True)
    paraphrasers = tuple(Paraphraser(*pair) for pair in channels) if method == "graph_flow" else None
    return build_distiller(method, teacher, student, classes, 1000, paraphrasers)


def measure(name: str, kind: str, options: argparse.Namespace) -> tuple[float, float]:
    """Return images a second and peak GPU memory in GB (NaN on a CPU) of a network in one kind of work."""
    device, dtype = torch.device(options.device), autocast_dtype(options.precision, options.device)
    torch.manual_seed(0)
    images = torch.rand(options.batch, options.in_channels, options.size, options.size, device=device)
    labels = torch.randint(options.classes, (options.batch, 1, options.size, options.size), device=device)
    channels = {"in_channels": options.in_channels, "out_channels": options.classes}
    width = {"width": options.width} if name == TEACHER else {}
    network = build_network(name, **channels, **width).to(device)
    if kind == "inference":
        work = inference(network, images, dtype)
    else:
        distiller = None
        if kind != "alone":
            teacher = build_network(TEACHER, **channels, width=options.width).to(device)
            distiller = distiller_of(kind, teacher, network, options.classes).to(device).train()
        work = training(network, distiller, images, labels, dtype)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    speed = images_per_second(work, options.batch, device, options.seconds)
    return speed, torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else float("nan")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each network and kind of work."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--width", type=float, default=1.0, help="of the FANet teacher")
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--in_channels", type=int, default=3)
    parser.add_argument("--classes", type=int, default=2)
    parser.add_argument("--precision", default="bfloat16", help="float32, bfloat16 or float16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    options = parser.parse_args(arguments)
    where = torch.cuda.get_device_name(options.device) if options.device.startswith("cuda") else "CPU"
    print(f"{where}, {options.size} x {options.size}, batch {options.batch}, {options.precision}")
    print(f"{'network':<12} {'work':<22} {'images/s':>9} {'peak GB':>8}")
    for name in (TEACHER, "mobile_unet", "enet", "erfnet"):
        for kind in ("inference", "alone") if name == TEACHER else ("inference", "alone", "kd", "graph_flow"):
            speed, peak = measure(name, kind, options)
            print(f"{name:<12} {kind:<22} {speed:9.1f} {peak:8.2f}", flush=True)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    main()
