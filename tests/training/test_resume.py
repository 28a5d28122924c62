# SPDX-License-Identifier: Apache-2.0
"""A run that was stopped anywhere and resumed is, to the bit, the run that never stopped."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Events
from torch.utils.data import DataLoader, DistributedSampler

from pipeline.errors import InputError
from pipeline.training import ResumableSampler, Stopped
from tests.training.tiny_run import (
    ITERATIONS,
    differences,
    half_labelled_loader,
    loader,
    make_run,
    signal_at,
    whole_state,
)


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> dict:
    """Return the last state of a run that was never stopped."""
    file = tmp_path_factory.mktemp("straight") / "last.pt"
    make_run(file)[0].run()
    return whole_state(file)


def stopped(file, where, resume="auto", **options) -> None:
    """Run until a signal comes at an iteration, or in the first one of a validation."""
    trainer, evaluator = make_run(file, resume=resume, **options)
    engine, iteration = (evaluator, 1) if where == "validation" else (trainer, where)
    signal_at(engine, iteration)
    with pytest.raises(Stopped):
        trainer.run()


def resumed(file, resume="auto", **options) -> dict:
    torch.manual_seed(123)  # a new process starts from other random states
    make_run(file, resume=resume, **options)[0].run()
    return whole_state(file)


@pytest.mark.parametrize("iteration", range(1, 3 * ITERATIONS + 1))
def test_stopped_at_any_iteration(straight, tmp_path, iteration):
    """The last of an epoch leaves its validation to the resumed run."""
    stopped(tmp_path / "last.pt", iteration)
    assert whole_state(tmp_path / "last.pt")["position"]["iteration"] == iteration
    assert differences(straight, resumed(tmp_path / "last.pt")) == []


def test_stopped_during_validation(straight, tmp_path):
    for _ in range(2):
        stopped(tmp_path / "last.pt", "validation")
        assert whole_state(tmp_path / "last.pt")["position"] == {"epoch": 0, "iteration": 3, "epoch_length": 3}
    assert differences(straight, resumed(tmp_path / "last.pt")) == []


def test_killed_between_the_first_model_and_the_first_state(straight, tmp_path):
    """A model without a state once made --resume auto refuse the folder of a killed run."""

    def die(_) -> None:
        raise KeyboardInterrupt

    trainer, evaluator = make_run(tmp_path / "last.pt")
    evaluator.add_event_handler(Events.COMPLETED, die)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert whole_state(tmp_path / "last.pt")["position"] == {"epoch": 0, "iteration": 3, "epoch_length": 3}
    assert differences(straight, resumed(tmp_path / "last.pt")) == []


def test_distillation_stopped_again_and_again(tmp_path):
    make_run(tmp_path / "straight.pt", distilled=True)[0].run()
    for where in (2, 3, "validation", 5, 7):
        stopped(tmp_path / "last.pt", where, distilled=True)
    expected = whole_state(tmp_path / "straight.pt")
    assert expected["distiller"]["adversary"].keys() >= {"discriminator", "optimizer", "schedule"}
    assert differences(expected, resumed(tmp_path / "last.pt", distilled=True)) == []


@pytest.mark.parametrize("sets", [(ITERATIONS, ITERATIONS, 2), (2, 6, 4), (3, 6, 4), (6, 3, 4)])
def test_half_labelled_run_stopped_again_and_again(sets, tmp_path):
    """Shared batches, strong views of the student, a distillation; the smaller set is passed again, amid a batch too.

    The sets: labelled items, others, and how many of both a batch has.
    """

    def options() -> dict:
        return {"distilled": True, "half_labelled": half_labelled_loader(*sets)}

    make_run(tmp_path / "straight.pt", **options())[0].run()
    for where in (1, 2, "validation", 5, 7):
        stopped(tmp_path / "last.pt", where, **options())
    assert differences(whole_state(tmp_path / "straight.pt"), resumed(tmp_path / "last.pt", **options())) == []


def test_stopped_between_two_halves_of_an_accumulated_step(tmp_path):
    make_run(tmp_path / "straight.pt", accumulation_steps=2)[0].run()
    for iteration in (1, 3, 4):
        stopped(tmp_path / "last.pt", iteration, accumulation_steps=2)
    assert differences(whole_state(tmp_path / "straight.pt"), resumed(tmp_path / "last.pt", accumulation_steps=2)) == []


def test_a_difference_of_one_bit_is_seen(straight):
    """The comparison that the others rest on."""
    name = next(iter(straight["network"]))
    nudged = torch.nextafter(straight["network"][name], torch.tensor(9.0))
    assert differences(straight, {**straight, "network": {**straight["network"], name: nudged}}) == [f"/network/{name}"]


def test_resume_sees_the_rest_of_the_epoch_and_nothing_twice(tmp_path):
    seen: dict[str, list] = {"straight": [], "stopped": []}

    def note(engine, name):
        seen[name].append(engine.state.batch["image"].sum().item())

    trainer, _ = make_run(tmp_path / "straight.pt")
    trainer.add_event_handler(Events.ITERATION_STARTED, note, "straight")
    trainer.run()
    for resume in (False, True):
        trainer, _ = make_run(tmp_path / "last.pt", resume=resume)
        trainer.add_event_handler(Events.ITERATION_STARTED, note, "stopped")
        if not resume:
            signal_at(trainer, 5)
            with pytest.raises(Stopped):
                trainer.run()
    trainer.run()
    assert seen["stopped"] == seen["straight"]
    assert len(seen["straight"]) == 3 * ITERATIONS


def test_sampler_leaves_out_the_first_items_of_one_epoch():
    """By hand: unshuffled, two processes, six items: this one's are 1, 3 and 5."""
    sampler = ResumableSampler(range(6), num_replicas=2, rank=1, shuffle=False)
    sampler.leave_out(2)
    assert list(sampler) == [5]
    assert list(sampler) == [1, 3, 5]
    sampler.leave_out(1)
    assert len(sampler) == 3


def test_sampler_shuffles_as_torchs_own():
    ours, theirs = (kind(range(50), num_replicas=1, rank=0, seed=3) for kind in (ResumableSampler, DistributedSampler))
    for epoch in (0, 1):
        ours.set_epoch(epoch)
        theirs.set_epoch(epoch)
        assert list(ours) == list(theirs)


def test_auto_starts_anew_without_a_state(straight, tmp_path):
    assert differences(straight, resumed(tmp_path / "last.pt")) == []


def test_auto_does_not_start_over_a_damaged_state(tmp_path):
    (tmp_path / "last.pt").write_bytes(b"not a state")
    with pytest.raises(InputError, match="cannot be read"):
        make_run(tmp_path / "last.pt", resume="auto")[0].run()


def test_other_words_than_auto_are_refused(tmp_path):
    with pytest.raises(InputError, match="--resume is 'yes'; give True, False or auto"):
        make_run(tmp_path / "last.pt", resume="yes")[0].run()


def test_resume_by_another_number_of_processes_is_refused(tmp_path):
    make_run(tmp_path / "last.pt")[0].run()
    state = whole_state(tmp_path / "last.pt")
    torch.save({**state, "processes": 2 * state["processes"]}, tmp_path / "last.pt")
    with pytest.raises(InputError, match="of a run of 2 processes, this one has 1"):
        make_run(tmp_path / "last.pt", resume=True)[0].run()


def test_another_sampler_keeps_the_state_of_the_last_whole_epoch(tmp_path):
    """It cannot leave anything out: the epoch is done again, and to the bit too."""

    def plain(trainer) -> None:
        items = trainer.data_loader.dataset
        sampler = DistributedSampler(items, num_replicas=1, rank=0, seed=0)
        trainer.data_loader = DataLoader(items, batch_size=2, sampler=sampler)
        trainer.add_event_handler(Events.EPOCH_STARTED, lambda engine: sampler.set_epoch(engine.state.epoch))

    make_run(tmp_path / "straight.pt")[0].run()
    trainer, _ = make_run(tmp_path / "last.pt")
    plain(trainer)
    signal_at(trainer, 5)
    with pytest.raises(Stopped):
        trainer.run()
    assert whole_state(tmp_path / "last.pt")["position"] == {"epoch": 1, "iteration": 3, "epoch_length": 3}
    trainer, _ = make_run(tmp_path / "last.pt", resume=True)
    plain(trainer)
    trainer.run()
    assert differences(whole_state(tmp_path / "straight.pt"), whole_state(tmp_path / "last.pt")) == []


def test_state_amid_an_epoch_needs_the_sampler_that_saved_it(tmp_path):
    stopped(tmp_path / "last.pt", 2)
    trainer, _ = make_run(tmp_path / "last.pt", resume=True)
    trainer.data_loader = DataLoader(loader().dataset, batch_size=2)
    with pytest.raises(InputError, match="amid an epoch: resume with a ResumableSampler"):
        trainer.run()
