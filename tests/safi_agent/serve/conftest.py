from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from safi_agent import SafiChain
from safi_agent.serve import create_app
from tests.safi_agent.serve.running import running


@pytest.fixture
def serve() -> Iterator[Callable[..., httpx.Client]]:
    """A client of a service of a chain, over real HTTP."""
    with ExitStack() as stack:

        def start(chain: SafiChain, *arguments: Any, **settings: Any) -> httpx.Client:
            address = stack.enter_context(running(create_app(chain, *arguments, **settings)))
            return stack.enter_context(httpx.Client(base_url=address, timeout=20))

        yield start
