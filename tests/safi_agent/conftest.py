from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite

from safi_agent import SafiChain, SafiMiddleware, create_safi_chain
from safi_agent.store import open_store
from tests.safi_agent.fakes import THREE, Fake

# Each chain has an engine, and each engine would compile the same statements anew: a third of the time of a turn.
# SQLAlchemy keeps what it has compiled by dialect; all dialects of SQLite are equal here.
SQLiteDialect_pysqlite.__eq__ = lambda self, other: type(self) is type(other)
SQLiteDialect_pysqlite.__hash__ = lambda self: hash(type(self))
_compiled: dict[Any, Any] = {}


@event.listens_for(Engine, "engine_connect")
def share_compiled_statements(connection: Connection) -> None:
    if connection.dialect.name == "sqlite":
        connection.execution_options(compiled_cache=_compiled)


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "OPENAI_API_KEY",
        "OPENAI_BASE_URL",
        "LANGSMITH_TRACING",
        "LANGCHAIN_TRACING_V2",
        "SAFI_LOG_KEY",
        "SAFI_LOG_KEY_FILE",
        "SAFI_SIGNING_KEY",
        "SAFI_SIGNING_KEY_FILE",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of a store with tables and no rows: to copy it takes less time than to create it."""
    file = tmp_path_factory.mktemp("empty") / "safi.db"
    store = open_store(f"sqlite:///{file}")
    store.database.engine.dispose()  # writes all of it into this one file
    return file.read_bytes()


@pytest.fixture
def usual(tmp_path: Path, empty_store: bytes) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Completes the settings of a chain: its files are in the folder of the test."""

    def complete(settings: dict[str, Any]) -> dict[str, Any]:
        file = tmp_path / "safi.db"
        if "store" not in settings and not file.exists():
            file.touch(mode=0o600)
            file.write_bytes(empty_store)
        return {"store": f"sqlite:///{file}", "log": tmp_path / "log.json", "audit_backoff": 0.01} | settings

    return complete


@pytest.fixture
def make(usual: Callable[[dict[str, Any]], dict[str, Any]]) -> Iterator[Callable[..., SafiChain]]:
    """Chains in a folder of their own, closed at the end."""
    made: list[SafiChain] = []

    def make_one(model: Any = None, values: Any = THREE, **settings: Any) -> SafiChain:
        made.append(create_safi_chain(Fake() if model is None else model, values, **usual(settings)))
        return made[-1]

    yield make_one
    for chain in made:
        chain.close(3)


@pytest.fixture
def govern(usual: Callable[[dict[str, Any]], dict[str, Any]]) -> Iterator[Callable[..., SafiMiddleware]]:
    """The same for agents: middlewares whose judge is the first argument."""
    made: list[SafiMiddleware] = []

    def make_one(judge: Any = None, allowed_tools: Any = None, values: Any = THREE, **settings: Any) -> SafiMiddleware:
        judge = Fake() if judge is None else judge
        made.append(SafiMiddleware(values, allowed_tools, model=judge, **usual(settings)))
        return made[-1]

    yield make_one
    for middleware in made:
        middleware.close(3)
