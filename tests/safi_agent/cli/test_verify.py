"""``safi verify``: what it says and how it ends."""

import gc
import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from safi_agent.cli import app
from safi_agent.log import flush
from safi_agent.store import Commit, open_store

LOG = "saf-spirit-log.json"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder with a log of 60 lines in three files, and a copy: in another folder the log is not the store's."""
    folder = tmp_path_factory.mktemp("verify") / "here"
    folder.mkdir()
    store = open_store(f"sqlite:///{folder}/safi.db")
    store.save_values("v", "{}")
    for i in range(60):
        store.add_turn({"id": f"t{i}", "key": "k", "valueSet": "s"}, "v", str(folder / LOG), audit=False)
        store.commit_ready(["k"], lambda row, before: Commit({"turnId": row.id, "userPrompt": "x" * 60}, None))
        assert flush(store, str(folder / LOG), 6000)
    assert (folder / f"{LOG}.2").exists()
    assert not (folder / f"{LOG}.3").exists()
    store.database.engine.dispose()
    return folder, Path(shutil.copytree(folder, folder.with_name("copy")))


@pytest.fixture(autouse=True)
def tmp_path(written: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder as it was written, and the one to work in."""
    folder, copy = written
    shutil.rmtree(folder)
    shutil.copytree(copy, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def without_garbage_collection() -> Iterator[None]:
    """What is in a reference cycle, such as that of an error and its traceback, stays until the test ends."""
    gc.disable()
    yield
    gc.enable()


def verify(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["verify", *arguments])
    return done.exit_code, done.output


def test_an_unchanged_log_is_verified(tmp_path: Path) -> None:
    assert verify() == (0, f"{LOG}: 60 lines, as they were written.\n")
    assert verify(str(tmp_path / LOG))[0] == 0


def test_a_change_is_named_by_file_and_line() -> None:
    full = Path(f"{LOG}.2")
    lines = full.read_text().splitlines(True)
    full.write_text("".join([*lines[:3], lines[3].replace("xx", "xy"), *lines[4:]]))
    code, said = verify()
    assert code == 1
    assert f"{LOG}.2:4: was changed, or written without the key\n" in said
    assert "1 fault in 60 lines" in said


def test_lines_that_are_missing_at_the_end_need_the_store() -> None:
    lines = Path(LOG).read_text().splitlines(True)
    Path(LOG).write_text("".join(lines[:-2]))
    code, said = verify()
    assert code == 1
    assert f"{LOG}:{len(lines) - 1}: lines 59 to 60 are missing at the end\n" in said
    code, said = verify("--without-store")
    assert code == 0
    assert "The log was not compared with the store" in said


def test_earlier_files_may_be_elsewhere() -> None:
    first = len(Path(f"{LOG}.1").read_text().splitlines()) + 1
    Path(f"{LOG}.1").rename("archived")
    assert verify()[0] == 1
    assert verify("--first-line", str(first)) == (0, f"{LOG}: {61 - first} lines, as they were written.\n")


def test_a_log_without_a_chain_cannot_be_verified(tmp_path: Path) -> None:
    Path("old.json").write_text(json.dumps({"turnId": "a"}) + "\n")
    for arguments in ((), ("--without-store",)):
        code, said = verify("old.json", *arguments)
        assert (code, "it cannot be verified" in said) == (3, True)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("store", "store: expected an existing database, got 'sqlite:///safi.db'"),
        ("database", "store: expected a database that can be opened, got DatabaseError"),
        ("key", "expected its key in the environment (SAFI_LOG_KEY) or in saf-spirit-log.json.key, found none"),
        ("log", "expected an existing log"),
        ("moved", "this store did not write a log at this path"),
        ("other key", "expected the key with id"),
    ],
)
def test_what_cannot_be_checked_is_no_fault_and_no_success(
    broken: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = LOG
    if broken == "store":
        Path("safi.db").rename("other.db")
    elif broken == "database":
        Path("safi.db").rename("other.db")
        Path("safi.db").write_bytes(b"no database at all " * 100)
    elif broken == "key":
        Path(f"{LOG}.key").unlink()
    elif broken == "log":
        asked = "nowhere.json"
    elif broken == "moved":
        asked = "moved.json"
        Path(LOG).rename(asked)
    else:
        monkeypatch.setenv("SAFI_LOG_KEY", "o" * 32)
    code, said = verify(asked)
    assert (code, words in said.replace("\n", "")) == (2, True), said
    assert broken != "store" or not Path("safi.db").exists()


@pytest.mark.parametrize("asked", [LOG, "nowhere.json"])
def test_the_store_is_closed_at_the_end(asked: str, without_garbage_collection: None) -> None:
    verify(asked)
    assert not Path("safi.db-wal").exists()  # SQLite removes it with the last connection


@pytest.mark.slow
def test_a_store_that_cannot_be_read_is_told_in_a_line() -> None:
    with closing(sqlite3.connect("safi.db")) as connection:
        connection.execute("DROP TABLE safi_anchors")
    code, said = verify()
    assert (code, "store: expected a database that can be opened, got OperationalError" in said) == (2, True)


def test_a_log_that_is_not_there_is_missed_before_its_store() -> None:
    code, said = verify("nowhere/log.json", "--store", "sqlite:///nowhere/safi.db")
    assert (code, "expected an existing log" in said.replace("\n", ""), "store:" in said) == (2, True, False)


def test_a_log_that_is_gone_is_told_by_its_store() -> None:
    for file in Path().glob(f"{LOG}*"):
        if file.name != f"{LOG}.key":
            file.unlink()
    code, said = verify()
    assert (code, "lines 1 to 60 are missing" in said) == (1, True)
