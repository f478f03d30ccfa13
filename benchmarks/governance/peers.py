"""Virtual environments of the peers, one each under ``out/peers``, created on first use."""

import os
import subprocess
import sys
import venv
from typing import NamedTuple

from experiments.provenance import ROOT

FOLDER = ROOT / "out" / "peers"
PATIENCE = 1800.0  # timeout of an installation in seconds


class Peer(NamedTuple):
    """The requirements of a peer, and the module that runs it."""

    package: str
    module: str


PEERS = {
    "nemo": Peer("nemoguardrails==0.24.1", "benchmarks.governance.nemo"),
    "guardrails-ai": Peer("guardrails-ai==0.11.0", "benchmarks.governance.guardrails_ai"),
}
# Common dependencies have the version of constraints.txt for all contenders.
SHARED = ("langchain-core", "langchain-openai", "pydantic", "torch")


class MissingError(Exception):
    """A peer cannot be installed or run; the message contains the reason."""


def constraints() -> str:
    """The lines of constraints.txt that apply to the peers."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return "".join(f"{line}\n" for line in lines if line.partition("==")[0] in SHARED)


def python_of(name: str) -> str:
    """The interpreter of this peer's environment, which is created if needed.

    Raises:
        MissingError: it cannot be installed.
    """
    folder = FOLDER / name
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    stamp = folder / "installed.txt"
    wanted = f"{PEERS[name].package}\n{constraints()}"
    if stamp.is_file() and stamp.read_text() == wanted:
        return str(python)
    venv.create(folder, with_pip=True, clear=True, symlinks=True)
    limits = folder / "constraints.txt"
    limits.write_text(constraints())
    command = [str(python), "-m", "pip", "install", "--quiet", "-c", str(limits), PEERS[name].package]
    try:
        subprocess.run([*command, "langchain-openai"], capture_output=True, text=True, check=True, timeout=PATIENCE)
    except (OSError, subprocess.SubprocessError) as error:
        said = str(getattr(error, "stderr", None) or error).strip().splitlines()
        raise MissingError(f"not installed: {said[-1] if said else type(error).__name__}") from None
    stamp.write_text(wanted)
    return str(python)


def versions(peer: str, *others: str) -> dict[str, str]:
    """The versions of a peer and of other packages in its environment."""
    names = (PEERS[peer].package.partition("==")[0], *others)
    code = "import sys, importlib.metadata as m; print(*(m.version(n) for n in sys.argv[1:]))"
    done = subprocess.run([python_of(peer), "-c", code, *names], capture_output=True, text=True, check=True)
    return dict(zip(names, done.stdout.split(), strict=True))


def environment() -> dict[str, str]:
    """Environment variables of every contender: no API keys, no proxy for loopback, no telemetry."""
    away = ("OPENAI_API_KEY", "LANGSMITH_TRACING", "LANGCHAIN_TRACING_V2")
    own = {k: v for k, v in os.environ.items() if k not in away and not k.lower().endswith("_proxy")}
    return own | {"DO_NOT_TRACK": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
