"""Reading a request: its body within limits of size and time, and whether its client is still connected."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

from safi_agent.serve.api_errors import ApiError

T = TypeVar("T")
BODY_TIMEOUT = 30.0  # seconds that a client may take to send a body
JSON = "application/json"


class ClientGoneError(Exception):
    """The client closed its connection before the response."""


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The body of a request, of at most ``max_bytes`` bytes.

    Raises:
        ApiError: 415 for another type than JSON, 413 for a longer body, 408 for one that is not sent in time.
        starlette.requests.ClientDisconnect: the client closed its connection.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # A web page can send other types to a service on loopback without asking its browser for permission.
    if kind != JSON or request.headers.get("content-encoding", "identity") != "identity":
        raise ApiError(415, f"Content-Type: expected {JSON}, not compressed.", code="unsupported_media_type")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            async for part in request.stream():
                body += part
                if len(body) > max_bytes:
                    raise ApiError(413, f"Body: expected at most {max_bytes:,} bytes.", code="request_too_large")
    except TimeoutError:
        raise ApiError(408, "The body was not sent in time.", code="request_timeout") from None
    return bytes(body)


async def run_while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` for a request whose body was read; it is cancelled when the client closes its connection.

    Raises:
        ClientGoneError: the client closed its connection first.
        Exception: what ``work`` raises.
    """
    tasks = asyncio.create_task(work), asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            return tasks[0].result()
        raise ClientGoneError
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
