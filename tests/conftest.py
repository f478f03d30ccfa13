import gc
import importlib.metadata
import os
import ssl
import sys
from collections.abc import Generator, Iterator
from functools import cache
from itertools import count
from typing import Any

import hypothesis
import pytest

from tests.safi_agent.postgres_server import Server, server

# Small tensors on many threads are slower, and other work on the machine makes them much slower; in processes that are
# started too.
os.environ["OMP_NUM_THREADS"] = "1"
# Each Trainer asks for entry points, and each time the files of all installed distributions are read.
importlib.metadata.entry_points = cache(importlib.metadata.entry_points)
# Each HTTP client of a model or a tracer loads the certificates of all authorities.
ssl.create_default_context = cache(ssl.create_default_context)
# The same examples in every run, however slow the machine is.
hypothesis.settings.register_profile("tests", deadline=None, derandomize=True)
hypothesis.settings.load_profile("tests")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Leave what was imported out of garbage collections: with it, each full one takes half a second."""
    gc.disable()
    found = yield
    gc.collect()
    gc.freeze()
    gc.enable()
    return found


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests come first: at the end there are quick ones left for whichever worker has nothing to do."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Whatever a test before has set; tests of safi_agent alone do not import torch."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def both() -> Iterator[Any]:
    """Two processes that stay, for whatever is to run in several at once."""
    from tests.everywhere.processes import Processes

    with Processes() as processes:
        yield processes


@pytest.fixture(autouse=True)
def wandb_forgets():
    """It reads its environment once a process; the next test may have another one."""
    yield
    if teardown := getattr(sys.modules.get("wandb"), "teardown", None):
        teardown()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A server for the session."""
    with server() as one:
        yield one


_numbers = count()


@pytest.fixture
def database(postgres: Server) -> Iterator[str]:
    """The URL of a new, empty database."""
    name = f"safi_{next(_numbers)}"
    postgres.ask(f"CREATE DATABASE {name}")
    yield postgres.url(name)
    postgres.ask(f"DROP DATABASE {name} WITH (FORCE)")
