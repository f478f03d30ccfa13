"""Beats go on whatever one of them raises or waits for, and a heartbeat that has ended is missed."""

import threading
import time
from collections.abc import Iterator

import pytest

from safi_agent.audit.heartbeat import Heartbeat


class Beating:
    """Counts its beats; may raise, or wait."""

    def __init__(self, raised: type[BaseException] | None = None, go: threading.Event | None = None) -> None:
        self.raised, self.go, self.beats = raised, go, 0

    def beat(self) -> None:
        self.beats += 1
        if self.go is not None:
            self.go.wait(60)
        if self.raised is not None:
            raise self.raised

    def shutdown(self, timeout: float) -> None:
        """Nothing to wait for."""


@pytest.fixture
def heart() -> Iterator[Heartbeat]:
    """A heartbeat that comes quickly, until the test ends."""
    yield (made := Heartbeat(0.01))
    made.every = 3600


def wait_for(*beating: Beating, beats: int = 3) -> None:
    deadline = time.monotonic() + 60
    while any(one.beats < beats for one in beating):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_heartbeat_task_that_raises_or_blocks_does_not_delay_others(heart: Heartbeat) -> None:
    go = threading.Event()
    waits, raises, interrupts, sound = Beating(go=go), Beating(SystemExit), Beating(KeyboardInterrupt), Beating()
    for one in (waits, raises, interrupts, sound):
        heart.monitor(one)
    wait_for(raises, interrupts, sound)
    assert waits.beats == 1
    go.set()
    wait_for(waits)


def test_the_heartbeat_thread_is_restarted_if_it_ended_or_could_not_be_started(
    heart: Heartbeat, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    one = Beating()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        heart.monitor(one)
    assert "could not be started" in caplog.text
    with monkeypatch.context() as patch:
        patch.setattr(Heartbeat, "_run", lambda self: None)
        heart.ensure()
    assert heart._thread is not None
    heart._thread.join(60)
    heart.ensure()
    wait_for(one)
    assert "'safi-heartbeat' has ended" in caplog.text
