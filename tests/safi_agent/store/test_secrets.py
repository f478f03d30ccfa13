"""Keys of a store: one for each name, the same for all that use the store."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from safi_agent.store import Store, open_store
from safi_agent.store.secrets import read_secret


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/s.db"
    found: str = request.getfixturevalue("database")
    return found


def reopened(store: Store, url: str) -> Store:
    store.database.engine.dispose()
    return Store(type(store.database)(store.database.url))  # type: ignore[attr-defined, call-arg]


def test_a_key_stays_the_same_and_each_name_has_its_own(url: str) -> None:
    store = open_store(url)
    first, other = read_secret(store, "calls"), read_secret(store, "others")
    assert len(first) == 64
    assert first != other
    assert read_secret(reopened(store, url), "calls") == first
    assert read_secret(open_store(None), "calls") != first


def test_at_once_all_get_the_same_key(url: str) -> None:
    store = open_store(url)
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: read_secret(store, "calls"), range(16)))) == 1
