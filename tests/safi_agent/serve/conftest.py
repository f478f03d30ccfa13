from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from safi_agent import SafiChain
from safi_agent.serve import create_app
from tests.safi_agent.serve.running import Switch, running


@pytest.fixture(scope="session")
def server() -> Iterator[tuple[Switch, str]]:
    """A server for the session, and its address."""
    switch = Switch()
    with running(switch) as address:
        yield switch, address


@pytest.fixture
def serve(server: tuple[Switch, str]) -> Iterator[Callable[..., httpx.Client]]:
    """A client of a service of a chain, over real HTTP; one service at a time."""
    switch, address = server
    with ExitStack() as stack:

        def start(chain: SafiChain, *arguments: Any, **settings: Any) -> httpx.Client:
            switch.app = create_app(chain, *arguments, **settings)
            return stack.enter_context(httpx.Client(base_url=address, timeout=20))

        yield start
