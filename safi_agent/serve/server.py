"""Run the application with uvicorn until SIGTERM or Ctrl-C."""

import asyncio
import math
import signal
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import FrameType

import uvicorn
from fastapi import FastAPI
from typing_extensions import override

from safi_agent.serve.access import is_loopback
from safi_agent.serve.bearer_keys import FILE, VARIABLE, BearerKey

THREADS = 200  # for work on the store; turns that wait for it keep theirs for up to 30 s


def check_address(host: str, keys: Sequence[BearerKey]) -> None:
    """Refuse an address that others can reach, if there are no bearer keys.

    Raises:
        ValueError: there are no keys, and the address is not one of this machine only.
    """
    if not keys and not is_loopback(host):
        raise ValueError(
            f"host: expected a loopback address such as 127.0.0.1 without bearer keys, got {host!r}. Create a key with "
            f"'safi bearer', and pass its file as --keys or in {FILE}, or its line in {VARIABLE}."
        )


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free port.

    Raises:
        OSError: the address is in use, or is not one of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)


class _Server(uvicorn.Server):
    """A server with more threads than asyncio's own executor has, that records when it was stopped."""

    stopped_at: float | None = None

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, "safi-serve"))
        await super().startup(sockets)

    @override
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.stopped_at = self.stopped_at or time.monotonic()
        super().handle_exit(sig, frame)


def serve_until_stopped(app: FastAPI, listener: socket.socket, grace: float, started: Callable[[], object]) -> float:
    """Serve on a socket until SIGTERM or Ctrl-C. Requests that are under way then get ``grace`` seconds to finish.

    Call it in the main thread. ``started`` is called before the first request is accepted.

    Returns:
        The seconds of ``grace`` that are left.
    """
    seconds = max(1, math.ceil(grace))
    config = uvicorn.Config(app, ws="none", access_log=False, server_header=False, timeout_graceful_shutdown=seconds)
    server = _Server(config)
    # uvicorn raises the signal again after it has stopped; as KeyboardInterrupt it can be caught here.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        started()
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
    finally:
        signal.signal(signal.SIGTERM, before)
    stopped_at = server.stopped_at or time.monotonic()
    return max(0.0, grace - (time.monotonic() - stopped_at))
