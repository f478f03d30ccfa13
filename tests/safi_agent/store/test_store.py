"""The store: one number a turn, commits in order and once, work of the dead taken over."""

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, select, update

from safi_agent.errors import OutboxError
from safi_agent.store import Commit, JudgedTurn, Memory, Store, open_store, prepare_batch, process_id
from safi_agent.store.backlog import read_backlog
from safi_agent.store.log_state import read_unlogged
from safi_agent.store.reaudit import failed_audits
from safi_agent.store.sqlite import Sqlite, prepare
from safi_agent.store.tables import turns, value_sets
from safi_agent.store.timeout_budget import shared_timeout_budget

V = sha256(b"{}").hexdigest()  # the id of a value set is that of its text


@pytest.fixture(params=["file", "memory", pytest.param("postgres", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    url = f"sqlite:///{tmp_path}/s.db" if request.param == "file" else None
    if request.param == "postgres":
        url = request.getfixturevalue("database")
    made = open_store(url)
    made.save_values(V, "{}")
    yield made
    made.database.engine.dispose()


def add(store: Store, turn_id: str, key: str = "k", *, audit: bool = True) -> int:
    return store.add_turn({"id": turn_id, "key": key, "valueSet": "s"}, V, "", audit=audit)[0]


def keep(row: JudgedTurn, before: Memory) -> Commit:
    return Commit({"id": row.id}, before._replace(mu_turn=before.mu_turn + 1, mu={"n": before.mu_turn + 1.0}), row.id)


def test_turns_are_numbered_by_key_without_gaps_by_many_threads(store: Store) -> None:
    numbers: list[int] = []
    threads = [
        threading.Thread(target=lambda n=n: numbers.extend(add(store, f"{n}-{i}") for i in range(10))) for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(1, 81))
    assert add(store, "other", "other") == 1


def test_an_id_is_taken_once_and_the_first_body_counts(store: Store) -> None:
    assert store.add_turn({"id": "a", "key": "k", "valueSet": "s", "n": 1}, V, "", audit=True) == (1, None)
    number, before = store.add_turn({"id": "a", "key": "k", "valueSet": "s", "n": 2}, V, "", audit=True)
    assert (number, before) == (1, {"id": "a", "key": "k", "valueSet": "s", "n": 1})
    assert add(store, "b") == 2


def test_commits_wait_for_the_oldest_turn_of_the_key_and_happen_once(store: Store) -> None:
    for i in "abc":
        add(store, i)
    add(store, "d", audit=False)
    store.save_ledger("c", [], None)
    store.save_ledger("b", [], None)
    assert list(store.commit_ready(["k"], keep)) == []
    store.save_ledger("a", [], None)
    assert list(store.commit_ready(["k"], keep)) == ["a", "b", "c", "d"]
    assert list(store.commit_ready(["k"], keep)) == []
    assert store.feedback_note("k") == "d"


def test_only_the_first_ledger_counts(store: Store) -> None:
    add(store, "a")
    store.save_ledger("a", [{"n": 1}], None)
    store.save_ledger("a", [{"n": 2}], None)
    seen: list[Any] = []
    store.commit_ready(["k"], lambda row, before: (seen.append(row.ledger), keep(row, before))[1])
    assert seen == [[{"n": 1}]]


def test_a_commit_that_falls_leaves_nothing(store: Store) -> None:
    add(store, "a")
    store.save_ledger("a", [], None)

    def falls(row: JudgedTurn, before: Memory) -> Commit:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        store.commit_ready(["k"], falls)
    assert store.load_records(["a"]) == {}
    assert list(store.commit_ready(["k"], keep)) == ["a"]


def test_of_two_keys_that_are_committed_at_once_each_turn_has_its_own_place(store: Store) -> None:
    for key in "kl":
        for turn_id in (f"{key}1", f"{key}2"):
            add(store, turn_id, key)
            store.save_ledger(turn_id, [], None)
    first, second = (prepare_batch(turns, keep) for turns in store.load_ready("kl", {}))
    other = threading.Thread(target=store.commit, args=([second],))
    with store.database.transaction() as c:
        store._commit(c, [first], None)
        other.start()
        other.join(0.5)
    other.join(60)
    with store.database.transaction(reading=True) as c:
        places = c.execute(select(turns.c.id, turns.c.place).order_by(turns.c.place)).all()
    assert places == [("k1", 1), ("k2", 2), ("l1", 3), ("l2", 4)], "in the order of commits"


def test_a_batch_that_was_committed_meanwhile_is_skipped(store: Store) -> None:
    for turn_id in "ab":
        add(store, turn_id)
        store.save_ledger(turn_id, [], None)
    first, second = (prepare_batch(batch, keep) for _ in range(2) for batch in store.load_ready("k", {}))
    assert list(store.commit([first])) == ["a", "b"]
    assert store.commit([second]) == {}
    with store.database.transaction(reading=True) as c:
        places = c.execute(select(turns.c.id, turns.c.place).order_by(turns.c.place)).all()
    assert places == [("a", 1), ("b", 2)]


def test_many_committers_add_up(store: Store) -> None:
    for i in range(40):
        add(store, str(i))
        store.save_ledger(str(i), [], None)
    threads = [threading.Thread(target=store.commit_ready, args=(["k"], keep)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seen: list[Memory] = []
    add(store, "last", audit=False)
    store.commit_ready(["k"], lambda row, before: (seen.append(before), keep(row, before))[1])
    assert seen == [Memory({"n": 40.0}, 40, [])]


def test_work_is_taken_over_from_the_dead_and_the_silent_only(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    host, _, _ = process_id.this_process().rsplit(":", 2)
    owners = {
        "mine": (process_id.this_process(), 60),
        "dead": (f"{host}:4194000:x", 60),
        "alive": (f"{host}:1:x", 60),
        "reborn": (f"{host}:{process_id.os.getpid()}:x", 60),
        "far": ("elsewhere:5:x", 60),
        "silent": ("elsewhere:6:x", -1),
    }
    for name, (who, lease) in owners.items():
        add(store, name)
        with store.database.transaction() as c:
            c.execute(update(turns).where(turns.c.id == name).values(owner=who, lease=time.time() + lease))
    assert [job.id for job in store.leases.take_over("s")] == ["dead", "reborn", "silent"]
    assert store.leases.take_over("s") == []
    assert store.leases.take_over("another set") == []


def test_after_a_store_was_waited_for_in_vain_it_is_as_before(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    store, other = open_store(url), Store(Sqlite(url))
    store.save_values(V, "{}")
    body = {"id": "a", "key": "k", "valueSet": "s"}
    for writer in (store, other):
        there, go = threading.Event(), threading.Event()

        def hold(writer: Store = writer, there: threading.Event = there, go: threading.Event = go) -> None:
            with writer.database.transaction():
                there.set()
                go.wait(60)

        thread = threading.Thread(target=hold)
        thread.start()
        there.wait(60)
        with shared_timeout_budget(0.05), pytest.raises(OutboxError, match="TimeoutError"):
            store.add_turn(body, V, "", audit=True)
        go.set()
        thread.join()
    assert store.add_turn(body, V, "", audit=True) == (1, None)
    with store.database.transaction(reading=True) as c:
        assert c.exec_driver_sql("PRAGMA busy_timeout").scalar() == 5_000


def test_no_question_reads_all_that_ever_was(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/s.db")
    store.save_values(V, "{}")
    for i in range(200):
        add(store, str(i), audit=False)
    store.commit_ready(["k"], keep)
    store.mark_settled([str(i) for i in range(200)])
    plans: list[str] = []

    def explain(_: Any, cursor: Any, statement: str, parameters: Any, *rest: Any) -> None:
        if statement.startswith(("SELECT", "UPDATE")):
            plans.append("; ".join(row[3] for row in cursor.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)))

    event.listen(store.database.engine, "before_cursor_execute", explain)
    add(store, "a")
    store.find_turn("a")
    store.load_turns(["a"])
    store.save_attempts("a", 1)
    store.save_ledger("a", [], None)
    store.commit_ready(["k"], keep)
    store.load_records(["a"])
    read_unlogged(store, "")
    store.mark_settled(["a"])
    store.leases.take_over("s")
    store.leases.renew()
    read_backlog(store.database, "s")
    store.pending.refresh("s")
    failed_audits(store, "s")
    assert len(plans) >= 10
    assert not [plan for plan in plans if "SCAN safi_turns" in plan and "INDEX" not in plan]
    for index in ("open", "unlogged", "unfinished", "place", "failed"):
        assert any(f"safi_turns_{index}" in plan for plan in plans), index


def test_a_value_set_is_kept_as_it_was_and_mended_where_it_was_changed(store: Store) -> None:
    store.save_values(V, '{"another": 1}')
    assert store.read_values(V) == "{}"
    with store.database.transaction() as c:
        c.execute(update(value_sets).values(body="torn"))
    store.save_values(V, "{}")
    assert store.read_values(V) == "{}"


def test_one_store_for_a_file_and_one_for_each_memory(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    one = open_store(url)
    assert open_store(url) is one
    assert open_store(None) is not open_store(None)


def test_a_file_is_in_wal_mode(tmp_path: Path) -> None:
    with open_store(f"sqlite:///{tmp_path}/s.db").database.transaction(reading=True) as c:
        assert c.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"


@pytest.mark.skipif(os.name != "posix", reason="other systems have other rights")
def test_a_new_file_is_its_owners_alone_and_one_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/s.db")
    add(store, "a")
    assert {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {
        name: 0o600 for name in ("s.db", "s.db-wal", "s.db-shm")
    }
    there = tmp_path / "other.db"
    there.touch()
    there.chmod(0o640)
    store = open_store(f"sqlite:///{there}")
    add(store, "a")
    assert there.stat().st_mode & 0o777 == 0o640


def test_many_may_open_a_new_store_at_the_same_moment(tmp_path: Path) -> None:
    """SQLite does not wait by itself where two connections turn to write-ahead logging at once."""
    for round_ in range(20):
        together = threading.Barrier(4)

        def open_new(file: Path = tmp_path / f"{round_}.db", together: threading.Barrier = together) -> str:
            connection = sqlite3.connect(file, timeout=5, check_same_thread=False)
            together.wait()
            prepare(connection, None)
            (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
            connection.execute("CREATE TABLE IF NOT EXISTS t (x)")
            connection.close()
            return str(mode)

        with ThreadPoolExecutor(4) as pool:
            assert {future.result() for future in [pool.submit(open_new) for _ in range(4)]} == {"wal"}
