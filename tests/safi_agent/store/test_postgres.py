"""PostgreSQL: turn and job come and go together, several processes open it at once, a lost connection is replaced."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from sqlalchemy import make_url

from safi_agent import OutboxError, create_safi_chain
from safi_agent.store import Store, open_store
from safi_agent.store.job_queue import LONGEST, conninfo, queue_name
from safi_agent.store.postgres import CHECK_INTERVAL, Postgres
from tests.safi_agent.fakes import THREE, Fake
from tests.safi_agent.postgres_server import Server

pytestmark = pytest.mark.slow


def add(store: Store, turn_id: str, *, audit: bool = True) -> int:
    return store.add_turn({"id": turn_id, "key": "k", "valueSet": "s"}, "v", "", audit=audit)[0]


@pytest.fixture
def store(database: str) -> Store:
    made = open_store(database)
    made.save_values("v", "{}")
    return made


def jobs(postgres: Server, database: str) -> list[tuple[object, ...]]:
    ask = "SELECT task_name, args->>'turn', lock, queue_name FROM procrastinate_jobs ORDER BY id"
    return postgres.ask(ask, database.rpartition("/")[2])


def test_a_job_comes_with_its_turn_and_the_next_with_its_ledger(store: Store, postgres: Server, database: str) -> None:
    add(store, "a")
    assert jobs(postgres, database) == [("safi.judge", "a", None, "safi:s")]
    store.save_ledger("a", [], None)
    store.save_ledger("a", [], None)
    assert jobs(postgres, database)[1:] == [("safi.settle", "a", "safi:k", "safi:s")]
    add(store, "b", audit=False)
    assert jobs(postgres, database)[2:] == [("safi.settle", "b", "safi:k", "safi:s")]


def test_waiting_jobs_to_settle_a_turn_end_when_it_is_settled(store: Store, postgres: Server, database: str) -> None:
    for turn_id in "abc":
        add(store, turn_id, audit=False)
    add(store, "d")
    taken = "UPDATE procrastinate_jobs SET status = 'doing' WHERE args->>'turn' = 'b'"
    postgres.ask(taken, database.rpartition("/")[2])
    store.mark_settled(["a", "b", "d"])
    left = [(task, turn) for task, turn, *_ in jobs(postgres, database)]
    assert left == [("safi.settle", "b"), ("safi.settle", "c"), ("safi.judge", "d")]


@pytest.mark.parametrize("options", ["", "?options=-c%20application_name%3Dmine"])
def test_a_workers_own_connections_do_not_wait_for_the_disk(options: str, database: str) -> None:
    made = open_store(database + options)
    with psycopg.connect(conninfo(made.database.engine)) as queue, made.database.transaction() as c:
        assert queue.execute("SHOW synchronous_commit").fetchone() == ("off",)
        assert queue.execute("SHOW application_name").fetchone() == ("mine" if options else "",)
        assert c.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"
    made.database.engine.dispose()


def test_without_its_job_there_is_no_turn(
    store: Store, postgres: Server, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    name = database.rpartition("/")[2]
    postgres.ask("ALTER TABLE procrastinate_jobs ADD CONSTRAINT no CHECK (task_name <> 'safi.judge')", name)
    with pytest.raises(OutboxError, match="CheckViolation") as raised:
        add(store, "a")
    assert raised.value.__context__ is None
    assert "violates check constraint" in caplog.text
    assert "valueSet" not in caplog.text
    assert (store.find_turn("a"), jobs(postgres, database)) == (None, [])
    postgres.ask("ALTER TABLE procrastinate_jobs DROP CONSTRAINT no", name)
    assert add(store, "a") == 1


def test_a_turn_that_was_there_brings_no_second_job(store: Store, postgres: Server, database: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        assert {future.result() for future in [pool.submit(add, store, "a") for _ in range(8)]} == {1}
    assert len(jobs(postgres, database)) == 1
    assert add(store, "b") == 2


def test_many_may_open_a_new_database_at_once(database: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(Postgres, [make_url(database)] * 4))
    for one in made:
        one.engine.dispose()


def test_long_names_fit_a_channel() -> None:
    channel = "procrastinate_queue_v1#"
    for name in ("unesco", "é" * 16, "x" * LONGEST, "x" * 200, "ü" * 40):
        assert len((channel + queue_name(name)).encode()) < 64
    assert queue_name("x" * 200) != queue_name("x" * 201)


def test_a_lost_connection_is_replaced(store: Store, postgres: Server, database: str) -> None:
    add(store, "a")
    name = database.rpartition("/")[2]
    postgres.ask(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
    assert add(store, "b") == 2


@pytest.mark.parametrize("part", ["current_timeout_budget", "CHECK_INTERVAL"])
def test_interrupted_as_it_begins_a_transaction_leaves_nothing_behind(
    store: Store, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """Before it waits, and while it looks for others that were interrupted."""

    class Interrupted:
        def __call__(self) -> None:
            raise KeyboardInterrupt

        def __gt__(self, other: object) -> bool:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"safi_agent.store.postgres.{part}", Interrupted())
        with pytest.raises(KeyboardInterrupt):
            store.find_turn("a")
    for turn in "abc":
        time.sleep(2 * CHECK_INTERVAL)
        assert add(store, turn) > 0


def test_a_child_has_connections_of_its_own(store: Store) -> None:
    add(store, "parent")
    if not (pid := os.fork()):
        os._exit(0 if add(store, "child") == 2 else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert add(store, "after") == 3


def test_a_password_is_not_told(database: str) -> None:
    url = database.replace("safi@", "safi:s3cret@")
    safi = create_safi_chain(Fake(), THREE, store=url, log=None, audit_mode="worker")
    told = [repr(safi), str(safi)]
    for wrong in (url.replace("+psycopg", "+pg8000"), url.replace("://", ":/"), "mysql://u:s3cret@h/d"):
        with pytest.raises(ValueError, match="store: expected") as raised:
            open_store(wrong)
        told.append(str(raised.value))
    with pytest.raises(ValueError, match="beta") as raised:
        create_safi_chain("offline", store=url, beta=2)
    told.append(str(raised.value))
    assert not [text for text in told if "s3cret" in text]
    safi.close(0)


def test_older_tables_of_the_queue_are_refused(database: str, postgres: Server) -> None:
    name = database.rpartition("/")[2]
    postgres.ask("CREATE TABLE procrastinate_jobs (id int)", name)
    with pytest.raises(ValueError, match=r"procrastinate 3\.10 or newer"):
        open_store(database)
    assert postgres.ask("SELECT to_regclass('safi_turns')", name) == [(None,)]
