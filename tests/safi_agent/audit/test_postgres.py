"""The audit branch on a queue: the same promises as in one process, and who does the work."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from safi_agent import Alert, OutboxError, Sampling
from safi_agent.audit import worker
from safi_agent.audit.heartbeat import monitored
from safi_agent.store import Job
from safi_agent.store.leases import Leases
from tests.safi_agent.fakes import GATED, VIOLATION, Fake, approve, in_turn, ledger
from tests.safi_agent.postgres_server import Server

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "log.json").read_text().splitlines()]


def left(postgres: Server, database: str) -> list[tuple[object, ...]]:
    name = database.rpartition("/")[2]
    return postgres.ask("SELECT task_name, status::text, attempts FROM procrastinate_jobs ORDER BY id", name)


def test_answers_are_returned_at_once_and_each_key_keeps_its_order(database: str, make: Any, tmp_path: Path) -> None:
    first = threading.Event()

    def judged(text: str) -> str:
        if "prompt>a<" in text.replace("\n", ""):
            first.wait(5)
        return ledger(score=1)

    model = Fake(conscience=judged, will=in_turn(approve(), approve(), VIOLATION, approve()))
    safi = make(model, store=database)
    for prompt in "abcd":
        safi.invoke(prompt)
    safi.invoke("other", {"configurable": {"safi_key": "other"}})
    assert safi.drain(0.5) <= 1  # at most the one whose key is free
    first.set()
    safi.drain()
    told = [(r["userPrompt"], r["turn"], r["muTurn"]) for r in lines(tmp_path) if r["memoryKey"] == "three"]
    assert told == [("a", 1, 1), ("b", 2, 2), ("c", 3, 2), ("d", 4, 3)]
    assert safi.drain() == 0


def test_drain_counts_each_audit_once(database: str, make: Any) -> None:
    safi = make(store=database)
    safi.batch(list("abc"))
    assert safi.drain() == 3
    safi.invoke("d")
    assert safi.close() == 1
    assert safi.close() == 0


def test_a_worker_audits_under_the_prompts_and_the_sample_of_the_chain_that_answered(
    database: str, make: Any, tmp_path: Path
) -> None:
    prompts = {"conscience": "You are the Conscience (own). {values} {fences} {reply}"}
    sampling = Sampling(share=0, novel_below=0.5)
    answering = make(store=database, audit_mode="worker", prompts=prompts, sampling=sampling)
    told = [answering.invoke("q").response_metadata["safi"] for _ in range(2)]
    assert [one["auditStatus"] for one in told] == ["pending", "none"]
    model = Fake()
    working = make(model, store=database)
    assert [answering.audit(one["turnId"]).status for one in told] == ["complete", "none"]
    working.drain()
    ((asked, _),) = model.asked("conscience")
    assert str(asked.text).startswith("You are the Conscience (own).")
    found = lines(tmp_path)
    assert [record["auditReason"] for record in found] == ["novel", "not_drawn"]
    assert {record["prompts"] for record in found} == {answering.prompts.fingerprint}


@pytest.mark.parametrize("queue", [True, False])
def test_a_branch_whose_store_is_unreachable_is_not_monitored(
    queue: bool, database: str, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(leases: Leases, *_: Any) -> list[Job]:
        raise OutboxError("out of reach")

    store = {"store": database} if queue else {}
    before = set(monitored())
    monkeypatch.setattr(Leases, "take_over", unreachable)
    with pytest.raises(OutboxError, match="out of reach"):
        make(**store)
    assert set(monitored()) == before


def test_drain_waits_for_refusals_too(database: str, make: Any, tmp_path: Path) -> None:
    safi = make(Fake(will=VIOLATION), store=database)
    safi.batch(list("abc"))
    assert safi.drain() == 0
    assert {r["auditStatus"] for r in lines(tmp_path)} == {"none"}
    assert len(lines(tmp_path)) == 3


def test_an_audit_is_tried_again_then_given_up_with_a_flag(
    database: str, make: Any, postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "POLL", 0.02)
    calls: list[Alert] = []
    model = Fake(conscience=lambda text: RuntimeError("x") if "bad" in text else ledger())
    safi = make(model, store=database, hooks=[calls.append], audit_attempts=3, audit_backoff=0.1)
    start = time.monotonic()
    safi.batch(["bad", "good"], {"max_concurrency": 1})
    assert safi.drain() == 2
    assert time.monotonic() - start >= 0.1 + 0.2
    bad, good = lines(tmp_path)
    assert (bad["auditStatus"], bad["spiritScore"], bad["flags"]) == ("failed", None, ["audit_failed", "review"])
    assert bad["spiritReflection"] == "The audit failed (RuntimeError, 3 attempts)."
    assert (good["auditStatus"], good["turn"], good["muTurn"]) == ("complete", 2, 1)
    assert [(c.kind, c.turn_id) for c in calls] == [("audit_failed", bad["turnId"]), ("review", bad["turnId"])]
    assert len([messages for messages in model.asked("conscience") if "bad" in str(messages[-1].text)]) == 3


def test_one_process_answers_and_another_audits(database: str, make: Any, postgres: Server, tmp_path: Path) -> None:
    web, auditing = Fake(), Fake()
    safi = make(web, store=database, audit_mode="worker")
    safi.batch(["a", "b"])
    assert safi.drain(0.3) == 0
    assert [job[:2] for job in left(postgres, database)] == [("safi.judge", "todo")] * 2
    make(auditing, store=database)
    assert safi.drain() == 2
    assert (len(web.asked("conscience")), len(auditing.asked("conscience"))) == (0, 2)
    assert len(lines(tmp_path)) == 2


def test_turns_of_two_value_sets_under_one_key_get_their_own_hooks(
    database: str, make: Any, postgres: Server, tmp_path: Path
) -> None:
    """The turn judged first waits for an earlier one of its key, of another set, whose worker then commits both."""
    go = threading.Event()
    told: list[tuple[str, str]] = []
    same = {"configurable": {"safi_key": "shared"}}

    def slow(text: str) -> str:
        go.wait(30)
        return ledger(score=-1)

    one = make(Fake(conscience=slow), store=database, hooks=[lambda a: told.append(("three", a.record["valueSet"]))])
    gated = approve(["No Harm"])
    other = make(
        Fake(will=gated, conscience=ledger(GATED, score=-1)),
        GATED,
        store=database,
        hooks=[lambda a: told.append(("gated", a.record["valueSet"]))],
    )
    one.invoke("a", same)
    other.invoke("b", same)
    deadline = time.monotonic() + 60
    while left(postgres, database) != [("safi.judge", "doing", 0)]:  # the other has judged, and found the key locked
        assert time.monotonic() < deadline
        time.sleep(0.02)
    go.set()
    assert (one.drain(), other.drain()) == (1, 1)
    assert [r["turn"] for r in lines(tmp_path)] == [1, 2]
    assert sorted(set(told)) == [("gated", "gated"), ("three", "three")]


def test_a_stopped_worker_returns_its_jobs_at_once(database: str, make: Any, postgres: Server, tmp_path: Path) -> None:
    hanging = make(Fake(audit_delay=20), store=database)
    hanging.invoke("a")
    deadline = time.monotonic() + 60
    while ("safi.judge", "doing", 0) not in left(postgres, database):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    start = time.monotonic()
    assert hanging.close(0.1) == 0
    assert time.monotonic() - start < 15
    assert left(postgres, database) == [("safi.judge", "todo", 1)]
    make(store=database)  # of the same process, so it answers for the turn too
    assert make(store=database, audit_mode="worker").drain() == 0
    assert lines(tmp_path)[0]["auditStatus"] == "complete"


def test_the_audit_of_a_turn_that_ends_every_worker_fails(
    database: str, make: Any, postgres: Server, tmp_path: Path
) -> None:
    safi = make(store=database, audit_mode="worker")
    safi.invoke("a")
    postgres.ask(f"UPDATE procrastinate_jobs SET attempts = {worker.MAX_INTERRUPTIONS}", database.rpartition("/")[2])
    model = Fake()
    make(model, store=database)
    assert safi.drain() == 1
    assert "interrupted 10 times" in lines(tmp_path)[0]["spiritReflection"]
    assert not model.asked("conscience")


def test_a_crash_and_restart_of_the_server_loses_nothing(
    database: str, make: Any, postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "SILENT", 1000.0)  # a worker that is back takes its own work up without waiting
    safi = make(Fake(audit_delay=0.3), store=database)
    safi.batch(list("abc"))
    postgres.crash()
    try:
        with pytest.raises(OutboxError):
            safi.invoke("lost, and nobody was answered")
    finally:
        postgres.start()
    safi.invoke("d")
    assert safi.close(60) == 4
    assert sorted(r["userPrompt"] for r in lines(tmp_path)) == list("abcd")


def test_many_concurrent_turns_are_audited_in_order(database: str, make: Any, postgres: Server, tmp_path: Path) -> None:
    safi = make(Fake(audit_delay=0.02), store=database)

    async def all_at_once() -> None:
        await asyncio.gather(*(safi.ainvoke(f"p{i}") for i in range(40)))
        assert await safi.adrain(60) == 40

    asyncio.run(all_at_once())
    assert [(r["turn"], r["muTurn"]) for r in lines(tmp_path)] == [(i, i) for i in range(1, 41)]
    deadline = time.monotonic() + 60
    while left(postgres, database):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def run(code: str, folder: Path, database: str) -> "subprocess.CompletedProcess[str]":
    head = (
        "import os\n"
        "from safi_agent import create_safi_chain\n"
        "from tests.safi_agent.fakes import *\n"
        f"store, log = {database!r}, {str(folder / 'log.json')!r}\n"
        "safi = create_safi_chain(Fake(audit_delay=0.1), THREE, store=store, log=log)\n"
    )
    command = [sys.executable, "-W", "error", "-c", head + code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_a_program_that_ends_waits_for_its_audits_and_a_forked_child_has_its_own_worker(
    tmp_path: Path, database: str
) -> None:
    done = run(
        "safi.invoke('parent')\n"
        "if not (pid := os.fork()):\n"
        "    safi.invoke('child')\n"
        "    finished = safi.drain(20)\n"
        "    safi._auditor.stop(0)\n"
        "    os._exit(0 if finished == 1 and safi._auditor._running else 1)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
        "del safi\n",
        tmp_path,
        database,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert sorted(r["userPrompt"] for r in lines(tmp_path)) == ["child", "parent"]


def test_safi_worker_finishes_its_jobs_at_sigterm(database: str, make: Any, tmp_path: Path, postgres: Server) -> None:
    command = [sys.executable, "-c", "from safi_agent.cli import app; app()", "worker", "--model", "offline"]
    env = {**os.environ, "SAFI_STORE": database}
    process = subprocess.Popen(
        [*command, "--log", str(tmp_path / "log.json")],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert "'unesco'" in process.stdout.readline()
    safi = make("offline", "unesco", store=database, audit_mode="worker")
    safi.batch(["Should AI allocate vaccines?", "Is it fair?"])
    assert safi.drain() == 2
    process.send_signal(signal.SIGTERM)
    told, errors = process.communicate(timeout=120)
    assert (process.returncode, told, errors) == (0, "2 audits finished.\n", "")
    assert {r["auditStatus"] for r in lines(tmp_path)} == {"complete"}
    workers = postgres.ask("SELECT count(*) FROM procrastinate_workers", database.rpartition("/")[2])
    assert workers == [(0,)]


RAISED = {
    error.__name__: error
    for error in (SystemExit, KeyboardInterrupt, asyncio.CancelledError, GeneratorExit, StopIteration, MemoryError)
}


def named(text: str) -> type[BaseException] | None:
    return next((error for name, error in RAISED.items() if name in text), None)


def test_no_exception_of_models_hooks_phi_or_sigma_blocks_a_key_or_another_chain(
    database: str, make: Any, tmp_path: Path
) -> None:
    def judged(text: str) -> str:
        if (error := named(text.partition("<user_prompt>")[2])) is not None:
            raise error
        return ledger(score=-1)

    def hook(alert: Alert) -> None:
        if (error := named(alert.record["userPrompt"])) is not None:
            raise error

    async def awaited(alert: Alert) -> None:
        hook(alert)

    told: list[str] = []
    bad = make(
        Fake(conscience=judged),
        store=database,
        hooks=[hook, awaited, lambda alert: told.append(alert.turn_id)],
        audit_attempts=1,
        sigma=lambda raw: float("nan"),
    )
    good = make(Fake(), GATED, store=None, log=tmp_path / "good.json")
    for name in [*RAISED, "fine"]:
        bad.invoke(name)
        good.invoke(name)
    done, innocent = bad.drain(60), good.drain(60)
    assert (int(done), done.left, done.blocked) == (len(RAISED) + 1, 0, ())
    assert (innocent.left, innocent.blocked) == (0, ())
    found = lines(tmp_path)
    assert [record["userPrompt"] for record in found] == [*RAISED, "fine"]
    assert {record["auditStatus"] for record in found} == {"failed"}
    assert found[-1]["spiritReflection"] == "The audit failed (σ: expected a finite number, got nan)."
    assert {record["turnId"] for record in found} == set(told)


def test_drain_reports_a_worker_that_has_ended_and_its_open_turns(
    database: str, make: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "SHUTDOWN_GRACE", 0.05)
    go = threading.Event()
    safi = make(Fake(conscience=lambda text: (go.wait(60), ledger())[1]), store=database)
    safi.invoke("a")
    held = safi.drain(0.1)
    assert (int(held), held.left) == (0, 1)
    assert held.blocked == ("1 turns are queued, or in progress at a worker.",)
    thread = safi._auditor._running.thread
    for task in list(thread._tasks):  # the one of the worker
        thread.loop.call_soon_threadsafe(task.cancel)
    safi._auditor._running.ended.result(60)
    go.set()
    assert safi.drain(60) == 1
    assert "The worker has ended; a new one is started." in caplog.text
    elsewhere = make(store=database, audit_mode="worker")
    safi._auditor.stop(1)
    elsewhere.invoke("b")
    assert elsewhere.drain(0.1).blocked == ("1 turns wait for a worker; this process has none.",)
    make(store=database)
    assert elsewhere.drain(60).left == 0
