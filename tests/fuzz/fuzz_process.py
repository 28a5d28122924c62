# SPDX-License-Identifier: Apache-2.0
"""Reads files in a process of its own, and tells a crash or a hang from an answer."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# Wall time, on a machine that others use too; how long reading may compute is far less.
_WAIT_SECONDS = 120
_START_SECONDS = 600


class ReadingProcess:
    """A `fuzz_child.py` that is started anew after a file that killed or stopped it."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    def read(self, path: Path) -> dict[str, Any]:
        """Return the child's answer; {"fault": ...} where it died or was silent for too long."""
        fresh = self.process is None
        process = self.process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{path}\n".encode())
        process.stdin.flush()
        if not select.select([process.stdout], [], [], _START_SECONDS if fresh else _WAIT_SECONDS)[0]:
            self.close()
            return {"fault": f"no answer for {_WAIT_SECONDS} s"}
        line = process.stdout.readline()
        if line:
            return dict(json.loads(line))
        code = process.wait()
        self.close()
        return {"fault": f"the process died with code {code}"}

    def _start(self) -> subprocess.Popen[bytes]:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("fuzz_child.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
        return self.process

    def close(self) -> None:
        """End the child."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
        self.process = None
