"""Through the client of OpenAI, as an application that only changes its base_url."""

import asyncio
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import openai
import pytest

from safi_agent.serve import BearerKey, RequestParameters
from tests.safi_agent.fakes import VIOLATION, Fake, in_turn
from tests.safi_agent.openai_server import Server, serving
from tests.safi_agent.serve.running import MODEL, upstream_model

KEY = "safi-anna"
KEYS = [BearerKey(sha256(KEY.encode()).digest(), "anna")]
ASKED: Any = {"model": MODEL, "messages": [{"role": "user", "content": "Why?"}]}


@pytest.fixture
def upstream() -> Iterator[Server]:
    with serving() as one:
        yield one


def client_of(http: Any, key: str = KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{http.base_url}/v1", api_key=key, max_retries=0)


def test_it_answers_and_a_refusal_is_told_apart(make: Any, serve: Any) -> None:
    client = client_of(serve(make(Fake(will=in_turn(Fake().will, VIOLATION))), KEYS))
    answer = client.chat.completions.create(**ASKED)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("An answer.", "stop")
    assert answer.model_extra is not None
    assert answer.model_extra["safi"]["decision"] == "approve"
    raw = client.chat.completions.with_raw_response.create(**ASKED)
    refusal: Any = raw.parse()
    assert (refusal.choices[0].message.content, refusal.choices[0].finish_reason) == ("No.", "content_filter")
    assert raw.headers["x-safi-turn-id"] == refusal.safi["turn_id"]
    assert raw.headers["x-safi-decision"] == refusal.safi["decision"] == "violation"


@pytest.mark.parametrize(
    ("model", "text", "end"), [(Fake(), "An answer.", "stop"), (Fake(will=VIOLATION), "No.", "content_filter")]
)
def test_it_streams(make: Any, serve: Any, model: Fake, text: str, end: str) -> None:
    client = client_of(serve(make(model), KEYS))
    chunks = list(client.chat.completions.create(stream=True, **ASKED))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == text
    assert chunks[-1].choices[0].finish_reason == end


def test_its_parser_raises_its_own_error_for_a_refusal(make: Any, serve: Any) -> None:
    client = client_of(serve(make(Fake(will=in_turn(Fake().will, VIOLATION))), KEYS))
    with client.chat.completions.stream(**ASKED) as stream:
        assert stream.get_final_completion().choices[0].message.content == "An answer."
    with client.chat.completions.stream(**ASKED) as stream, pytest.raises(openai.ContentFilterFinishReasonError):
        stream.get_final_completion()


@pytest.mark.slow
def test_many_at_once(make: Any, serve: Any) -> None:
    http = serve(make(Fake(delay=0.05)), KEYS)

    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{http.base_url}/v1", api_key=KEY, max_retries=0) as client:
            answers = await asyncio.gather(*(client.chat.completions.create(**ASKED) for _ in range(20)))
        return [answer.id for answer in answers]

    assert len(set(asyncio.run(ask()))) == 20


def test_its_errors_have_the_classes_of_the_client(make: Any, serve: Any) -> None:
    http = serve(make(Fake(intellect=RuntimeError("down"))), KEYS, rate=4)
    client = client_of(http)
    with pytest.raises(openai.AuthenticationError):
        client_of(http, "wrong").models.list()
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(**ASKED | {"model": "gpt-4o"})
    assert (unknown.value.param, unknown.value.code) == ("model", "model_not_found")
    with pytest.raises(openai.BadRequestError) as unsupported:
        client.chat.completions.create(**ASKED, logprobs=True)
    assert unsupported.value.param == "logprobs"
    with pytest.raises(openai.InternalServerError) as down:
        client.chat.completions.create(**ASKED)
    assert (down.value.status_code, down.value.code) == (503, "model_failed")
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(**ASKED)
    with pytest.raises(openai.RateLimitError):
        client.chat.completions.create(**ASKED)


@pytest.mark.parametrize(
    ("status", "expected"), [(400, 400), (413, 400), (422, 400), (401, 503), (429, 503), (500, 503)]
)
def test_what_the_provider_rejects_is_not_to_be_repeated(
    make: Any, serve: Any, upstream: Server, status: int, expected: int
) -> None:
    upstream.says["intellect"] = (status, "CANARY")
    client = client_of(serve(make(upstream_model(upstream.url)), KEYS))
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(**ASKED | {"model": "m"})
    assert (caught.value.status_code, caught.value.code == "model_rejected") == (expected, expected == 400)
    assert "CANARY" not in caught.value.response.text


def test_parameters_reach_the_model_that_drafts_and_no_judge(make: Any, serve: Any, upstream: Server) -> None:
    model = upstream_model(upstream.url)
    safi = make(RequestParameters(model), will_model=model, conscience_model=model)
    client = client_of(serve(safi, KEYS))
    given: Any = {"temperature": 0.3, "top_p": 0.9, "max_tokens": 50, "stop": "end"}
    answer = client.chat.completions.create(**ASKED | {"model": "m"}, **given)
    assert answer.usage is not None
    assert answer.usage.total_tokens == 24  # of draft and ruling
    client.chat.completions.create(**ASKED | {"model": "m"})
    safi.drain()
    drafted = upstream.asked("intellect")
    assert (drafted[0]["temperature"], drafted[0]["top_p"], drafted[0]["stop"]) == (0.3, 0.9, ["end"])
    assert drafted[0]["max_completion_tokens"] == 50
    others = [drafted[1], *upstream.asked("will"), *upstream.asked("conscience")]
    assert len(others) == 5
    for asked in others:
        assert not {"temperature", "top_p", "stop", "max_tokens", "max_completion_tokens"} & set(asked)
