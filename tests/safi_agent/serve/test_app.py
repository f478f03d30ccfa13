"""The service over real HTTP: answers, refusals, errors, audits."""

import json
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from safi_agent import chain as chain_module
from safi_agent.errors import OutboxError
from safi_agent.serve import BearerKey
from safi_agent.serve import health as health_module
from tests.safi_agent.fakes import VIOLATION, Fake, approve, in_turn, ledger
from tests.safi_agent.serve.running import MODEL, PATH, request

ANNA, BERT = "safi-anna", "safi-bert"
KEYS = [BearerKey(sha256(key.encode()).digest(), key.removeprefix("safi-")) for key in (ANNA, BERT)]


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def records(tmp_path: Path) -> list[dict[str, Any]]:
    file = tmp_path / "log.json"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def error_of(response: httpx.Response) -> dict[str, Any]:
    assert list(response.json()) == ["error"]
    error = response.json()["error"]
    assert list(error) == ["message", "type", "param", "code"]
    return dict(error)


def events(response: httpx.Response) -> list[Any]:
    """The data of server-sent events."""
    assert response.headers["content-type"].startswith("text/event-stream")
    *lines, end = response.text.split("\n\n")
    assert end == ""
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


# Answers


def test_an_approved_answer_and_its_audit(make: Any, serve: Any) -> None:
    client = serve(make())
    response = client.post(PATH, json=request())
    assert response.status_code == 200
    body = response.json()
    turn = body["safi"]["turn_id"]
    assert body["id"] == f"safi-{turn}"
    assert (body["object"], body["model"]) == ("chat.completion", MODEL)
    assert abs(body["created"] - time.time()) < 60
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": "An answer.", "refusal": None}
    assert choice["finish_reason"] == "stop"
    assert body["safi"] == {
        "turn_id": turn,
        "decision": "approve",
        "audit_status": "pending",
        "value_set": "three",
        "flags": [],
    }
    assert (response.headers["X-SAFi-Turn-Id"], response.headers["X-SAFi-Decision"]) == (turn, "approve")
    audit = client.get(f"/audits/{body['id']}", params={"timeout": 10}).json()
    assert (audit["turn_id"], audit["status"], audit["decision"], audit["score"]) == (turn, "complete", "approve", 7)
    assert [row["value"] for row in audit["ledger"]] == ["Truth", "Care", "Thrift"]
    assert audit["ledger"][0] == {"value": "Truth", "score": 0.5, "confidence": 0.8, "reason": "so"}
    assert client.get(f"/audits/{turn}").json() == audit


def test_a_stream_is_the_approved_answer_in_one_piece(make: Any, serve: Any) -> None:
    will = threading.Event()

    def ruling(_: str) -> str:
        will.wait(10)
        return approve()

    client = serve(make(Fake(will=ruling)))
    got: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: got.append(client.post(PATH, json=request(stream=True))))
    asking.start()
    asking.join(0.3)
    assert not got  # not even a header, before the Will has approved
    will.set()
    asking.join(10)
    first, last = events(got[0])
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "An answer.", "refusal": None}
    assert first["choices"][0]["finish_reason"] is None
    assert last["choices"][0] == {"index": 0, "logprobs": None, "delta": {}, "finish_reason": "stop"}
    assert first["id"] == last["id"] == f"safi-{last['safi']['turn_id']}"
    assert {first["object"], last["object"]} == {"chat.completion.chunk"}


def test_usage_in_a_stream_only_where_it_is_asked_for(make: Any, serve: Any) -> None:
    client = serve(make())
    assert len(events(client.post(PATH, json=request(stream=True)))) == 2
    *_, last = events(client.post(PATH, json=request(stream=True, stream_options={"include_usage": True})))
    assert (last["choices"], "usage" in last) == ([], True)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("raises", [False, True])
def test_nothing_of_a_refused_draft_leaves(make: Any, serve: Any, stream: bool, raises: bool) -> None:
    draft = "CANARY-DRAFT\n<reflection>CANARY-REFLECTION</reflection>"
    will = VIOLATION.replace("it breaks a value", "CANARY-REASON")
    client = serve(make(Fake(intellect=draft, will=will), raise_on_violation=raises))
    response = client.post(PATH, json=request("q", stream=stream))
    assert response.status_code == 200
    assert response.headers["X-SAFi-Decision"] == "violation"
    turn = response.headers["X-SAFi-Turn-Id"]
    if stream:
        first, last = events(response)
        content, end = first["choices"][0]["delta"]["content"], last
    else:
        end = response.json()
        content = end["choices"][0]["message"]["content"]
    assert (content, end["choices"][0]["finish_reason"]) == ("No.", "content_filter")
    assert (end["safi"]["decision"], end["safi"]["audit_status"]) == ("violation", "none")
    audit = client.get(f"/audits/{turn}", params={"timeout": 10})
    assert (audit.json()["status"], audit.json()["decision"], audit.json()["ledger"]) == ("none", "violation", [])
    assert "CANARY" not in f"{response.headers}{response.text}{audit.headers}{audit.text}"


@pytest.mark.parametrize("stream", [False, True])
def test_any_text_of_a_model_arrives(make: Any, serve: Any, stream: bool) -> None:
    text = "lone \ud800, NUL \x00, \u2028, 🐝, </script>, data: x\n\ndata: [DONE]\n\nä"
    response = serve(make(Fake(intellect=text))).post(PATH, json=request(stream=stream))
    if stream:
        assert events(response)[0]["choices"][0]["delta"]["content"] == text
    else:
        assert response.json()["choices"][0]["message"]["content"] == text


def test_an_answer_that_was_cut_off_ends_with_length(make: Any, serve: Any) -> None:
    from langchain_core.messages import AIMessage

    client = serve(make(Fake(intellect=AIMessage("Half", response_metadata={"finish_reason": "length"}))))
    body = client.post(PATH, json=request()).json()
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["safi"]["flags"] == ["draft_truncated"]


def test_the_whole_conversation_reaches_the_models(make: Any, serve: Any, tmp_path: Path) -> None:
    model = Fake()
    safi = make(model)
    conversation = [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": "And kind."},
        {"role": "user", "content": [{"type": "text", "text": "First "}, {"type": "text", "text": "question"}]},
        {"role": "assistant", "content": "First answer", "refusal": None, "tool_calls": None, "annotations": []},
        {"role": "user", "content": "Second question", "name": "anna"},
    ]
    metadata = {"ticket": "7"}
    response = serve(safi).post(PATH, json=request(conversation, metadata=metadata, user="u1"))
    assert response.status_code == 200
    (asked,) = model.asked("intellect")
    assert [m.type for m in asked] == ["system", "human", "ai", "human"]
    assert "Be brief.\n\nAnd kind." in str(asked[0].text)
    assert [str(m.text) for m in asked[1:]] == ["First question", "First answer", "Second question"]
    assert asked[-1].name == "anna"
    ((_, judged),) = model.asked("will")
    for part in ("Be brief.", "First question", "First answer", "Second question"):
        assert part in str(judged.text)
    safi.drain()
    assert records(tmp_path)[0]["metadata"] == {"user": "u1", "ticket": "7"}


def test_documents_reach_the_models(make: Any, serve: Any) -> None:
    model = Fake()
    documents = [{"text": "The first Monday.", "title": "waste.pdf"}, {"text": "And on Fridays."}]
    response = serve(make(model)).post(PATH, json=request("When?", documents=documents))
    assert response.status_code == 200
    for role in ("intellect", "will"):
        shown = str(model.asked(role)[0][1].text)
        assert "document 1 (waste.pdf): The first Monday.\ndocument 2: And on Fridays." in shown


# Errors


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("model", "code"),
    [
        (Fake(intellect=RuntimeError("CANARY")), "model_failed"),
        (Fake(intellect="CANARY", will=RuntimeError("CANARY")), "judge_failed"),
    ],
)
def test_a_model_that_fails_is_503_without_contents(make: Any, serve: Any, model: Any, code: str, stream: bool) -> None:
    response = serve(make(model)).post(PATH, json=request("q", stream=stream))
    assert response.status_code == 503
    error = error_of(response)
    assert (error["type"], error["code"]) == ("server_error", code)
    assert "CANARY" not in f"{response.headers}{response.text}"
    assert "Traceback" not in response.text
    assert (response.headers.get("X-SAFi-Decision") == "violation") == (code == "judge_failed")


@pytest.mark.parametrize("will", [VIOLATION, RuntimeError("down")])
def test_in_shadow_mode_the_answer_is_served_and_named(make: Any, serve: Any, will: Any) -> None:
    response = serve(make(Fake(will=will), will_mode="shadow")).post(PATH, json=request("q"))
    assert (response.status_code, response.headers["X-SAFi-Decision"]) == (200, "violation")
    body = response.json()
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["choices"][0]["message"]["content"] == "An answer."
    assert "shadow" in body["safi"]["flags"]


def test_an_outage_of_the_judge_has_the_operators_message(make: Any, serve: Any) -> None:
    safi = make(Fake(will=RuntimeError("CANARY")), outage_message="Please ask again later.")
    response = serve(safi).post(PATH, json=request("q"))
    error = error_of(response)
    assert (response.status_code, error["code"], error["message"]) == (503, "judge_failed", "Please ask again later.")


def test_a_store_that_fails_withholds_the_answer(make: Any, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    safi = make()

    def fail(*_: Any, **__: Any) -> Any:
        raise OutboxError("Locked")

    monkeypatch.setattr(safi.release.auditor.store, "add_turn", fail)
    response = serve(safi).post(PATH, json=request())
    assert (response.status_code, error_of(response)["code"]) == (503, "store_failed")
    assert "An answer" not in response.text


def test_too_many_open_audits_and_a_closed_chain_are_503(make: Any, serve: Any) -> None:
    safi = make(Fake(audit_delay=1), max_pending=1, when_full="refuse")
    client = serve(safi)
    assert client.post(PATH, json=request()).status_code == 200
    response = client.post(PATH, json=request())
    assert (response.status_code, error_of(response)["code"]) == (503, "backlog_full")
    safi.close(0)
    response = client.post(PATH, json=request())
    assert (response.status_code, error_of(response)["code"]) == (503, "shutting_down")


def test_an_error_of_ours_is_500_without_a_trace(make: Any, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("CANARY")

    monkeypatch.setattr("safi_agent.serve.app.Completion", fail)
    response = serve(make()).post(PATH, json=request())
    assert (response.status_code, error_of(response)["code"]) == (500, "internal_error")
    assert "CANARY" not in response.text


def test_what_is_not_there_is_an_error_in_the_same_format(make: Any, serve: Any) -> None:
    client = serve(make())
    for method, path, status in (("GET", "/v1/nothing", 404), ("GET", PATH, 405), ("GET", "/openapi.json", 404)):
        response = client.request(method, path)
        assert response.status_code == status
        assert error_of(response)["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        (request(tools=[{"type": "function"}]), 400, "tools", "unsupported_parameter"),
        (request(n=2), 400, "n", "unsupported_parameter"),
        (request(temperature=0.5), 400, "temperature", "unsupported_parameter"),
        (request([{"role": "user", "content": "  "}]), 400, "messages", "invalid_value"),
        (request([{"role": "tool", "content": "x"}]), 400, "messages[0].role", "invalid_value"),
        ({**request(), "model": "other"}, 404, "model", "model_not_found"),
        ([], 400, None, "invalid_value"),
    ],
)
def test_what_is_refused_is_refused_before_the_chain(
    make: Any, serve: Any, body: Any, status: int, param: str | None, code: str
) -> None:
    model = Fake()
    response = serve(make(model)).post(PATH, json=body)
    assert response.status_code == status
    error = error_of(response)
    assert (error["param"], error["code"]) == (param, code)
    assert not model._asked


def test_a_body_is_limited_before_it_is_parsed(make: Any, serve: Any) -> None:
    model = Fake()
    client = serve(make(model), max_bytes=2_000)
    fits = json.dumps(request()).encode().ljust(2_000)
    headers = {"Content-Type": "application/json"}
    assert client.post(PATH, content=fits, headers=headers).status_code == 200
    for content in (fits + b" ", iter([b"x" * 1_500] * 2)):  # with a length, and in chunks
        response = client.post(PATH, content=content, headers=headers)
        assert (response.status_code, error_of(response)["code"]) == (413, "request_too_large")
    assert len(model.asked("intellect")) == 1


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_web_page_cannot_send_what_a_browser_lets_it_send(make: Any, serve: Any, kind: str) -> None:
    model = Fake()
    response = serve(make(model)).post(PATH, content=json.dumps(request()), headers={"Content-Type": kind})
    assert response.status_code == 415
    assert not model._asked


# A client that leaves


def test_a_client_that_leaves_ends_its_turn(make: Any, serve: Any, tmp_path: Path) -> None:
    drafting, asked = threading.Event(), threading.Event()

    def draft(_: str) -> str:
        asked.set()
        drafting.wait(10)
        return "An answer."

    model = Fake(intellect=draft)
    safi = make(model)
    client = serve(safi)
    with pytest.raises(httpx.ReadTimeout):
        client.post(PATH, json=request(), timeout=0.3)
    assert asked.is_set()
    time.sleep(0.3)
    drafting.set()
    model.intellect = "Another."
    assert client.post(PATH, json=request()).status_code == 200  # the service continues
    safi.drain()
    assert len(model.asked("will")) == 1
    assert [record["finalOutput"] for record in records(tmp_path)] == ["Another."]


def test_a_repeated_request_gets_the_same_answer(make: Any, serve: Any) -> None:
    model = Fake()
    client = serve(make(model), KEYS)
    named = {"Idempotency-Key": "1"}
    turns = [
        client.post(PATH, json=request(prompt), headers=bearer(key) | named).json()["safi"]["turn_id"]
        for key, prompt in ((ANNA, "q"), (ANNA, "q"), (BERT, "q"), (ANNA, "other"))
    ]
    assert turns[0] == turns[1]
    assert len(set(turns)) == 3
    assert len(model.asked("intellect")) == 3
    audit = client.get(f"/audits/{turns[3]}", params={"timeout": 10}, headers=bearer(ANNA)).json()
    assert (audit["turn_id"], audit["status"]) == (turns[3], "complete")


# Access


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        bearer("wrong"),
        bearer(ANNA + "x"),
        bearer(sha256(ANNA.encode()).hexdigest()),
        {"Authorization": ANNA},
        {"Authorization": f"Basic {ANNA}"},
        {"Authorization": b"Bearer \xff"},
    ],
)
def test_without_a_known_key_nothing_is_answered(make: Any, serve: Any, headers: Any) -> None:
    model = Fake()
    client = serve(make(model), KEYS)
    for method, path in (("POST", PATH), ("GET", "/v1/models"), ("GET", "/audits/x"), ("GET", "/metrics")):
        response = client.request(method, path, headers=headers)
        assert response.status_code == 401
        assert response.headers["WWW-Authenticate"] == "Bearer"
        assert error_of(response)["code"] == "invalid_api_key"
    assert not model._asked
    assert client.get("/healthz", headers=headers).status_code == 200


def test_each_key_has_its_memory_key_and_sees_its_own_audits(make: Any, serve: Any, tmp_path: Path) -> None:
    safi = make()
    client = serve(safi, KEYS)
    turns = {
        key: client.post(PATH, json=request(), headers=bearer(key)).json()["safi"]["turn_id"] for key in (ANNA, BERT)
    }
    safi.drain()
    assert {r["turnId"]: r["memoryKey"] for r in records(tmp_path)} == {turns[ANNA]: "anna", turns[BERT]: "bert"}
    assert client.get(f"/audits/{turns[ANNA]}", headers=bearer(ANNA)).json()["status"] == "complete"
    foreign = client.get(f"/audits/{turns[ANNA]}", headers=bearer(BERT))
    unknown = client.get("/audits/unknown", headers=bearer(BERT))
    assert (foreign.status_code, foreign.json()) == (unknown.status_code, unknown.json())
    assert (unknown.status_code, error_of(unknown)["code"]) == (404, "turn_not_found")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "[::2]:80", ""])
def test_without_keys_a_page_of_another_name_has_no_access(make: Any, serve: Any, host: str) -> None:
    model = Fake()
    client = serve(make(model))
    response = client.post(PATH, json=request(), headers={"Host": host})
    assert (response.status_code, error_of(response)["code"]) == (403, "not_loopback")
    assert not model._asked
    assert client.post(PATH, json=request(), headers={"Host": "localhost:1"}).status_code == 200


def test_the_rate_is_limited_for_each_memory_key(make: Any, serve: Any) -> None:
    model = Fake()
    client = serve(make(model), KEYS, rate=2)
    codes = [client.post(PATH, json=request(), headers=bearer(ANNA)).status_code for _ in range(3)]
    assert codes == [200, 200, 429]
    response = client.post(PATH, json=request(), headers=bearer(ANNA))
    assert (error_of(response)["type"], error_of(response)["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert 1 <= int(response.headers["Retry-After"]) <= 60
    assert client.post(PATH, json=request(), headers=bearer(BERT)).status_code == 200
    assert [client.get("/audits/x", headers=bearer(ANNA)).status_code for _ in range(3)] == [404, 404, 429]
    assert len(model.asked("intellect")) == 3


# Audits


def test_an_audit_that_is_not_finished_is_pending_and_one_that_failed_says_so(make: Any, serve: Any) -> None:
    model = Fake(conscience=in_turn(*[RuntimeError("down")] * 3, ledger()), audit_delay=0.1)
    safi = make(model)
    client = serve(safi)
    turn = client.post(PATH, json=request()).json()["safi"]["turn_id"]
    assert client.get(f"/audits/{turn}").json() == {"turn_id": turn, "status": "pending"}
    assert client.get(f"/audits/{turn}", params={"timeout": 10}).json() == {"turn_id": turn, "status": "failed"}
    safi.reaudit([turn])
    again = client.get(f"/audits/{turn}", params={"timeout": 10}).json()
    assert (again["turn_id"], again["status"], again["score"]) == (turn, "complete", 7)


@pytest.mark.parametrize("path", ["", "%00", "safi-", "safi-x", "%F0%9F%90%9D", "%ed%a0%80", "a/b", "x" * 10_000])
def test_what_is_no_id_is_an_unknown_turn(make: Any, serve: Any, path: str) -> None:
    response = serve(make()).get(f"/audits/{path}")
    assert (response.status_code, error_of(response)["code"]) == (404, "turn_not_found")


@pytest.mark.parametrize("timeout", ["-1", "61", "nan", "inf", "soon"])
def test_a_timeout_out_of_range_is_refused(make: Any, serve: Any, timeout: str) -> None:
    response = serve(make()).get("/audits/x", params={"timeout": timeout})
    assert (response.status_code, error_of(response)["param"]) == (400, "timeout")


# The model, health and metrics


def test_the_model_is_listed_under_its_name(make: Any, serve: Any) -> None:
    client = serve(make(), name="gpt-4o")
    (model,) = client.get("/v1/models").json()["data"]
    assert (model["id"], model["object"]) == ("gpt-4o", "model")
    assert client.post(PATH, json={**request(), "model": "gpt-4o"}).json()["model"] == "gpt-4o"


def test_health_is_that_of_the_store_and_is_read_once_a_second(
    make: Any, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = serve(make())
    reads = []
    read = chain_module.read_backlog

    def counted(*arguments: Any) -> Any:
        reads.append(arguments)
        return read(*arguments)

    monkeypatch.setattr(chain_module, "read_backlog", counted)
    for _ in range(5):
        response = client.get("/healthz")
        assert (response.status_code, response.json()) == (200, {"status": "ok"})
    assert len(reads) == 1

    def fail(*_: Any) -> Any:
        raise OutboxError("Locked")

    monkeypatch.setattr(chain_module, "read_backlog", fail)
    monkeypatch.setattr(health_module, "VALID", 0.0)
    response = client.get("/healthz")
    assert (response.status_code, response.json()) == (503, {"status": "unavailable"})


def test_health_is_answered_while_turns_wait_for_the_store(make: Any, serve: Any, tmp_path: Path) -> None:
    """Another process holds the lock of writers, as "safi erase" does while it writes the database anew."""
    client = serve(make())
    client.post(PATH, json=request())
    with closing(sqlite3.connect(tmp_path / "safi.db", isolation_level=None)) as writer, ThreadPoolExecutor(40) as pool:
        writer.execute("BEGIN IMMEDIATE")
        try:
            waiting = [pool.submit(client.post, PATH, json=request()) for _ in range(40)]  # more than asyncio's threads
            assert not any(turn.done() for turn in wait(waiting, timeout=1).done)
            assert client.get("/healthz", timeout=4).status_code == 200
        finally:
            writer.execute("ROLLBACK")
        assert {turn.result().status_code for turn in waiting} == {200}


def test_a_store_that_does_not_answer_in_time_is_not_healthy(
    make: Any, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = serve(make())
    go_on = threading.Event()
    monkeypatch.setattr(health_module, "STORE_TIMEOUT", 0.2)
    with monkeypatch.context() as patched:
        patched.setattr(chain_module, "read_backlog", lambda *_: go_on.wait(20))
        assert client.get("/healthz", timeout=5).status_code == 503
    go_on.set()
    monkeypatch.setattr(health_module, "VALID", 0.0)
    assert client.get("/healthz", timeout=5).status_code == 200


def test_without_a_registry_there_are_no_metrics(make: Any, serve: Any) -> None:
    assert serve(make()).get("/metrics").status_code == 404
