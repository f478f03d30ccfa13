"""The application over real HTTP, and what a client sends to it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn
from langchain_openai import ChatOpenAI

from safi_agent.serve.server import listen

MODEL = "fake"  # the name of the model ``Fake``
PATH = "/v1/chat/completions"


class Switch:
    """An ASGI application that is the one that was set last: to start a server takes longer than a test."""

    app: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


@contextmanager
def running(app: Any) -> Iterator[str]:
    """The address of a server in another thread."""
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, ws="none", lifespan="off", log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()


def request(prompt: Any = "Why?", **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return {"model": MODEL, "messages": messages, **more}


def connection_settings(address: str) -> dict[str, Any]:
    """Settings of a ChatOpenAI whose connections do not outlive a request, so that it can be used in any event loop."""
    client = httpx.AsyncClient(limits=httpx.Limits(max_keepalive_connections=0))
    return {"base_url": address, "api_key": "k", "max_retries": 0, "http_async_client": client}


def upstream_model(address: str) -> ChatOpenAI:
    """A model behind a service."""
    return ChatOpenAI(model="m", **connection_settings(address))
