"""Process ids that are unique over machines and restarts, and whether a process is still alive."""

import os
import socket
from functools import cache
from uuid import uuid4


@cache
def _name(pid: int) -> str:
    return f"{socket.gethostname()}:{pid}:{uuid4().hex[:12]}"


def this_process() -> str:
    """The id of this process: unique even after a fork, and when a PID is reused."""
    return _name(os.getpid())


def is_dead(owner: str) -> bool:
    """Whether the owner is certainly dead; a process on another machine counts as alive."""
    host, pid, _ = owner.rsplit(":", 2)
    if host != socket.gethostname():
        return False
    if int(pid) == os.getpid():
        return owner != this_process()
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
