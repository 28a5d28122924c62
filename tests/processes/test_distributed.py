# SPDX-License-Identifier: Apache-2.0
"""Several processes give what one gives: each test compares two or three of them, by gloo, with this very process."""

from __future__ import annotations

import multiprocessing
import os
import sys
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from monai.losses import DiceCELoss
from torch import nn
from torch.utils.data import DataLoader

from pipeline.distillation import METHODS, build_distiller
from pipeline.distillation.build import build_method
from pipeline.distillation.method import NetworkPair, Tapped
from pipeline.distillation.terms import settings_of
from pipeline.errors import InputError
from pipeline.networks import BatchNorm2d, build_network
from pipeline.processes import distributed
from pipeline.processes.global_batch import synchronise_batch_norm
from pipeline.training import (
    DistillationTrainer,
    OptimizerStepSchedule,
    ResumableSampler,
    SharedBatchSampler,
    optimizer_steps,
    segmentation_loss,
    trained_parameters,
)
from pipeline.unlabelled import UNLABELLED

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="needs torch.distributed")
BATCH, CLASSES, STEPS = 6, 3, 10
# One run each: the options of build_distiller. The discriminator is costly, and its hinge loss draws no random numbers.
RUNS: dict[str, dict[str, Any] | None] = {
    "alone": None,
    "graph_flow": {"method": "graph_flow", "settings": {"adversarial": 0.1, "adversarial_kind": "hinge"}},
    "graph_flow_paper": {"method": "graph_flow", "preset": "paper", "settings": {"adversarial": 0}},
    "mix": {"method": "", "methods": {"sp": 1, "ab": 0.1, "crd": 0.1}},
    "dense_mix": {
        "method": "",
        "methods": dict.fromkeys(("dist", "dkd", "logit_std", "bpkd", "prototypes", "review"), 0.1)
        | {"cwd": {"weight": 0.1, "features": 1.0}, "mgd": {"weight": 0.1, "hidden": 0}},  # which hides nothing
    },
    "kd": {"method": "kd", "settings": {"balance": 1}},
    "few_labels": {"method": "kd", "settings": {"confidence": 0.4}},
    "few_labels_by_class": {"method": "", "methods": {"emkd": 0.1, "ifvd": 0.1}},
    "mean_teacher": {"method": "mean_teacher"},
    "shares": {"method": "", "methods": {"kd": {"share": 0.3}, "sp": {"share": 0.1, "start": 0.2}}},
}
# Runs with another segmentation loss than plain cross-entropy.
LOSSES = ("dice_ce", "balanced_ce", "balanced_dice_ce", "few_labels_dice_ce")


class TinyNetwork(nn.Module):
    """Two tapped convolutions; batch normalisation unless told otherwise."""

    taps = ("shallow", "deep")
    size_divisor, fixed_size = 1, False

    def __init__(self, channels: int = 4, norm: bool = True) -> None:
        super().__init__()
        self.tap_channels = (channels, channels)
        # No bias before a normalisation: its gradient is rounding error, which Adam makes steps of.
        self.shallow = nn.Conv2d(1, channels, 3, 2, 1, bias=not norm)
        self.norm = BatchNorm2d(channels) if norm else nn.Identity()
        self.deep, self.head = nn.Conv2d(channels, channels, 3, 1, 1), nn.Conv2d(channels, CLASSES, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.deep(torch.relu(self.norm(self.shallow(images))))
        return nn.functional.interpolate(self.head(features), size=images.shape[-2:])


def images_and_labels(size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the batch (B, 1, size, size) of all processes together; the labels are of unequal sizes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(BATCH, 1, size, size, generator=generator) + torch.arange(BATCH).reshape(-1, 1, 1, 1) / BATCH
    return images, images.clamp(max=1.99).mul(CLASSES / 2).byte()


def mine(batch: torch.Tensor) -> torch.Tensor:
    """Return this process's share, as the sampler gives it."""
    return batch[distributed.rank() :: distributed.world_size()]


def train(
    run: str, accumulation_steps: int = 1, norm: bool = True, loss: str = "ce", batch: int = BATCH, balance: float = 0
) -> tuple[dict, dict]:
    """Return parameters and buffers after ten steps, two to an epoch of twelve images, and the last terms."""
    torch.manual_seed(0)
    network, teacher = TinyNetwork(norm=norm), TinyNetwork(channels=5 if "mix" in run else 4)
    torch.manual_seed(distributed.rank())  # what is drawn later differs, as in the bundles
    images, labels = images_and_labels()
    images, labels = torch.cat([images, images.flip(-1)]), torch.cat([labels, labels.flip(-1)])
    own = {"num_replicas": distributed.world_size(), "rank": distributed.rank(), "seed": 0}
    if run.startswith("few_labels"):  # half of each batch has no label
        batch = len(images)
        labels[batch // 2 :] = UNLABELLED
        sampler = SharedBatchSampler(range(batch), batch // 2, batch, 0.5, iterations=2, **own)
    else:
        sampler = ResumableSampler(range(len(images)), **own, drop_last=True)
    items = [{"image": image, "label": label} for image, label in zip(images, labels, strict=True)]
    loader = DataLoader(items, distributed.share_of(batch), sampler=sampler)
    student = distributed.data_parallel(network, torch.device("cpu"))
    distiller = RUNS[run] and build_distiller(
        teacher=teacher, student=network, out_channels=CLASSES, total_steps=STEPS, **RUNS[run]
    )
    optimizer = torch.optim.Adam(trained_parameters(student, distiller), lr=1e-3)
    epochs = (2 if run == "graph_flow" else STEPS) * accumulation_steps // len(loader)
    schedule = torch.optim.lr_scheduler.PolynomialLR(
        optimizer, optimizer_steps(epochs * len(loader), accumulation_steps), 0.9
    )
    trainer = DistillationTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=loader,
        network=student,
        optimizer=optimizer,
        loss_function=segmentation_loss(loss, balance),
        distiller=distiller,
        accumulation_steps=accumulation_steps,
        log_gradient_shares=3 if run == "shares" else 0,  # the last iteration among them
        train_handlers=[OptimizerStepSchedule(schedule, epoch_level=False, print_lr=False)],
    )
    trainer.run()
    trained = network.state_dict() | (distiller.methods.state_dict() if distiller else {})
    return {name: value.clone() for name, value in trained.items()}, trainer.state.output[0]["terms"]


def train_deep(name: str, **options: Any) -> dict[str, torch.Tensor]:
    """Return the state of a network of the bundles after three steps in double precision.

    In single precision a batch in another order gives other weights to one process already: each normalisation and
    each step of Adam multiplies what rounding left.
    """
    torch.manual_seed(0)
    network = build_network(name, out_channels=CLASSES, **options).double().train()
    for module in network.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0  # each process draws its own
    student = distributed.data_parallel(network, torch.device("cpu"))
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-4)
    images, labels = images_and_labels(32)
    for step in range(3):
        logits = student(mine(images.double()).roll(step, dims=-1))
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits, mine(labels).squeeze(1).long()).backward()
        optimizer.step()
    return network.state_dict()


def normalise(momentum: float | None = 0.1, half: bool = False) -> list[torch.Tensor]:
    """Return output, gradients and running statistics of batch normalisation on this process's share."""
    torch.manual_seed(1)
    norm = BatchNorm2d(3, momentum=momentum)
    norm.weight.data.uniform_()
    values = (torch.randn(BATCH, 3, 5, 4) * torch.arange(1, 1 + BATCH).reshape(-1, 1, 1, 1) + 100).requires_grad_()
    weights = torch.randn(BATCH, 3, 5, 4)
    for _ in range(2):
        share = mine(values.bfloat16() if half else values)
        output = synchronise_batch_norm(norm)(share)
    (output * mine(weights)).sum().backward()
    for parameter in norm.parameters():
        parameter.grad *= distributed.world_size()  # what is averaged was summed
    distributed.average_gradients(norm.parameters())
    return [output.detach(), mine(values.grad), norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var]


def twice_differentiated() -> torch.Tensor:
    torch.manual_seed(1)
    values, norm = torch.randn(BATCH, 2, 3, 3, dtype=torch.float64).requires_grad_(), nn.BatchNorm2d(2).double()
    output = synchronise_batch_norm(norm)(mine(values)).square().sin().sum()
    (gradient,) = torch.autograd.grad(output, values, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), values)
    return mine(second)


def global_batch_dice() -> tuple[torch.Tensor, torch.Tensor]:
    """Return Dice and cross-entropy of the batch, and the gradient of this process's logits as an average takes it."""
    images, labels = images_and_labels(8)
    logits = torch.cat([images, 1 - images, images.square()], 1).requires_grad_()
    loss = segmentation_loss("dice_ce")(mine(logits), mine(labels))
    loss.backward()
    return loss.detach(), mine(logits.grad) / distributed.world_size()


def missing_gradients() -> list[Any]:
    """Return gradients of which one is there on rank 0 alone, and another nowhere."""
    there, half, nowhere = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    there.grad = torch.tensor([1.0, 2.0]) * (1 + distributed.rank())
    if distributed.is_main():
        half.grad = torch.tensor([6.0, 12.0])
    distributed.average_gradients([there, half, nowhere])
    return [parameter.grad for parameter in (there, half, nowhere)]


def begun_alike() -> torch.Tensor:
    torch.manual_seed(distributed.rank())
    module = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 2))
    distributed.synchronise_modules(module)
    return torch.cat([value.flatten() for value in module.state_dict().values()])


def everything() -> dict[str, Any]:
    found: dict[str, Any] = {run: train(run) for run in RUNS}
    return found | {
        "dice_ce": train("alone", loss="dice_ce"),
        "few_labels_dice_ce": train("few_labels", loss="dice_ce"),
        "balanced_ce": train("kd", balance=0.5),
        "balanced_dice_ce": train("alone", loss="dice_ce", balance=1),
        "accumulated": train("graph_flow_paper", accumulation_steps=2, norm=False),
        "mobile_unet": train_deep("mobile_unet"),
        "fanet": train_deep("fanet", width=0.0625),
        "norm": normalise(),
        "cumulative": normalise(momentum=None),
        "half": normalise(half=True),
        "second": twice_differentiated(),
        "dice": global_batch_dice(),
        "missing": missing_gradients(),
        "alike": begun_alike(),
        "mean": distributed.averaged({"a": torch.tensor(float(distributed.rank()))})["a"],
        "largest": distributed.largest(10 + distributed.rank()),
    }


def _process(rank: int, ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(minutes=3))
    try:
        found = everything()
        distributed.wait_for_all()
        torch.save(found, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def several(request, tmp_path_factory) -> list[dict[str, Any]]:
    """Return what each of two, or of three, processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.set_forkserver_preload([__name__])  # imported once for all
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        torch.multiprocessing.start_processes(
            _process, (request.param, str(folder)), nprocs=request.param, start_method="forkserver"
        )
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(request.param)]


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    return everything()


def together(several: list[dict[str, Any]], name: str, index: int) -> torch.Tensor:
    """Return the shares of all processes in the order of one process's batch."""
    return torch.stack([found[name][index] for found in several], dim=1).flatten(0, 1)


@pytest.mark.parametrize("run", [*RUNS, *LOSSES, "accumulated"])
def test_ten_steps_end_with_the_weights_of_one_process(several, one, run):
    for found in several:
        assert found[run][0].keys() == one[run][0].keys()
        for name, expected in one[run][0].items():
            if "discriminator" not in name:  # Adam makes steps of its smallest gradients, which are rounding errors
                torch.testing.assert_close(found[run][0][name], expected, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("network", ["mobile_unet", "fanet"])
def test_deep_networks_end_with_the_weights_and_statistics_of_one_process(several, one, network):
    for found in several:
        torch.testing.assert_close(found[network], one[network], rtol=1e-7, atol=1e-7)


def test_discriminators_stay_alike(several, one):
    first, second = (
        [value for name, value in found["graph_flow"][0].items() if "discriminator" in name] for found in several[:2]
    )
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    expected = [value for name, value in one["graph_flow"][0].items() if "discriminator" in name]
    torch.testing.assert_close(first, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("run", [*RUNS, *LOSSES])
def test_terms_told_are_those_of_one_process(several, one, run):
    for found in several:
        assert found[run][1].keys() == one[run][1].keys()
        for name, expected in one[run][1].items():
            torch.testing.assert_close(found[run][1][name], expected, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(("name", "tolerance"), [("norm", 1e-4), ("cumulative", 1e-4), ("half", 2e-2)])
def test_batch_normalisation_is_that_of_the_global_batch(several, one, name, tolerance):
    for index in (0, 1):
        torch.testing.assert_close(
            together(several, name, index).float(), one[name][index].float(), rtol=tolerance, atol=tolerance
        )
    for found in several:
        torch.testing.assert_close(found[name][2:], one[name][2:], rtol=tolerance, atol=tolerance)


def test_synchronised_statistics_by_hand(several):
    # Two passes of momentum 0.1 over values of mean about 100: 0.19 of it. The unbiased variance is over all images.
    torch.manual_seed(1)
    nn.init.uniform_(torch.empty(3))  # what `normalise` draws before
    values = torch.randn(BATCH, 3, 5, 4) * torch.arange(1, 1 + BATCH).reshape(-1, 1, 1, 1) + 100
    expected = 0.19 * values.transpose(0, 1).flatten(1).var(dim=1) + 0.81
    torch.testing.assert_close(several[0]["norm"][5], expected, rtol=1e-4, atol=1e-4)


def test_batch_normalisation_can_be_differentiated_twice(several, one):
    shares = torch.stack([found["second"] for found in several], dim=1).flatten(0, 1)
    torch.testing.assert_close(shares, one["second"])


def test_batch_wise_dice_is_monais_of_the_global_batch(several):
    images, labels = images_and_labels(8)
    logits = torch.cat([images, 1 - images, images.square()], 1).requires_grad_()
    loss = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)(logits, labels)
    loss.backward()
    for found in several:
        torch.testing.assert_close(found["dice"][0], loss.detach())
    torch.testing.assert_close(together(several, "dice", 1), logits.grad)


def test_gradients_that_some_processes_lack_count_as_zero(several):
    ranks = len(several)
    for found in several:
        there, half, nowhere = found["missing"]
        torch.testing.assert_close(there, torch.tensor([1.0, 2.0]) * (1 + ranks) / 2)
        torch.testing.assert_close(half, torch.tensor([6.0, 12.0]) / ranks)
        assert nowhere is None


def test_small_numbers_are_shared(several):
    for found in several:
        assert found["mean"] == (len(several) - 1) / 2
        assert found["largest"] == 9 + len(several)
        torch.testing.assert_close(found["alike"], several[0]["alike"], rtol=0, atol=0)


def test_two_accumulated_halves_make_the_step_of_the_whole_batch():
    whole, _ = train("graph_flow_paper", norm=False)
    # The paper's terms are sums: half the batch has half of them, and the mean of two halves is half the whole.
    halves, _ = train("alone", accumulation_steps=2, norm=False, batch=BATCH // 2)
    alone, _ = train("alone", norm=False)
    torch.testing.assert_close(halves, alone, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(whole["deep.weight"], alone["deep.weight"])


def test_optimizer_steps_are_iterations_over_accumulation():
    assert optimizer_steps(10, 3) == 3
    with pytest.raises(InputError, match=r"2 iterations and --accumulation_steps is 3.*--epochs"):
        optimizer_steps(2, 3)


@pytest.mark.parametrize("items", range(1, 14))
@pytest.mark.parametrize("ranks", [2, 3])
def test_each_batch_of_several_processes_has_the_slices_of_one(items, ranks):
    def batches(of: int) -> list[list[int]]:
        """Return the global batches, as train.yaml makes them."""
        loaders = []
        for rank in range(of):
            sampler = ResumableSampler(range(items), of, rank, seed=3, drop_last=items >= BATCH)
            loaders.append(DataLoader(range(items), BATCH // of, sampler=sampler, drop_last=items >= BATCH))
        return [torch.stack(parts, 1).flatten().tolist() for parts in zip(*loaders, strict=True)]

    if items >= BATCH:
        assert batches(ranks) == batches(1)
    else:  # one short batch; a slice or two come twice so that all processes have as many
        assert {item for batch in batches(ranks) for item in batch} == set(range(items))


def tapped(network: TinyNetwork, images: torch.Tensor) -> Tapped:
    deep = network.deep(shallow := network.shallow(images))
    return Tapped((shallow, deep), nn.functional.interpolate(network.head(deep), images.shape[-2:]), images)


# Random draws, or a part of the batch: the mean over processes is another draw of the same kind.
DRAWN = {"bss", "lwm", "mgd"}


@pytest.mark.parametrize("name", [name for name in METHODS if name not in DRAWN])
def test_terms_are_means_over_images_unless_the_method_says_otherwise(name):
    torch.manual_seed(0)
    teacher, student = TinyNetwork(norm=False).eval(), TinyNetwork(norm=False)
    pair = NetworkPair(teacher, student, teacher.tap_channels, student.tap_channels, CLASSES, size=64)
    images, labels = images_and_labels()
    options = {"preset": "paper"} if name == "graph_flow" else {}
    if "balance" in settings_of(METHODS[name]):
        options["balance"] = 0.0  # else pixels count by the classes of the whole batch: the runs above have it
    parts = build_method(name, pair, options)
    for part in (part.eval() for part in parts.values()):  # neither spectral norm nor batch statistics move
        if part.needs_global_batch:
            continue
        whole, *halves = (
            part(tapped(student, images[take]), tapped(teacher, images[take]), labels[take])
            for take in (slice(None), slice(0, None, 2), slice(1, None, 2))
        )
        for term in whole:
            mean = sum(half[term] for half in halves) / 2
            torch.testing.assert_close(mean, whole[term], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("given", ["soon", "-1", "0", "nan", "1e400"])
def test_bad_time_limit_is_refused(given, monkeypatch):
    monkeypatch.setenv(distributed.TIMEOUT_VARIABLE, given)
    with pytest.raises(InputError, match=r"GRAPHFLOW_TIMEOUT_MINUTES is .*give minutes"):
        distributed._timeout()


def test_batch_that_processes_cannot_share_is_refused(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    with pytest.raises(InputError, match="6 cannot be shared by 4 processes"):
        distributed.share_of(6)


def test_one_process_changes_nothing():
    network = build_network("mobile_unet", out_channels=2)
    assert distributed.data_parallel(network, torch.device("cpu")) is network
    assert distributed.gathered("mine") == ["mine"]
    distributed.wait_for_all()
