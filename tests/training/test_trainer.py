# SPDX-License-Identifier: Apache-2.0
"""The trainer: what one iteration does, that a resumed run equals one that never stopped, and what a run leaves."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Events
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

from pipeline.data import Dataset, IntensityRule, SliceAugmentation
from pipeline.distillation import KnowledgeDistillationLoss, build_distiller
from pipeline.errors import InputError
from pipeline.networks import build_network, load_model
from pipeline.processes.bfloat16 import EMULATE
from pipeline.training import (
    BestModelSaver,
    DistillationTrainer,
    IntervalAndLastValidation,
    TrainingStateSaver,
    check_run_folder,
    record_run,
    segmentation_loss,
)
from pipeline.unlabelled import UNLABELLED
from tests.preprocessing import scan_preprocessing
from tests.training.tiny_run import differences, whole_state

ADVERSARY = {"adversarial": 0.1, "adversarial_kind": "hinge"}  # without the costly penalty of the default


class TinyNetwork(nn.Module):
    """Two convolutions with taps and dropout, so that random states matter."""

    taps = ("shallow", "deep")
    tap_channels = (4, 4)

    def __init__(self) -> None:
        super().__init__()
        self.shallow, self.deep, self.head = nn.Conv2d(1, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1), nn.Conv2d(4, 2, 1)
        self.dropout = nn.Dropout2d(0.2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.dropout(torch.relu(self.deep(torch.relu(self.shallow(images)))))
        return nn.functional.interpolate(self.head(features), size=images.shape[-2:])


def batches(count: int = 6, size: int = 64, batch_size: int = 2) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 1, size, size, generator=generator)
    items = [{"image": image, "label": (image > 0.5).byte()} for image in images]
    sampler = DistributedSampler(items, num_replicas=1, rank=0, seed=0)
    return DataLoader(items, batch_size=batch_size, sampler=sampler)


def make_trainer(
    epochs,
    state_file=None,
    resume=False,
    distilled=True,
    decay=True,
    recipe=None,
    device="cpu",
    methods=None,
    **options,
) -> DistillationTrainer:
    torch.manual_seed(0)
    network, teacher, loader = TinyNetwork(), TinyNetwork(), batches()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=4 * len(loader), power=0.9)
    methods = methods or {"graph_flow": {"weight": 1, "adversarial": 0.1}}
    distiller = build_distiller("", teacher, network, 2, 12, methods=methods) if distilled else None
    saver = TrainingStateSaver(state_file, schedule, resume=resume, recipe=recipe) if state_file is not None else None
    trainer = DistillationTrainer(
        device=device,
        train_handlers=[saver] if saver is not None else None,  # as a bundle's config attaches it
        max_epochs=epochs,
        train_data_loader=loader,
        network=network,
        optimizer=optimizer,
        loss_function=segmentation_loss("ce"),
        distiller=distiller,
        augmentation=SliceAugmentation("affine", seed=0),
        **options,
    )
    if decay:
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda _: schedule.step())
    return trainer


def weights(trainer: DistillationTrainer) -> list[torch.Tensor]:
    parts = [*trainer.network.state_dict().values()]
    if trainer.distiller is not None:
        parts += trainer.distiller.methods["adversary"].discriminator.state_dict().values()
    return [part.clone() for part in parts]


def test_output_holds_every_loss_term_and_their_weighted_sum():
    trainer = make_trainer(1)
    trainer.run()
    terms = trainer.state.output[0]["terms"]
    assert set(terms) == {"segmentation", "kd", "vertices", "edges", "adversarial", "total", "discriminator"}
    distillation = sum(trainer.distiller.weights[name] * terms[name] for name in trainer.distiller.weights)
    torch.testing.assert_close(terms["total"], terms["segmentation"] + distillation)
    assert all(torch.isfinite(term) for term in terms.values())


def test_without_a_distiller_it_is_plain_supervised_training():
    trainer = make_trainer(1, distilled=False)
    trainer.run()
    assert set(trainer.state.output[0]["terms"]) == {"segmentation", "total"}


def test_weight_zero_of_all_terms_equals_supervised_training():
    """Dropout is off here: the teacher's and the discriminator's draws would shift the student's."""
    trainers = make_trainer(2), make_trainer(2, distilled=False)
    for trainer in trainers:
        trainer.network.dropout.p = 0.0
    trainers[0].distiller.weights = dict.fromkeys(trainers[0].distiller.weights, 0.0)
    for trainer in trainers:
        trainer.run()
    for with_zero, without in zip(*(trainer.network.parameters() for trainer in trainers), strict=True):
        torch.testing.assert_close(with_zero, without, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("distilled", [False, True])
def test_resumed_run_equals_one_that_never_stopped_to_the_bit(tmp_path, distilled):
    make_trainer(2, tmp_path / "straight.pt", distilled=distilled).run()
    make_trainer(1, tmp_path / "last.pt", distilled=distilled).run()
    torch.manual_seed(123)  # a new process starts from other random states
    make_trainer(2, tmp_path / "last.pt", resume=True, distilled=distilled).run()
    assert torch.get_num_threads() == 1  # sums of several threads are added in another order
    assert differences(*(whole_state(tmp_path / name) for name in ("straight.pt", "last.pt"))) == []


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    make_trainer(2, tmp_path / "last.pt", distilled=False).run()
    again = make_trainer(2, tmp_path / "last.pt", distilled=False, resume=True)
    again.run()
    once_more = make_trainer(2, tmp_path / "last.pt", distilled=False, resume=True)
    once_more.run()
    assert again.state.epoch == once_more.state.epoch == 2
    assert all(torch.equal(one, other) for one, other in zip(weights(again), weights(once_more), strict=True))


def test_accumulated_thirds_equal_the_whole_batch():
    whole = make_trainer(1, distilled=False, decay=False)
    thirds = make_trainer(1, distilled=False, decay=False, accumulation_steps=3)
    for trainer in (whole, thirds):
        trainer.network.dropout.p = 0.0
        trainer.augmentation = None
    whole.data_loader = batches(batch_size=6)
    whole.state.epoch_length = 1
    whole.run()
    thirds.run()
    for one, other in zip(whole.network.parameters(), thirds.network.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_bfloat16_trains_and_computes_the_loss_in_float32(monkeypatch):
    monkeypatch.setenv(EMULATE, "1")
    trainer = make_trainer(1, precision="bfloat16")
    trainer.run()
    assert trainer.state.output[0]["loss"].dtype == torch.float32


@pytest.mark.parametrize(
    ("precision", "message"), [("float16", "needs a CUDA device"), ("half", "unknown precision 'half'")]
)
def test_impossible_precision_is_refused(precision, message):
    if precision == "float16" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(InputError, match=message):
        make_trainer(1, precision=precision)


def test_loss_that_is_not_finite_stops_the_run_and_names_the_term():
    trainer = make_trainer(1, distilled=False)
    with torch.no_grad():
        trainer.network.head.bias.fill_(float("nan"))
    with pytest.raises(InputError, match="loss term 'segmentation' is nan at iteration 1"):
        trainer.run()


@pytest.mark.parametrize("content", [None, b"", b"not a checkpoint"])
def test_resume_from_a_missing_or_broken_state_is_an_error(tmp_path, content):
    if content is not None:
        (tmp_path / "last.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"nothing to resume|cannot be read"):
        make_trainer(1, tmp_path / "last.pt", resume=True).run()


def test_run_begun_when_its_bundle_had_one_more_option_goes_on(tmp_path):
    """Null is what an option says that nobody uses: a bundle that no longer has it trains the same."""
    make_trainer(1, tmp_path / "last.pt", recipe={"seed": 0, "unused": None}, distilled=False).run()
    make_trainer(2, tmp_path / "last.pt", resume=True, recipe={"seed": 0}, distilled=False).run()


def test_resume_with_another_recipe_names_the_difference(tmp_path):
    make_trainer(1, tmp_path / "last.pt", recipe={"epochs": 1, "seed": 0}, distilled=False).run()
    with pytest.raises(InputError, match="epochs was 1, is 2; resume with the same"):
        make_trainer(2, tmp_path / "last.pt", resume=True, recipe={"epochs": 2, "seed": 0}, distilled=False).run()


def test_of_a_nested_setting_the_part_that_differs_is_named(tmp_path):
    def recipe(weight: float, **more) -> dict:
        return {"seed": 0, "distillation": {"kd": {"weight": weight, "temperature": 2.0}, **more}}

    make_trainer(1, tmp_path / "last.pt", recipe=recipe(1.0), distilled=False).run()
    told = r"recipe: distillation.kd.weight was 1.0, is 0.5; distillation.review was None, is \{'share': 0.3\}; resume"
    with pytest.raises(InputError, match=told):
        make_trainer(
            2, tmp_path / "last.pt", resume=True, recipe=recipe(0.5, review={"share": 0.3}), distilled=False
        ).run()


def test_resume_from_a_foreign_file_is_an_error(tmp_path):
    torch.save({"weights": torch.zeros(1)}, tmp_path / "last.pt")
    with pytest.raises(InputError, match="is not a training state"):
        make_trainer(1, tmp_path / "last.pt", resume=True).run()


def test_resume_with_another_augmentation_says_so(tmp_path):
    make_trainer(1, tmp_path / "last.pt").run()
    other = make_trainer(2, tmp_path / "last.pt", resume=True)
    other.augmentation = SliceAugmentation("none")
    with pytest.raises(InputError, match="was augmented by 'affine'"):
        other.run()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_distillation_trains_on_cuda(precision):
    trainer = make_trainer(1, precision=precision, device="cuda")
    trainer.run()
    assert all(torch.isfinite(term) for term in trainer.state.output[0]["terms"].values())


def test_every_part_of_the_distiller_follows_the_trainers_device():
    trainer = make_trainer(1, device="meta")  # stands for any device that is not the one it was built on
    assert all(parameter.is_meta for parameter in trainer.distiller.parameters())


@pytest.mark.parametrize(("interval", "epochs", "expected"), [(2, 3, [2, 3]), (5, 3, [3]), (1, 2, [1, 2])])
def test_last_epoch_is_always_validated(interval, epochs, expected):
    validated = []
    handler = IntervalAndLastValidation(interval=interval)
    handler.validator = SimpleNamespace(run=validated.append)
    trainer = make_trainer(epochs, distilled=False)
    handler.attach(trainer)
    trainer.run()
    assert validated == expected


def test_best_model_is_kept_over_a_worse_one_after_a_resume(tmp_path):
    dataset = Dataset("d", tmp_path, "CT", {0: "background", 1: "liver"}, IntensityRule("window", 0, 1), (), (), ())
    preprocessing = scan_preprocessing(dataset.intensity)
    saver = BestModelSaver(
        tmp_path / "model.pt", build_network("enet"), dataset, preprocessing, size=32, recipe={"seed": 3}
    )
    state = SimpleNamespace(epoch=2, best_metric=0.5, best_metric_epoch=2, key_metric_name="val_mean_dice")
    saver(SimpleNamespace(state=state))
    model = load_model(tmp_path / "model.pt")
    assert model.preprocessing == preprocessing
    assert model.extra == {"recipe": {"seed": 3}, "selection": {"epoch": 2, "val_mean_dice": 0.5}}
    written = (tmp_path / "model.pt").stat().st_mtime_ns
    saver(SimpleNamespace(state=SimpleNamespace(**{**vars(state), "epoch": 3})))  # epoch 3 was worse: best stays 2
    assert (tmp_path / "model.pt").stat().st_mtime_ns == written


def test_network_of_the_last_epoch_is_kept_beside_the_best(tmp_path):
    dataset = Dataset("d", tmp_path, "CT", {0: "background", 1: "liver"}, IntensityRule("window", 0, 1), (), (), ())
    best, last = tmp_path / "model.pt", tmp_path / "model_last.pt"
    preprocessing = scan_preprocessing(dataset.intensity)
    saver = BestModelSaver(best, build_network("enet"), dataset, preprocessing, size=32, last_path=last, epochs=3)
    state = {"best_metric": 0.5, "best_metric_epoch": 2, "key_metric_name": "dice", "metrics": {"dice": 0.5}}
    saver(SimpleNamespace(state=SimpleNamespace(epoch=2, **state)))
    assert not last.exists()
    state["metrics"] = {"dice": 0.4}
    saver(SimpleNamespace(state=SimpleNamespace(epoch=3, **state)))
    assert load_model(last).extra["selection"] == {"epoch": 3, "dice": 0.4}
    assert load_model(best).extra["selection"] == {"epoch": 2, "dice": 0.5}


def test_resume_with_another_method_is_an_error(tmp_path):
    make_trainer(1, tmp_path / "last.pt", distilled=False).run()
    with pytest.raises(InputError, match="another network or method"):
        make_trainer(2, tmp_path / "last.pt", resume=True, distilled=True).run()


def test_run_folder_is_recorded_and_never_used_twice(tmp_path):
    record_run(tmp_path / "run", {"network": "enet", "seed": 0})
    assert json.loads((tmp_path / "run" / "run.json").read_text())["settings"] == {"network": "enet", "seed": 0}
    check_run_folder(tmp_path / "run")  # nothing but a record: the run ended before its first epoch did
    (tmp_path / "run" / "last.pt").touch()
    with pytest.raises(InputError, match="holds a run already"):
        check_run_folder(tmp_path / "run")
    check_run_folder(tmp_path / "run", resume=True)


def test_logged_shares_of_the_gradient_change_nothing(caplog):
    caplog.set_level("INFO", "pipeline.training.trainer")
    methods = {"graph_flow": {"weight": 1, **ADVERSARY}}
    plain, logging = make_trainer(2, methods=methods), make_trainer(2, methods=methods, log_gradient_shares=4)
    seen = []
    logging.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: seen.append(engine.state.output[0]["terms"]))
    for trainer in (plain, logging):
        torch.manual_seed(1)
        trainer.run()
    assert all(torch.equal(one, other) for one, other in zip(weights(plain), weights(logging), strict=True))
    shares = {"share/kd", "share/vertices", "share/edges", "share/adversarial"}
    assert [shares & terms.keys() for terms in seen] == [shares, set(), set(), set(), shares, set()]
    assert all(float(seen[0][name]) > 0 for name in shares)
    assert "iteration 5: kd" in caplog.text


@pytest.mark.parametrize("wrong", [-1, 2.5, True])
def test_impossible_interval_of_logged_shares_is_refused(wrong):
    with pytest.raises(InputError, match=r"log_gradient_shares is .*whole number from 0"):
        make_trainer(1, log_gradient_shares=wrong)


def test_run_that_holds_a_share_of_the_gradient_goes_on_exactly_after_a_resume(tmp_path):
    methods = {"graph_flow": {"share": 0.2, "ramp": 0.5, **ADVERSARY}, "at": {"share": 0.1, "start": 0.4}}
    straight = make_trainer(4, tmp_path / "straight.pt", methods=methods)
    straight.run()
    make_trainer(2, tmp_path / "last.pt", methods=methods).run()
    resumed = make_trainer(4, tmp_path / "last.pt", resume=True, methods=methods)
    resumed.run()
    assert all(torch.equal(one, other) for one, other in zip(weights(straight), weights(resumed), strict=True))
    assert straight.distiller.training_state()["shares"] == resumed.distiller.training_state()["shares"]
    # A ramp begins at nothing: eleven steps of twelve, all of ten and the eleventh measured.
    assert straight.distiller.training_state()["shares"]["measurements"] == {"graph_flow": 11, "at": 7}


class OneLayer(nn.Module):
    """A convolution of one pixel: its gradient is easily written down."""

    taps, tap_channels = ("layer", "layer"), (2, 2)

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 2, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images)


class Recorded:
    """A segmentation loss that keeps what it was given."""

    def __init__(self) -> None:
        self.given: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        self.given.append((logits.detach(), labels))
        return segmentation_loss("ce")(logits, labels)


def half_labelled(augmentation=None, student_view=None, build=OneLayer) -> tuple[DistillationTrainer, Recorded]:
    """Return a trainer of one step on two labelled items and two without a label, and its loss."""
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    items = [{"image": image, "label": (image > 0.5).byte()} for image in images]
    for item in items[2:]:
        item["label"] = torch.full_like(item["label"], UNLABELLED)
    torch.manual_seed(0)
    network, loss = build(), Recorded()
    trainer = DistillationTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=DataLoader(items, batch_size=4),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=1.0),
        loss_function=loss,
        augmentation=augmentation,
        student_view=student_view,
        distiller=build_distiller("kd", build(), network, 2, 1),
    )
    return trainer, loss


def test_segmentation_loss_sees_the_labelled_items_and_distillation_all():
    trainer, loss = half_labelled()
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    trainer.run()
    ((logits, labels),) = loss.given
    assert logits.shape == (2, 2, 8, 8)
    assert labels.max() == 1
    # The step is that of both losses, written down: images 0 and 1 against labels, all four against the teacher.
    student, (batch,) = OneLayer(), trainer.data_loader
    student.load_state_dict(before)
    prediction = student(batch["image"])
    targets = batch["label"][:2].squeeze(1).long()
    of_labels = nn.functional.cross_entropy(prediction[:2], targets)
    of_teacher = KnowledgeDistillationLoss()(prediction, trainer.distiller.teacher(batch["image"]), batch["label"])
    (of_labels + of_teacher).backward()
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(trainer.network.state_dict()[name], before[name] - parameter.grad)


def test_what_an_augmentation_moves_in_gets_no_label_where_there_was_none():
    def shift(images, labels):
        """Move everything by four pixels; zeros come in."""
        return tuple(torch.cat([torch.zeros_like(part[..., :4]), part[..., :4]], -1) for part in (images, labels))

    trainer, loss = half_labelled(shift)
    trainer.run()
    (output,) = trainer.state.output
    assert (output["label"][2:] == UNLABELLED).all()
    assert (output["label"][:2, ..., :4] == 0).all()
    assert len(loss.given[0][1]) == 2


def with_foreign_halves(maps: torch.Tensor) -> torch.Tensor:
    """Return maps (4, C, H, W) whose left halves are those of items 1, 0, 3 and 2."""
    middle = maps.shape[-1] // 2
    return torch.cat([maps[[1, 0, 3, 2], ..., :middle], maps[..., middle:]], -1)


def strong_view(images: torch.Tensor, labels: torch.Tensor):
    """Return a strong view without chance: darker images with foreign halves."""
    return with_foreign_halves(images / 2), with_foreign_halves(labels), with_foreign_halves


def test_the_teacher_sees_the_images_as_they_were_and_its_maps_are_cut_like_the_students_images():
    """The stub's view, and what the teacher and the methods are given, written down."""
    trainer, loss = half_labelled(student_view=strong_view, build=TinyNetwork)
    trainer.network.dropout.p = 0.0
    student, (batch,) = copy.deepcopy(trainer.network), trainer.data_loader
    images, labels = batch["image"], with_foreign_halves(batch["label"])
    shown, compared = [], []
    teacher = trainer.distiller.teacher
    hooks = [
        teacher.register_forward_pre_hook(lambda _, given: shown.append(given)),
        trainer.distiller.methods["kd"].register_forward_pre_hook(lambda _, given: compared.append(given)),
    ]
    trainer.run()
    for hook in hooks:
        hook.remove()

    ((of_teacher,),) = shown
    assert torch.equal(of_teacher, images)
    ((mine, theirs, given),) = compared
    assert torch.equal(given, labels)
    assert torch.equal(mine.images, with_foreign_halves(images / 2))
    assert torch.equal(theirs.images, images)
    # The taps have a quarter of the places; each is cut in its own middle.
    shallow = teacher.shallow(images)
    taps = shallow, teacher.deep(torch.relu(shallow))
    assert [tuple(tap.shape) for tap in taps] == [(4, 4, 4, 4)] * 2
    for feature, tap in zip(theirs.features, taps, strict=True):
        torch.testing.assert_close(feature, with_foreign_halves(tap))
    logits = with_foreign_halves(teacher(images))
    torch.testing.assert_close(theirs.logits, logits)

    prediction = student(with_foreign_halves(images / 2))
    term = trainer.state.output[0]["terms"]["kd"]
    torch.testing.assert_close(term, KnowledgeDistillationLoss()(prediction, logits, labels).detach())
    ((seen, of_labels),) = loss.given
    torch.testing.assert_close(seen, prediction[:2].detach())
    assert torch.equal(of_labels, labels[:2])
