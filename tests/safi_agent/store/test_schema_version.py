"""Versions: a step is taken once and whole, what is newer is left as it is."""

import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, inspect, select, text

from safi_agent import create_safi_chain
from safi_agent.store import Store, open_store, schema_version
from safi_agent.store.schema_version import newest, version_of
from safi_agent.store.tables import metadata, version
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
    monkeypatch.setattr(schema_version, "STEPS", (*schema_version.STEPS, add_a_column))
    for _ in range(2):
        store = opened(url)
        assert columns(store).count("mood") == 1
        assert store.find("a") == (1, {"id": "a", "key": "k", "valueSet": "s"})
        with store._transaction(reading=True) as c:
            assert version_of(c) == newest()
        closed(store)
        del store


def test_a_step_that_falls_leaves_the_store_as_it_was(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    closed(opened(url))
    with monkeypatch.context() as patch:
        patch.setattr(schema_version, "STEPS", (*schema_version.STEPS, add_it_and_fall))
        with pytest.raises(RuntimeError, match="the step fell"):
            open_store(url)
    store = opened(url)
    assert "mood" not in columns(store)
    with store._transaction(reading=True) as c:
        assert version_of(c) == newest()
    closed(store)


AS_IN_VERSION_1 = """
    CREATE TABLE safi_memory (key VARCHAR NOT NULL PRIMARY KEY, turns INTEGER NOT NULL, mu_turn INTEGER NOT NULL,
        mu TEXT NOT NULL, scores TEXT NOT NULL, note TEXT NOT NULL);
    CREATE TABLE safi_turns (id VARCHAR NOT NULL PRIMARY KEY, key VARCHAR NOT NULL, turn INTEGER NOT NULL,
        value_set VARCHAR NOT NULL, values_id VARCHAR NOT NULL, log VARCHAR NOT NULL, status VARCHAR NOT NULL,
        audit INTEGER NOT NULL, body TEXT NOT NULL, ledger TEXT, attempts INTEGER NOT NULL, error TEXT, record TEXT,
        place INTEGER, logged INTEGER NOT NULL, settled INTEGER NOT NULL, owner VARCHAR NOT NULL,
        lease FLOAT NOT NULL, UNIQUE (key, turn));
    CREATE TABLE safi_value_sets (id VARCHAR NOT NULL PRIMARY KEY, body TEXT NOT NULL);
    CREATE TABLE safi_anchors (log VARCHAR NOT NULL PRIMARY KEY, size BIGINT NOT NULL, lines BIGINT NOT NULL,
        mac VARCHAR NOT NULL, key VARCHAR NOT NULL);
    INSERT INTO safi_memory VALUES ('k', 1, 0, '{}', '[]', '');
    INSERT INTO safi_turns VALUES ('a', 'k', 1, 's', 'v', '', 'pending', 1, '{"id": "a"}', NULL, 0, NULL, NULL, NULL,
        1, 0, 'elsewhere:1:x', 1060.0)
"""


@pytest.mark.parametrize("numbered", [False, True])
def test_a_store_of_version_1_is_brought_up_and_keeps_its_turns(url: str, numbered: bool) -> None:
    """Tables from before there was a number are those of version 1."""
    engine = create_engine(url)
    with engine.begin() as c:
        for statement in AS_IN_VERSION_1.split(";\n"):
            c.exec_driver_sql(statement)
        if numbered:
            c.exec_driver_sql("CREATE TABLE safi_version (version INTEGER NOT NULL PRIMARY KEY)")
            c.exec_driver_sql("INSERT INTO safi_version VALUES (1)")
    engine.dispose()
    for _ in range(2):
        store = opened(url)
        assert {"since", "reaudit_of", "judge"} <= set(columns(store))
        assert store.find("a") == (1, {"id": "a"})
        found = store.backlog("s")
        assert found.depth == 1
        assert found.oldest == pytest.approx(time.time() - 1000, abs=60)
        with store._transaction(reading=True) as c:
            indexes = {index["name"] for index in inspect(c).get_indexes("safi_turns")}
        assert {"safi_turns_failed", "safi_turns_again"} <= indexes
        closed(store)
        del store


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
    assert newest() == 3
    assert made == {
        "safi_anchors": "key lines log mac size",
        "safi_chains": "lease owner value_set",
        "safi_memory": "key mu mu_turn note scores turns",
        "safi_secrets": "name secret",  # made when it is first asked for, so an older package can still use the store
        "safi_turns": "attempts audit body error id judge key lease ledger log logged owner place reaudit_of record "
        "settled since status turn value_set values_id",
        "safi_value_sets": "body id",
        "safi_version": "version",
    }
