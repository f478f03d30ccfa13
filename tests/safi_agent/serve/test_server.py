"""The server in the main thread of a process."""

import asyncio
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
from fastapi import FastAPI

from safi_agent.serve.server import listen, serve_until_stopped

TURNS = 40  # more than asyncio's own threads, of which there are at most 32


def test_turns_that_wait_for_the_store_leave_threads_for_others() -> None:
    """Each request waits on a thread until all have one."""
    app, barrier = FastAPI(), threading.Barrier(TURNS)

    @app.get("/")
    async def wait_for_others() -> None:
        await asyncio.to_thread(barrier.wait, 5)

    statuses: list[int] = []

    def ask_and_stop() -> None:
        try:
            with ThreadPoolExecutor(TURNS) as pool, httpx.Client(base_url=address, timeout=20) as client:
                statuses.extend(response.status_code for response in pool.map(lambda _: client.get("/"), range(TURNS)))
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    with listen("127.0.0.1", 0) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        clients = threading.Thread(target=ask_and_stop)
        assert serve_until_stopped(app, listener, 5.0, clients.start) > 0
        clients.join(20)
    assert statuses == [200] * TURNS
