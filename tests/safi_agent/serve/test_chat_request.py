"""What of OpenAI's request is supported, what is refused, and what means nothing."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from safi_agent.inputs import read_input
from safi_agent.serve.api_errors import ApiError
from safi_agent.serve.chat_request import ChatRequest, read_chat_request
from tests.safi_agent.serve.running import request


def read(body: Any) -> ChatRequest:
    return read_chat_request(body if isinstance(body, bytes) else json.dumps(body).encode())


def refused(body: Any) -> tuple[int, str | None, str | None]:
    with pytest.raises(ApiError) as caught:
        read(body)
    assert caught.value.__context__ is None  # it would contain the request
    return caught.value.status, caught.value.param, caught.value.code


# Each asks for something that the chain does not do.
UNSUPPORTED: dict[str, Any] = {
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "tool_choice": "required",
    "functions": [{"name": "f"}],
    "function_call": "auto",
    "parallel_tool_calls": True,
    "n": 2,
    "logprobs": True,
    "top_logprobs": 2,
    "response_format": {"type": "json_object"},
    "seed": 1,
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "logit_bias": {"50256": -100},
    "modalities": ["text", "audio"],
    "audio": {"voice": "alloy", "format": "wav"},
    "prediction": {"type": "content", "content": "x"},
    "reasoning_effort": "high",
    "web_search_options": {},
    "store": True,
    "service_tier": "flex",
    "verbosity": "low",
    "max_tokns": 5,
    "safi_key": "anna",
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_a_field_that_is_not_supported_is_named(name: str) -> None:
    assert refused(request(**{name: UNSUPPORTED[name]})) == (400, name, "unsupported_parameter")


# Each means the same as leaving it out.
@pytest.mark.parametrize(
    "more",
    [
        *({name: None} for name in UNSUPPORTED),
        {"n": 1},
        {"logprobs": False},
        {"presence_penalty": 0, "frequency_penalty": 0.0},
        {"tools": [], "tool_choice": "none", "functions": [], "logit_bias": {}},
        {"response_format": {"type": "text"}},
        {"modalities": ["text"]},
        {"store": False, "service_tier": "auto"},
        {"stop": [], "stream_options": None, "temperature": None, "user": None, "metadata": None},
    ],
)
def test_a_value_that_asks_for_nothing_is_left_out(more: dict[str, Any]) -> None:
    assert read(request(**more)) == read(request())


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "tool", "content": "x", "tool_call_id": "1"}, "messages[0].role"),
        ({"role": "function", "content": "x", "name": "f"}, "messages[0].role"),
        ({"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}, "messages[0].tool_calls"),
        ({"role": "assistant", "content": "x", "audio": {"id": "1"}}, "messages[0].audio"),
        ({"role": "assistant", "content": None}, "messages[0].content"),
        ({"role": "user", "content": 1}, "messages[0].content"),
        ({"role": "user", "content": []}, "messages[0].content"),
        ({"role": "user", "content": ["x"]}, "messages[0].content[0]"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {}}]},
            "messages[0].content[0].type",
        ),
        ({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, "messages[0].content[0].type"),
        ({"role": "user", "content": [{"type": "file", "file": {}}]}, "messages[0].content[0].type"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text"),
        ({"role": "user", "content": [{"type": "text", "text": "x", "hidden": "y"}]}, "messages[0].content[0].hidden"),
        ({"role": "user", "content": "x", "name": "two words"}, "messages[0].name"),
        ({"role": "user", "content": "x", "name": "x\n"}, "messages[0].name"),
        ({"role": "user", "content": "x", "additional_kwargs": {}}, "messages[0].additional_kwargs"),
        ("x", "messages[0]"),
    ],
)
def test_a_message_that_the_judges_could_not_read_is_named(message: Any, param: str) -> None:
    status, named, _ = refused(request([message]))
    assert (status, named) == (400, param)


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "x"}, "messages"),
        ({"model": 1}, "model"),
        ({"model": None}, "model"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "0"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ""}, "stop[0]"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"documents": ["text"]}, "documents[0]"),
        ({"documents": [{"title": "x"}]}, "documents[0].text"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ({"metadata": {"a": "x" * 513}}, "metadata.a"),
        ({"user": "x" * 513}, "user"),
    ],
)
def test_a_value_out_of_range_is_named(more: dict[str, Any], param: str) -> None:
    assert refused({**request(), **more}) == (400, param, "invalid_value")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"model": "fake"',
        b"\xff",
        b'{"model": "\xff"}',
        b'{"model": "\\ud800"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
)
def test_what_is_no_json_is_refused(body: bytes) -> None:
    assert refused(body) == (400, None, "invalid_json")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_what_is_no_number_is_refused(number: str) -> None:
    body = json.dumps(request(temperature=0)).replace('"temperature": 0', f'"temperature": {number}')
    assert refused(body.encode())[:2] in ((400, "temperature"), (400, None))


def test_no_error_quotes_the_request() -> None:
    for body in (
        request("CANARY", n="CANARY"),
        request([{"role": "CANARY", "content": "CANARY"}]),
        request([{"role": "user", "content": [{"type": "CANARY", "text": "CANARY"}]}]),
        request(metadata={"a": ["CANARY"]}),
        b'{"model": "CANARY", ',
    ):
        with pytest.raises(ApiError) as caught:
            read(body)
        assert b"CANARY" not in bytes(caught.value.response().body)


def test_parameters_are_named_as_langchain_names_them() -> None:
    given = {"temperature": 0, "top_p": 1, "max_completion_tokens": 7, "max_tokens": 9, "stop": "x"}
    assert read(request(**given)).parameters() == {"temperature": 0, "top_p": 1, "max_tokens": 7, "stop": ["x"]}
    assert read(request()).parameters() == {}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(0, 3) | st.sampled_from(["", "text", "user", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "text", "role", "content", "name", "x"]), inner, max_size=4)
    ),
    max_leaves=8,
)
FIELDS = st.sampled_from(["model", "messages", "stream", "stream_options", "stop", "n", "metadata", "documents", "x"])


@given(st.dictionaries(FIELDS, JSON, max_size=4) | JSON)
@example({})
def test_any_json_is_a_request_that_the_chain_can_read_or_an_error_400(changed: Any) -> None:
    asked = outcome({**request(), **changed} if isinstance(changed, dict) else changed)
    if isinstance(asked, ApiError):
        assert asked.status == 400
    else:
        assert input_error(asked) in ("", "input: expected a prompt that contains text, got none.")


def outcome(body: Any) -> ChatRequest | ApiError:
    try:
        return read(body)
    except ApiError as error:
        return error


def input_error(asked: ChatRequest) -> str:
    try:
        read_input(asked.chain_input())
    except ValueError as error:
        return str(error)
    return ""
