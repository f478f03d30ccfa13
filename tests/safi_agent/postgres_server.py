"""A PostgreSQL server of the tests' own, in a folder that goes with it."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

ACCOUNT = "postgres"  # PostgreSQL does not run as root


def binaries() -> Path:
    """The folder of ``initdb``; without one the test is skipped, or fails where services are required."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    folders = [folder for folder in folders if (folder / "initdb").exists() and (folder / "postgres").exists()]
    if not folders:
        missing("PostgreSQL is not installed (no initdb).")
    return folders[-1]


def missing(why: str) -> None:
    if os.environ.get("REQUIRE_SERVICES") == "1":
        pytest.fail(why)
    pytest.skip(why)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """Runs from ``start`` to ``stop`` or ``crash``."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin, self.port = folder, binaries(), free_port()
        self.account: str | None = None
        if os.geteuid() == 0:
            try:
                user = pwd.getpwnam(ACCOUNT)
            except KeyError:
                missing(f"The tests run as root and there is no account {ACCOUNT!r} for the server.")
            self.account = ACCOUNT
            os.chown(folder, user.pw_uid, user.pw_gid)
        self._run("initdb", "-D", str(folder / "data"), "-U", "safi", "-A", "trust", "--no-sync", "-E", "UTF8")

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self.bin / program), *arguments]
        done = subprocess.run(command, user=self.account, cwd=self.folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": 200,
            "shared_buffers": "32MB",
            "fsync": "off",  # processes are killed here, never the machine: what was written is still in its cache
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        command = [str(self.bin / "postgres"), "-D", str(self.folder / "data"), *options]
        self.log = (self.folder / "server.log").open("ab")
        self.process = subprocess.Popen(command, user=self.account, cwd=self.folder, stdout=self.log, stderr=self.log)
        deadline = time.monotonic() + 60
        while True:
            try:
                self.ask("SELECT 1")
                return
            except Exception:
                assert self.process.poll() is None, (self.folder / "server.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)

    def stop(self) -> None:
        """It ends all connections and leaves."""
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.crash()
        self.log.close()

    def crash(self) -> None:
        """``kill -9`` of the server and of all it has started."""
        one = psutil.Process(self.process.pid)
        everyone = [one, *one.children(recursive=True)]
        for process in everyone:
            process.kill()
        self.process.wait(60)
        psutil.wait_procs(everyone[1:], 60)  # a server that starts among the old one's processes refuses to
        self.log.close()

    def ask(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        import psycopg

        with psycopg.connect(host="127.0.0.1", port=self.port, user="safi", dbname=database, autocommit=True) as c:
            cursor = c.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://safi@127.0.0.1:{self.port}/{database}"


@contextmanager
def server() -> Iterator[Server]:
    if any(find_spec(name) is None for name in ("psycopg", "procrastinate")):
        missing("The extra 'postgres' is not installed.")
    with tempfile.TemporaryDirectory(prefix="safi-postgres-", ignore_cleanup_errors=True) as folder:
        one = Server(Path(folder))
        one.start()
        try:
            yield one
        finally:
            one.stop()
