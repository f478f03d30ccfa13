"""A server on loopback with OpenAI's chat API, for judges of this experiment; the request's model names the judge."""

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from experiments.calibration.judges import Judge


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, judges: Mapping[str, Judge]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.judges, self.lock = judges, threading.Lock()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged."""

    def do_POST(self) -> None:
        """Answer one chat completion; one at a time, since a judge computes on one thread."""
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        judge = self.server.judges.get(request["model"])
        if judge is None:
            self._send(404, {"error": {"message": f"no model {request['model']!r}", "type": "invalid_request_error"}})
            return
        system, user = (str(message["content"]) for message in request["messages"][:2])
        with self.server.lock:
            text = judge.reply(system, user)
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        body = {"id": "c", "object": "chat.completion", "created": int(time.time()), "model": request["model"]}
        self._send(200, {**body, "choices": [choice]})

    def _send(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def serving(judges: Mapping[str, Judge]) -> Iterator[str]:
    """Context manager: the base URL of a server with these judges, on a free port."""
    server = _Server(judges)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
