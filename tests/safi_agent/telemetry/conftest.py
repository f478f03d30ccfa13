from collections.abc import Iterator

import pytest

from tests.safi_agent.telemetry.exported import Exported


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator[Exported]:
    """What is exported in memory while a test runs, with a logger provider."""
    one = Exported(monkeypatch, events=True)
    yield one
    one.shutdown()


@pytest.fixture
def traces_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[Exported]:
    """The same for an application without a logger provider."""
    one = Exported(monkeypatch, events=False)
    yield one
    one.shutdown()
