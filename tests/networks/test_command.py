# SPDX-License-Identifier: Apache-2.0
"""`python -m pipeline.networks`: names, cost and taps, printed; bad input in one line with exit code 2."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest

from pipeline.data import CT_WINDOW
from pipeline.errors import InputError, run_command
from pipeline.networks import MONAI_NETWORKS, NETWORKS, build_network, save_model
from pipeline.networks.__main__ import main
from tests.preprocessing import scan_preprocessing

SEGRESNET = "monai.networks.nets.SegResNet"


@pytest.fixture
def printed(capsys):
    """Run the command and return the lines that it prints."""

    def run(*arguments: str) -> list[str]:
        assert main(arguments) == 0
        return capsys.readouterr().out.splitlines()

    return run


@pytest.fixture
def model_file(tmp_path):
    network = build_network("fanet", 3, 2, width=0.125)
    save_model(
        tmp_path / "model.pt",
        network,
        labels={0: "background", 1: "liver"},
        preprocessing=scan_preprocessing(CT_WINDOW),
        size=64,
        modality="CT",
    )
    return str(tmp_path / "model.pt")


def test_names_alone(printed):
    assert printed() == [*NETWORKS, *MONAI_NETWORKS]


def test_published_costs(printed):
    lines = printed("mobile_unet", "--out_channels", "2", "--size", "256")
    assert lines == [
        "mobile_unet: 1 -> 2 channels, 2D, sides padded to multiples of 32",
        "parameters     4,682,323",
        "multiply-adds  0.962519 G, one image 1 x 256 x 256",
        "taps           stage2, fuse2 (24, 24 channels)",
    ]


def test_table_of_taps_by_hand(printed):
    """Sides of 21 are padded to 22; a map that several modules hand on has one row, logits have none."""
    lines = printed(SEGRESNET, "--taps", "--size", "21", "--options", "{'blocks_down': (1, 1), 'blocks_up': (1,)}")
    assert [line.split() for line in lines[4:]] == [
        ["module", "output", "at", "21", "stride"],
        ["convInit", "8", "x", "22", "x", "22", "1"],
        ["down_layers.0.1.conv1", "8", "x", "22", "x", "22", "1"],
        ["down_layers.0", "8", "x", "22", "x", "22", "1"],
        ["down_layers.1.0", "16", "x", "11", "x", "11", "2"],
        ["down_layers.1.1.conv1", "16", "x", "11", "x", "11", "2"],
        ["down_layers.1", "16", "x", "11", "x", "11", "2"],
        ["up_samples.0.0", "8", "x", "11", "x", "11", "2"],
        ["up_samples.0", "8", "x", "22", "x", "22", "1"],
        ["up_layers.0.0.conv1", "8", "x", "22", "x", "22", "1"],
        ["up_layers.0", "8", "x", "22", "x", "22", "1"],
        ["act_mod", "8", "x", "22", "x", "22", "1"],
    ]


def test_all_shows_the_layers_too(printed):
    few, every = ({line.split()[0] for line in printed("enet", option)} for option in ("--taps", "--all"))
    assert few < every
    assert {"stage1.0", "up4"} <= few
    assert "stage1.0.body.6" in every - few


def test_volume(printed):
    lines = printed(SEGRESNET, "--taps", "--size", "16", "--options", "{'spatial_dims': 3}")
    assert "3D, sides padded to multiples of 8" in lines[0]
    assert lines[2].endswith("one image 1 x 16 x 16 x 16")
    assert ["down_layers.2", "32", "x", "4", "x", "4", "x", "4", "4"] in [line.split() for line in lines]


def test_model_file(printed, model_file):
    lines = printed(model_file)
    assert lines[0] == f"{model_file}: 3 -> 2 channels, 2D, sides padded to multiples of 8"
    assert lines[2].endswith("one image 3 x 64 x 64")
    assert printed(model_file, "--size", "32")[2].endswith("one image 3 x 32 x 32")
    expected = printed(
        "fanet", "--in_channels", "3", "--out_channels", "2", "--options", "{'width': 0.125}", "--size", "64"
    )
    assert lines[1:] == expected[1:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fannet"], "unknown network 'fannet'; did you mean 'fanet'"),
        (["absent.pt"], "no model file at absent.pt"),
        (["."], "is a folder"),
        (["fanet", "--size", "0"], "--size is 0; give a whole number from 1"),
        (["fanet", "--out_channels", "0"], "out_channels is 0"),
        (["fanet", "--options", "width=2"], r"--options width=2 cannot be read; write"),
        (["fanet", "--options", "[1]"], "no dictionary"),
        (["fanet", "--options", "{1: 2}"], "no dictionary"),
        (["fanet", "--options", "{'in_channels': 2}"], "holds in_channels, which belongs outside"),
        (["fanet", "--options", "{'widht': 2}"], "did you mean 'width'"),
        (["enet", "--options", "{'taps': ['stage1', 'stagge4']}"], r"stage4 \(64 channels, stride 4\)"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(InputError, match=message):
        main(arguments)


@pytest.mark.parametrize("option", [["--in_channels", "1"], ["--out_channels", "2"], ["--options", "{}"]])
def test_model_file_says_itself_how_it_is_built(option, model_file):
    with pytest.raises(InputError, match="says itself how its network is built"):
        main([model_file, *option])


def test_bad_input_is_one_line_and_exit_code_2(capsys):
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: main(["fannet"]))
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: unknown network 'fannet'")
    assert error.count("\n") == 1


def test_reader_that_has_read_enough_ends_the_command_in_silence():
    command = f"{shlex.quote(sys.executable)} -W ignore -m pipeline.networks enet --taps --all | head -1"
    result = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert result.stdout.startswith("enet")
    assert result.stderr == ""
    assert result.returncode in (0, 141)  # 0 where all fitted into the pipe
