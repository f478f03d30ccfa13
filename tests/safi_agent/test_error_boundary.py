"""Nothing that a turn made can be reached from an exception: by any way to call a chain, whatever broke inside."""

import asyncio
import contextlib
import gc
import logging
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ModelResponse, ModelRetryMiddleware
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import RunnableLambda, RunnableParallel
from langchain_core.tools import StructuredTool

from safi_agent import ClosedError, IntellectError, OutboxError, SafiChain, SafiError, ViolationError
from safi_agent.error_boundary import TaskFactory, acontain_errors, clean, contain_errors
from safi_agent.inputs import read_input
from tests.safi_agent.agents.calling import Calling, Tools, ask, both, call, calls
from tests.safi_agent.failing_models import (
    AsyncKeeps,
    Awaited,
    AwaitedCalling,
    BadEmbeddings,
    Keeps,
    Odd,
    Raises,
    Worded,
    breaks,
    interrupts,
)
from tests.safi_agent.fakes import VIOLATION, Fake, approve, in_turn
from tests.safi_agent.observers import Governed, graph_of, secret
from tests.safi_agent.reachable_objects import found, printed

pytestmark = [
    pytest.mark.filterwarnings("ignore:astream_log is deprecated"),
    # When asyncio.run ends with an interruption it leaves coroutines of LangChain behind: some never began, others wait
    # for callbacks when they are closed. They are collected during the test that made them, or during any later one.
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(
        "safi_agent.faculties.self_consistency.cascade_selector", lambda alike: None
    )  # nothing is chosen here
    caplog.set_level(logging.CRITICAL, "safi_agent")
    yield
    caplog.clear()


@pytest.fixture(autouse=True, scope="module")
def swept() -> Iterator[None]:
    """Coroutines that were left behind are collected here, and not while another test runs."""
    yield
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    gc.collect()
    sys.unraisablehook = hook


def caught(work: Callable[[], Any]) -> BaseException:
    """What it raises, or gives back as an error among its results."""
    try:
        out = work()
    except BaseException as error:
        return error
    return next(item for item in out if isinstance(item, BaseException))


def clear(error: BaseException, word: str) -> None:
    """Nothing that can be reached from the error has the word."""
    assert found(error, word, __file__) == []
    assert word not in printed(error, __file__)
    again: Any = pickle.loads(pickle.dumps(error)) if isinstance(error, SafiError) else error
    assert (type(again), str(again)) == (type(error), str(error))


# What breaks inside, by the word that must not leave.


def draft(word: str, **replies: Any) -> dict[str, Any]:
    text = f"Well: {word}.\n<reflection>I thought of {word}.</reflection>"
    return {"intellect": lambda _: text, "will": lambda _: VIOLATION.replace("it breaks", f"{word} breaks"), **replies}


def judge(kind: type[BaseException]) -> Callable[[str], tuple[dict[str, Any], dict[str, Any]]]:
    return lambda word: (draft(word, will=breaks(kind, word)), {"raise_on_violation": True})


def drafts(kind: type[BaseException]) -> Callable[[str], tuple[dict[str, Any], dict[str, Any]]]:
    return lambda word: (draft(word), {"drafts": 3, "embeddings": BadEmbeddings(kind)})


BREAKS: dict[str, tuple[Callable[[str], tuple[dict[str, Any], dict[str, Any]]], type[BaseException]]] = {
    "a refusal": (lambda word: (draft(word), {"raise_on_violation": True}), ViolationError),
    "a judge that stops": (judge(KeyboardInterrupt), KeyboardInterrupt),
    "a judge that exits": (judge(SystemExit), SystemExit),
    "a judge that is closed": (judge(GeneratorExit), GeneratorExit),
    "a judge that is cancelled": (judge(asyncio.CancelledError), asyncio.CancelledError),
    "a judge that breaks": (judge(Odd), SafiError),
    "Ctrl-C": (lambda word: (draft(word, will=interrupts), {}), KeyboardInterrupt),
    "embeddings": (drafts(Worded), IntellectError),
    "embeddings that break": (drafts(Odd), SafiError),
    "a tracer of the operator": (lambda word: (draft(word), {"tracers": [Raises("on_llm_end")]}), SafiError),
    "a store": (lambda word: (draft(word), {"lost": "turns"}), OutboxError),
    "a model": (lambda word: ({"intellect": breaks(Worded, word)}, {}), IntellectError),
    "a model that exits": (lambda word: ({"intellect": breaks(SystemExit, word)}, {}), SystemExit),
}


def broken(make: Any, word: str, how: str, model: type[Fake] = Fake) -> SafiChain:
    replies, settings = BREAKS[how][0](word)
    lost = settings.pop("lost", None)
    safi: SafiChain = make(model(**replies), store=None, log=None, **settings)
    if lost is not None:
        with safi._auditor.store.database.transaction() as connection:
            connection.exec_driver_sql(f"DROP TABLE safi_{lost}")
    return safi


# Ways to call a chain.

Q = {"messages": [HumanMessage("q")]}


async def read(stream: Any) -> list[Any]:
    return [item async for item in stream]


def run(work: Any) -> Any:
    async def main() -> Any:
        return await work

    return asyncio.run(main())


async def in_time(safi: SafiChain) -> Any:
    async with asyncio.timeout(30):
        return await safi.ainvoke("q")


async def in_group(safi: SafiChain) -> Any:
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(safi.ainvoke("q"))
    except BaseExceptionGroup as errors:
        return [errors, *errors.exceptions][1:]


SYNC: dict[str, Callable[[SafiChain], Any]] = {
    "invoke": lambda safi: safi.invoke("q"),
    "stream": lambda safi: list(safi.stream("q")),
    "batch": lambda safi: safi.batch(["q", "r"]),
    "batch, errors returned": lambda safi: safi.batch(["q", "r"], return_exceptions=True),
    "with_retry": lambda safi: safi.with_retry(stop_after_attempt=2, wait_exponential_jitter=False).invoke("q"),
    "with_fallbacks": lambda safi: safi.with_fallbacks([safi]).invoke("q"),
    "in a sequence": lambda safi: (safi | StrOutputParser()).invoke("q"),
    "in parallel": lambda safi: RunnableParallel(one=safi, other=safi).invoke("q"),
    "in a lambda": lambda safi: RunnableLambda(lambda q: safi.invoke(q)).invoke("q"),
    "in a graph": lambda safi: graph_of(safi).invoke(Q),
    "streamed from a graph": lambda safi: list(graph_of(safi).stream(Q, stream_mode=["messages", "updates"])),
    "in an agent": lambda safi: create_agent(Fake(), [], middleware=[Governed(safi)]).invoke(Q),
    "by a handler that raises": lambda safi: safi.invoke("q", {"callbacks": [Raises("on_chain_error")]}),
}
AWAITED: dict[str, Callable[[SafiChain], Any]] = {
    "ainvoke": lambda safi: run(safi.ainvoke("q")),
    "astream": lambda safi: run(read(safi.astream("q"))),
    "abatch, errors returned": lambda safi: run(safi.abatch(["q", "r"], return_exceptions=True)),
    "with_retry, awaited": lambda safi: run(
        safi.with_retry(stop_after_attempt=2, wait_exponential_jitter=False).ainvoke("q")
    ),
    "with_fallbacks, awaited": lambda safi: run(safi.with_fallbacks([safi]).ainvoke("q")),
    "in a sequence, awaited": lambda safi: run((safi | StrOutputParser()).ainvoke("q")),
    "events": lambda safi: run(read(safi.astream_events("q", version="v2"))),
    "log": lambda safi: run(read(safi.astream_log("q"))),
    "wait_for": lambda safi: run(asyncio.wait_for(safi.ainvoke("q"), 30)),
    "timeout": lambda safi: run(in_time(safi)),
    "in a group of tasks": lambda safi: run(in_group(safi)),
    "in a graph, awaited": lambda safi: run(graph_of(safi).ainvoke(Q)),
    "in an agent, awaited": lambda safi: run(create_agent(Fake(), [], middleware=[Governed(safi)]).ainvoke(Q)),
}


def is_expected(error: BaseException | None, how: str) -> bool:
    """Whether it is the error that this must come to, or stands for it."""
    if type(error) is RuntimeError:  # of the handler that insists on its own
        error = error.__context__
    if type(error).__name__ == "NodeCancelledError":  # LangGraph's word for a node that was cancelled
        error = asyncio.CancelledError()
    return isinstance(error, BREAKS[how][1])


# Each way with a few breaks, and each break with a plain call.
FEW = ("a refusal", "a judge that stops", "a store")


def pairs(ways: dict[str, Any], plain: str) -> list[tuple[str, str]]:
    return [
        (way, how)
        for i, way in enumerate(ways)
        for how in BREAKS
        if way == plain or (how in FEW and how != FEW[1 + i % 2])
    ]


def pairs_awaited() -> list[Any]:
    """All on the loop; on a thread each break with a plain call, and each way with a judge that stops."""
    on_thread = [(way, how) for way in AWAITED for how in BREAKS if way == "ainvoke" or how == FEW[1]]
    found = [(Awaited, "on the loop", pair) for pair in pairs(AWAITED, "ainvoke")]
    found += [(Fake, "on a thread", pair) for pair in on_thread if pair != ("ainvoke", "Ctrl-C")]  # for the main thread
    return [pytest.param(model, *pair, id=f"{where}-{'-'.join(pair)}") for model, where, pair in found]


@pytest.mark.parametrize(("way", "how"), pairs(SYNC, "invoke"))
def test_nothing_of_a_turn_can_be_reached_from_its_exception(make: Any, way: str, how: str) -> None:
    word = secret()
    error = caught(lambda: SYNC[way](broken(make, word, how)))
    assert is_expected(error, how)
    clear(error, word)


@pytest.mark.parametrize(("model", "way", "how"), pairs_awaited())
def test_nothing_of_a_turn_can_be_reached_from_its_exception_when_awaited(
    make: Any, model: Any, way: str, how: str
) -> None:
    word = secret()
    error = caught(lambda: AWAITED[way](broken(make, word, how, model)))
    # A judge that raises these itself, in a task of LangChain's, is one that failed: the draft is refused.
    failed = how in ("a judge that is closed", "a judge that is cancelled") and isinstance(error, ViolationError)
    assert failed or is_expected(error, how)
    clear(error, word)


def planted(word: str) -> BaseException:
    """An error that has the word in a place of its own, by the name of the place."""

    def inner(held: str) -> None:
        raise ValueError("nothing here")

    try:
        inner(word)
    except ValueError as error:
        return error
    raise AssertionError


def suspended(word: str) -> Any:
    def hold() -> Iterator[int]:
        held = [word]
        yield len(held)

    generator = hold()
    next(generator)
    return generator


async def hold(word: str) -> None:
    await asyncio.sleep(0 if word else 1)


PLANTED: dict[str, Callable[[str], Any]] = {
    "args": lambda word: ValueError([{"a": (word,)}]),
    "bytes": lambda word: ValueError(word.encode()),
    "attribute": lambda word: (error := ValueError(), setattr(error, "body", {word: 1}))[0],
    "note": lambda word: (error := ValueError(), error.add_note(word))[0],
    "generator": lambda word: ValueError(suspended(word)),
    "coroutine": lambda word: (made := hold(word), made.send(None), ValueError(made))[2],
    "closure": lambda word: ValueError(lambda: word),
    "bound method": lambda word: ValueError(Keeping(word).method),
    "slot": lambda word: ValueError(Slotted(word)),
    "group": lambda word: ExceptionGroup("", [ValueError(word)]),
    "message": lambda word: ValueError(HumanMessage("x", additional_kwargs={"a": word})),
}


class Keeping:
    def __init__(self, word: str) -> None:
        self._word = word

    def method(self) -> None: ...


class Slotted:
    __slots__ = ("_word",)

    def __init__(self, word: str) -> None:
        self._word = word


@pytest.mark.parametrize("place", PLANTED)
def test_the_search_finds_a_word_in_each_place(place: str) -> None:
    word = secret()
    error = PLANTED[place](word)
    assert found(error, word, "another file")
    outer = ValueError()
    outer.__context__, outer.__suppress_context__ = error, True
    assert found(outer, word, "another file")
    if place == "coroutine":
        with contextlib.suppress(StopIteration):
            error.args[0].send(None)


def test_the_search_finds_a_word_in_a_frame_and_so_does_what_trackers_print() -> None:
    word = secret()
    error = planted(word)
    assert found(error, word, "another file")
    assert word in printed(error, "another file")
    assert found(error, word, __file__) == []


def test_what_a_turn_raised_inside_would_be_found(make: Any) -> None:
    word = secret()
    safi = broken(make, word, "a judge that breaks")
    error = caught(lambda: safi._governed("q", {}))
    assert isinstance(error, Odd)
    assert found(error, word, __file__)
    assert word in printed(error, __file__)


# Time-outs and cancellations, while the judge has the draft.


async def by_wait_for(safi: SafiChain, seconds: float) -> None:
    await asyncio.wait_for(safi.ainvoke("q"), seconds)


async def by_timeout(safi: SafiChain, seconds: float) -> None:
    async with asyncio.timeout(seconds):
        await safi.ainvoke("q")


async def by_cancel(safi: SafiChain, seconds: float) -> None:
    task = asyncio.create_task(safi.ainvoke("q"))
    await asyncio.sleep(seconds)
    task.cancel("enough")
    await task


async def by_group(safi: SafiChain, seconds: float) -> None:
    async def fails() -> None:
        await asyncio.sleep(seconds)
        raise KeyError("sibling")

    async with asyncio.TaskGroup() as group:
        group.create_task(safi.ainvoke("q"))
        group.create_task(fails())


async def by_anyio(safi: SafiChain, seconds: float) -> None:
    with anyio.fail_after(seconds):
        await safi.ainvoke("q")


async def by_end_of_stream(safi: SafiChain, seconds: float) -> None:
    async with asyncio.timeout(seconds):
        async for _ in safi.astream("q"):
            pass


STOPPED: list[tuple[Callable[[SafiChain, float], Any], type[BaseException]]] = [
    (by_wait_for, TimeoutError),
    (by_timeout, TimeoutError),
    (by_cancel, asyncio.CancelledError),
    (by_group, ExceptionGroup),
    (by_anyio, TimeoutError),
    (by_end_of_stream, TimeoutError),
]


@pytest.mark.parametrize(("stop", "kind"), STOPPED)
@pytest.mark.parametrize("governed", [False, True], ids=["chain", "agent"])
def test_a_turn_that_is_stopped_while_its_judge_is_asked_leaves_nothing(
    make: Any, govern: Any, stop: Any, kind: type[BaseException], governed: bool
) -> None:
    word = secret()
    for seconds in (0.2, 1, 5):  # a slow machine needs longer until there is a draft
        model = AwaitedCalling(**draft(word), hangs=True)
        safi = create_agent(model, [], middleware=[govern(model)]) if governed else make(model)
        given = Asked(safi) if governed else safi
        error = caught(lambda given=given, seconds=seconds: asyncio.run(stop(given, seconds)))
        assert isinstance(error, kind)
        if model.asked("intellect"):
            break
    assert model.asked("intellect"), "there was no draft yet"
    clear(error, word)


class Asked:
    """An agent, called like a chain."""

    def __init__(self, agent: Any) -> None:
        self.agent = agent

    async def ainvoke(self, q: str) -> Any:
        return await self.agent.ainvoke({"messages": [HumanMessage(q)]})

    def astream(self, q: str) -> Any:
        return self.agent.astream({"messages": [HumanMessage(q)]})


def test_cancellation_keeps_its_meaning(make: Any) -> None:
    async def run_it() -> list[Any]:
        safi, task = make(Awaited(hangs=True)), asyncio.current_task()
        assert task is not None
        with pytest.raises(TimeoutError):
            await by_timeout(safi, 0.2)
        told: list[Any] = [task.cancelling()]
        with anyio.move_on_after(0.1) as scope:
            await safi.ainvoke("q")
        told += [scope.cancelled_caught, task.cancelling()]
        closed = acontain_errors(lambda: asyncio.sleep(5))
        closed.send(None)
        closed.close()
        return [*told, asyncio.get_running_loop().get_task_factory()]

    assert asyncio.run(run_it()) == [0, True, 0, None]


def test_a_scope_recognises_its_cancellation_though_a_new_one_was_raised_inside() -> None:
    async def work() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise asyncio.CancelledError("words")  # noqa: B904 - its context is the scope's

    async def run_it() -> list[Any]:
        task = asyncio.current_task()
        assert task is not None
        with anyio.CancelScope() as scope:
            scope.cancel()
            await acontain_errors(work)
        return [scope.cancelled_caught, task.cancelling()]

    assert asyncio.run(run_it()) == [True, 0]


def test_a_loops_own_task_factory_makes_the_tasks_and_is_there_again_afterwards(make: Any) -> None:
    made: list[str] = []

    def factory(loop: Any, coroutine: Any, **settings: Any) -> Any:
        made.append(coroutine.__qualname__)
        return asyncio.Task(coroutine, loop=loop, **settings)

    async def run_it() -> Any:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(factory)
        safi = make(Awaited())
        await asyncio.gather(*(safi.ainvoke(f"q{i}") for i in range(5)))
        return loop.get_task_factory()

    assert asyncio.run(run_it()) is factory
    assert any("_agenerate_with_cache" in name for name in made)


def test_an_interruption_in_a_task_reaches_what_awaits_it_and_the_loop_goes_on() -> None:
    async def stops() -> None:
        raise SystemExit("words")

    async def work() -> str:
        await asyncio.gather(asyncio.create_task(stops()), return_exceptions=True)
        return "went on as if nothing had been"

    async def run_it() -> tuple[Any, bool]:
        try:
            await acontain_errors(work)
        except SystemExit as error:
            return error.code, isinstance(asyncio.get_running_loop().get_task_factory(), TaskFactory)
        return None, False

    assert asyncio.run(run_it()) == (1, False)


@pytest.mark.parametrize(("code", "left"), [(None, None), (0, 0), (3, 3), ("words", 1), (["words"], 1)])
def test_an_exit_keeps_its_number_and_not_its_text(code: Any, left: int | None) -> None:
    def exits() -> None:
        raise SystemExit(code)

    with pytest.raises(SystemExit) as caught_:
        contain_errors(exits)
    assert caught_.value.code == left


def test_ctrl_c_while_an_error_is_logged_leaves_nothing(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Slow(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            signal.raise_signal(signal.SIGINT)

    word, handler = secret(), Slow(logging.ERROR)
    caplog.set_level(logging.ERROR, "safi_agent")
    logging.getLogger("safi_agent").addHandler(handler)
    try:
        error = caught(lambda: broken(make, word, "a judge that breaks").invoke("q"))
    finally:
        logging.getLogger("safi_agent").removeHandler(handler)
    assert isinstance(error, KeyboardInterrupt)
    clear(error, word)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs signals of POSIX")
def test_ctrl_c_while_a_judge_hangs_ends_the_program_as_any(make: Any) -> None:
    word = secret()
    safi = make(Awaited(**draft(word), hangs=True))
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    error = caught(lambda: run(safi.ainvoke("q")))
    timer.join()
    assert isinstance(error, KeyboardInterrupt)
    clear(error, word)


# What callbacks get.


@both
@pytest.mark.parametrize("how", ["a refusal", "a judge that stops", "a judge that breaks", "a store", "a model"])
def test_nothing_of_a_turn_can_be_reached_from_what_a_callers_handler_is_given(
    make: Any, how: str, awaited: bool
) -> None:
    word, handler = secret(), Keeps()
    handlers: Any = [handler, AsyncKeeps()] if awaited else [handler]
    safi = broken(make, word, how, Awaited)
    sequence = safi | StrOutputParser()
    error = caught(
        lambda: (
            run(sequence.ainvoke("q", {"callbacks": handlers}))
            if awaited
            else sequence.invoke("q", {"callbacks": handlers})
        )
    )
    assert is_expected(error, how)
    for keeps in handlers:
        assert len(keeps.errors) == 2, "the chain's and the sequence's"
        for given in keeps.errors:
            clear(given, word)


def test_a_handler_that_raises_on_the_answer_gets_no_more_than_the_answer(make: Any) -> None:
    word = secret()
    safi = make(Fake(**draft(word)), store=None, log=None)
    error = caught(lambda: safi.invoke("q", {"callbacks": [Raises("on_chain_end")]}))
    assert "No." in str(error)
    clear(error, word)


# Turns that were answered before.


def test_a_refusal_that_is_given_again_gives_away_nothing(make: Any, govern: Any) -> None:
    word, config = secret(), {"configurable": {"safi_turn_id": "t"}}
    safi = make(Fake(**draft(word)), raise_on_violation=True)
    agent = create_agent(Calling(**draft(word)), [], middleware=[govern(Fake(**draft(word)), raise_on_violation=True)])
    for work in (lambda: safi.invoke("q", config), lambda: ask(agent, config={"configurable": {"safi_turn_id": "u"}})):
        for _ in range(2):
            error = caught(work)
            assert isinstance(error, ViolationError)
            clear(error, word)


def test_a_row_that_cannot_be_read_gives_away_nothing(make: Any) -> None:
    word, config = secret(), {"configurable": {"safi_turn_id": "t"}}
    safi = make(Fake(**draft(word)))
    safi.invoke("q", config)
    with safi._auditor.store.database.transaction() as connection:
        connection.exec_driver_sql("UPDATE safi_turns SET body = substr(body, 1, length(body) - 2)")
    error = caught(lambda: safi.invoke("q", config))
    assert isinstance(error, ValueError | SafiError)
    clear(error, word)


# Agents.


def agent_that_is_refused(govern: Any, word: str) -> Any:
    middleware = govern(Fake(**draft(word)), raise_on_violation=True)
    return create_agent(AwaitedCalling(**draft(word)), [], middleware=[middleware])


def agent_that_is_stopped(govern: Any, word: str) -> Any:
    judge = Awaited(**draft(word, will=breaks(KeyboardInterrupt, word)))
    return create_agent(AwaitedCalling(**draft(word)), [], middleware=[govern(judge)])


def agent_whose_judge_breaks(govern: Any, word: str) -> Any:
    judge = Awaited(**draft(word, will=breaks(Odd, word)))
    return create_agent(AwaitedCalling(**draft(word)), [], middleware=[govern(judge)])


def agent_whose_judge_of_calls_breaks(govern: Any, word: str) -> Any:
    judge = Awaited(**draft(word, will=breaks(Odd, word)))
    model = AwaitedCalling(intellect=lambda _: calls(call("search", q=word)))
    return create_agent(model, Tools().of("search"), middleware=[govern(judge, judge_calls=True)])


def agent_whose_store_fails(govern: Any, word: str) -> Any:
    middleware = govern(Fake(**draft(word)), store=None, log=None)
    with middleware.chain._auditor.store.database.transaction() as connection:
        connection.exec_driver_sql("DROP TABLE safi_turns")
    return create_agent(AwaitedCalling(**draft(word)), [], middleware=[middleware])


def agent_whose_model_fails(govern: Any, word: str) -> Any:
    return create_agent(AwaitedCalling(intellect=breaks(Worded, word)), [], middleware=[govern()])


def agent_whose_tools_result_is_refused(govern: Any, word: str) -> Any:
    pieces = [*word]  # the tool itself is the operator's, and must not have the word in one piece

    def search(q: str) -> str:
        """Search."""
        return "found " + "".join(pieces)

    tool = StructuredTool.from_function(search, return_direct=True)
    model = AwaitedCalling(intellect=lambda _: calls(call("search", q="x")))
    return create_agent(model, [tool], middleware=[govern(Fake(**draft(word)), raise_on_violation=True)])


def agent_that_another_middleware_answers(govern: Any, word: str) -> Any:
    class Answers(AgentMiddleware):
        def wrap_model_call(self, request: Any, handler: Any) -> Any:
            return ModelResponse([AIMessage(f"I answer {word}.")])

        async def awrap_model_call(self, request: Any, handler: Any) -> Any:
            return ModelResponse([AIMessage(f"I answer {word}.")])

    middleware = govern(Fake(**draft(word)), raise_on_violation=True)
    return create_agent(AwaitedCalling(), [], middleware=[Answers(), middleware])


def agent_that_is_tried_again(govern: Any, word: str) -> Any:
    again = ModelRetryMiddleware(max_retries=1, initial_delay=0, on_failure="error")
    middleware = govern(Fake(**draft(word)), raise_on_violation=True)
    return create_agent(AwaitedCalling(**draft(word)), [], middleware=[again, middleware])


AGENTS: dict[Callable[[Any, str], Any], type[BaseException]] = {
    agent_that_is_refused: ViolationError,
    agent_that_is_stopped: KeyboardInterrupt,
    agent_whose_judge_breaks: SafiError,
    agent_whose_judge_of_calls_breaks: SafiError,
    agent_whose_store_fails: OutboxError,
    agent_whose_model_fails: IntellectError,
    agent_whose_tools_result_is_refused: ViolationError,
    agent_that_is_tried_again: ViolationError,
}


@both
@pytest.mark.parametrize("made", AGENTS)
def test_nothing_of_a_turn_can_be_reached_from_an_agents_exception(govern: Any, made: Any, awaited: bool) -> None:
    word, keeps = secret(), Keeps()
    error = caught(lambda: ask(made(govern, word), awaited, config={"callbacks": [keeps]}))
    assert isinstance(error, AGENTS[made])
    assert keeps.errors or isinstance(error, KeyboardInterrupt)
    for given in (error, *keeps.errors):
        clear(given, word)


@both
def test_what_another_middleware_said_is_in_the_state_and_not_in_what_the_gate_raises(
    govern: Any, awaited: bool
) -> None:
    word = secret()
    error = caught(lambda: ask(agent_that_another_middleware_answers(govern, word), awaited))
    assert isinstance(error, ViolationError)
    assert word not in "".join(traceback.format_exception(error))
    frame = error.__traceback__
    while frame is not None and frame.tb_frame.f_code.co_name != "_unwrap":
        frame = frame.tb_next
    assert frame is not None
    assert found(frame, word, __file__) == []


@both
def test_what_a_tool_raises_is_its_own_and_its_call_was_approved(govern: Any, awaited: bool) -> None:
    def search(q: str) -> str:
        """Search."""
        raise KeyError("the tool's own words")

    word = secret()
    for direct in (False, True):
        tool = StructuredTool.from_function(search, return_direct=direct)
        text = f"<reflection>{word}</reflection>"
        model = AwaitedCalling(intellect=lambda _, said=text: calls(call("search", q="x"), text=f"Wait.{said}"))
        judge = Fake(will=lambda _: approve().replace("fine", word))
        error = caught(lambda m=model, t=tool, j=judge: ask(create_agent(m, [t], middleware=[govern(j)]), awaited))
        assert isinstance(error, KeyError)
        assert "the tool's own words" in str(error)
        clear(error, word)


# Errors about the input.


@pytest.mark.parametrize(
    "given", [5, [], "", {"prompts": "q"}, [("human", 5)], [("nobody", "q")], {"prompt": object()}]
)
def test_errors_about_the_input_keep_their_kind(make: Any, given: Any) -> None:
    safi = make()
    plain, wrapped = caught(lambda: read_input(given)), caught(lambda: safi.invoke(given))
    kinds = [kind for kind in (TypeError, ValueError, NotImplementedError) if isinstance(plain, kind)]
    assert type(wrapped) is kinds[0]
    assert str(wrapped) == str(plain) or type(plain) not in kinds


def test_a_closed_chain_says_so(make: Any) -> None:
    safi = make()
    safi.close()
    with pytest.raises(ClosedError, match="closed"):
        safi.invoke("q")


# What may be asked of an error.


def rate_limited(word: str, *then: Any) -> Calling:
    left = [breaks(Worded, word), *then]

    def reply(asked: str) -> Any:
        item = left.pop(0) if len(left) > 1 else left[0]
        return item(asked) if callable(item) else item

    return AwaitedCalling(intellect=reply)


@both
def test_an_outer_retry_can_decide_by_the_cause(govern: Any, awaited: bool) -> None:
    def is_rate_limit(error: Exception) -> bool:
        return isinstance(error, IntellectError) and error.status_code == 429 and issubclass(error.cause_type, Worded)

    word, middleware = secret(), govern()
    for retry_on, texts in ((is_rate_limit, "Back."), (lambda error: not is_rate_limit(error), None)):
        model = rate_limited(word, "Back.")
        again = ModelRetryMiddleware(retry_on=retry_on, max_retries=2, initial_delay=0)
        agent = create_agent(model, [], middleware=[again, middleware])
        if texts is None:
            error = caught(lambda a=agent: ask(a, awaited))
            assert isinstance(error, IntellectError)
            clear(error, word)
        else:
            assert ask(agent, awaited)["messages"][-1].text == texts
            assert len(model.asked("intellect")) == 2
    assert middleware.drain() == 1


@both
def test_a_chain_can_be_tried_again_by_type(make: Any, awaited: bool) -> None:
    safi = make(rate_limited(secret(), "Back."))
    tried = safi.with_retry(retry_if_exception_type=(IntellectError,), wait_exponential_jitter=False)
    assert (run(tried.ainvoke("q")) if awaited else tried.invoke("q")).content == "Back."


class Response:
    status_code = 503


def with_response() -> Exception:
    error = RuntimeError("words")
    error.response = Response()  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    ("error", "cause", "status"),
    [
        (Worded("words"), "Worded, status 429", 429),
        (with_response(), "RuntimeError, status 503", 503),
        (ValueError("words"), "ValueError", None),
        (OSError(28, "words"), "OSError", None),
    ],
)
def test_an_intellect_error_has_the_kind_of_its_cause_and_none_of_its_words(
    error: Exception, cause: str, status: int | None
) -> None:
    made = IntellectError.of(error)
    assert (made.cause, made.cause_type, made.status_code) == (cause, type(error), status)
    for same in (made, pickle.loads(pickle.dumps(made)), clean(made)):
        assert (same.args, str(same)) == (made.args, str(made))
        assert "words" not in f"{same!r} {same}"


def test_an_error_of_another_package_that_calls_itself_one_of_ours_is_made_anew() -> None:
    class Mine(SafiError):
        pass

    assert str(clean(Mine("words"))) == "The turn failed (Mine). Details are in the logger 'safi_agent'."


# What the answer carries.


@both
def test_an_answer_carries_nothing_of_its_drafts_message_but_its_words(make: Any, govern: Any, awaited: bool) -> None:
    word = secret()
    extra: dict[str, Any] = {
        "additional_kwargs": {"reasoning_content": word, "signature_x": word},
        "response_metadata": {"logprobs": [word], "model_name": "m"},
        "name": word,
        "id": word,
    }

    def reply(_: str) -> AIMessage:
        message = AIMessage("Fine.", **extra)
        message.usage_metadata = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2, "note": word}  # type: ignore[typeddict-unknown-key]
        return message

    safi = make(Awaited(intellect=reply), store=None, log=None)
    agent = create_agent(AwaitedCalling(intellect=reply), [], middleware=[govern(store=None, log=None)])
    left = [run(safi.ainvoke("q")) if awaited else safi.invoke("q"), ask(agent, awaited)["messages"][-1]]
    for message in left:
        assert message.content == "Fine."
        assert message.usage_metadata["total_tokens"] == 2
        assert found(message, word, __file__) == []


def test_a_step_carries_nothing_of_its_drafts_message_but_words_and_calls_that_were_ruled_on(govern: Any) -> None:
    word = secret()
    kept = {"__gemini_function_call_thought_signatures__": {"1": "c2ln", "2": f"words: {word} !", word: "c2ln"}}
    step = calls(
        call("search", "1", q="x"),
        call("search", f"{word} is no id", q="y"),
        name=word,
        id=word,
        additional_kwargs={**kept, "signature": word},
        response_metadata={"id": word},
    )
    model = Calling(intellect=in_turn(step, "Done."))
    out = ask(create_agent(model, Tools().of(), middleware=[govern(store=None, log=None)], name="clerk"))
    assert found(out, word, __file__) == []
    assert out["messages"][1].name == "clerk"
    assert out["messages"][1].additional_kwargs == {"__gemini_function_call_thought_signatures__": {"1": "c2ln"}}
