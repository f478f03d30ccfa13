"""A database that fails is told by the kind of its error: its words may quote a statement, a prompt or a password."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError

from safi_agent import OutboxError, SafiMiddleware, create_safi_chain
from safi_agent.store import open_store
from safi_agent.store.postgres import Postgres
from tests.safi_agent.agents.calling import Calling, ask
from tests.safi_agent.fakes import THREE, Fake
from tests.safi_agent.postgres_server import Server, free_port

NOT_OPENED = "store: expected a database that can be opened, got "
Build = Callable[[str], Any]
BUILDERS: list[Build] = [
    open_store,
    lambda url: create_safi_chain(Fake(), THREE, store=url, log=None),
    lambda url: create_safi_chain(Fake(), THREE, store=url, log=None, audit_mode="worker"),
    lambda url: SafiMiddleware(THREE, model=Fake(), store=url, log=None),
]


def refused(build: Build, url: str) -> str:
    with pytest.raises(ValueError, match=NOT_OPENED) as caught:
        build(url)
    assert caught.value.__cause__ is caught.value.__context__ is None
    return str(caught.value)


@pytest.mark.parametrize("build", BUILDERS)
def test_a_server_that_is_not_there(build: Build) -> None:
    pytest.importorskip("procrastinate")
    said = refused(build, f"postgresql+psycopg://anna:s3cret@127.0.0.1:{free_port()}/safi")
    assert "got OperationalError" in said
    assert not [word for word in ("s3cret", "anna", "SELECT") if word in said]


@pytest.mark.parametrize("build", [BUILDERS[0], BUILDERS[1], BUILDERS[3]])
def test_a_file_that_is_no_database(build: Build, tmp_path: Path) -> None:
    (tmp_path / "safi.db").write_bytes(b"no database at all " * 100)
    assert "got DatabaseError" in refused(build, f"sqlite:///{tmp_path}/safi.db")


def test_a_store_that_has_lost_a_table_is_opened_by_no_chain(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/safi.db"
    create_safi_chain(Fake(), THREE, store=url, log=None).close()
    with sqlite3.connect(tmp_path / "safi.db") as connection:
        connection.execute("DROP TABLE safi_turns")
    connection.close()
    assert "safi_turns" not in refused(BUILDERS[1], url)


@pytest.mark.slow
def test_tables_of_the_queue_that_cannot_be_made(database: str, postgres: Server) -> None:
    Postgres(make_url(database)).engine.dispose()
    name = database.rpartition("/")[2]
    postgres.ask("DROP TABLE procrastinate_jobs CASCADE", name)
    with pytest.raises(SQLAlchemyError, match=r"DuplicateObject|DuplicateFunction") as caught:
        Postgres(make_url(database))
    assert "CREATE" not in str(caught.value)
    assert "got Duplicate" in refused(open_store, database)


@pytest.mark.slow
def test_the_logger_gets_the_reason_and_no_row(
    database: str, postgres: Server, make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    safi = make(Fake(intellect="the canary"), store=database, audit_mode="worker")
    name = database.rpartition("/")[2]
    postgres.ask("ALTER TABLE safi_turns ADD CONSTRAINT no CHECK (turn > 9)", name)
    with pytest.raises(OutboxError):
        safi.invoke("a canary")
    assert 'The store failed: new row for relation "safi_turns" violates check constraint "no"' in caplog.text
    assert "canary" not in caplog.text


@pytest.fixture
def away(database: str, postgres: Server) -> Callable[[bool], None]:
    """Takes the database away, and gives it back."""
    name = database.rpartition("/")[2]

    def take(gone: bool) -> None:
        postgres.ask(f"ALTER DATABASE {name} ALLOW_CONNECTIONS {not gone}")
        postgres.ask(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")

    return take


@pytest.mark.slow
def test_a_database_that_goes_away_holds_answers_back_and_ends_no_wait(
    make: Any, govern: Any, database: str, away: Callable[[bool], None]
) -> None:
    safi, middleware = make(store=database, audit_mode="worker"), govern(store=database, audit_mode="worker")
    agent = create_agent(Calling(), [], middleware=[middleware])
    away(True)
    try:
        for asked in (safi.invoke, lambda prompt: ask(agent, given=prompt), lambda prompt: ask(agent, True, prompt)):
            with pytest.raises(OutboxError, match=r"made durable \(OperationalError\)") as caught:
                asked("a canary")
            assert "canary" not in repr(caught.value)
            assert caught.value.__context__ is None
        assert (safi.drain(0), safi.close(0), middleware.close(0)) == (0, 0, 0)
    finally:
        away(False)
