# SPDX-License-Identifier: Apache-2.0
"""Batches of labelled and unlabelled items: their shares, for every remainder, and alike for several processes."""

from __future__ import annotations

from collections import Counter
from math import ceil
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from torch.utils.data import DataLoader

from data_prep import phantom_ct, phantom_slides
from pipeline.data import load_dataset
from pipeline.errors import InputError
from pipeline.training import ResumableSampler, SharedBatchSampler, training_sampler
from tests.bundles.bundle_commands import ROOT

BATCH = 12


def epoch(labelled: int, unlabelled: int, processes: int = 1, number: int = 0, **options) -> list[list[int]]:
    """Return the global batches of one epoch, as loaders of all processes make them."""
    loaders = []
    for rank in range(processes):
        sampler = SharedBatchSampler(
            range(labelled + unlabelled),
            labelled,
            **{"batch_size": BATCH, "unlabelled_share": 0.5, "seed": 3, **options},
            num_replicas=processes,
            rank=rank,
        )
        sampler.set_epoch(number)
        loaders.append(DataLoader(range(labelled + unlabelled), BATCH // processes, sampler=sampler, drop_last=True))
        assert len(loaders[-1]) == len(list(loaders[-1]))
    return [torch.stack(parts, 1).flatten().tolist() for parts in zip(*loaders, strict=True)]


# Of 12 items, 9 and 3 can be shared by 1 or 3 processes, 6 and 6 by 1, 2, 3 or 6.
@pytest.mark.parametrize(
    ("share", "processes"),
    [(0.25, 1), (0.25, 3), (0.5, 1), (0.5, 2), (0.5, 3), (0.5, 6), (0.75, 1), (0.75, 3)],
)
@pytest.mark.parametrize("unlabelled", [9, 11, 30, 47])
def test_shares_hold_for_every_remainder_and_number_of_processes(unlabelled, processes, share):
    others = round(BATCH * share)
    for labelled in range(9, 21):
        batches = epoch(labelled, unlabelled, processes, unlabelled_share=share)
        assert len(batches) == max(ceil(labelled / (BATCH - others)), ceil(unlabelled / others))
        for number, batch in enumerate(batches):
            assert [item >= labelled for item in batch] == [False] * (BATCH - others) + [True] * others
            for part, size in ((batch[: BATCH - others], labelled), (batch[BATCH - others :], unlabelled)):
                first = number * len(part)
                if first // size == (first + len(part) - 1) // size:  # the part lies within one pass over its set
                    assert len(set(part)) == len(part)
        assert batches == epoch(labelled, unlabelled, 1, unlabelled_share=share)


def test_epoch_is_a_pass_over_the_larger_set_and_passes_the_smaller_again():
    batches = epoch(8, 20)
    counts = Counter(item for batch in batches for item in batch)
    assert len(batches) == 4  # 20 items, 6 in a batch
    assert all(counts[item] >= 1 for item in range(8, 28))
    assert sum(counts[item] for item in range(8)) == 24
    assert all(counts[item] == 3 for item in range(8))


def test_no_item_comes_twice_before_every_other_came_once():
    for labelled, unlabelled in ((7, 40), (40, 7), (13, 13)):
        batches = epoch(labelled, unlabelled)
        for mine in (range(labelled), range(labelled, labelled + unlabelled)):
            seen = [item for batch in batches for item in batch if item in mine]
            for start in range(0, len(seen), len(mine)):
                part = seen[start : start + len(mine)]
                assert len(set(part)) == len(part)


def test_epochs_and_seeds_differ_and_repeat():
    assert epoch(10, 20, number=1) == epoch(10, 20, number=1)
    assert epoch(10, 20, number=1) != epoch(10, 20, number=2)
    assert epoch(10, 20, seed=4) != epoch(10, 20)


@pytest.mark.parametrize("iterations", [1, 7])
def test_length_of_an_epoch_may_be_given(iterations):
    assert len(epoch(10, 20, iterations=iterations)) == iterations


def test_labelled_alone_with_a_length():
    batches = epoch(15, 20, unlabelled_share=0.0, iterations=5)
    assert len(batches) == 5
    assert all(item < 15 for batch in batches for item in batch)


def test_left_out_items_are_those_that_were_seen():
    sampler = SharedBatchSampler(range(30), 10, BATCH, 0.5)
    whole = list(sampler)
    sampler.leave_out(2 * BATCH)
    assert len(sampler) == len(whole)
    assert list(sampler) == whole[2 * BATCH :]
    assert list(sampler) == whole  # that one epoch alone


def test_plain_training_has_the_plain_sampler():
    sampler = training_sampler(range(30), BATCH)
    assert type(sampler) is ResumableSampler
    assert sampler.drop_last
    assert not training_sampler(range(5), BATCH).drop_last


class Half:
    """Ten items, of which the last seven have no label."""

    unlabelled_from = 3

    def __len__(self) -> int:
        return 10


def test_a_training_without_labels_sees_all_items_whatever_its_length():
    """Paraphrasers once saw labelled images alone where the length of an epoch was given."""
    drawn = Counter(training_sampler(Half(), 2, iterations=5, needs_labels=False))
    assert drawn == Counter(range(10))
    assert set(training_sampler(Half(), 2, iterations=5)) == {0, 1, 2}
    assert set(training_sampler(Half(), 2, needs_labels=False)) == set(range(10))


@pytest.mark.parametrize("bundle", ["synapse", "gastric"])
def test_paraphrasers_of_the_bundles_see_all_items(bundle):
    files = [str(ROOT / f"bundles/{bundle}/configs/{name}.yaml") for name in ("train", "paraphrase")]
    config = ConfigParser(ConfigParser.load_config_files(files))
    for key, value in {"train::dataset": Half(), "batch_size": 2, "epoch_iterations": 5}.items():
        config[key] = value
    assert Counter(config.get_parsed_content("train::sampler")) == Counter(range(10))


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> dict[str, Path]:
    """Return a dataset of each kind: three scans train, or six pictures of three patients."""
    folder = tmp_path_factory.mktemp("data")
    scans, slides = folder / "scans", folder / "slides"
    assert phantom_ct.main(["--output", str(scans), "--cases", "5", "--size", "40", "--slices", "8"]) == 0
    assert phantom_slides.main(["--output", str(slides), "--images", "10", "--side", "128"]) == 0
    return {"synapse": scans, "gastric": slides}


@pytest.mark.parametrize(
    ("bundle", "labelled", "hidden"),
    [("synapse", 1, 2), ("gastric", 2, 4)],  # one patient keeps the labels
)
def test_paraphrasers_of_the_bundles_get_the_images_whose_labels_are_hidden(bundle, labelled, hidden, phantoms):
    files = [str(ROOT / f"bundles/{bundle}/configs/{name}.yaml") for name in ("train", "paraphrase")]
    config = ConfigParser(ConfigParser.load_config_files(files))
    for key, value in {"dataset_dir": str(phantoms[bundle]), "labelled_cases": labelled}.items():
        config[key] = value
    entries = config.get_parsed_content("training_set::datalist")
    declared = load_dataset(phantoms[bundle]).datalist("training")
    assert ["label" in entry for entry in entries] == [True] * labelled + [False] * hidden
    assert {entry["image"] for entry in entries} == {entry["image"] for entry in declared}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unlabelled_share": 0.01}, "is 0 without a label; give --batch_size 100 or more, or another share"),
        ({"unlabelled_share": 0.99}, "is 12 without a label; give --batch_size 100 or more"),
        ({"batch_size": 1}, "0.5 of a batch of 1 is 0 without a label; give --batch_size 2 or more"),
        ({"unlabelled_share": 1.0}, "--unlabelled_share is 1.0; give a number from 0 to below 1"),
        ({"unlabelled_share": float("nan")}, "--unlabelled_share is nan"),
        ({"iterations": 2.5}, "--epoch_iterations is 2.5; give a whole number from 1"),
        ({"iterations": 0}, "--epoch_iterations is 0"),
        ({"iterations": -1}, "--epoch_iterations is -1"),
        ({"iterations": True}, "--epoch_iterations is True"),
        ({"num_replicas": 5}, "6 labelled items of each batch cannot be shared by 5 processes"),
        ({"batch_size": 40}, "a batch has 20 labelled items, but training has 10; choose a smaller --batch_size"),
        ({"batch_size": 50, "unlabelled_share": 0.9}, "a batch has 45 unlabelled items, but training has 20"),
    ],
)
def test_what_no_batch_can_hold_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        SharedBatchSampler(range(30), 10, **{"batch_size": BATCH, "unlabelled_share": 0.5, **options})
