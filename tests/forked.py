"""Processes that start at once: each is forked from one that has imported what tests need, and done nothing else.

They end without the handlers of ``atexit``; a test of how a program ends starts an interpreter of its own.
"""

import os
import sys
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory
from typing import Any

CONTEXT = get_context("forkserver")
# One list for all tests: pytest's process has one such server.
CONTEXT.set_forkserver_preload(
    [
        "__main__",
        "pytest",
        "safi_agent.middleware",
        "tests.everywhere.workers",
        "tests.safi_agent.agents.calling",
        "tests.safi_agent.audit.worker",
        "tests.safi_agent.log.writer",
    ]
)


def start(work: Callable[..., Any], *args: Any) -> BaseProcess:
    """A process that calls ``work``, a function of a module."""
    process = CONTEXT.Process(target=work, args=args)
    process.start()
    return process


def run(
    code: str, *argv: object, cwd: Path | None = None, env: dict[str, str] | None = None, timeout: float = 120
) -> "CompletedProcess[str]":
    """What ``python -c code argv`` does in this folder and environment."""
    with TemporaryDirectory() as folder:
        given = (code, list(map(str, argv)), cwd or Path.cwd(), env or dict(os.environ), Path(folder))
        process = start(_execute, *given)
        process.join(timeout)
        process.kill()
        process.join()
        assert process.exitcode is not None
        out, err = (Path(folder, name).read_text() for name in ("out", "err"))
    return CompletedProcess(["python", "-c", code], process.exitcode, out, err)


def _execute(code: str, argv: list[str], cwd: Path, env: dict[str, str], folder: Path) -> None:
    for stream, name in ((1, "out"), (2, "err")):
        file = os.open(folder / name, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, stream)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["-c", *argv]
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
