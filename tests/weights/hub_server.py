"""A small server on this machine that is laid out like the hub, and a fixture that points downloads to it."""

import hashlib
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """/org/repo/resolve/main/file with the headers huggingface_hub reads; /files/file for release files."""

    files: ClassVar[dict[str, bytes]] = {}
    """By their path in any repository, or by their name alone."""
    requests: ClassVar[list[tuple[str, str, str | None]]] = []
    break_after: ClassVar[list[int]] = []
    """Bytes after which the next GET responses break off, one entry each."""
    etag: ClassVar[str | None] = None
    resumable: ClassVar[bool] = True
    announce: ClassVar[bool] = True

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        ranges = self.headers.get("Range")
        self.requests.append((self.command, self.path, ranges))
        parts = self.path.split("/")
        content = self.files.get("/".join(parts[5:]), self.files.get(parts[-1]))
        if self.path == "/away":
            self.send_response(302)
            self.send_header("Location", "http://example.org/weights.bin")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.path.startswith("/none/") or content is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound" if self.path.startswith("/none/") else "EntryNotFound")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = int(ranges.removeprefix("bytes=").split("-")[0]) if ranges and self.resumable else 0
        if start and start >= len(content):
            self.send_response(416)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{self.etag or hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if self.announce:
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if body:
            rest = content[start:]
            if self.break_after:
                rest = rest[: self.break_after.pop(0)]
                self.close_connection = True
            self.wfile.write(rest)

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


@pytest.fixture
def hub_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    Hub.files = {}
    Hub.requests, Hub.break_after, Hub.etag, Hub.resumable, Hub.announce = [], [], None, True, True
    listener = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = Thread(target=lambda: listener.serve_forever(poll_interval=0.01), daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{listener.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # huggingface_hub waits between attempts
    for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    yield address
    listener.shutdown()
    listener.server_close()
    thread.join()
