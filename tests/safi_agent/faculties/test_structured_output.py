"""A judge's calls: the schema goes through wrappers, no cache answers, and what is refused is left out."""

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain.chat_models import init_chat_model
from langchain_core.caches import InMemoryCache
from langchain_core.globals import set_llm_cache
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import ConfigurableField, Runnable, RunnableLambda
from langchain_openai import ChatOpenAI
from pydantic import PrivateAttr

from safi_agent import create_safi_chain
from safi_agent.faculties.structured_output import JudgeCall, as_judge_model
from safi_agent.faculties.will import SCHEMA
from tests.safi_agent.fakes import THREE, VIOLATION, Fake, approve, in_turn
from tests.safi_agent.log_lines import lines
from tests.safi_agent.openai_server import Server, serving

ASKED = [HumanMessage("Judge.")]
NO_SCHEMA = "Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model."
NO_TEMPERATURE = "Unsupported parameter: 'temperature' is not supported with this model."
pytestmark = pytest.mark.filterwarnings("ignore:This model does not support OpenAI's structured output:UserWarning")


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as one:
        yield one


def chat(server: Server, **settings: Any) -> ChatOpenAI:
    given: dict[str, Any] = {"model": "gpt-4o", "base_url": server.url, "api_key": "k", "max_retries": 0}
    return ChatOpenAI(**(given | settings))


def configurable(server: Server, **settings: Any) -> Any:
    return init_chat_model(base_url=server.url, api_key="k", max_retries=0, **settings)


def ask(model: Runnable[Any, Any], **config: Any) -> str:
    return str(model.invoke(ASKED, config).text)  # type: ignore[arg-type]


WRAPPERS: dict[str, Any] = {
    "alone": lambda server: chat(server),
    "bind": lambda server: chat(server).bind(stop=["x"]),
    "bind of what the schema needs": lambda server: chat(server).bind(response_format={"type": "text"}),
    "with_config": lambda server: chat(server).with_config(tags=["x"]),
    "with_retry": lambda server: chat(server).with_retry(stop_after_attempt=2),
    "with_fallbacks": lambda server: chat(server).with_fallbacks([chat(server)]),
    "fallback after an error": lambda server: chat(server, base_url="http://127.0.0.1:9/v1").with_fallbacks(
        [chat(server)]
    ),
    "all of them": lambda server: chat(server).bind(stop=["x"]).with_retry().with_fallbacks([chat(server)]).bind(n=1),
    "listeners": lambda server: chat(server).with_listeners(on_start=lambda run: None),
    "configurable_fields": lambda server: chat(server).configurable_fields(
        temperature=ConfigurableField(id="temperature")
    ),
    "configurable_alternatives": lambda server: chat(server).configurable_alternatives(
        ConfigurableField(id="which"), default_key="one", other=chat(server)
    ),
    "init_chat_model": lambda server: configurable(server, model="openai:gpt-4o", configurable_fields=["temperature"]),
    "init_chat_model with retry": lambda server: configurable(
        server, model="openai:gpt-4o", configurable_fields="any"
    ).with_retry(),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_the_schema_is_sent_through_any_wrapper(server: Server, name: str) -> None:
    model = as_judge_model(WRAPPERS[name](server), SCHEMA)
    assert ask(model) == "An answer."
    said = asyncio.run(model.ainvoke(ASKED)) if name != "fallback after an error" else None
    assert said is None or str(said.text) == "An answer."
    formats = [request["response_format"]["type"] for _, request in server.requests]
    assert set(formats) == {"json_schema"}
    assert len(formats) == (1 if said is None else 2)


def test_what_is_bound_and_configured_still_counts(server: Server) -> None:
    ask(as_judge_model(chat(server).bind(stop=["x"]).with_retry(), SCHEMA))
    alternatives = chat(server).configurable_alternatives(
        ConfigurableField(id="which"), default_key="one", other=chat(server, model="other")
    )
    ask(as_judge_model(alternatives, SCHEMA), configurable={"which": "other"})
    ask(as_judge_model(configurable(server), SCHEMA), configurable={"model": "openai:chosen"})
    assert server.requests[0][1]["stop"] == ["x"]
    assert [request["model"] for _, request in server.requests] == ["gpt-4o", "other", "chosen"]
    assert all("response_format" in request for _, request in server.requests)


def test_a_retry_still_retries_and_a_fallback_still_stands_in(server: Server) -> None:
    replies = iter([500, "First.", 500, "Second."])
    server.says["intellect"] = lambda request: next(replies)
    retrying = chat(server).with_retry(wait_exponential_jitter=False, stop_after_attempt=2)
    assert ask(as_judge_model(retrying, SCHEMA)) == "First."
    assert ask(as_judge_model(chat(server).with_fallbacks([chat(server, model="other")]), SCHEMA)) == "Second."
    assert [request["model"] for _, request in server.requests][2:] == ["gpt-4o", "other"]


def test_a_runnable_of_another_kind_is_called_as_it_is(server: Server) -> None:
    assert as_judge_model(RunnableLambda(lambda asked: asked[0].content), SCHEMA).invoke(ASKED) == "Judge."
    ask(as_judge_model(RunnableLambda(lambda asked: asked) | chat(server), SCHEMA))
    assert "response_format" not in server.requests[0][1]


@pytest.mark.parametrize(
    ("wrap", "refused"),
    [
        (lambda model: model, True),
        (lambda model: model.with_retry(), True),
        (lambda model: model.with_config(tags=["x"]), True),
        (lambda model: model.with_config(configurable={"model": "openai:gpt-4o"}), False),
        (lambda model: model.with_retry().with_config(configurable={"model": "openai:gpt-4o"}), False),
        (lambda model: model.with_fallbacks([Fake()]), False),
    ],
)
def test_an_auditor_that_only_the_config_of_a_run_names_is_refused(
    make: Any, tmp_path: Path, server: Server, wrap: Any, refused: bool
) -> None:
    """Audits are made after the run, without its config: each of them would fail."""
    model = wrap(configurable(server, temperature=0))
    if refused:
        with pytest.raises(
            ValueError, match="conscience_model: expected a model that can be called without the config"
        ):
            make(model)
        make(model, conscience_model=Fake())
        return
    safi = make(Fake(), conscience_model=model, audit_attempts=1)
    safi.invoke("q")
    safi.drain(20)
    assert [record["auditStatus"] for record in lines(tmp_path / "log.json")] == ["complete"]


# What a provider refuses


def refusing(*features: str) -> Any:
    """The replies of a server that refuses requests with one of these, the first of them first."""
    says = {"temperature": (400, NO_TEMPERATURE), "response_format": (400, NO_SCHEMA)}
    return lambda request: next((says[name] for name in features if name in request), "Yes.")


@pytest.mark.parametrize(
    ("features", "sent"),
    [
        ((), [(True, True)]),
        (("temperature",), [(True, True), (False, True)]),
        (("response_format",), [(True, True), (True, False)]),
        (("temperature", "response_format"), [(True, True), (False, True), (False, False)]),
        (("response_format", "temperature"), [(True, True), (True, False), (False, False)]),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_what_is_refused_is_left_out_and_remembered(
    server: Server, features: tuple[str, ...], sent: list[Any], wrapped: bool, caplog: pytest.LogCaptureFixture
) -> None:
    server.says["intellect"] = refusing(*features)
    model = chat(server, temperature=0)
    judge = as_judge_model(model.with_retry(stop_after_attempt=1) if wrapped else model, SCHEMA)
    with caplog.at_level(logging.WARNING, "safi_agent"):
        assert [ask(judge), ask(judge), str(asyncio.run(judge.ainvoke(ASKED)).text)] == ["Yes."] * 3
    had = [("temperature" in request, "response_format" in request) for _, request in server.requests]
    assert had == [*sent, sent[-1], sent[-1]]
    assert len([record for record in caplog.records if record.name == "safi_agent"]) == bool(features)


def test_a_temperature_that_is_bound_is_left_out_too(server: Server) -> None:
    server.says["intellect"] = refusing("temperature")
    assert ask(as_judge_model(chat(server).bind(temperature=0), SCHEMA)) == "Yes."
    assert ["temperature" in request for _, request in server.requests] == [True, False]


def test_without_a_schema_only_the_temperature_can_be_left_out(server: Server) -> None:
    server.says["intellect"] = refusing("temperature")
    assert ask(as_judge_model(chat(server, temperature=0), None)) == "Yes."
    assert [sorted({"temperature", "response_format"} & set(r)) for _, r in server.requests] == [["temperature"], []]


@pytest.mark.parametrize(
    "fault",
    [
        400,
        401,
        429,
        500,
        (400, "This model's maximum context length is 10 tokens. Reduce the length of the messages or functions."),
        (400, "The response was filtered due to the content management policy."),
        (401, "Incorrect API key provided: response_format is not supported."),
        (422, "Invalid 'messages[1].content'."),
    ],
)
def test_an_error_about_something_else_is_raised_after_one_request(server: Server, fault: Any) -> None:
    server.says["intellect"] = fault
    with pytest.raises(Exception, match="Error code"):
        ask(as_judge_model(chat(server, temperature=0), SCHEMA))
    assert len(server.requests) == 1


def test_what_is_refused_although_it_is_not_sent_is_raised(server: Server) -> None:
    server.says["intellect"] = (400, NO_TEMPERATURE)
    with pytest.raises(Exception, match="temperature"):
        ask(as_judge_model(chat(server), SCHEMA))
    assert len(server.requests) == 1


def test_what_was_not_shown_to_help_is_not_remembered(server: Server) -> None:
    replies = iter([(400, NO_SCHEMA), 500, "Yes."])
    server.says["intellect"] = lambda request: next(replies)
    judge = as_judge_model(chat(server), SCHEMA)
    with pytest.raises(Exception, match="500"):
        ask(judge)
    assert ask(judge) == "Yes."
    assert ["response_format" in request for _, request in server.requests] == [True, False, True]


# Caches


class Counting(BaseChatModel):
    """Says how often it was called."""

    _calls: list[Any] = PrivateAttr(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "counting"

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        self._calls.append(messages)
        return ChatResult(generations=[ChatGeneration(message=AIMessage(str(len(self._calls))))])


@pytest.fixture
def global_cache() -> Iterator[InMemoryCache]:
    cache = InMemoryCache()
    set_llm_cache(cache)
    try:
        yield cache
    finally:
        set_llm_cache(None)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: model,
        lambda model: model.bind(stop=["x"]),
        lambda model: model.with_retry().with_fallbacks([model]),
        lambda model: RunnableLambda(lambda asked: asked) | model,
        lambda model: RunnableLambda(lambda asked: model.invoke(asked)),
    ],
)
@pytest.mark.parametrize("schema", [None, SCHEMA])
def test_no_global_cache_answers_a_judge(global_cache: InMemoryCache, wrap: Any, schema: Any) -> None:
    model = Counting()
    assert [str(model.invoke(ASKED).text) for _ in range(2)] == ["1", "1"], "the cache does not work"
    judge = as_judge_model(wrap(model), schema)
    assert [ask(judge), ask(judge), str(asyncio.run(judge.ainvoke(ASKED)).text)] == ["2", "3", "4"]
    assert str(model.invoke(ASKED).text) == "1"


def test_no_cache_of_a_model_answers_a_judge() -> None:
    for cache in (InMemoryCache(), True):
        judge = as_judge_model(Counting(cache=cache), SCHEMA)
        assert [ask(judge), ask(judge)] == ["1", "2"]


def test_where_no_cache_is_set_the_model_itself_is_called() -> None:
    model = Counting()
    judge = as_judge_model(model, None)
    assert isinstance(judge, JudgeCall)
    assert judge._prepared(frozenset()) is model


def test_a_chain_rules_and_audits_anew_with_a_global_cache(global_cache: InMemoryCache) -> None:
    model = Fake(will=in_turn(approve(), approve(), VIOLATION))
    with create_safi_chain(model, THREE, store=None, log=None) as safi:
        assert [safi.invoke("Why?").content for _ in range(3)] == ["An answer.", "An answer.", "No."]
        assert safi.drain() == 2
    assert [len(model.asked(role)) for role in ("intellect", "will", "conscience")] == [1, 3, 2]
