"""Versions: a step is taken once and whole, what is newer is left as it is."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, inspect, select, text

from safi_agent import create_safi_chain
from safi_agent.store import Store, open_store, versions
from safi_agent.store.tables import metadata, version
from safi_agent.store.versions import newest, version_of
from tests.safi_agent.fakes import THREE, Fake
from tests.safi_agent.postgres_server import Server


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/s.db"
    found: str = request.getfixturevalue("database")
    return found


def opened(url: str) -> Store:
    store = open_store(url)
    store.keep_values("v", "{}")
    return store


def closed(store: Store) -> None:
    store.database.engine.dispose()


def add_a_column(c: Connection) -> None:
    c.execute(text("ALTER TABLE safi_turns ADD COLUMN mood TEXT"))


def add_it_and_fall(c: Connection) -> None:
    add_a_column(c)
    raise RuntimeError("the step fell")


def columns(store: Store) -> list[str]:
    with store._transaction(reading=True) as c:
        return [column["name"] for column in inspect(c).get_columns("safi_turns")]


def test_a_new_store_has_the_newest_version_and_opening_it_again_changes_nothing(url: str) -> None:
    for _ in range(2):
        store = opened(url)
        with store._transaction(reading=True) as c:
            assert c.scalars(select(version.c.version)).all() == [newest()]
        closed(store)
        del store


def test_a_step_is_taken_once_and_keeps_what_was_there(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(url)
    store.add({"id": "a", "key": "k", "valueSet": "s"}, "v", "", audit=True)
    closed(store)
    del store
    monkeypatch.setattr(versions, "STEPS", (add_a_column,))
    for _ in range(2):
        store = opened(url)
        assert columns(store).count("mood") == 1
        assert store.find("a") == (1, {"id": "a", "key": "k", "valueSet": "s"})
        with store._transaction(reading=True) as c:
            assert version_of(c) == 2
        closed(store)
        del store


def test_a_step_that_falls_leaves_the_store_as_it_was(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    closed(opened(url))
    with monkeypatch.context() as patch:
        patch.setattr(versions, "STEPS", (add_it_and_fall,))
        with pytest.raises(RuntimeError, match="the step fell"):
            open_store(url)
    store = opened(url)
    assert "mood" not in columns(store)
    with store._transaction(reading=True) as c:
        assert version_of(c) == 1
    closed(store)


def test_tables_from_before_there_was_a_number_are_version_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    closed(opened(url))
    with sqlite3.connect(tmp_path / "s.db") as db:
        db.execute("DROP TABLE safi_version")
    db.close()
    monkeypatch.setattr(versions, "STEPS", (add_a_column,))
    store = opened(url)
    assert "mood" in columns(store)
    closed(store)


def test_a_newer_file_is_refused_and_not_one_byte_of_it_changed(tmp_path: Path) -> None:
    file = tmp_path / "s.db"
    with sqlite3.connect(file) as db:  # a newer package may have given up write-ahead logging
        db.execute("CREATE TABLE safi_version (version INTEGER)")
        db.execute("INSERT INTO safi_version VALUES (7)")
    db.close()
    before = file.read_bytes()
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"store: expected one of version {newest()} or older, got version 7"):
            create_safi_chain(Fake(), THREE, store=f"sqlite:///{file}", log=None)
    assert file.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["s.db"]


def test_a_newer_database_is_refused_and_nothing_is_made_in_it(database: str, postgres: Server) -> None:
    name = database.rpartition("/")[2]
    postgres.ask("CREATE TABLE safi_version (version INTEGER)", name)
    postgres.ask("INSERT INTO safi_version VALUES (7)", name)
    with pytest.raises(ValueError, match="got version 7"):
        open_store(database)
    tables: list[Any] = postgres.ask("SELECT tablename FROM pg_tables WHERE schemaname = 'public'", name)
    assert tables == [("safi_version",)]


def test_the_tables_are_those_of_the_version() -> None:
    """Whoever changes a table writes a step for it, and this list."""
    made = {table.name: " ".join(sorted(table.columns.keys())) for table in metadata.sorted_tables}
    assert newest() == 1
    assert made == {
        "safi_anchors": "key lines log mac size",
        "safi_memory": "key mu mu_turn note scores turns",
        "safi_secrets": "name secret",  # made when it is first asked for, so an older package can still use the store
        "safi_turns": "attempts audit body error id key lease ledger log logged owner place record settled status turn "
        "value_set values_id",
        "safi_value_sets": "body id",
        "safi_version": "version",
    }
