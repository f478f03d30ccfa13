"""A run that is killed goes on in another process, and its answer is audited exactly once."""

import os
import pickle
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from langchain.agents.middleware import AgentMiddleware
from langgraph.checkpoint.memory import InMemorySaver

from safi_agent import SafiMiddleware
from tests import forked
from tests.safi_agent.agents.calling import THREAD, Calling, Tools, paying, records, texts
from tests.safi_agent.fakes import THREE, Fake


class FileSaver(InMemorySaver):
    """Keeps its checkpoints in a file, so that another process can go on."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.lock = path, threading.Lock()
        if path.exists():
            storage, writes, blobs = pickle.loads(path.read_bytes())
            self.writes.update(writes)
            self.blobs.update(blobs)
            for thread, spaces in storage.items():
                self.storage[thread].update(spaces)

    def _save(self) -> None:
        storage = {thread: dict(spaces) for thread, spaces in self.storage.items()}
        whole = self.path.with_suffix(".part")
        whole.write_bytes(pickle.dumps((storage, dict(self.writes), dict(self.blobs))))
        whole.replace(self.path)  # the process may be killed meanwhile

    def put(self, *args: Any, **kwargs: Any) -> Any:
        with self.lock:
            config = super().put(*args, **kwargs)
            self._save()
        return config

    def put_writes(self, *args: Any, **kwargs: Any) -> None:
        with self.lock:
            super().put_writes(*args, **kwargs)
            self._save()


class Dies(AgentMiddleware):
    """Is killed after the answer was released and before the step is saved."""

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        response = handler(request)
        if not response.result[0].tool_calls:
            os.kill(os.getpid(), signal.SIGKILL)
        return response


def run_in(folder: Path, dying: bool) -> tuple[Any, SafiMiddleware, Calling]:
    judge = Fake(audit_delay=5.0 if dying else 0.0)
    store, log = f"sqlite:///{folder}/safi.db", folder / "log.json"
    middleware = SafiMiddleware(THREE, model=judge, store=store, log=log)
    others = [Dies()] if dying else []
    agent, model = paying(middleware, Tools(), *others, saver=FileSaver(folder / "checkpoints"))
    return agent, middleware, model


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs signals of POSIX")
def test_killed_after_its_answer_was_released_the_run_goes_on_in_another_process(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.safi_agent.test_middleware_killed import *;"
        "run_in(Path(sys.argv[1]), True)[0].invoke({'messages': ['q']}, THREAD, durability='sync')"
    )
    died = forked.run(code, tmp_path)
    assert died.returncode == -signal.SIGKILL, died.stderr
    agent, middleware, model = run_in(tmp_path, False)
    with middleware:
        out = agent.invoke(None, THREAD)
        assert texts(out)[-1] == "Done."
        assert model.asked("intellect") == [], "what was released is given, and nobody is asked again"
        assert out["messages"][-1].response_metadata["safi"]["turn"] == 1
        middleware.drain()
    assert [record["auditStatus"] for record in records(tmp_path)] == ["complete"]
