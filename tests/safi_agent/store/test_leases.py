"""Turns of a dead process are audited although the next release calls its value set by another name."""

import json
import logging
import os
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from safi_agent import ValueSet, assess, create_safi_chain, load_values
from safi_agent.store.backlog import blocking_reasons
from safi_agent.store.leases import LEASE, SUBMIT_GRACE
from safi_agent.store.tables import turns
from tests import forked
from tests.safi_agent.fakes import GATED, THREE, Fake, approve, ledger
from tests.safi_agent.log_lines import lines

SAME_KEY = {"configurable": {"safi_key": "shared"}}
RENAMED = THREE.model_copy(update={"name": "renamed"})
OTHER = load_values({"name": "renamed", "refusal": "No.", "values": [{"name": "Mercy", "weight": 1}]})
VALUES = {"three": THREE, "gated": GATED}


def answer(store: str, log: Path, values: str, up: Any = None) -> None:
    """Answer a turn, begin its audit, and die, or live on where there is someone to tell."""
    model = Fake(audit_delay=60, will=approve(["No Harm"]))
    create_safi_chain(model, VALUES[values], store=store, log=log).invoke(f"old {values}", SAME_KEY)
    deadline = time.monotonic() + 60
    while not model.asked("conscience"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    if up:
        up.set()
        time.sleep(60)
    os._exit(9)


def killed(store: str, log: Path, values: str = "three") -> None:
    process = forked.start(answer, store, log, values)
    process.join(60)
    assert process.exitcode == 9


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        found: str = request.getfixturevalue("database")
        return found
    return f"sqlite:///{tmp_path}/safi.db"


@pytest.mark.slow
@pytest.mark.parametrize("values", [RENAMED, OTHER], ids=["renamed", "renamed and changed"])
def test_the_turns_of_a_renamed_set_are_audited_by_the_values_they_were_approved_under(
    values: ValueSet, store: str, make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    killed(store, tmp_path / "old.json")
    model = Fake(conscience=lambda text: ledger(THREE if "old three" in text else values))
    safi = make(model, values, store=store, log=tmp_path / "new.json")
    safi.invoke("new", SAME_KEY)
    assert safi.drain(60) == 2
    (old,), (new,) = lines(tmp_path / "old.json"), lines(tmp_path / "new.json")
    assert (old["turn"], old["valueSet"], old["auditStatus"]) == (1, "three", "complete")
    assert [row["value"] for row in old["conscienceLedger"]] == ["Truth", "Care", "Thrift"]
    assert old["measure"]["values"] == THREE.fingerprint
    assert (new["turn"], new["valueSet"], new["auditStatus"]) == (2, "renamed", "complete")
    assert new["measure"]["values"] == values.fingerprint
    assert new["mu"] == assess(new["conscienceLedger"], values, old["mu"]).mu
    assert "1 turns of the value set 'three', which no process serves, are audited under 'renamed'" in (caplog.text)
    assert blocking_reasons(safi._auditor.store.database, "renamed") == []


@pytest.mark.slow
@pytest.mark.parametrize("audit", ["in process", "worker"])
def test_of_a_turn_that_was_taken_over_hooks_get_the_offenders_of_its_own_set_and_the_record_names_who_judged(
    audit: str, database: str, make: Any, tmp_path: Path
) -> None:
    store = database if audit == "worker" else f"sqlite:///{tmp_path}/safi.db"
    killed(store, tmp_path / "old.json")
    told: list[tuple[str, ...]] = []
    hooks = [lambda alert: told.append(alert.offenders) if alert.kind == "review" else None]
    safi = make(Named(conscience=ledger(score=-1)), OTHER, store=store, hooks=hooks, log=tmp_path / "new.json")
    assert safi.drain(60) == 1
    assert told == [("Truth", "Care", "Thrift")]
    (old,) = lines(tmp_path / "old.json")
    assert old["models"] == {"intellect": "fake", "will": "fake", "conscience": "adopter"}


class Named(Fake):
    model_name: str = "adopter"  # its replies have no name


@pytest.mark.slow
def test_a_set_that_was_changed_under_its_name_is_audited_by_what_it_was(make: Any, tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/safi.db"
    killed(store, tmp_path / "log.json")
    changed = load_values({**THREE.model_dump(), "values": [{"name": "Mercy", "weight": 1}]})
    safi = make(Fake(conscience=lambda text: ledger(THREE if "old three" in text else changed)), changed)
    safi.invoke("new", SAME_KEY)
    assert safi.drain(60) == 2
    assert [r["measure"]["values"] for r in lines(tmp_path / "log.json")] == [THREE.fingerprint, changed.fingerprint]


@pytest.mark.slow
def test_each_chain_of_a_process_takes_the_turns_of_its_own_set(make: Any, tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/safi.db"
    hooks: dict[str, list[str]] = {"three": [], "gated": []}
    chains = [
        make(
            Fake(conscience=ledger(values, score=-1)),
            values,
            hooks=[lambda alert, name=values.name: hooks[name].append(alert.record["valueSet"])],
        )
        for values in (THREE, GATED)
    ]
    for values in ("gated", "three"):
        killed(store, tmp_path / "log.json", values)
    for chain in chains:
        chain._auditor.beat()
    assert [chain.drain(60) for chain in chains] == [1, 1]
    assert {name: set(found) for name, found in hooks.items()} == {"three": {"three"}, "gated": {"gated"}}


@pytest.mark.slow
def test_turns_of_a_living_process_are_left_to_it(store: str, make: Any, tmp_path: Path) -> None:
    model = Fake(conscience=ledger(OTHER))
    safi = make(model, OTHER, store=store)
    up = forked.CONTEXT.Event()
    other = forked.start(answer, store, tmp_path / "old.json", "three", up)
    try:
        assert up.wait(60)
        safi.invoke("elsewhere", {"configurable": {"safi_key": "own"}})
        assert safi.drain(60) == 1
        safi.invoke("behind it", SAME_KEY)
        assert safi.drain(0.3) == 0
        (sentence,) = blocking_reasons(safi._auditor.store.database, "renamed")
        assert sentence.startswith("1 memory key of 'renamed' on turns of the process ")
        assert f":{other.pid}: they are taken over when it has ended" in sentence
        assert not [one for one in model.asked("conscience") if "old three" in str(one[-1].text)]
    finally:
        other.kill()
        other.join()
        safi._auditor.beat()


def damage(folder: Path, statement: str) -> None:
    with sqlite3.connect(folder / "safi.db") as db:
        db.execute(statement, (THREE.fingerprint,))
    db.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM safi_value_sets WHERE id = ?",
        "UPDATE safi_value_sets SET body = substr(body, 1, 40) WHERE id = ?",
        "UPDATE safi_value_sets SET body = replace(body, 'Truth', 'Proof') WHERE id = ?",
    ],
    ids=["missing", "torn", "edited"],
)
def test_a_set_that_the_store_has_lost_is_named_and_comes_back_with_a_chain_that_has_it(
    statement: str, make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    killed(f"sqlite:///{tmp_path}/safi.db", tmp_path / "old.json")
    damage(tmp_path, statement)
    safi = make(Fake(conscience=lambda text: ledger(THREE if "old three" in text else OTHER)), OTHER)
    assert [r.levelno for r in caplog.records if "Turns of the value set 'three' wait: " in r.message] == [
        logging.WARNING
    ]
    safi.invoke("behind it", SAME_KEY)
    safi.invoke("elsewhere", {"configurable": {"safi_key": "own"}})
    safi.drain(0.3)
    (sentence,) = blocking_reasons(safi._auditor.store.database, "renamed")
    assert sentence.startswith("1 turn of the value set 'three' cannot be audited, and 1 turn of the same memory keys ")
    assert THREE.fingerprint[:12] in sentence
    assert "Create a chain with that value set on this store once" in sentence
    with make():
        pass
    deadline = time.monotonic() + 60
    while blocking_reasons(safi._auditor.store.database, "renamed") or not (tmp_path / "old.json").exists():
        assert time.monotonic() < deadline
        safi._auditor.beat()
        time.sleep(0.1)
    safi.drain(60)
    assert [r["auditStatus"] for r in lines(tmp_path / "old.json")] == ["complete"]
    assert sorted(r["userPrompt"] for r in lines(tmp_path / "log.json")) == ["behind it", "elsewhere"]


@pytest.mark.slow
def test_a_turn_of_this_process_that_nobody_audits_is_taken_up(make: Any, tmp_path: Path) -> None:
    """As when an interrupt came between the answer's transaction and its audit."""
    safi = make()
    safi.invoke("a")
    safi.drain()
    store = safi._auditor.store
    body = json.loads(json.dumps({**store.find_turn(lines(tmp_path / "log.json")[0]["turnId"])[1], "id": "forgotten"}))
    store.add_turn(body, THREE.fingerprint, str(tmp_path / "log.json"), audit=True)
    assert store.leases.take_over("three", store.leases.under_way) == []  # it may be on its way
    with store.database.transaction() as c:
        c.execute(update(turns).where(turns.c.id == "forgotten").values(lease=time.time() + LEASE - SUBMIT_GRACE))
    safi.invoke("b")
    deadline = time.monotonic() + 60
    while len(lines(tmp_path / "log.json")) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert [r["turn"] for r in lines(tmp_path / "log.json")] == [1, 2, 3]


def test_a_heartbeat_takes_up_such_a_turn_while_other_turns_are_open(make: Any) -> None:
    go = threading.Event()
    safi = make(Fake(conscience=lambda text: (go.wait(60), ledger())[1]))
    store = safi._auditor.store
    turn_id = safi.invoke("open").response_metadata["safi"]["turnId"]
    store.add_turn({**store.find_turn(turn_id)[1], "id": "forgotten"}, THREE.fingerprint, "", audit=True)
    with store.database.transaction() as c:
        c.execute(update(turns).where(turns.c.id == "forgotten").values(lease=time.time() + LEASE - SUBMIT_GRACE))
    safi._auditor.beat()
    taken = list(safi._auditor._open)
    go.set()
    assert taken == [turn_id, "forgotten"]
