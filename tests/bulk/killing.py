"""A batch that is killed at moments a seed chooses, alone and on Ray."""

import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.conftest import REPOSITORY

ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(REPOSITORY),
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AUTH_MODE": "token",  # else it depends on the person's own files who may connect
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def records(out: Path) -> list[Path]:
    return [path for path in (out / "records").rglob("*.json") if not path.name.startswith(".")]


@dataclass
class Killer:
    """Runs one batch again and again, until nobody kills it any more."""

    command: Sequence[str]
    out: Path
    photos: int
    """That come to an end with a record."""
    random: random.Random
    pause: float = 1.0
    """Seconds after a record, at most, until the kill."""
    patience: float = 600
    """Seconds without anything new."""
    told: list[int] = field(default_factory=list)
    """Records that were there, at every kill."""

    def kill_runs(self, kills: int) -> None:
        """Kills so many runs, each at a moment of its own: some before the first new record, the last while it merges,
        where it was not too late for that."""
        for left in range(kills, 0, -1):
            if left > 1 and len(records(self.out)) == self.photos:  # so that there is work to be killed at
                for path in records(self.out)[::2]:
                    path.unlink()
            kept = len(records(self.out))
            with self._running() as process:
                if left == 1:
                    self._wait_for(process, self.photos)
                    time.sleep(self.random.uniform(0, 0.1))
                elif self.random.random() < 0.2:
                    self._wait_for(process, kept + 1, self.random.uniform(0, 15))
                else:
                    most = max(1, (self.photos - kept) // left)
                    self._wait_for(process, kept + self.random.randint(1, most))
                    time.sleep(self.random.uniform(0, self.pause))
                process.send_signal(signal.SIGKILL)
                process.wait()
                if left > 1:
                    assert process.returncode == -signal.SIGKILL, self._said(process)
            self.told.append(len(records(self.out)))

    def kill_workers(self, kills: int, cluster: int) -> None:
        """Kills workers of Ray while one run goes on to its end. cluster: its process."""
        with self._running() as process:
            for left in range(kills, 0, -1):
                kept = len(records(self.out))
                most = max(1, (self.photos - kept) // (left + 1))
                self._wait_for(process, kept + self.random.randint(1, most))
                time.sleep(self.random.uniform(0, self.pause))
                there = workers(cluster)
                assert there, "no worker is alive"
                self.random.choice(there).kill()
                self.told.append(len(records(self.out)))
            self._wait_for_end(process)

    def finish(self) -> None:
        """One more run, which nobody disturbs."""
        with self._running() as process:
            self._wait_for_end(process)

    @contextmanager
    def _running(self) -> Iterator[subprocess.Popen[bytes]]:
        """What was there is not made again."""
        there = {path: path.stat().st_mtime_ns for path in records(self.out)}
        with tempfile.TemporaryFile() as said:
            self.file = said
            process = subprocess.Popen(
                self.command, cwd=REPOSITORY, env=ENVIRONMENT, stdout=said, stderr=said, start_new_session=True
            )
            try:
                yield process
            finally:
                process.kill()
                process.wait()
        assert {path: path.stat().st_mtime_ns for path in there} == there

    def _wait_for(self, process: subprocess.Popen[bytes], count: int, seconds: float = float("inf")) -> None:
        before, since, start = -1, time.monotonic(), time.monotonic()
        while (now := len(records(self.out))) < count and time.monotonic() - start < seconds:
            if now != before:
                before, since = now, time.monotonic()
            assert process.poll() is None and time.monotonic() - since < self.patience, self._said(process)
            time.sleep(0.005)

    def _wait_for_end(self, process: subprocess.Popen[bytes]) -> None:
        """Exit status 1 says that some photos failed, as they should."""
        self._wait_for(process, self.photos)
        assert process.wait(self.patience) in (0, 1), self._said(process)

    def _said(self, process: subprocess.Popen[bytes]) -> str:
        self.file.seek(0)
        return f"{process.returncode}: {self.file.read().decode(errors='replace')[-4000:]}"


def workers(cluster: int) -> list[psutil.Process]:
    """The processes of Ray that hold a model."""
    found = []
    for process in psutil.Process(cluster).children(recursive=True):
        with suppress(psutil.Error):
            if " ".join(process.cmdline()).startswith("ray::MapWorker"):
                found.append(process)
    return found


@contextmanager
def local_cluster(cpus: int) -> Iterator[tuple[str, int]]:
    """A Ray of several processes on this machine: its address and its first process. All of it ends with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="ray"))  # a short path: sockets lie in it
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}"]
    command += ["--node-ip-address=127.0.0.1", f"--num-cpus={cpus}", f"--temp-dir={folder}"]
    command += ["--include-dashboard=false", "--disable-usage-stats", f"--object-store-memory={100 * 2**20}"]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=said, stderr=said, start_new_session=True)
        try:
            deadline = time.monotonic() + 300
            while b"runtime started" not in (read := _whole(said)):
                assert process.poll() is None and time.monotonic() < deadline, read.decode(errors="replace")
                time.sleep(0.2)
            yield f"127.0.0.1:{port}", process.pid
        finally:
            family = [*psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []
            process.kill()
            for member in family:
                with suppress(psutil.Error):
                    member.kill()
            process.wait()
            psutil.wait_procs(family, 30)
            shutil.rmtree(folder, ignore_errors=True)


def _whole(file: object) -> bytes:
    file.seek(0)  # type: ignore[attr-defined]
    return file.read()  # type: ignore[attr-defined, no-any-return]
