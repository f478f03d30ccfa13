"""Copies of a folder, several logs in one store, and several stores."""

import gc
import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from safi_agent import create_safi_chain
from safi_agent.cli import app
from safi_agent.log import flush
from safi_agent.log.key import find_key
from safi_agent.log.reconciliation import find_other_path
from safi_agent.store import open_store, sqlite
from tests.safi_agent.fakes import THREE, Fake
from tests.safi_agent.log.filled_store import fill, ids


def chained(folder: Path, *asked: str) -> None:
    """Turns of a chain on the store in this folder."""
    with create_safi_chain(Fake(), THREE, store=f"sqlite:///{folder}/safi.db", log=folder / "log.json") as safi:
        for prompt in asked:
            safi.invoke(prompt)
    del safi
    gc.collect()


def verify(folder: Path, log: str = "log.json", *arguments: str) -> tuple[int, str]:
    asked = ["verify", str(folder / log), "--store", f"sqlite:///{folder}/safi.db", *arguments]
    done = CliRunner().invoke(app, asked)
    return done.exit_code, done.output


@pytest.fixture
def first(tmp_path: Path) -> Path:
    folder = tmp_path / "first"
    folder.mkdir()
    chained(folder, *"abcd")
    return folder


@pytest.fixture
def copy(first: Path) -> Path:
    return Path(shutil.copytree(first, first.with_name("copy")))


def test_a_copied_folder_is_verified_as_a_copy_and_that_is_said(first: Path, copy: Path) -> None:
    code, said = verify(copy)
    log = copy / "log.json"
    assert code == 0
    assert said.splitlines() == [
        f"{log}: 4 lines, as they were written.",
        f"The store wrote it as {first / 'log.json'}: this is a copy, or it was moved.",
    ]
    shutil.rmtree(first)
    assert verify(copy)[0] == 0


def test_a_copy_that_was_cut_or_edited_is_not_as_it_was_written(first: Path, copy: Path) -> None:
    log = copy / "log.json"
    lines = log.read_bytes().splitlines(True)
    for changed, words in (
        (lines[:3], "log.json:4: line 4 is missing at the end"),
        (lines[1:], "log.json:1: is line 2 of the chain; expected line 1 first"),
        ([lines[0], lines[1].replace(b"An answer", b"No answer"), *lines[2:]], "log.json:2: was changed"),
    ):
        log.write_bytes(b"".join(changed))
        code, said = verify(copy)
        assert (code, words in said) == (1, True), said
        assert "this is a copy, or it was moved" in said


def test_a_copy_whose_anchor_was_changed(copy: Path) -> None:
    with closing(sqlite3.connect(copy / "safi.db")) as c, c:
        c.execute("UPDATE safi_anchors SET lines = 3")
    code, said = verify(copy)
    assert (code, "anchor of it was not made with the log's key" in said) == (1, True)


@pytest.mark.slow
def test_a_chain_goes_on_in_the_copy_and_in_the_first(first: Path, copy: Path) -> None:
    chained(copy, "e", "f")
    chained(first, "E")
    assert verify(copy) == (0, f"{copy / 'log.json'}: 6 lines, as they were written.\n")
    assert verify(first) == (0, f"{first / 'log.json'}: 5 lines, as they were written.\n")
    assert [json.loads(line)["turn"] for line in (copy / "log.json").read_text().splitlines()] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_going_on_in_a_copy_that_was_cut_does_not_hide_the_cut(copy: Path) -> None:
    log = copy / "log.json"
    log.write_bytes(b"".join(log.read_bytes().splitlines(True)[:2]))
    chained(copy, "e")
    code, said = verify(copy)
    assert (code, "log.json:3: is line 5 of the chain; lines 3 to 4 are missing before it" in said) == (1, True)


@pytest.mark.slow
def test_in_a_copy_whose_anchor_was_changed_nothing_is_written(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    with closing(sqlite3.connect(copy / "safi.db")) as c, c:
        c.execute("UPDATE safi_anchors SET lines = 3")
    before = (copy / "log.json").read_bytes()
    chained(copy, "e")
    assert (copy / "log.json").read_bytes() == before
    assert "anchor of it was not made with the log's key" in caplog.text


@pytest.mark.slow
def test_of_two_anchors_on_one_chain_the_longest_counts(first: Path, copy: Path) -> None:
    """A copy of a copy that went on: its lines were written at two paths."""
    chained(copy, "e", "f")
    third = Path(shutil.copytree(copy, copy.with_name("third")))
    code, said = verify(third)
    assert (code, f"The store wrote it as {copy / 'log.json'}" in said) == (0, True)
    log = third / "log.json"
    log.write_bytes(b"".join(log.read_bytes().splitlines(True)[:5]))
    assert "log.json:6: line 6 is missing at the end" in verify(third)[1]


def test_a_copy_with_full_files_and_one_that_was_renamed(tmp_path: Path) -> None:
    (folder := tmp_path / "first").mkdir()
    store, log = open_store(f"sqlite:///{folder}/safi.db"), str(folder / "log.json")
    for i in range(12):
        fill(store, log, f"a{i}", f"b{i}")
        assert flush(store, log, 1500)
    assert Path(f"{log}.1").exists()
    del store
    gc.collect()
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert verify(copy)[0] == 0
    for file in list(copy.glob("log.json*")):
        file.rename(copy / file.name.replace("log", "other", 1))
    code, said = verify(copy, "other.json")
    assert (code, f"other.json: 24 lines, as they were written.\nThe store wrote it as {log}" in said) == (0, True)
    (copy / "other.json.1").unlink()
    assert verify(copy, "other.json")[0] == 1


def test_logs_of_one_store_with_one_key_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFI_LOG_KEY", "k" * 64)
    (tmp_path / "sub").mkdir()
    logs = ("one.json", "two.json", "sub/one.json")  # the first and the last have one name
    store = open_store(f"sqlite:///{tmp_path}/safi.db")
    for turn in range(3):
        for log in logs[: 3 - turn]:
            fill(store, str(tmp_path / log), f"{log}, {turn}")
            assert flush(store, str(tmp_path / log))
    assert [verify(tmp_path, log) for log in logs] == [
        (0, f"{tmp_path / log}: {3 - i} lines, as they were written.\n") for i, log in enumerate(logs)
    ]
    shutil.copy(tmp_path / "one.json", tmp_path / "copy.json")
    assert f"The store wrote it as {tmp_path / 'one.json'}" in verify(tmp_path, "copy.json")[1]
    shutil.copy(tmp_path / "one.json", tmp_path / "two.json")  # another log in its place
    code, said = verify(tmp_path, "two.json")
    assert (code, "two.json:2: differs from line 2 in the store's anchor" in said) == (1, True)


@pytest.mark.slow
def test_a_log_of_another_store_is_not_known(first: Path, tmp_path: Path) -> None:
    (other := tmp_path / "other").mkdir()
    chained(other, "x")
    for name in ("log.json", "log.json.key"):
        shutil.copy(first / name, other / f"their-{name}")
    code, said = verify(other, "their-log.json")
    assert (code, "this store did not write it; give the store that did" in said) == (2, True)


def test_lines_of_another_store_are_counted_and_no_fault(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        store = open_store(f"sqlite:///{tmp_path}/{name}/safi.db")
        fill(store, str(tmp_path / "log.json"), f"{name}-a", f"{name}-b")
        assert flush(store, str(tmp_path / "log.json"))
    for name in ("one", "two"):
        asked = ["verify", str(tmp_path / "log.json"), "--store", f"sqlite:///{tmp_path}/{name}/safi.db"]
        done = CliRunner().invoke(app, asked)
        assert done.exit_code == 0
        assert "4 lines, as they were written." in done.output
        assert "2 are of turns that this store does not have: another store wrote them" in done.output


def test_a_log_that_only_names_our_turns_is_no_copy(first: Path, tmp_path: Path) -> None:
    """Lines without the key are in no chain, whatever turns they name."""
    forged = tmp_path / "forged.json"
    forged.write_text("".join(json.dumps({"turnId": i}) + "\n" for i in ids(str(first / "log.json"))))
    key = find_key(first / "log.json")
    assert key
    store = open_store(f"sqlite:///{first}/safi.db")
    assert find_other_path(store, str(forged), key) is None
    assert find_other_path(store, str(first / "log.json"), key) is None  # it is there under its own path


@pytest.mark.slow
@pytest.mark.parametrize("changed", ["anchor", "row", "copy", "nothing"])
def test_copies_of_a_log_are_verified_with_a_postgresql_store(changed: str, tmp_path: Path, database: str) -> None:
    store, log = open_store(database), tmp_path / "log.json"
    for i in range(3):
        fill(store, str(log), f"a{i}", f"b{i}")
        assert flush(store, str(log))
    asked, expected = log, (0, "6 lines, as they were written.")
    with store.database.transaction() as c:
        if changed == "anchor":
            c.exec_driver_sql("UPDATE safi_anchors SET lines = 5")
            expected = (1, "anchor of it was not made with the log's key")
        elif changed == "row":
            c.exec_driver_sql("DELETE FROM safi_turns WHERE id = 'b1'")
            expected = (1, "the store has 5 turns in it, but the sealed anchor counts 6")
    if changed == "copy":
        asked = tmp_path / "copy.json"
        for end in ("", ".key"):
            shutil.copy(f"{log}{end}", f"{asked}{end}")
        expected = (0, f"The store wrote it as {log}: this is a copy")
    done = CliRunner().invoke(app, ["verify", str(asked), "--store", database])
    assert (done.exit_code, expected[1] in done.output) == (expected[0], True), done.output
    store.database.engine.dispose()


def test_a_store_that_is_locked_is_read_or_cannot_be_checked(first: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "STORE_TIMEOUT", 0.2)
    monkeypatch.setattr(sqlite, "STATEMENT_TIMEOUT", 0.2)
    with closing(sqlite3.connect(first / "safi.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")  # someone writes: reading goes on
        assert verify(first)[0] == 0
        other.execute("ROLLBACK")
        other.execute("PRAGMA locking_mode=EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        code, said = verify(first)
        assert (code, "store: expected a database that can be opened, got OperationalError" in said) == (2, True)
