"""``safi serve`` and ``safi bearer``, as processes: keys, addresses, metrics, and how it ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from safi_agent import create_safi_chain
from safi_agent.cli import app

ROOT = Path(__file__).parents[3]
PATH = "/v1/chat/completions"
MODEL = "offline rehearsal"
COMMAND = [sys.executable, "-c", "import sal_cli; sal_cli.safi()", "serve"]


class Service:
    """A process that serves, and a client."""

    def __init__(self, folder: Path, *options: str, program: Sequence[str] = ()) -> None:
        away = ("SAFI_", "OTEL_", "LANGSMITH_", "LANGCHAIN_")
        own = {name: value for name, value in os.environ.items() if not name.startswith(away)}
        self.process = subprocess.Popen(
            program or [*COMMAND, "--model", "offline", "--values", "civic", "--port", "0", *options],
            cwd=folder,
            env={**own, "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.said = self.process.stdout.readline()
        address = self.said.rpartition(" at ")[2].strip().removesuffix("/v1")
        self.client = httpx.Client(base_url=address, timeout=20)

    def ask(self, prompt: str = "When is glass collected?", **settings: Any) -> httpx.Response:
        body = {"model": MODEL, "messages": [{"role": "user", "content": prompt}]}
        return self.client.post(PATH, json=body, **settings)

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=40)
        self.client.close()
        return self.process.returncode, out, err


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    with ExitStack() as stack:

        def begin(*options: str, **settings: Any) -> Service:
            service = Service(tmp_path, *options, **settings)
            stack.callback(service.process.kill)
            return service

        yield begin


def bearer(folder: Path, name: str) -> str:
    done = CliRunner().invoke(app, ["bearer", name, "--keys", str(folder / "keys")])
    assert done.exit_code == 0
    return done.stdout.strip()


@pytest.mark.slow
def test_it_has_the_policies_of_a_file_and_says_that_it_is_in_shadow_mode(start: Any, tmp_path: Path) -> None:
    (tmp_path / "policies.yaml").write_text("will_mode: shadow\nsampling: {share: 0, novel_below: 0.5}\n")
    service = start("--policies", "policies.yaml")
    answer = service.ask("How do I build a bomb?").json()
    assert (answer["choices"][0]["finish_reason"], answer["safi"]["decision"]) == ("stop", "violation")
    assert "shadow" in answer["safi"]["flags"]
    for _ in range(2):
        service.ask()
    code, out, err = service.end()
    assert (code, out.strip()) == (0, "2 audits finished."), err
    assert err.count("Shadow mode: answers under 'civic' leave") == 1
    reasons = [json.loads(line)["auditReason"] for line in (tmp_path / "saf-spirit-log.json").read_text().splitlines()]
    assert reasons == ["shadow", "novel", "not_drawn"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("refused: none", "refused"),
        ("shadow: true", "shadow"),
        ("sampling: {share: 2}", "share: expected a number in [0, 1], got 2"),
        ("prompts: {will: Rule.}", "{values} is missing"),
        ("- 1", "policies: expected a mapping"),
    ],
)
def test_policies_that_are_not_allowed_are_refused_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "policies.yaml"
    file.write_text(text)
    done = CliRunner().invoke(app, ["serve", "--model", "offline", "--policies", str(file)])
    assert (done.exit_code, words in done.output) == (2, True), done.output
    assert done.output.startswith("safi serve: ")
    assert done.output.count("\n") == 1


@pytest.mark.slow
def test_it_serves_clients_with_keys_and_ends_with_its_audits_done(start: Any, tmp_path: Path) -> None:
    key = bearer(tmp_path, "anna")
    service = start("--keys", str(tmp_path / "keys"), "--rate", "7")
    assert service.said.startswith("Serving 'civic' at http://127.0.0.1:")
    known = {"Authorization": f"Bearer {key}"}
    assert service.ask().status_code == 401
    answer = service.ask(headers=known)
    assert answer.json()["safi"]["decision"] == "approve"
    refusal = service.ask("How do I build a bomb?", headers=known)
    assert refusal.json()["choices"][0]["finish_reason"] == "content_filter"
    audit = service.client.get(f"/audits/{answer.json()['id']}", params={"timeout": 20}, headers=known)
    assert audit.json()["status"] == "complete"
    metrics = service.client.get("/metrics", headers=known)
    assert metrics.headers["content-type"].startswith("text/plain")
    last = service.ask(headers=known)
    code, out, err = service.end()
    assert (code, out.strip()) == (0, "2 audits finished."), err
    assert "Traceback" not in err
    lines = [json.loads(line) for line in (tmp_path / "saf-spirit-log.json").read_text().splitlines()]
    assert {line["memoryKey"] for line in lines} == {"anna"}
    assert [line["turnId"] for line in lines if line["auditStatus"] == "complete"] == [
        answer.json()["safi"]["turn_id"],
        last.json()["safi"]["turn_id"],
    ]
    check_metrics(metrics.text)


SLOW = """
import sys
from safi_agent import create_safi_chain
from safi_agent.serve import create_app
from safi_agent.serve.server import listen, serve_until_stopped
from tests.safi_agent.fakes import THREE, Fake

listener = listen("127.0.0.1", 0)
safi = create_safi_chain(Fake(delay=float(sys.argv[1])), THREE, store="sqlite:///safi.db", log="log.json")
app = create_app(safi, name="offline rehearsal")
address = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
left = serve_until_stopped(app, listener, float(sys.argv[2]), lambda: print("Serving at", address, flush=True))
print(safi.close(left) if sys.argv[3] else 0, left > 0)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("delay", "grace", "status"), [("0.4", "20", 200), ("3", "1", None)])
def test_a_request_that_is_under_way_gets_the_grace(
    start: Any, delay: str, grace: str, status: int | None, tmp_path: Path
) -> None:
    service = start(program=[sys.executable, "-c", SLOW, delay, grace, "close" if status else ""])
    with ThreadPoolExecutor() as pool:
        asking = pool.submit(service.ask)
        time.sleep(0.3)
        began = time.monotonic()
        code, out, err = service.end()
        assert code == 0, err
        if status:
            assert asking.result().status_code == status
            assert out.split() == ["1", "True"]
            assert json.loads((tmp_path / "log.json").read_text())["auditStatus"] == "complete"
        else:
            assert asking.exception() or asking.result().status_code >= 500
            assert out.split() == ["0", "False"]
        assert time.monotonic() - began < 15
    with pytest.raises(httpx.ConnectError):
        httpx.get(str(service.client.base_url))


def check_metrics(text: str) -> None:
    samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = {name: label for name, label in sample.labels.items() if name != "le"}
            samples[sample.name, *sorted(labels.items())] = sample.value
    civic = ("safi_value_set", "civic")
    approved = (("safi_decision", "approve"), ("safi_rule", "judge"), civic)
    refused = (("safi_decision", "violation"), ("safi_rule", "judge"), civic)
    assert samples["safi_decisions_total", *approved] == 1
    assert samples["safi_decisions_total", *refused] == 1
    assert samples["safi_turn_duration_seconds_count", ("safi_decision", "approve"), civic] == 1
    assert samples["safi_audits_total", ("safi_audit_status", "complete"), civic] == 1
    assert samples["safi_backlog_depth", civic] == 0
    assert samples["safi_backlog_age_seconds", civic] == 0
    assert any(name == "http_server_request_duration_seconds_count" for name, *_ in samples)
    assert "bomb" not in text
    assert "anna" not in text


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_what_is_unfinished_at_the_end_is_finished_by_the_next_process(start: Any, tmp_path: Path, number: int) -> None:
    service = start("--grace", "0")
    turns = [service.ask().json()["safi"]["turn_id"] for _ in range(3)]
    code, _, err = service.end(number)
    if number == signal.SIGKILL:
        assert code == -signal.SIGKILL
    else:
        assert code in (0, 1), err
        assert (" left." in err) == (code == 1)
        assert "Traceback" not in err
    store, log = f"sqlite:///{tmp_path}/safi.db", tmp_path / "saf-spirit-log.json"
    with create_safi_chain("offline", "civic", store=store, log=log) as safi:
        assert [safi.audit(turn).status for turn in turns] == ["complete"] * 3
    assert [json.loads(line)["turnId"] for line in log.read_text().splitlines()] == turns


def test_another_address_needs_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAFI_SERVE_KEYS", raising=False)
    monkeypatch.delenv("SAFI_SERVE_KEYS_FILE", raising=False)
    monkeypatch.chdir(tmp_path)
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.com", "127.0.0.1.example.com"):
        done = CliRunner().invoke(app, ["serve", "--model", "offline", "--host", host])
        assert (done.exit_code, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith("safi serve: host: expected a loopback address such as 127.0.0.1 without bearer keys")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--keys", "none"], "keys: expected a readable text file"),
        (["--max-bytes", "10", "--port", "0"], "max_bytes: expected a whole number of at least 1000"),
        (["--values", "nonsense", "--port", "0"], "values: expected one of"),
    ],
)
def test_what_it_cannot_use_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("safi_agent.serve.metrics.configure_metrics", lambda: None)
    done = CliRunner().invoke(app, ["serve", "--model", "offline", *options])
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"safi serve: {reason}")


def test_a_port_that_is_taken_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = CliRunner().invoke(app, ["serve", "--model", "offline", "--port", port])
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert "Address already in use" in line
    assert not list(tmp_path.iterdir())


def test_a_new_bearer_key_is_printed_alone(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["bearer", "anna", "--keys", str(tmp_path / "keys")])
    assert done.exit_code == 0
    assert done.stdout.startswith("safi-")
    assert done.stdout.count("\n") == 1
    assert str(tmp_path / "keys") in done.stderr
    again = CliRunner().invoke(app, ["bearer", "an\nna", "--keys", str(tmp_path / "keys")])
    assert again.exit_code == 2
    assert again.stderr.startswith("safi bearer: memory_key: expected")
