"""What is awaited never blocks its loop: no file, no database, no lock that another thread holds."""

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvloop
from blockbuster import BlockingError, blockbuster_ctx
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from langchain_core.runnables import ConfigurableField, RunnableLambda

from safi_agent import OutboxError, SafiChain, SafiError, ViolationError
from safi_agent.faculties import will
from tests.safi_agent.agents.calling import Calling, Tools, call, calls, texts
from tests.safi_agent.fakes import THREE, VIOLATION, Fake, in_turn

NAMED: Any = {"configurable": {"safi_turn_id": "req-1"}}


def awaited(work: Callable[[], Awaitable[Any]]) -> Any:
    """Run it on a loop where a blocking call is an error."""

    async def forbidding() -> Any:
        with blockbuster_ctx():
            return await work()

    return asyncio.run(forbidding())


def test_a_blocking_call_is_found(make: Any) -> None:
    """The detector works here: the same turn, not awaited, is an error on a loop."""
    safi = make(store=None)

    async def on_the_loop() -> Any:
        return safi.invoke("q")

    with pytest.raises(SafiError, match="BlockingError"):
        awaited(on_the_loop)


async def pieces(stream: Any) -> list[str]:
    return [str(piece.content) async for piece in stream]


@pytest.mark.parametrize("store", ["file", None])
def test_no_call_of_a_chain_blocks_the_loop(make: Any, store: str | None) -> None:
    safi = make(Fake(delay=0.001), **({} if store else {"store": None}))

    async def all_ways() -> list[str]:
        texts = [str((await safi.ainvoke("a", config)).content) for config in (None, NAMED, NAMED)]
        texts += [str(m.content) for m in await safi.abatch(list("abcdefgh"))]
        texts += [str(m.content) for m in await asyncio.gather(*(safi.ainvoke(str(n), NAMED) for n in range(8)))]
        return texts + await pieces(safi.astream("d")) + await pieces(safi.astream("e", NAMED))

    assert set(awaited(all_ways)) == {"An answer."}
    assert safi.drain() > 10


def test_a_chain_whose_settings_come_with_the_call(make: Any) -> None:
    asked = make().configurable_fields(beta=ConfigurableField(id="beta"))

    async def all_ways() -> list[str]:
        configs: list[Any] = [{"configurable": {"beta": beta}} for beta in (0.1, 0.2)]
        messages = [await asked.ainvoke("a", configs[0]), *await asked.abatch(["b", "c"], configs)]
        piped = asked.with_config(configs[0]) | (lambda message: message)
        texts = [str(message.content) for message in messages]
        return texts + await pieces(asked.astream("d", configs[0])) + await pieces(piped.astream("e"))

    assert awaited(all_ways) == ["An answer."] * 5


def test_while_others_write_and_audit_it_waits_on_a_thread(make: Any) -> None:
    """Turns of other threads hold the store's lock all the time."""
    safi, over = make(), threading.Event()

    def writes() -> None:
        while not over.is_set():
            safi.invoke("other")

    threads = [threading.Thread(target=writes) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        answers = awaited(lambda: safi.abatch([str(n) for n in range(12)]))
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert {m.content for m in answers} == {"An answer."}


@pytest.mark.parametrize(
    ("replies", "settings", "error"),
    [
        ({"will": VIOLATION}, {}, None),
        ({"will": VIOLATION}, {"raise_on_violation": True}, ViolationError),
        ({"will": RuntimeError("down")}, {}, None),
        ({"will": "not JSON"}, {}, None),
        ({"intellect": RuntimeError("down")}, {}, Exception),
    ],
)
def test_refusals_and_errors(make: Any, replies: Any, settings: Any, error: type[Exception] | None) -> None:
    safi = make(Fake(**replies), **settings)
    if error is None:
        assert awaited(lambda: safi.ainvoke("q")).content == "No."
        return
    with pytest.raises(error) as caught:
        awaited(lambda: safi.ainvoke("q"))
    assert not isinstance(caught.value, BlockingError)
    assert "Blocking" not in str(caught.value)


def test_a_store_that_fails(make: Any) -> None:
    safi = make(store=None)
    with safi._auditor.store.database.transaction() as connection:
        connection.exec_driver_sql("DROP TABLE safi_turns")
    with pytest.raises(OutboxError, match="OperationalError"):
        awaited(lambda: safi.ainvoke("q"))


@pytest.mark.parametrize("store", ["file", None])
def test_an_agent_with_tools(govern: Any, store: str | None) -> None:
    tools = Tools()
    middleware = govern(**({} if store else {"store": None}))
    model = Calling(intellect=in_turn(calls(call("pay", amount=5), call("search", "2", q="x")), "Paid.", "No more."))
    agent = create_agent(model, tools.of(), middleware=[middleware])
    given: Any = {"messages": [HumanMessage("q")]}

    async def all_ways() -> list[str]:
        outs = [await agent.ainvoke(given, NAMED), await agent.ainvoke(given, NAMED), await agent.ainvoke(given)]
        streamed = [item async for item in agent.astream(given, NAMED, stream_mode="values")]
        return [texts(out)[-1] for out in [*outs, streamed[-1]]]

    assert awaited(all_ways) == ["Paid.", "Paid.", "No more.", "Paid."]
    assert sorted(tools.did) == ["pay 5 to no one", "search x"]


def test_an_agent_that_is_refused_and_a_call_that_is_denied(govern: Any) -> None:
    model = Calling(intellect=in_turn(calls(call("pay", amount=5)), "Denied.", "Never."))
    judge = Fake(will=in_turn(VIOLATION))
    agent = create_agent(model, Tools().of(), middleware=[govern(judge, ["search"], judge_calls=True)])
    out = awaited(lambda: agent.ainvoke({"messages": [HumanMessage("q")]}))
    assert texts(out)[-1] == "No."


def test_on_uvloop(make: Any) -> None:
    safi = make()

    async def forbidding() -> Any:
        with blockbuster_ctx():
            return await safi.abatch(["a", "b"])

    assert [m.content for m in uvloop.run(forbidding())] == ["An answer."] * 2


@pytest.mark.slow
def test_the_first_turn_of_a_process(tmp_path: Path) -> None:
    """Nothing is imported, opened or started late on the loop."""
    program = """
import asyncio
from blockbuster import blockbuster_ctx
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from safi_agent import SafiMiddleware, create_safi_chain
safi = create_safi_chain("offline", store="sqlite:///s.db", log="log.json")
middleware = SafiMiddleware(model="offline", store="sqlite:///s.db", log="log.json")
from safi_agent.offline_model import OfflineChatModel
agent = create_agent(OfflineChatModel(), [], middleware=[middleware])
async def main():
    with blockbuster_ctx():
        print((await safi.ainvoke("Why?")).response_metadata["safi"]["willDecision"])
        out = await agent.ainvoke({"messages": [HumanMessage("Why?")]})
        print(out["messages"][-1].response_metadata["safi"]["willDecision"])
        print(await safi.aclose() + await middleware.aclose())
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.split() == ["approve", "approve", "2"], done.stderr


def test_cancelled_after_its_row_was_written_it_gives_nothing_and_is_audited(make: Any, tmp_path: Path) -> None:
    safi: SafiChain = make()
    written, go_on = threading.Event(), threading.Event()
    add = safi._auditor.store.add_turn

    def slow(*args: Any, **kwargs: Any) -> Any:
        try:
            return add(*args, **kwargs)
        finally:
            written.set()
            go_on.wait(30)

    async def cancelled() -> str:
        task = asyncio.create_task(safi.ainvoke("q", NAMED))
        await asyncio.to_thread(written.wait, 30)
        task.cancel()
        try:
            return str((await task).content)
        except asyncio.CancelledError:
            return "cancelled"
        finally:
            go_on.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(safi._auditor.store, "add_turn", slow)
        assert asyncio.run(cancelled()) == "cancelled"
    assert safi.drain() == 1
    (line,) = (tmp_path / "log.json").read_text().splitlines()
    assert json.loads(line)["auditStatus"] == "complete"
    assert safi.invoke("q", NAMED).response_metadata["safi"]["turn"] == 1


def test_a_known_note_and_no_name_cost_one_hop(make: Any) -> None:
    """The store is asked on a thread once, for the turn's row; twice where there is a name to look up.

    Open audits are counted on a thread too, every half second at most.
    """
    safi = make(max_pending=None)
    hops: list[Any] = []
    to_thread = asyncio.to_thread

    async def counted(work: Any, *args: Any) -> Any:
        hops.append(work)
        return await to_thread(work, *args)

    async def turns() -> list[int]:
        counts = []
        for config in (None, None, NAMED):
            hops.clear()
            await safi.ainvoke("q", config)
            counts.append(len(hops))
        return counts

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "to_thread", counted)
        assert asyncio.run(turns()) == [2, 1, 2]


def test_with_a_model_that_is_a_function_on_a_thread(make: Any) -> None:
    safi = make(RunnableLambda(lambda _: "Yes."), will_model=Fake(), conscience_model=Fake())
    assert awaited(lambda: safi.ainvoke("q")).content == "Yes."


SLOW = THREE.model_copy(update={"forbidden": (r"(a|aa)+$",)})  # takes exponential time


@pytest.mark.slow
@pytest.mark.parametrize(("length", "in_call"), [(40, False), (10_000, True)], ids=["answer", "call"])
def test_while_a_pattern_takes_long_the_loop_goes_on(
    make: Any, govern: Any, monkeypatch: pytest.MonkeyPatch, in_call: bool, length: int
) -> None:
    slow = "a" * length + "b"
    model = Calling(intellect=in_turn(calls(call("search", q=slow)), "Done.") if in_call else slow)
    agent = create_agent(model, Tools().of(), middleware=[govern(values=SLOW)])
    asked: Any = {"messages": [HumanMessage("q")]}
    work: Any = partial(agent.ainvoke, asked) if in_call else partial(make(model, SLOW).ainvoke, "q")
    ticks, passed, search = [0], list[int](), will.search

    def searched(*given: Any) -> bool:
        before = ticks[0]
        try:
            return search(*given)
        finally:
            passed.append(ticks[0] - before)

    async def tick() -> None:
        while True:
            await asyncio.sleep(0.005)
            ticks[0] += 1

    async def ticking() -> Any:
        beside = asyncio.create_task(tick())
        out = await work()
        beside.cancel()
        return out

    monkeypatch.setattr(will, "PATTERN_SECONDS", 0.5)
    monkeypatch.setattr(will, "search", searched)
    out = asyncio.run(ticking())
    assert "It would not keep to the values." in texts(out)[2] if in_call else out.content == "No."
    assert max(passed) > 5
