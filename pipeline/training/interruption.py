# SPDX-License-Identifier: Apache-2.0
"""SIGTERM (a scheduler takes the machine back) and SIGINT (Ctrl-C): noted when they come, obeyed where it is safe."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any

from pipeline.processes import distributed

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(SystemExit):
    """The run was told to stop and has saved its state; exits with 128 + the signal's number, as shells count."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class StopSignals:
    """Remembers a signal to stop instead of dying of it.

    Repeated signals change nothing: schedulers repeat SIGTERM, and torchrun sends its processes signals that they have
    had already. A second Ctrl-C ends a run of one process at once. A signal that the process was started to ignore
    stays ignored.
    """

    def __init__(self) -> None:
        self._received, self._previous = 0, {}

    def catch(self) -> None:
        """Begin to listen; only a main thread can, in another the signals do what they did."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._note)

    def release(self) -> None:
        """Let the signals do again what they did before `catch`, and forget what came."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._received, self._previous = 0, {}

    def received(self) -> int:
        """Return the number of the signal that any process of the run has received, 0 for none; collective."""
        return distributed.largest(self._received)

    def _note(self, number: int, frame: FrameType | Any) -> None:
        if number == signal.SIGINT and self._received and distributed.world_size() == 1:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if not self._received and distributed.is_main():
            again = "; again to stop now" if number == signal.SIGINT and distributed.world_size() == 1 else ""
            # Not print: a signal may come while a line is being printed.
            with contextlib.suppress(OSError):
                os.write(2, f"stopping after this step{again}\n".encode())
        self._received = number
