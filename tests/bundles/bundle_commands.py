# SPDX-License-Identifier: Apache-2.0
"""The bundles' commands as the README types them, and what they leave behind.

Bundles are whole: the commands run copies of them, from a directory that is neither theirs nor the repository's.

A fresh interpreter spends ten seconds on importing torch and MONAI. `run` and `begin` fork a process that has done so
and nothing else: its arguments, streams, signals, hooks and exit code are a command's own. `run_typed` is the command
itself.
"""

from __future__ import annotations

import atexit
import contextlib
import csv
import functools
import multiprocessing
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
PRELOADED = ["pipeline.data", "pipeline.distillation", "pipeline.evaluation", "pipeline.inference", "pipeline.training"]


@functools.cache
def elsewhere() -> Path:
    """Return a folder with copies of the bundles in `copies`, and `work` to run them from."""
    folder = Path(tempfile.mkdtemp(prefix="bundles_elsewhere_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in ("synapse", "gastric"):
        for part in ("configs", "models"):
            shutil.copytree(ROOT / "bundles" / name / part, folder / "copies" / name / part)
    (folder / "work").mkdir()
    return folder


def config_files(bundle: str, config: str, *overlays: str) -> str:
    """Return the files of a config: overlays on train.yaml have it before them."""
    base = ["train"] if config in ("paraphrase", "distill", "evaluate") else []
    return str([f"{elsewhere()}/copies/{bundle}/configs/{name}.yaml" for name in (*base, config, *overlays)])


def command(bundle: str, config: str, *arguments: object) -> list[str]:
    """Return a bundle's command."""
    program = [sys.executable, "-m", "monai.bundle", "run"]
    return [*program, "--config_file", config_files(bundle, config), *map(str, arguments)]


def run_typed(bundle: str, config: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a bundle's command on one thread, in an interpreter of its own."""
    arguments = command(bundle, config, *arguments)
    return subprocess.run(
        arguments, capture_output=True, text=True, check=False, env=ONE_THREAD, cwd=elsewhere() / "work"
    )


def run(bundle: str, config: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a bundle's command on one thread."""
    return run_program(command(bundle, config, *arguments))


def run_program(program: list[str]) -> subprocess.CompletedProcess[str]:
    """Run `python -m module ...` or `python -c code ...` to its end."""
    with tempfile.TemporaryDirectory() as folder:
        output, errors = (Path(folder) / name for name in ("output", "errors"))
        code = begin(program, output, errors).wait()
        return subprocess.CompletedProcess(
            program, code, output.read_text(encoding="utf-8"), errors.read_text(encoding="utf-8")
        )


def run_by_hand(program: list[str], ranks: int = 2) -> tuple[list[int], str]:
    """Run a program as so many processes of one run, without torchrun; return their exit codes and what they told."""
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("localhost", 0))
        group = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
        free.close()
        output, errors = (Path(folder) / name for name in ("output", "errors"))
        processes = [begin(program, output, errors, RANK=str(rank), **group) for rank in range(ranks)]
        return [process.wait() for process in processes], errors.read_text(encoding="utf-8")


class Running:
    """A command that runs; what `subprocess.Popen` tells of it."""

    def __init__(self, process: BaseProcess) -> None:
        self._process = process
        self.pid = process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> int:
        self._process.join()
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself, which is nothing to `subprocess.Popen`
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def begin(program: list[str], output: Path, errors: Path, **variables: str) -> Running:
    """Start `python -m module ...` or `python -c code ...`; append what it prints to two files, or to one.

    `variables` of the environment are the command's own: the process that is forked, and all after it, lack them.
    """
    multiprocessing.set_forkserver_preload(["pytest", "monai.bundle", "torch.utils.tensorboard", *PRELOADED])
    context = multiprocessing.get_context("forkserver")
    places = [str(ROOT), *sys.path]
    settings = ({**ONE_THREAD, **os.environ, **variables}, places, elsewhere() / "work")
    process = context.Process(target=_as_main, args=(program[1:], output, errors, *settings))
    with _environment(PYTHONPATH=os.pathsep.join(places)):  # of the process that is forked, which starts with the first
        process.start()
    return Running(process)


def _as_main(
    arguments: list[str], output: Path, errors: Path, environment: dict[str, str], places: list[str], folder: Path
) -> None:
    """Do in this process what the interpreter would do with the arguments, down to what it does at its end."""
    for descriptor, path in ((1, output), (2, errors)):
        with open(path, "ab") as file:
            os.dup2(file.fileno(), descriptor)
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[:] = places
    kind, what, *sys.argv[1:] = arguments
    try:
        try:
            if kind == "-c":
                exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
            else:
                runpy.run_module(what, run_name="__main__", alter_sys=True)
        except SystemExit:
            raise
        except BaseException:
            sys.excepthook(*sys.exc_info())
            sys.exit(1)
    finally:
        sys.stdout.flush()
        atexit._run_exitfuncs()  # a forked process ends without


@contextlib.contextmanager
def _environment(**variables: str):
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def two_process_command(bundle: str, config: str, *arguments: object) -> list[str]:
    """Return a bundle's command with its overlay for several processes, on the CPU."""
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return [
        *program,
        "-m",
        "monai.bundle",
        "run",
        "--config_file",
        config_files(bundle, config, "multi_gpu"),
        *map(str, arguments),
    ]


def run_in_two_processes(bundle: str, config: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a bundle's command in two processes."""
    program = two_process_command(bundle, config, *arguments)
    return subprocess.run(
        program, capture_output=True, text=True, check=False, env=ONE_THREAD, cwd=elsewhere() / "work"
    )


def assert_done(result: subprocess.CompletedProcess[str]) -> None:
    assert result.returncode == 0, result.stderr[-3000:]


def error_line(result: subprocess.CompletedProcess[str]) -> str:
    """Return the one line that told what was wrong."""
    assert result.returncode == 2, result.stderr[-3000:]
    assert "Traceback" not in result.stderr
    return only_error_line(result.stderr)


def only_error_line(told: str) -> str:
    """Return the one line of an error among what was told; torchrun has a traceback of its own."""
    lines = [line for line in told.splitlines() if "error: " in line]
    assert len(lines) == 1, told[-3000:]
    assert lines[0].startswith("error: ")
    return lines[0]


def rows(file: Path) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def scalars(run_dir: Path) -> dict[str, list[float]]:
    """Return the curves that a run left for TensorBoard, by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(run_dir / "tensorboard"))
    accumulator.Reload()
    return {tag: [event.value for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}
