"""Ctrl-C at any moment leaves a store that works, in a process that goes on."""

import os
import threading
import time
from hashlib import sha256
from pathlib import Path

import pytest

from safi_agent.store import Store, open_store
from tests import forked

SEEDS = os.environ.get("SAFI_INTERRUPTS", "6")
V = sha256(b"{}").hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sync", "async", "file", "memory"])
def test_interrupts_at_random_moments_wedge_nothing(kind: str, tmp_path: Path) -> None:
    code = "import sys; from tests.safi_agent.store.interrupts import main; main(*sys.argv[1:])"
    done = forked.run(code, tmp_path, kind, SEEDS, timeout=300)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def abandon(store: Store) -> None:
    """What an interrupt between the end of a block and the first line of its ``__exit__`` leaves."""
    transaction = store.database.transaction()

    def enter() -> None:
        transaction.__enter__().exec_driver_sql("UPDATE safi_memory SET turns = 1000")

    enter()
    left.append(transaction)  # as a traceback keeps it


left: list[object] = []


@pytest.mark.parametrize("kind", ["file", "memory", pytest.param("postgres", marks=pytest.mark.slow)])
def test_a_transaction_whose_block_is_over_is_undone_by_the_next_one(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = {"file": f"sqlite:///{tmp_path}/s.db", "memory": None}.get(kind) or (
        request.getfixturevalue("database") if kind == "postgres" else None
    )
    store = open_store(url)
    store.save_values(V, "{}")
    add(store, "a")
    for where in ("here", "elsewhere"):
        abandon(store)
        time.sleep(0.3)  # on PostgreSQL others are looked for that often at most
        start = time.monotonic()
        if where == "here":
            add(store, where)
        else:
            thread = threading.Thread(target=add, args=(store, where))
            thread.start()
            thread.join(20)
        assert time.monotonic() - start < 5
    found = store.find_turn("elsewhere")
    assert found is not None
    assert found[0] == 3  # nothing of what was interrupted is there
    store.database.engine.dispose()


def add(store: Store, turn_id: str) -> int:
    return store.add_turn({"id": turn_id, "key": "k", "valueSet": "s"}, V, "", audit=True)[0]


def test_a_transaction_in_a_transaction_is_refused_at_once(tmp_path: Path) -> None:
    """As a signal handler would begin it: the thread would wait for itself."""
    store = open_store(f"sqlite:///{tmp_path}/s.db")
    with store.database.transaction(), pytest.raises(RuntimeError, match="would wait for itself"):
        store.feedback_note("k")
    assert store.feedback_note("k") == ""
