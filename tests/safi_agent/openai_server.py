"""A server on loopback that speaks the chat API of OpenAI, and misbehaves when it is told to."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.safi_agent.fakes import THREE, approve, ledger

Reply = str | int | tuple[int, str] | Callable[[dict[str, Any]], Any] | None
HANG = "hang"
SAYS: dict[str, Any] = {"intellect": "An answer.", "will": approve(), "conscience": ledger(THREE)}


class Server(ThreadingHTTPServer):
    """``says[role]`` is a text, a status, a status with its message, "hang", a choice, or a function of the request.

    The function gives one of the others; a choice is a mapping with fields of the response's one choice.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.says: dict[str, Any] = dict(SAYS)
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.stopped = threading.Event()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up is nothing to print."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def asked(self, role: str) -> list[dict[str, Any]]:
        return [request for asked, request in self.requests if asked == role]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        system = str(request["messages"][0]["content"])
        role = next((r for r in ("will", "conscience") if system.startswith(f"You are the {r.title()}")), "intellect")
        self.server.requests.append((role, request))
        reply = self.server.says[role]
        if callable(reply):
            reply = reply(request)
        if reply == HANG:
            self.server.stopped.wait(30)
            self.close_connection = True
        elif isinstance(reply, int | tuple):
            status, message = reply if isinstance(reply, tuple) else (reply, f"status {reply}")
            self._send(status, {"error": {"message": message, "type": "t", "param": None, "code": None}})
        elif isinstance(reply, bytes):
            self._raw(200, reply)
        elif request.get("stream"):
            self._stream(reply)
        else:
            self._send(200, completion(request, reply))

    def _send(self, status: int, body: dict[str, Any]) -> None:
        self._raw(status, json.dumps(body).encode())

    def _raw(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, reply: str | dict[str, Any]) -> None:
        text, end = (reply, None) if isinstance(reply, str) else (reply["content"], reply["finish_reason"])
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        for i in range(0, len(text), 3):
            delta = {"index": 0, "delta": {"role": "assistant", "content": text[i : i + 3]}, "finish_reason": None}
            chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [delta]}
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        if end is not None:
            last = {"index": 0, "delta": {}, "finish_reason": end}
            chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [last]}
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")


def completion(request: dict[str, Any], reply: str | dict[str, Any]) -> dict[str, Any]:
    text, more = (reply, {}) if isinstance(reply, str) else (reply.get("content"), reply)
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if tools := request.get("tools"):
        call = {"name": tools[0]["function"]["name"], "arguments": text}
        message |= {"content": None, "tool_calls": [{"id": "1", "type": "function", "function": call}]}
    return {
        "id": "c",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": more.get("model", request["model"]),
        "choices": [{"index": 0, "message": message, "finish_reason": more.get("finish_reason", "stop")}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
    }


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stopped.set()
        server.shutdown()
        server.server_close()
        thread.join()
