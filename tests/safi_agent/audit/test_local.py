"""The audit branch: never late, in order, tried again, given up with a flag, drained."""

import asyncio
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from sqlalchemy import event

from safi_agent import Alert, create_safi_chain
from tests import forked
from tests.safi_agent.fakes import THREE, VIOLATION, Fake, approve, in_turn, ledger


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "log.json").read_text().splitlines()]


def test_the_answer_does_not_wait_for_the_audit(make: Any, tmp_path: Path) -> None:
    go = threading.Event()
    safi = make(Fake(conscience=lambda text: (go.wait(60), ledger())[1]))
    safi.invoke("a")
    assert not (tmp_path / "log.json").exists()
    go.set()
    assert safi.drain() == 1
    assert len(lines(tmp_path)) == 1


def test_a_slow_first_audit_is_committed_before_the_quick_ones_after_it(make: Any, tmp_path: Path) -> None:
    first, later = threading.Event(), threading.Event()

    def judged(text: str) -> str:
        if not first.is_set():
            first.set()
            later.wait(60)
        return ledger(score=1)

    safi = make(Fake(conscience=judged, will=in_turn(approve(), approve(), VIOLATION, approve())))
    for prompt in "abcd":
        safi.invoke(prompt)
        first.wait(60)
    later.set()
    assert safi.drain() == 3
    assert [(r["userPrompt"], r["turn"], r["muTurn"]) for r in lines(tmp_path)] == [
        *(("a", 1, 1), ("b", 2, 2)),
        *(("c", 3, 2), ("d", 4, 3)),
    ]


def test_lines_that_are_ready_at_once_are_written_at_once(make: Any, tmp_path: Path) -> None:
    go = threading.Event()
    safi = make(Fake(conscience=lambda text: (go.wait(10) if "first" in text else None, ledger())[1]))
    written: list[str] = []

    @event.listens_for(safi._auditor.store.database.engine, "before_cursor_execute")
    def count(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if "SET logged" in statement:
            written.append(statement)

    safi.batch(["first", *"abcdefgh"], {"max_concurrency": 1})
    while len(safi.model.asked("conscience")) < 9:
        time.sleep(0.01)
    go.set()
    assert safi.drain() == 9
    assert len(written) < 9
    assert [r["turn"] for r in lines(tmp_path)] == list(range(1, 10))


def test_an_audit_does_not_delay_other_memory_keys(make: Any, tmp_path: Path) -> None:
    go = threading.Event()
    safi = make(Fake(conscience=lambda text: (go.wait(60 if "slow" in text else 0), ledger())[1]))
    safi.invoke("slow", {"configurable": {"safi_key": "one"}})
    safi.invoke("quick", {"configurable": {"safi_key": "two"}})
    deadline = time.monotonic() + 60
    while not (tmp_path / "log.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    go.set()
    safi.drain()
    assert [r["memoryKey"] for r in lines(tmp_path)] == ["two", "one"]


def test_a_failed_attempt_is_retried(make: Any, tmp_path: Path) -> None:
    model = Fake(conscience=in_turn(RuntimeError("a"), TimeoutError(), "{}", "{}", ledger()))
    safi = make(model, audit_attempts=4)
    safi.invoke("a")
    assert safi.drain() == 1
    assert lines(tmp_path)[0]["auditStatus"] == "complete"
    assert len(model.asked("conscience")) == 5


def test_after_the_last_attempt_an_audit_has_failed_and_is_flagged_and_its_key_continues(
    make: Any, tmp_path: Path
) -> None:
    calls: list[Alert] = []
    model = Fake(conscience=lambda text: RuntimeError("x") if "bad" in text else ledger())
    safi = make(model, hooks=[calls.append], audit_attempts=2)
    safi.batch(["bad", "good"], {"max_concurrency": 1})
    assert safi.drain() == 2
    bad, good = lines(tmp_path)
    assert (bad["auditStatus"], bad["spiritScore"], bad["flags"]) == ("failed", None, ["audit_failed", "review"])
    assert bad["spiritReflection"] == "The audit failed (RuntimeError, 2 attempts)."
    assert (good["auditStatus"], good["turn"], good["muTurn"]) == ("complete", 2, 1)
    assert [(c.kind, c.turn_id) for c in calls] == [("audit_failed", bad["turnId"]), ("review", bad["turnId"])]


def test_a_hanging_audit_fails_after_its_timeout(make: Any, tmp_path: Path) -> None:
    go = threading.Event()
    safi = make(Fake(conscience=lambda text: (go.wait(60), ledger())[1]), audit_timeout=0.1, audit_attempts=2)
    safi.invoke("a")
    assert safi.drain() == 1
    assert "TimeoutError" in lines(tmp_path)[0]["spiritReflection"]
    go.set()


def test_drain_returns_at_its_timeout_and_open_audits_continue(make: Any) -> None:
    go = threading.Event()
    safi = make(Fake(conscience=lambda text: (go.wait(60), ledger())[1]))
    safi.invoke("a")
    assert safi.drain(timeout=0.05) == 0
    go.set()
    assert safi.drain() == 1


def test_failing_and_slow_hooks_do_not_affect_audits(make: Any, tmp_path: Path) -> None:
    told: list[str] = []

    def breaks(alert: Alert) -> None:
        raise RuntimeError

    async def awaited(alert: Alert) -> None:
        await asyncio.sleep(0.01)
        told.append(f"async {alert.kind}")

    safi = make(
        Fake(conscience=ledger(score=-1)), hooks=[breaks, awaited, lambda alert: told.append(alert.offenders[0])]
    )
    safi.invoke("a")
    assert safi.drain() == 1
    assert told == ["async review", "Truth"]
    assert lines(tmp_path)[0]["flags"] == ["review"]


def test_drift_is_reported(make: Any) -> None:
    kinds: list[str] = []
    safi = make(Fake(conscience=in_turn(ledger(score=1), ledger(score=-1))), hooks=[lambda a: kinds.append(a.kind)])
    safi.invoke("a")
    safi.drain()
    safi.invoke("b")
    safi.drain()
    assert kinds == ["review", "drift"]


def test_drain_within_a_hook_is_an_error(make: Any) -> None:
    errors: list[str] = []

    async def hook(alert: Alert) -> None:
        try:
            safi.drain(1)
        except RuntimeError as error:
            errors.append(str(error))

    safi = make(Fake(conscience=ledger(score=-1)), hooks=[hook])
    safi.invoke("a")
    safi.drain()
    assert "a thread outside of the audit branch" in errors[0]


def test_the_feedback_note_reaches_the_next_intellect_without_naming_values(make: Any) -> None:
    poor = [
        {"value": n, "score": s, "confidence": 0.9, "reason": "r"}
        for n, s in (("Truth", 1), ("Care", -1), ("Thrift", 0))
    ]
    model = Fake(conscience=json.dumps({"ledger": poor}))
    safi = make(model)
    for _ in range(3):
        safi.invoke("a")
        safi.drain()
    first, *_, last = (str(messages[0].text) for messages in model.asked("intellect"))
    note = last.removeprefix(first).strip()
    assert note == "Recent answers are steady. Give more thought to this value: Care."


@pytest.mark.slow
def test_200_at_once_are_all_audited_in_order(make: Any, tmp_path: Path) -> None:
    safi = make(Fake(delay=0.01, audit_delay=0.05))

    async def all_at_once() -> None:
        await asyncio.gather(*(safi.ainvoke(f"p{i}") for i in range(200)))

    asyncio.run(all_at_once())
    assert safi.drain(60) == 200
    logged = lines(tmp_path)
    assert [r["turn"] for r in logged] == list(range(1, 201))
    assert [r["muTurn"] for r in logged] == list(range(1, 201))
    assert {r["userPrompt"] for r in logged} == {f"p{i}" for i in range(200)}


ENDED = "The audit thread has ended; a new one takes over 1 open turns.\n"


def run(code: str, folder: Path, *, ending: bool = False) -> "subprocess.CompletedProcess[str]":
    """Run this as a program; ``ending`` is for what happens when an interpreter ends."""
    head = (
        "import asyncio, os, sys, time, warnings\n"
        "warnings.simplefilter('error')\n"
        "from safi_agent import create_safi_chain\n"
        "from tests.safi_agent.fakes import *\n"
        f"folder = {str(folder)!r}\n"
        "def make(model, **settings):\n"
        "    given = dict(store=f'sqlite:///{folder}/safi.db', log=f'{folder}/log.json') | settings\n"
        "    return create_safi_chain(model, THREE, **given)\n"
    )
    if not ending:
        return forked.run(head + code)
    root = Path(__file__).parents[3]
    command = [sys.executable, "-W", "error", "-c", head + code]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)


TURNS = (
    "async def turns():\n"
    "    async with make(Fake(audit_delay=0.05)) as safi:\n"
    "        await asyncio.gather(*(safi.ainvoke(str(i)) for i in range(5)))\n"
    "        assert await safi.adrain() == 5\n"
)


@pytest.mark.slow
def test_a_program_that_ends_without_close_waits_for_its_audits(tmp_path: Path) -> None:
    code = (
        "async def cell():\n"  # a loop that already runs while the sync method is called in it, as in a notebook
        "    make(Fake()).invoke('f')\n"
        "    await turns()\n"
        "asyncio.run(cell())\n"
        "asyncio.run(make(Fake(audit_delay=0.2), conscience_calls='each', store=None).ainvoke('d'))\n"
        "make(Fake(audit_delay=0.2)).batch(list('abc'))\n"
        "from safi_agent.audit.local import LocalAuditor\n"
        "run, LocalAuditor._run = LocalAuditor._run, lambda self: None\n"
        "make(Fake()).invoke('e')\n"
        "LocalAuditor._run = run\n"
    )
    done = run(TURNS + code, tmp_path, ending=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr.replace(ENDED, "", 1)
    assert sorted(r["userPrompt"] for r in lines(tmp_path)) == list("01234abcdef")


@pytest.mark.slow
def test_a_forked_child_audits_its_own_turns_and_not_its_parents(tmp_path: Path) -> None:
    done = run(
        "safi = make(Fake(audit_delay=0.3))\n"
        "safi.invoke('parent')\n"
        "children = []\n"
        "for name in ('one', 'two'):\n"
        "    if not (pid := os.fork()):\n"
        "        safi.invoke(name)\n"
        "        os._exit(0 if safi.drain(20) == 1 else 1)\n"
        "    children.append(pid)\n"
        "assert all(os.waitpid(pid, 0)[1] == 0 for pid in children)\n"
        "assert safi.drain(20) == 1\n",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(r["userPrompt"] for r in lines(tmp_path)) == ["one", "parent", "two"]
    assert [r["turn"] for r in lines(tmp_path)] == [1, 2, 3]


@pytest.mark.slow
def test_audits_run_under_uvloop(tmp_path: Path) -> None:
    pytest.importorskip("uvloop")
    done = run(f"{TURNS}import uvloop\nuvloop.run(turns())\n", tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(lines(tmp_path)) == 5


@pytest.mark.slow
def test_pending_turns_are_audited_by_the_values_that_they_were_approved_under(make: Any, tmp_path: Path) -> None:
    code = "safi = make(Fake(audit_delay=30))\nsafi.invoke('a')\nos._exit(9)"
    assert run(code, tmp_path).returncode == 9
    other = create_safi_chain(
        Fake(),
        THREE.model_copy(update={"values": THREE.values[:1] and (THREE.values[0].model_copy(update={"weight": 1.0}),)}),
        store=f"sqlite:///{tmp_path}/safi.db",
        log=tmp_path / "other.json",
    )
    assert other.close() == 1
    (record,) = lines(tmp_path)
    assert [f["value"] for f in record["conscienceLedger"]] == ["Truth", "Care", "Thrift"]
    assert not (tmp_path / "other.json").exists()


def by(model: str, reply: str) -> AIMessage:
    return AIMessage(reply, response_metadata={"model_name": model})


@pytest.mark.slow
@pytest.mark.parametrize("audit", ["in process", "worker"])
def test_the_record_names_the_model_that_judged(audit: str, database: str, make: Any, tmp_path: Path) -> None:
    """Of two turns under one key the second is judged first, and is kept until it can be committed."""
    store = database if audit == "worker" else f"sqlite:///{tmp_path}/s.db"  # dropped after the worker has ended
    second = threading.Event()

    def judged(text: str) -> AIMessage:
        if "first" in text:
            second.wait(60)
            return by("judge-1", ledger())
        second.set()
        return by("judge-2", ledger())

    safi = make(Fake(conscience=judged), store=store)
    for prompt in ("first", "second"):
        assert safi.invoke(prompt).response_metadata["safi"]["models"]["conscience"] == "fake"
    assert safi.drain(60) == 2
    assert [line["models"]["conscience"] for line in lines(tmp_path)] == ["judge-1", "judge-2"]


def test_the_record_names_all_models_that_judged_its_values(make: Any, tmp_path: Path) -> None:
    def judged(text: str) -> Any:
        return by("judge-2", ledger()) if "- Care" in text else by("judge-1", ledger())

    safi = make(Fake(conscience=judged), conscience_calls="each")
    safi.invoke("q")
    assert safi.drain(60) == 1
    assert lines(tmp_path)[0]["models"]["conscience"] == "judge-1, judge-2"


def test_of_an_audit_that_failed_the_record_names_the_model_that_was_asked(make: Any, tmp_path: Path) -> None:
    safi = make(Fake(conscience=by("judge-1", "{}")))
    safi.invoke("q")
    assert safi.drain(60) == 1
    assert lines(tmp_path)[0]["models"]["conscience"] == "fake"
