from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from safi_agent import SafiChain, SafiMiddleware, create_safi_chain
from tests.safi_agent.fakes import THREE, Fake


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "OPENAI_API_KEY",
        "OPENAI_BASE_URL",
        "LANGSMITH_TRACING",
        "LANGCHAIN_TRACING_V2",
        "SAFI_LOG_KEY",
        "SAFI_LOG_KEY_FILE",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., SafiChain]]:
    """Chains in a folder of their own, closed at the end."""
    made: list[SafiChain] = []

    def make_one(model: Any = None, values: Any = THREE, **settings: Any) -> SafiChain:
        given = {"store": f"sqlite:///{tmp_path}/safi.db", "log": tmp_path / "log.json", "audit_backoff": 0.01}
        made.append(create_safi_chain(Fake() if model is None else model, values, **(given | settings)))
        return made[-1]

    yield make_one
    for chain in made:
        chain.close(3)


@pytest.fixture
def govern(tmp_path: Path) -> Iterator[Callable[..., SafiMiddleware]]:
    """The same for agents: middlewares whose judge is the first argument."""
    made: list[SafiMiddleware] = []

    def make_one(judge: Any = None, allowed_tools: Any = None, values: Any = THREE, **settings: Any) -> SafiMiddleware:
        given = {"store": f"sqlite:///{tmp_path}/safi.db", "log": tmp_path / "log.json", "audit_backoff": 0.01}
        judge = Fake() if judge is None else judge
        made.append(SafiMiddleware(values, allowed_tools, model=judge, **(given | settings)))
        return made[-1]

    yield make_one
    for middleware in made:
        middleware.close(3)
