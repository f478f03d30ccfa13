"""The model server is asked by the client that everyone uses, and counts who asked as what."""

import json
import time

import pytest
from openai import OpenAI

from benchmarks.governance.rounds import calls, model
from benchmarks.governance.server import ANSWER, CHECK

pytestmark = pytest.mark.slow


def test_it_answers_by_role_after_the_time_that_was_set_and_counts() -> None:
    with model(40, 120) as url:
        client = OpenAI(base_url=f"{url}/me/v1", api_key="none", max_retries=0)

        def ask(system: str) -> tuple[str, float]:
            start = time.perf_counter()
            said = client.chat.completions.create(model="m", messages=[{"role": "system", "content": system}])
            return str(said.choices[0].message.content), time.perf_counter() - start

        assert ask("Why?")[0] == ANSWER
        text, seconds = ask(f"{CHECK} Is it good?")
        assert (text, seconds >= 0.04) == ("No", True)
        text, seconds = ask("You are the Conscience\n- Kindness: be kind\n- Truth: say it")
        assert [row["value"] for row in json.loads(text)["ledger"]] == ["Kindness", "Truth"]
        assert seconds >= 0.12
        assert json.loads(ask("You are the Will")[0])["decision"] == "approve"
        assert ask("You are the Intellect")[0].startswith(ANSWER)
        assert calls(url) == {"me": {"plain": 1, "check": 1, "audit": 1, "will": 1, "draft": 1}}
        client.close()


@pytest.mark.parametrize("pieces", [1, 7, 1000])
def test_a_request_may_come_in_pieces(pieces: int) -> None:
    import socket

    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "é" * 500}]}).encode()
    request = b"POST /a/v1/chat/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    with model(0, 0) as url, socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as connection:
        size = -(-len(request) // pieces)
        for start in range(0, len(request), size):
            connection.sendall(request[start : start + size])
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 OK")
