"""A PostgreSQL server of this benchmark's own, with the server's default settings, in a folder that goes with it."""

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import psutil
import psycopg

ACCOUNT = "postgres"  # PostgreSQL does not run as root
DEBIAN = Path("/usr/lib/postgresql")  # where Debian installs the server's programs, which are not on the PATH


def programs() -> Path:
    """The folder of the server's programs.

    Raises:
        SystemExit: PostgreSQL is not installed.
    """
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(DEBIAN.glob("*/bin"))
    if not folders:
        raise SystemExit("PostgreSQL is not installed: initdb was not found.")
    return folders[-1]


def free_port() -> int:
    """A port on loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server(NamedTuple):
    """A server: its port on loopback and its process."""

    port: int
    process: psutil.Process

    def connect(self, database: str = "postgres") -> psycopg.Connection[Any]:
        """Connect to a database."""
        return psycopg.connect(f"postgresql://safi@127.0.0.1:{self.port}/{database}", autocommit=True)

    def create(self, database: str) -> str:
        """Create a database; returns its URL as a store."""
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {database}".encode())
        return f"postgresql+psycopg://safi@127.0.0.1:{self.port}/{database}"


@contextmanager
def server() -> Iterator[Server]:
    """Start a server on loopback.

    Raises:
        SystemExit: PostgreSQL is not installed.
    """
    account = ACCOUNT if os.geteuid() == 0 else None
    with TemporaryDirectory(prefix="safi-benchmark-", ignore_cleanup_errors=True) as folder:
        if account:
            os.chown(folder, pwd.getpwnam(account).pw_uid, -1)

        def run(program: str, *arguments: str) -> None:
            command = [str(programs() / program), "-D", f"{folder}/data", *arguments]
            subprocess.run(command, user=account, cwd=folder, check=True, stdout=subprocess.DEVNULL)

        run("initdb", "-U", "safi", "-A", "trust", "-E", "UTF8")
        port = free_port()
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories="
        run("pg_ctl", "-w", "-l", f"{folder}/server.log", "-o", options, "start")
        try:
            pid = int(Path(folder, "data", "postmaster.pid").read_text().split()[0])
            yield Server(port, psutil.Process(pid))
        finally:
            run("pg_ctl", "-w", "-m", "fast", "stop")
