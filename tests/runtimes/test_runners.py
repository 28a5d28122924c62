# SPDX-License-Identifier: Apache-2.0
"""The runtimes of exported students beside their figures, which tests/export compares."""

from __future__ import annotations

import subprocess
import sys

import pytest

SIGNAL_AFTER_THE_LAST_NETWORK = """
import gc, os, signal, threading
import numpy as np
import openvino
from openvino import opset13

from pipeline.runtimes.runners import runner_of_openvino

image = opset13.parameter([1, 1, 8, 8], np.float32)
runs = [runner_of_openvino(openvino.Model([opset13.relu(image)], [image]))]
runs[0](np.zeros((1, 1, 8, 8), np.float32))
signal.signal(signal.SIGINT, lambda *_: print("caught"))
forgetting = threading.Thread(target=lambda: (runs.clear(), gc.collect()))
forgetting.start()
forgetting.join()
os.kill(os.getpid(), signal.SIGINT)
"""


def test_ctrl_c_is_caught_after_openvino_has_gone_on_another_thread():
    pytest.importorskip("openvino")
    command = [sys.executable, "-W", "ignore", "-c", SIGNAL_AFTER_THE_LAST_NETWORK]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "caught\n"), result.stderr
