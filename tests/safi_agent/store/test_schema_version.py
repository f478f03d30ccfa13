"""The schema version: a store of another version is refused and left unchanged."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, inspect, select, text

from safi_agent import create_safi_chain
from safi_agent.store import Store, open_store
from safi_agent.store.schema_version import VERSION
from safi_agent.store.tables import metadata, version
from tests.safi_agent.fakes import THREE, Fake
from tests.safi_agent.postgres_server import Server


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/s.db"
    found: str = request.getfixturevalue("database")
    return found


def opened(url: str) -> Store:
    store = open_store(url)
    store.save_values("v", "{}")
    return store


def closed(store: Store) -> None:
    store.database.engine.dispose()


def test_a_new_store_has_the_newest_version_and_opening_it_again_changes_nothing(url: str) -> None:
    for _ in range(2):
        store = opened(url)
        with store.database.transaction(reading=True) as c:
            assert c.scalars(select(version.c.version)).all() == [VERSION]
        closed(store)
        del store


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
def test_a_store_of_version_1_is_refused_and_keeps_its_turns(url: str, numbered: bool) -> None:
    """Tables without a version number count as version 1."""
    engine = create_engine(url)
    with engine.begin() as c:
        for statement in AS_IN_VERSION_1.split(";\n"):
            c.exec_driver_sql(statement)
        if numbered:
            c.exec_driver_sql("CREATE TABLE safi_version (version INTEGER NOT NULL PRIMARY KEY)")
            c.exec_driver_sql("INSERT INTO safi_version VALUES (1)")
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"store: expected one of version {VERSION}, got version 1"):
            open_store(url)
    with engine.begin() as c:
        assert c.execute(text("SELECT id FROM safi_turns")).all() == [("a",)]
        assert not inspect(c).has_table("safi_chains")
    engine.dispose()


def test_a_newer_file_is_refused_and_not_one_byte_of_it_changed(tmp_path: Path) -> None:
    file = tmp_path / "s.db"
    with sqlite3.connect(file) as db:  # a newer package may have given up write-ahead logging
        db.execute("CREATE TABLE safi_version (version INTEGER)")
        db.execute("INSERT INTO safi_version VALUES (7)")
    db.close()
    before = file.read_bytes()
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"store: expected one of version {VERSION}, got version 7"):
            create_safi_chain(Fake(), THREE, store=f"sqlite:///{file}", log=None)
    assert file.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["s.db"]


@pytest.mark.slow
def test_a_newer_database_is_refused_and_nothing_is_made_in_it(database: str, postgres: Server) -> None:
    name = database.rpartition("/")[2]
    postgres.ask("CREATE TABLE safi_version (version INTEGER)", name)
    postgres.ask("INSERT INTO safi_version VALUES (7)", name)
    with pytest.raises(ValueError, match="got version 7"):
        open_store(database)
    tables: list[Any] = postgres.ask("SELECT tablename FROM pg_tables WHERE schemaname = 'public'", name)
    assert tables == [("safi_version",)]


def test_the_tables_are_those_of_the_version() -> None:
    """A change of a table or of a turn's body changes the version; a change of a table this list too."""
    made = {table.name: " ".join(sorted(table.columns.keys())) for table in metadata.sorted_tables}
    assert VERSION == 5
    assert made == {
        "safi_anchors": "key lines log mac size",
        "safi_chains": "lease owner value_set",
        "safi_memory": "key mu mu_turn note scores turns",
        "safi_secrets": "name secret",
        "safi_turns": "attempts audit body erased error id judge key lease ledger log logged owner place reaudit_of "
        "record settled since status turn value_set values_id",
        "safi_value_sets": "body id",
        "safi_version": "version",
    }
