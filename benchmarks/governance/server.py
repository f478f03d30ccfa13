"""The model: a process with OpenAI's chat API on loopback and a fixed latency, which counts calls by client and role.

``python -m benchmarks.governance.server 50 250`` answers after 50 ms, an audit after 250 ms, and prints its port. The
first part of the path names the client: ``/somebody/v1/chat/completions``. ``GET /counts`` returns the calls so far.
"""

import asyncio
import json
import re
import resource
import sys
from collections import Counter
from functools import lru_cache, partial
from typing import Any

ANSWER = "An answer of some length, as one is given to a question of a line or two. " * 6
CHECK = "You check an answer."  # beginning of the prompt of a peer's check
ROLES = {
    CHECK: "check",
    "You are the Will": "will",
    "You are the Conscience": "audit",
    "You are the Intellect": "draft",
}
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_VALUE = re.compile(r"^- (.+?): ", re.MULTILINE)


def role_of(messages: list[dict[str, Any]]) -> str:
    """
    >>> role_of([{"role": "user", "content": "Why?"}])
    'plain'
    """
    start = str(messages[0]["content"])
    return next((role for opening, role in ROLES.items() if start.startswith(opening)), "plain")


@lru_cache(maxsize=16)
def reply(role: str, system: str) -> str:
    """The model's reply; an audit has a row for each value in the prompt."""
    if role == "audit":
        names = _VALUE.findall(system)
        rows = [{"value": n, "score": 0.5, "confidence": 0.9, "reason": "A sentence on why."} for n in names]
        return json.dumps({"ledger": rows})
    if role == "will":
        return json.dumps({"decision": "approve", "reason": "A sentence on why.", "gates": []})
    return {"check": "No", "draft": f"{ANSWER}<reflection>A thought.</reflection>"}.get(role, ANSWER)


def completion(model: str, text: str) -> bytes:
    message = {"role": "assistant", "content": text, "refusal": None}
    body = {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
    }
    return json.dumps(body).encode()


class Connection(asyncio.Protocol):
    """One client with a persistent connection."""

    def __init__(self, answer_s: float, audit_s: float, counts: dict[str, Counter[str]]) -> None:
        self.waits = {"audit": audit_s}
        self.usual, self.counts = answer_s, counts
        self.come = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.come += data
        head, end, rest = self.come.partition(b"\r\n\r\n")
        found = _LENGTH.search(head)
        length = int(found[1]) if found else 0
        if not end or len(rest) < length:
            return
        self.come = rest[length:]
        self._asked(head.split(b" ", 2)[1].decode(), rest[:length])

    def _asked(self, path: str, body: bytes) -> None:
        if path == "/counts":
            self._send(json.dumps(self.counts).encode())
            return
        asked = json.loads(body)
        role = role_of(asked["messages"])
        self.counts.setdefault(path.split("/")[1], Counter())[role] += 1
        said = completion(asked["model"], reply(role, str(asked["messages"][0]["content"])))
        if wait := self.waits.get(role, self.usual):
            asyncio.get_running_loop().call_later(wait, self._send, said)
        else:
            self._send(said)

    def _send(self, body: bytes) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self.transport.write(head.encode() + body)


def more_files() -> None:
    """Raise the limit of open files to its maximum: a thousand concurrent turns exceed the default."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def serve(answer_ms: float, audit_ms: float) -> None:
    counts: dict[str, Counter[str]] = {}
    make = partial(Connection, answer_ms / 1e3, audit_ms / 1e3, counts)
    server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    more_files()
    asyncio.run(serve(float(sys.argv[1]), float(sys.argv[2])))
