"""Keys of a store: one for each name, the same for all that use the store."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from safi_agent.store import Store, open_store


@pytest.fixture(params=["sqlite", "postgres"])
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
    first, other = store.secret("calls"), store.secret("others")
    assert len(first) == 64
    assert first != other
    assert reopened(store, url).secret("calls") == first
    assert open_store(None).secret("calls") != first


def test_a_store_of_an_older_package_gets_its_table(url: str) -> None:
    store = open_store(url)
    with store._transaction() as c:
        c.exec_driver_sql("DROP TABLE safi_secrets")
    assert store.secret("calls") == store.secret("calls")


def test_at_once_all_get_the_same_key(url: str) -> None:
    store = open_store(url)
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: store.secret("calls"), range(16)))) == 1
