"""`lexiseg serve` as a user starts it: a process of its own, on a free port of this machine."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_SECONDS = 120


@dataclass
class ServerProcess:
    url: str
    process: subprocess.Popen[str]
    log_file: Path

    def stop(self, how: signal.Signals = signal.SIGTERM, seconds: float = 60) -> int:
        self.process.send_signal(how)
        return self.process.wait(seconds)

    def log(self) -> list[dict[str, Any]]:
        """Every line that it has written to stderr since it began to listen."""
        lines = self.log_file.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]


@contextmanager
def server(model: str | Path, folder: Path, *options: str, key: str | None = None) -> Iterator[ServerProcess]:
    """folder: for the log and temporary files. The server is stopped at the end, if it still runs."""
    command = [sys.executable, "-m", "lexiseg.apps.cli", "serve", "--model", str(model), "--port", "0", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "LEXISEG_CACHE": "off"}
    environment["TMPDIR"] = str(folder)
    environment.pop("LEXISEG_API_KEY", None)
    if key is not None:
        environment["LEXISEG_API_KEY"] = key
    log_file = folder / "server.log"
    with log_file.open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
    try:
        yield ServerProcess(_address(process, log_file), process, log_file)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _address(process: subprocess.Popen[str], log_file: Path) -> str:
    assert process.stdout is not None
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        line = process.stdout.readline()
        if found := re.search(r"http://[\w.:\[\]]+\d", line):
            return found[0]
        if not line:
            break
    raise AssertionError(f"the server did not start:\n{log_file.read_text(encoding='utf-8')}")
