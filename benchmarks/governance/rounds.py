"""Laps of contenders in separate processes, in alternation, so that load of the machine affects all of them."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.governance.peers import PEERS, MissingError, environment, python_of
from experiments.provenance import ROOT

OURS = ("bare", "twice", "chain", "agent", "middleware")
Lap = dict[str, Any]


class Level(NamedTuple):
    """Number of concurrent turns, and number of turns in a lap."""

    at_once: int
    turns: int


class Runner:
    """A process that runs one or several contenders."""

    def __init__(self, python: str, module: str, url: str, folder: Path) -> None:
        command = [python, "-m", "benchmarks.governance.runner", module, url, str(folder)]
        self.noise = folder / f"{module}.txt"
        with self.noise.open("w") as noise:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment(),
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=noise,
            )
        try:
            self.contenders: list[str] = self._told()["contenders"]
        except MissingError:
            self.close()
            raise

    def lap(self, who: str, level: Level) -> Lap:
        """Run a lap in the process.

        Raises:
            MissingError: the process failed.
        """
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"who": who, **level._asdict()}) + "\n")
        self.process.stdin.flush()
        return self._told()

    def _told(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            said = self.noise.read_text().strip().splitlines()
            raise MissingError(f"does not run: {said[-1] if said else 'its process ended'}")
        told: dict[str, Any] = json.loads(line)
        if "error" in told:
            raise MissingError(f"does not run: {told['error']}")
        return told

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


@contextmanager
def model(answer_ms: float, audit_ms: float) -> Iterator[str]:
    """Start a model of this latency; yields its URL."""
    command = [sys.executable, "-m", "benchmarks.governance.server", str(answer_ms), str(audit_ms)]
    with subprocess.Popen(command, cwd=ROOT, env=environment(), text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()


def calls(url: str) -> dict[str, dict[str, int]]:
    """Numbers of calls of the model so far, by contender and role."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{url}/counts") as told:
        return json.load(told)  # type: ignore[no-any-return]


def enter(stack: ExitStack, url: str, folder: Path, peers: Sequence[str]) -> tuple[dict[str, Runner], dict[str, str]]:
    """The contenders that run, and those that do not, with the reason."""
    wanted: dict[str, Any] = {name: PEERS[name] for name in peers}
    missing: dict[str, str] = {}
    running: dict[str, Runner] = {}
    for name, peer in [("ours", None), *wanted.items()]:
        python, module = sys.executable, "benchmarks.governance.ours"
        try:
            if peer is not None:
                python, module = python_of(name), peer.module
            runner = Runner(python, module, url, folder)
        except MissingError as error:
            if peer is None:
                raise
            missing[name] = str(error)
            continue
        stack.callback(runner.close)
        running |= dict.fromkeys(runner.contenders, runner)
    return running, missing


def interleave(running: Mapping[str, Runner], levels: Sequence[Level], rounds: int) -> Iterator[tuple[str, Level, Lap]]:
    """Each contender's laps at each level, without the first round, a warm-up."""
    for level in levels:
        for counted in range(rounds + 1):
            for who, runner in running.items():
                lap = runner.lap(who, level if counted else Level(level.at_once, level.at_once))
                yield who, level, lap | {"counted": bool(counted)}
