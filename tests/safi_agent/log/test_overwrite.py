"""Lines that are overwritten in place: a process that stops at any moment leaves none that is damaged."""

import json
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from safi_agent.erasure import erase
from safi_agent.log import erasure as erasure_of_log
from safi_agent.log import flush, overwrite
from safi_agent.log.hash_chain import erase_line
from safi_agent.log.key import find_key
from safi_agent.log.overwrite import Change, finish_overwriting, pending_file
from safi_agent.log.reconciliation import check
from safi_agent.log.rotation import log_files
from safi_agent.log.verify import verify
from safi_agent.store import Commit, Store, open_store
from safi_agent.store import erasure as erasure_of_store
from safi_agent.store.erasure import erase_turns, find_turns
from safi_agent.store.log_account import read_log_account
from tests import forked
from tests.safi_agent.log.chains import chain, write

LINES = chain(9, text="A draft that is long enough to be overwritten in part.")
ERASED = [erase_line(line) for line in LINES]


class Stopped(BaseException):
    """The process ends here."""


def change(path: Path, at: int) -> Change:
    return Change(path.name, sum(map(len, LINES[:at])), ERASED[at])


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return write(tmp_path / "log.json", LINES)


def test_lines_are_changed_in_all_files_of_a_log(tmp_path: Path) -> None:
    log = write(tmp_path / "log.json", LINES[:3], LINES[3:])
    full = log.with_name("log.json.1")
    first = Change("log.json", 0, ERASED[3])
    overwrite.overwrite(log, [change(full, 1), first, change(full, 2)])
    assert full.read_bytes() == b"".join([LINES[0], *ERASED[1:3]])
    assert log.read_bytes() == b"".join([ERASED[3], *LINES[4:]])
    assert sorted(os.listdir(tmp_path)) == ["log.json", "log.json.1"]


@pytest.mark.parametrize("function", ["fsync", "replace", "unlink", "write"])
def test_a_process_that_stops_before_any_step_leaves_lines_that_can_be_read(
    function: str, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0
    while True:
        log.write_bytes(b"".join(LINES))
        pending_file(log).unlink(missing_ok=True)
        with monkeypatch.context() as patched:
            left = steps

            def stop(*arguments: object, of: object = None) -> object:
                nonlocal left
                left -= 1
                if left < 0:
                    raise Stopped
                return of(*arguments)  # type: ignore[operator]

            if function == "write":
                patched.setattr(overwrite, "_is_place_of", lambda *a, of=overwrite._is_place_of: stop(*a, of=of))
            elif function == "unlink":
                patched.setattr(Path, "unlink", lambda *a, of=Path.unlink: stop(*a, of=of))
            else:
                of = getattr(os, function)
                patched.setattr(os, function, lambda *a, of=of: stop(*a, of=of))
            try:
                overwrite.overwrite(log, [change(log, 2), change(log, 5)])
                break
            except Stopped:
                pass
        finish_overwriting(log)
        changed = [ERASED[n] if n in (2, 5) else line for n, line in enumerate(LINES)]
        assert log.read_bytes() in (b"".join(LINES), b"".join(changed))
        assert not pending_file(log).exists()
        steps += 1
    assert steps > 0


def test_a_line_that_was_written_in_part_is_completed(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = change(log, 4)
    with monkeypatch.context() as patched:
        patched.setattr(overwrite, "finish_overwriting", lambda _: None)
        overwrite.overwrite(log, [one])
    before = log.read_bytes()
    for half in range(0, len(one.text), 7):
        content = before[: one.start] + one.text[:half] + before[one.start + half :]
        log.write_bytes(content)
        pending = pending_file(log).read_bytes()
        finish_overwriting(log)
        assert log.read_bytes() == b"".join([*LINES[:4], ERASED[4], *LINES[5:]])
        pending_file(log).write_bytes(pending)


def _stop_within(change: Change, monkeypatch: pytest.MonkeyPatch, log: Path) -> None:
    """A process that is killed in the middle of the write of a line."""

    def half(change: Change, opened: Any) -> bool:
        opened.seek(change.start)
        opened.write(change.text[: change.text.index(b', "erased"')])
        raise Stopped

    with monkeypatch.context() as patched:
        patched.setattr(overwrite, "_is_place_of", half)
        with pytest.raises(Stopped):
            overwrite.overwrite(log, [change])
    assert pending_file(log).exists()


def test_changes_of_a_process_that_was_killed_are_completed_before_others_are_made(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _stop_within(change(log, 4), monkeypatch, log)
    overwrite.overwrite(log, [change(log, 6)])
    assert log.read_bytes() == b"".join([*LINES[:4], ERASED[4], LINES[5], ERASED[6], *LINES[7:]])
    assert not pending_file(log).exists()


def test_a_line_that_was_read_when_it_was_written_in_part_is_not_taken_for_a_line(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = change(log, 4)
    _stop_within(one, monkeypatch, log)
    read = log.read_bytes()[one.start : one.start + len(one.text)]
    assert erase_line(read) not in (read, one.text)
    overwrite.overwrite(log, [one._replace(text=erase_line(read))])
    assert log.read_bytes() == b"".join([*LINES[:4], ERASED[4], *LINES[5:]])


def test_a_line_that_is_another_by_now_is_an_error(log: Path) -> None:
    """Before anything is changed: in the first case another line is there, in the second a text in it is another."""
    content = log.read_bytes()
    edited = LINES[4].replace(b"draft", b"craft", 1)
    assert edited != LINES[4]
    for wrong in (LINES[5], edited):
        with pytest.raises(OSError, match=r"a line of .*log\.json was changed after it was read"):
            overwrite.overwrite(log, [change(log, 2), change(log, 4)._replace(text=erase_line(wrong))])
        assert log.read_bytes() == content
        assert not pending_file(log).exists()


def test_a_write_that_is_too_short_is_an_error_and_is_repeated(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a disk that is full, for a file system that does not write in place."""

    class Short:
        def __init__(self, opened: Any) -> None:
            self._opened = opened

        def __getattr__(self, name: str) -> Any:
            return getattr(self._opened, name)

        def write(self, text: bytes) -> int:
            return int(self._opened.write(text[:60]))

    with monkeypatch.context() as patched:
        of = overwrite._write
        patched.setattr(overwrite, "_write", lambda change, opened: of(change, Short(opened)))
        with pytest.raises(OSError, match=r"no space left for a complete line in .*log\.json"):
            overwrite.overwrite(log, [change(log, 4)])
    assert pending_file(log).exists()
    finish_overwriting(log)
    assert log.read_bytes() == b"".join([*LINES[:4], ERASED[4], *LINES[5:]])
    assert not pending_file(log).exists()


def test_a_place_that_has_another_line_by_now_is_left_alone(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(overwrite, "finish_overwriting", lambda _: None)
        patched.setattr(overwrite, "_unfinished", lambda _, changes: changes)
        overwrite.overwrite(log, [change(log, 4), Change("log.json.7", 0, ERASED[0])])
    restored = b"".join(LINES[1:])
    log.write_bytes(restored)
    finish_overwriting(log)
    assert log.read_bytes() == restored
    assert not pending_file(log).exists()


def body(turn: str) -> dict[str, object]:
    return {"id": turn, "key": "k", "valueSet": "s", "prompt": f"word {turn} word", "salt": "0" * 66}


def add(store: Store, log: str, *turns: str) -> None:
    for turn in turns:
        store.add_turn(body(turn), "v", log, audit=False)
    of = store.commit_ready(
        ["k"],
        lambda row, _: Commit({"turnId": row.id, "userPrompt": row.body["prompt"], "salt": row.body["salt"]}, None),
    )
    assert len(of) == len(turns)
    flush(store, log, 1000)


def test_the_next_line_is_written_after_a_change_that_was_begun_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, log = open_store(f"sqlite:///{tmp_path}/safi.db"), str(tmp_path / "log.json")
    add(store, log, "a", "b")
    erase_turns(store, ["b"], "2026-03-01T08:00:00Z")
    flush(store, log)
    monkeypatch.setattr(os, "fsync", lambda _, of=os.fsync, calls=[]: calls.append(1) or _stop_at(len(calls)) or of(_))
    with pytest.raises(Stopped):
        erase(store, turn_ids=["b"])
    monkeypatch.undo()
    assert pending_file(log).exists()
    add(store, log, "c")
    assert not pending_file(log).exists()
    assert b"word b word" not in b"".join(file.read_bytes() for file in log_files(log))
    assert not erase(store, turn_ids=["b"]).unfinished


def _stop_at(calls: int) -> None:
    if calls == 3:  # of the draft, of the folder, of the log
        raise Stopped


@pytest.mark.parametrize("begun", [False, True])
def test_a_full_file_that_cannot_be_written_stops_no_new_lines(
    begun: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether it cannot be written when the erasure begins, or only after it was begun."""
    store, log = open_store(f"sqlite:///{tmp_path}/safi.db"), str(tmp_path / "log.json")
    add(store, log, "a", "b", "c", "d", "e", "f")
    add(store, log, "g")
    full, other = log_files(log)
    assert b"word b word" in full.read_bytes()
    if begun:
        erase_turns(store, ["b"], "2026-03-01T08:00:00Z")
        flush(store, log)
        line = full.read_bytes().splitlines(True)[1]
        one = Change(full.name, full.read_bytes().index(line), erase_line(line))
        _stop_within(one, monkeypatch, Path(log))
    of = Path.open

    def opened(path: Path, mode: str = "r", *more: Any, **settings: Any) -> Any:
        if path == full and "+" in mode:
            raise PermissionError(13, "Permission denied", str(path))
        return of(path, mode, *more, **settings)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", opened)
        (sentence,) = erase(store, turn_ids=["b"]).unfinished
        assert f"Permission denied: '{full}'" in sentence
        assert pending_file(log).exists() == begun
        add(store, log, "h")
        add(store, log, "i")
    assert b"word i word" in other.read_bytes()
    reported = [record for record in caplog.records if "could not be erased" in record.getMessage()]
    assert len(reported) == begun
    assert not erase(store, turn_ids=["b"]).unfinished
    assert b"word b word" not in full.read_bytes()
    key = find_key(log)
    assert key
    assert check(log, key, store, read_log_account(store, log)).verdict.faults == ()


def work(folder: str, say: object) -> None:
    erasure_of_store.AT_ONCE = erasure_of_log.AT_ONCE = 8  # more steps between which it may be killed
    store = open_store(f"sqlite:///{folder}/safi.db")
    say(0)  # type: ignore[operator]
    erase(store, key="k")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_process_that_is_killed_while_it_erases_leaves_a_log_that_is_verified(seed: int, tmp_path: Path) -> None:
    rng, url, log = random.Random(seed), f"sqlite:///{tmp_path}/safi.db", str(tmp_path / "log.json")
    store = open_store(url)
    store.save_values("v", "{}")
    add(store, log, *(f"t{n}" for n in range(64)))
    for n in range(8):
        add(store, log, *(f"t{n}-{i}" for i in range(64)))
    key = find_key(log)
    assert key
    for _ in range(8):
        said, say = forked.CONTEXT.Pipe(duplex=False)
        process = forked.start(work, str(tmp_path), say.send)
        assert said.poll(60)
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.join()
        flush(store, log)
        if pending_file(log).exists():  # nothing was to be written, so nobody has completed it yet
            finish_overwriting(log)
        checked = check(log, key, store, read_log_account(store, log))
        assert checked.verdict.faults == ()
    assert not erase(store, key="k").unfinished
    assert find_turns(store, None, "k", None)[0] == []
    assert b"word" not in b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert verify(log, key).erased == 64 * 9


def test_a_file_that_is_moved_away_meanwhile_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, log = open_store(f"sqlite:///{tmp_path}/safi.db"), str(tmp_path / "log.json")
    add(store, log, "a")
    erase_turns(store, ["a"], "2026-03-01T08:00:00Z")
    monkeypatch.setattr("safi_agent.log.erasure.log_files", lambda _: [])
    (sentence,) = erase(store, turn_ids=["a"]).unfinished
    assert "was moved away while it was read" in sentence
    assert json.loads(Path(log).read_bytes().splitlines()[0])["userPrompt"] == "word a word"
