"""The process: a socket, uvicorn, and an end that finishes what was accepted."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from contextlib import suppress

import uvicorn
from fastapi import FastAPI

from lexiseg.apps.server.service import Service


class Server(uvicorn.Server):
    """uvicorn that leaves when the last accepted request has its answer.

    By itself it would wait for every open connection, and a page that is open in a browser holds one.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Nothing new is taken; what has a place is finished; then listeners of the page are sent away."""
        self.service.closing = True
        leaving = asyncio.create_task(self._leave())
        await super().shutdown(sockets)
        await leaving

    async def _leave(self) -> None:
        await self.service.idle()
        await asyncio.sleep(0.2)  # the last answer is on its way
        for task in list(self.server_state.tasks):
            task.cancel()


def listen(host: str, port: int) -> socket.socket:
    """A socket that nobody else has; OSError says why not. Port 0 takes a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=512)


def address(listening: socket.socket) -> str:
    """For the browser."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def serve(app: FastAPI, service: Service, listening: socket.socket) -> None:
    """Answers until SIGINT or SIGTERM, and returns when all is done."""
    # uvicorn ends by sending itself the signal again; without a handler of ours that would be the end of everything,
    # before the files of the page are deleted.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    config = uvicorn.Config(app, log_config=None, access_log=False, server_header=False, timeout_keep_alive=30)
    with suppress(KeyboardInterrupt):  # Ctrl-C is how a person stops it: all is done by then
        Server(config, service).run(sockets=[listening])
