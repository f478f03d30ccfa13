"""What hooks, φ, σ and models may do: no audit is lost or stands still without a word, and no other chain waits."""

import asyncio
import ctypes
import json
import logging
import math
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from safi_agent import Alert
from safi_agent.audit import local as module
from safi_agent.log.replay import replay
from safi_agent.store import process_id
from tests.safi_agent.fakes import THREE, Fake, ledger


class OwnError(BaseException):
    """One that nobody expects."""


RAISED = [
    SystemExit,
    KeyboardInterrupt,
    asyncio.CancelledError,
    GeneratorExit,
    StopIteration,
    StopAsyncIteration,
    MemoryError,
    RecursionError,
    TimeoutError,
    OwnError,
]


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


class Pair:
    """A chain with a fault, and an innocent one in the same process."""

    def __init__(self, make: Any, folder: Path, store: str | None = None) -> None:
        self.make, self.folder, self.store = make, folder, store
        self.told: list[str] = []

    def run(self, prompts: str = "abc", model: Any = None, **settings: Any) -> list[dict[str, Any]]:
        """The lines of the faulty chain; the innocent one has audited and told all of its own turns."""
        mine = {"store": self.store or f"sqlite:///{self.folder}/bad.db", "log": self.folder / "bad.json"}
        bad = self.make(model or Fake(conscience=ledger(score=-1)), **(mine | {"audit_attempts": 2} | settings))
        good = self.make(Fake(conscience=ledger(score=-1)), hooks=[self.hook], store=f"sqlite:///{self.folder}/good.db")
        for prompt in prompts:
            bad.invoke(prompt)
            good.invoke(prompt)
        done, innocent = bad.drain(60), good.drain(60)
        assert (int(done), done.left, done.blocked) == (len(prompts), 0, ())
        assert (int(innocent), innocent.left, innocent.blocked) == (len(prompts), 0, ())
        kept = lines(self.folder / "log.json")
        assert [(r["userPrompt"], r["auditStatus"]) for r in kept] == [(prompt, "complete") for prompt in prompts]
        assert self.told == [record["turnId"] for record in kept]
        found = lines(self.folder / "bad.json")
        assert [(r["userPrompt"], r["turn"]) for r in found] == [(p, i) for i, p in enumerate(prompts, 1)]
        return found

    async def hook(self, alert: Alert) -> None:
        await asyncio.sleep(0)
        self.told.append(alert.turn_id)


@pytest.fixture
def pair(make: Any, tmp_path: Path) -> Pair:
    return Pair(make, tmp_path)


def raises(error: type[BaseException]) -> Callable[..., Any]:
    def raising(*_: Any) -> Any:
        raise error

    return raising


def hooks(raised: type[BaseException]) -> dict[str, Any]:
    """Ways for a hook to raise."""

    async def awaited(alert: Alert) -> None:
        raise raised

    class Awaitable:
        def __await__(self) -> Iterator[Any]:
            yield from asyncio.sleep(0).__await__()
            raise raised

    class Named:
        def __call__(self, alert: Alert) -> None:
            raise raised

        def __repr__(self) -> str:
            raise raised

        @property
        def every_turn(self) -> bool:
            raise raised

    async def task(alert: Alert) -> None:
        await asyncio.gather(asyncio.ensure_future(awaited(alert)), return_exceptions=False)

    ways = {"sync": raises(raised), "async": awaited, "awaitable": lambda alert: Awaitable(), "repr": Named()}
    return ways | ({} if raised in (SystemExit, KeyboardInterrupt) else {"task": task})


@pytest.mark.parametrize("raised", RAISED)
def test_any_exception_of_a_hook_affects_neither_audits_nor_other_hooks(
    pair: Pair, raised: type[BaseException]
) -> None:
    called: list[str] = []
    after = [lambda alert: called.append(alert.turn_id)]
    found = pair.run(hooks=[*hooks(raised).values(), *after])
    assert [r["auditStatus"] for r in found] == ["complete"] * 3
    assert called == [r["turnId"] for r in found]


@pytest.mark.parametrize(
    ("raised", "calls"), [(raised, ("all", "each")[i % 2]) for i, raised in enumerate(RAISED)] + [(OwnError, "all")]
)
def test_any_exception_of_the_judge_is_a_failed_attempt(pair: Pair, raised: type[BaseException], calls: str) -> None:
    def judged(text: str) -> Any:
        if "b" in text.partition("<user_prompt>")[2].partition("</user_prompt>")[0]:
            raise raised
        return ledger()

    found = pair.run(model=Fake(conscience=judged), conscience_calls=calls)
    assert [r["auditStatus"] for r in found] == ["complete", "failed", "complete"]
    assert [r["muTurn"] for r in found] == [1, 1, 2]
    assert "2 attempts" in found[1]["spiritReflection"]
    assert found[1]["flags"] == ["audit_failed", "review"]


WRONG = [math.nan, math.inf, -math.inf, "7", None, object(), [1], 1j]


@pytest.mark.parametrize(
    ("wrong", "which"),
    [
        (wrong, ("phi", "sigma")[i % 2])
        for i, wrong in enumerate([*map(raises, RAISED), *(lambda _, w=w: w for w in WRONG)])
    ],
)
def test_an_audit_fails_if_phi_or_sigma_fails_and_later_turns_of_the_key_are_audited(
    make: Any, tmp_path: Path, which: str, wrong: Any
) -> None:
    calls: list[Alert] = []
    safi = make(hooks=[calls.append], **{which: wrong})
    safi.batch(["a", "b"], {"max_concurrency": 1})
    done = safi.drain(60)
    assert (int(done), done.left, done.blocked) == (2, 0, ())
    for line in lines(tmp_path / "log.json"):
        assert (line["auditStatus"], line["spiritScore"], line["drift"], line["mu"]) == ("failed", None, None, {})
        assert line["spiritReflection"].startswith(f"The audit failed ({dict(phi='φ', sigma='σ')[which]}: ")
        assert line["flags"] == ["audit_failed", "review"]
    for line in lines(tmp_path / "log.json"):
        assert [c.kind for c in calls if c.turn_id == line["turnId"]] == ["audit_failed", "review"]


def test_a_failure_of_sigma_leaves_the_profile_unchanged(pair: Pair) -> None:
    given = iter([5.0, math.nan, 7.0])
    found = pair.run(sigma=lambda raw: next(given))
    assert [(r["spiritScore"], r["muTurn"]) for r in found] == [(5, 1), (None, 1), (7, 2)]
    assert found[0]["mu"] == found[1]["mu"]
    assert found[1]["spiritReflection"] == "The audit failed (σ: expected a finite number, got nan)."
    replayed = replay(pair.folder / "bad.json", lambda name: THREE)
    assert (replayed.faults, replayed.lines) == ((), 3)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_blocking_hook_delays_only_its_own_chain(make: Any, tmp_path: Path, kind: str) -> None:
    go = threading.Event()

    def blocks(alert: Alert) -> None:
        go.wait(60)

    async def blocks_its_loop(alert: Alert) -> None:
        go.wait(60)

    hook = blocks if kind == "sync" else blocks_its_loop
    bad = make(Fake(conscience=ledger(score=-1)), hooks=[hook], store=f"sqlite:///{tmp_path}/bad.db")
    bad.invoke("a")
    pair = Pair(make, tmp_path)
    good = make(Fake(conscience=ledger(score=-1)), hooks=[pair.hook], log=tmp_path / "good.json")
    good.invoke("b")
    assert good.drain(60) == 1
    assert len(pair.told) == 1
    while not bad._auditor._pipeline._hooks.blocked():
        time.sleep(0.01)
    held = bad.drain(0)
    assert (int(held), held.left) == (0, 1)
    assert any(f"1 calls of the hook {hook.__name__} are running" in sentence for sentence in held.blocked)
    assert lines(tmp_path / "log.json")[0]["auditStatus"] == "complete"  # hooks come after the line
    go.set()
    assert bad.drain(60) == 1


@pytest.mark.parametrize("kind", ["sync", "async", "deaf"])
def test_a_hook_that_exceeds_its_timeout_is_abandoned_and_after_three_times_skipped(
    pair: Pair, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    go = threading.Event()

    def hangs(alert: Alert) -> None:
        go.wait(60)

    async def waits(alert: Alert) -> None:
        await asyncio.sleep(60)

    async def deaf(alert: Alert) -> None:
        while not go.is_set():
            try:
                await asyncio.sleep(0.2)
            except asyncio.CancelledError:
                continue

    hook = {"sync": hangs, "async": waits, "deaf": deaf}[kind]
    told: list[str] = []
    pair.run("abcde", hooks=[hook, lambda alert: told.append(alert.turn_id)], audit_timeout=0.1)
    go.set()
    assert len(told) == 5
    said = [record.getMessage() for record in caplog.records]
    given_up = [text for text in said if "did not end on turn" in text and "within 0.1 s" in text]
    left_out = [text for text in said if "is not called on turn" in text]
    assert (len(given_up), len(left_out)) == ((3, 2) if kind == "sync" else (5, 0))


def test_hanging_audits_occupy_a_limited_number_of_threads(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from safi_agent.audit import attempts

    go = threading.Event()
    monkeypatch.setattr(attempts, "MAX_ATTEMPTS_RUNNING", 2)
    safi = make(
        Fake(conscience=lambda text: (go.wait(60), ledger())[1]),
        audit_timeout=0.01,
        audit_attempts=1,
        store=None,
        log=None,
    )
    safi.batch([str(i) for i in range(30)], {"max_concurrency": 1})
    pool = safi._auditor._pipeline._attempts._threads
    deadline = time.monotonic() + 60
    while pool.stuck < 2 + 4 * 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    held = safi.drain(0.1)
    assert held.left == 20
    assert "10 audits have timed out and still occupy a thread each." in held.blocked
    assert sum(thread.name == "safi-judge" for thread in threading.enumerate()) >= 10
    go.set()
    assert safi.drain(60).left == 0


@pytest.mark.slow
def test_audits_wait_while_no_thread_can_be_started(
    make: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, refused = threading.Thread.start, []

    def start(self: threading.Thread) -> None:
        if self.name.startswith("safi"):
            refused.append(self.name)
            raise RuntimeError("can't start new thread")
        real(self)

    safi = make(Fake(conscience=ledger(score=-1)), hooks=[lambda alert: None], conscience_calls="each")
    monkeypatch.setattr(threading.Thread, "start", start)
    for i in range(40):
        safi.invoke(str(i))
    held = safi.drain(0.1)
    assert (int(held), held.left) == (0, 40)
    assert len(refused) >= 40
    assert "could not be started (can't start new thread)" in caplog.text
    monkeypatch.undo()
    done = safi.drain(60)
    assert (int(done), done.left, done.blocked) == (40, 0, ())


def test_an_audit_whose_thread_cannot_be_started_is_retried(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real, refused = threading.Thread.start, []

    def start(self: threading.Thread) -> None:
        if self.name in ("safi-judge", "safi-hook") and len(refused) < 3:
            refused.append(self.name)
            raise RuntimeError("can't start new thread")
        real(self)

    told: list[str] = []
    safi = make(Fake(conscience=ledger(score=-1)), hooks=[lambda alert: told.append(alert.kind)])
    monkeypatch.setattr(threading.Thread, "start", start)
    monkeypatch.setattr("safi_agent.audit.attempts.RETRY_THREAD", 0.01)
    safi.invoke("a")
    assert safi.drain(60) == 1
    assert (len(refused), told) == (3, ["review"])


def kill(safi: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the chain's thread end as if its own handler of faults had failed."""

    def ends(*_: Any) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(threading, "excepthook", lambda _: None)
        patch.setattr(module.LocalAuditor, "_run_round", ends)
        patch.setattr(module.LocalAuditor, "_fail", ends)
        deadline = time.monotonic() + 60
        while safi._auditor._thread is None or safi._auditor._thread.is_alive():
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.parametrize("then", ["drain", "submit", "beat"])
def test_an_audit_thread_that_has_ended_is_reported_and_replaced(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, then: str
) -> None:
    go = threading.Event()
    safi = make(Fake(conscience=lambda text: (go.wait(60), ledger())[1]))
    safi.batch(["a", "b"], {"max_concurrency": 1})
    while len(safi.model.asked("conscience")) < 2:
        time.sleep(0.01)
    safi._auditor._inbox.put("a word, so that it wakes up")
    kill(safi, monkeypatch)
    go.set()
    if then == "submit":
        safi.invoke("c")
    elif then == "beat":
        safi._auditor.beat()
    if then != "drain":
        assert "The audit thread has ended" in caplog.text
    count = 3 if then == "submit" else 2
    assert safi.drain(60) == count
    assert "The audit thread has ended" in caplog.text
    assert [r["turn"] for r in lines(tmp_path / "log.json")] == list(range(1, count + 1))


@pytest.mark.parametrize("raised", [SystemExit, KeyboardInterrupt, OwnError])
def test_an_exception_raised_in_the_audit_thread_from_outside_does_not_end_it(
    make: Any, tmp_path: Path, raised: type[BaseException]
) -> None:
    go = threading.Event()
    safi = make(Fake(conscience=lambda text: (go.wait(60), ledger())[1]))
    safi.batch(["a", "b"], {"max_concurrency": 1})
    while len(safi.model.asked("conscience")) < 2:
        time.sleep(0.01)
    thread = safi._auditor._thread
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(raised))
    safi._auditor._inbox.put("a word, so that it wakes up")
    go.set()
    assert safi.drain(60) == 2
    assert [r["turn"] for r in lines(tmp_path / "log.json")] == [1, 2]


def test_a_memory_key_that_cannot_be_committed_is_reported_and_does_not_block_others(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safi_agent.audit import pipeline, plan

    real = plan.make_commit

    def commit(row: Any, before: Any, measure: Any) -> Any:
        if row.body["prompt"] == "bad":
            raise ZeroDivisionError
        return real(row, before, measure)

    monkeypatch.setattr(pipeline, "RETRY_COMMIT", 0.05)
    monkeypatch.setattr(plan, "make_commit", commit)
    safi = make()
    for prompt, key in (("bad", "one"), ("x", "two"), ("after", "one"), ("y", "two")):
        safi.invoke(prompt, {"configurable": {"safi_key": key}})
    deadline = time.monotonic() + 60
    while not (tmp_path / "log.json").exists() or len(lines(tmp_path / "log.json")) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    held = safi.drain(0.1)
    assert held.left == 2
    assert "The turns under 'one' cannot be committed (ZeroDivisionError)." in held.blocked
    monkeypatch.setattr(plan, "make_commit", real)
    assert safi.drain(60).left == 0
    assert [r["userPrompt"] for r in lines(tmp_path / "log.json")] == ["x", "y", "bad", "after"]


def test_a_hanging_phi_is_reported_and_does_not_block_other_chains(
    make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    go, entered = threading.Event(), threading.Event()

    def hangs(confidence: float) -> float:
        entered.set()
        go.wait(60)
        return confidence

    bad = make(phi=hangs, audit_timeout=0.05, store=f"sqlite:///{tmp_path}/bad.db", log=tmp_path / "bad.json")
    good = make()
    bad.invoke("a")
    assert entered.wait(60)
    good.invoke("b")
    bad.invoke("answered while φ hangs")
    assert good.drain(60) == 1
    held = bad.drain(0.1)
    assert held.left == 2
    assert any("has not moved for" in sentence for sentence in held.blocked)
    bad._auditor.beat()
    assert "has not moved for" in caplog.text
    go.set()
    assert bad.drain(60) == 2


def test_drain_reports_log_lines_that_could_not_be_written(make: Any, tmp_path: Path) -> None:
    safi = make()
    safi.invoke("a")
    assert safi.drain(60).left == 0
    key = tmp_path / "log.json.key"
    there = key.read_bytes()
    key.unlink()
    safi.invoke("b")
    held = safi.drain(60)
    assert (int(held), held.left) == (1, 1)
    assert f"1 line of the log {tmp_path / 'log.json'} could not be written." in held.blocked
    key.write_bytes(there)
    key.chmod(0o600)
    safi._auditor.beat()
    assert safi.drain(60).left == 0


def test_drain_reports_a_memory_key_that_waits_for_another_process(make: Any, tmp_path: Path) -> None:
    safi = make()
    go = threading.Event()
    first = make(Fake(conscience=lambda text: (go.wait(60), ledger())[1]), store=f"sqlite:///{tmp_path}/safi.db")
    first.invoke("a")
    with sqlite3.connect(tmp_path / "safi.db") as db:
        db.execute("UPDATE safi_turns SET owner = 'elsewhere:7:x'")
    db.close()
    safi.invoke("b")
    held = safi.drain(0.3)
    assert (int(held), held.left) == (0, 2)
    assert any("turns of the process elsewhere:7" in sentence for sentence in held.blocked)
    assert "1 turn waiting for an earlier one of the same memory key." in held.blocked
    go.set()
    assert first.drain(60) == 1
    assert safi.drain(60) == 1
    assert [r["userPrompt"] for r in lines(tmp_path / "log.json")] == ["a", "b"]


def test_turns_of_a_process_that_has_ended_are_taken_over(make: Any, tmp_path: Path) -> None:
    go = threading.Event()
    first = make(Fake(conscience=lambda text: (go.wait(60), ledger())[1]), log=None)
    first.invoke("a", {"configurable": {"safi_key": "k"}})
    while not first.model.asked("conscience"):
        time.sleep(0.01)
    name = process_id.this_process().partition(":")[0]
    safi = make()
    safi.invoke("b", {"configurable": {"safi_key": "k"}})
    assert safi.drain(0.2).left == 2
    with sqlite3.connect(tmp_path / "safi.db") as db:
        db.execute("UPDATE safi_turns SET owner = ? WHERE turn = 1", [f"{name}:4194000:x"])
    db.close()
    done = safi.drain(60)
    assert (int(done), done.left, done.blocked) == (2, 0, ())
    go.set()
    first.drain(60)


@pytest.mark.slow
def test_only_turns_that_are_being_audited_are_held_in_memory(make: Any, tmp_path: Path) -> None:
    import gc

    go = threading.Event()
    safi = make(Fake(conscience=lambda text: (go.wait(60), ledger())[1]), log=None)
    mark = "a long prompt "
    with_marks = [f"{mark}{i} " + "x" * 2000 for i in range(200)]
    safi.batch(with_marks, {"max_concurrency": 1})
    while len(safi.model.asked("conscience")) < 32:
        time.sleep(0.01)
    safi.model._asked.clear()
    gc.collect()
    dicts = [one for one in gc.get_objects() if type(one) is dict]
    held = [one for one in dicts if isinstance(one.get("prompt"), str) and one["prompt"].startswith(mark)]
    assert 0 < len(held) <= 3 * 32
    go.set()
    safi.model._asked.clear()
    assert safi.drain(60) == 200


def test_the_result_of_drain_is_an_integer_that_can_be_pickled(make: Any) -> None:
    import pickle

    safi = make()
    safi.invoke("a")
    done = safi.drain()
    assert done == 1
    assert done + 1 == 2
    assert f"{done}" == "1"
    assert pickle.loads(pickle.dumps(done)).blocked == ()
    assert logging.getLogger("safi_agent").name == "safi_agent"
