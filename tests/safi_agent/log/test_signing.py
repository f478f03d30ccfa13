"""What a process with a signing key does: every line it knows is signed, and no other."""

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from safi_agent.log import flush, writer
from safi_agent.log.checkpoint import checkpoint_file
from safi_agent.log.hash_chain import Tip, read_seal, seal
from safi_agent.log.key import find_key
from safi_agent.log.rotation import log_files
from safi_agent.log.signing_keys import SigningKey, generate_key
from safi_agent.log.tree_files import index_file, rebuild_tree, tree_file
from safi_agent.log.verify_signed import verify_signed
from safi_agent.store import Store, open_store
from tests.safi_agent.log.filled_store import fill, ids, verdict
from tests.safi_agent.log.signed_logs import SIGNER, all_lines, plain_text, signed_text

OTHER_KEY = SigningKey("example.com/other", b"o" * 32)


@pytest.fixture(autouse=True)
def signing(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process has a key, and is a new one in each test."""
    monkeypatch.setenv("SAFI_SIGNING_KEY", SIGNER.encode())
    monkeypatch.setattr(writer, "_signatures", writer._Signatures())


@pytest.fixture
def restart(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Forgets what this process knows, as a new process."""
    return lambda: monkeypatch.setattr(writer, "_signatures", writer._Signatures())


@pytest.fixture
def without_key(monkeypatch: pytest.MonkeyPatch) -> Callable[[Store, str], list[str]]:
    """Flushes as a process without a signing key, or one that is killed before it signs."""

    def flush_unsigned(store: Store, path: str) -> list[str]:
        with monkeypatch.context() as patched:
            patched.delenv("SAFI_SIGNING_KEY")
            return flush(store, path)

    return flush_unsigned


def assert_signed(path: str, key: SigningKey = SIGNER, name: str = "example.com/safi") -> None:
    """The checkpoint is what the slow twin computes of all lines, and the tree's files are those of a new tree."""
    lines = all_lines(path)
    assert signed_text(path, key) == plain_text(lines, name)
    tree, _ = rebuild_tree(path, len(lines))
    assert (tree_file(path).read_bytes(), index_file(path).read_bytes()) == (tree.nodes, tree.entries)


def forge(path: str, turn_id: str, words: str = "forged", at: int = 0) -> None:
    """Append a line with the log's own key, after the first ``at`` lines or the last."""
    key, lines = find_key(path), all_lines(path)
    assert key
    last = read_seal(lines[(at or len(lines)) - 1])
    assert last
    record = json.dumps({"turnId": turn_id, "text": words})
    Path(path).write_bytes(b"".join([*lines[: at or None], seal(record, Tip(last.line, last.mac), key)[0]]))


def test_each_write_ends_with_a_checkpoint_of_all_lines(path: str) -> None:
    store = open_store(None)
    for i in range(20):
        fill(store, path, *(f"{i}-{n}" for n in range(i % 3 + 1)))
        assert flush(store, path)
        assert_signed(path)


def test_nothing_is_signed_without_a_key(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAFI_SIGNING_KEY")
    store = open_store(None)
    fill(store, path, "a")
    assert flush(store, path)
    assert sorted(file.name for file in Path(path).parent.iterdir()) == ["log.json", "log.json.key", "log.json.lock"]


def test_the_tree_goes_on_over_full_files(path: str, restart: Callable[[], None]) -> None:
    store = open_store(None)
    for i in range(12):
        fill(store, path, f"a{i}", f"b{i}")
        assert flush(store, path, 1000)
        if i % 2:
            restart()
    assert len(log_files(path)) == 4
    assert_signed(path)
    assert verdict(store, path)[1:3] == (0, 24)


@pytest.mark.skipif(os.name != "posix", reason="other systems have other rights")
def test_the_files_of_the_tree_are_for_the_owner_of_the_log(path: str) -> None:
    store = open_store(None)
    fill(store, path, "a")
    flush(store, path)
    assert {file(path).stat().st_mode & 0o777 for file in (tree_file, index_file)} == {0o600}


def test_many_threads_and_stores_sign_one_tree(path: str) -> None:
    stores = [open_store(None) for _ in range(4)]
    for n, store in enumerate(stores):
        fill(store, path, *(f"{n}-{i}" for i in range(10)))
    threads = [threading.Thread(target=flush, args=(store, path)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n, store in enumerate(stores):
        fill(store, path, f"{n}-last")
        assert flush(store, path)
    assert len(all_lines(path)) == 44
    assert_signed(path)


def test_lines_without_a_checkpoint_are_signed_when_the_log_is_opened(
    path: str, without_key: Callable[[Store, str], list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(None)
    for i in range(3):
        fill(store, path, f"a{i}")
        without_key(store, path)
    assert not checkpoint_file(path).exists()
    assert flush(store, path) == []  # there is nothing to write
    assert_signed(path)
    fill(store, path, "b", "c")
    without_key(store, path)
    assert "it has a checkpoint, but this process has no key to sign" in caplog.text
    assert len(caplog.records) == 1
    fill(store, path, "d")
    assert flush(store, path) == ["d"]
    assert_signed(path)
    assert len(caplog.records) == 1


@pytest.mark.parametrize("moment", ["mark_logged", "write_tree", "write_note"])
def test_a_process_that_ends_between_a_line_and_its_checkpoint(
    moment: str, path: str, restart: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(None)
    fill(store, path, "a", "b")
    flush(store, path)
    fill(store, path, "c", "d", "e")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(f"safi_agent.log.{'writer' if moment == 'mark_logged' else 'signing'}.{moment}", killed)
        with pytest.raises(KeyboardInterrupt):
            flush(store, path)
    assert ids(path) == ["a", "b", "c", "d", "e"]
    restart()
    flush(store, path)
    assert ids(path) == ["a", "b", "c", "d", "e"]
    assert_signed(path)


@pytest.mark.parametrize("damage", ["no tree", "no index", "torn tree", "changed tree", "no files", "older tree"])
def test_a_damaged_tree_is_never_signed_and_is_computed_again(
    damage: str, path: str, restart: Callable[[], None]
) -> None:
    store = open_store(None)
    fill(store, path, "a", "b", "c")
    flush(store, path)
    tree, index = tree_file(path), index_file(path)
    older = tree.read_bytes()
    fill(store, path, "d", "e")
    flush(store, path)
    if damage in ("no tree", "no files"):
        tree.unlink()
    if damage in ("no index", "no files"):
        index.unlink()
    if damage == "torn tree":
        tree.write_bytes(tree.read_bytes()[:-40])
    if damage == "changed tree":
        tree.write_bytes(tree.read_bytes()[:-200] + b"x" * 200)
    if damage == "older tree":
        tree.write_bytes(older)
    restart()
    fill(store, path, "f")
    flush(store, path)
    if damage == "no index":  # it is not needed to sign, and `safi prove` works without it
        index.write_bytes(rebuild_tree(path, 6)[0].entries)
    assert_signed(path)


def test_a_checkpoint_that_was_removed_or_set_back_is_made_again(path: str, restart: Callable[[], None]) -> None:
    store, notes = open_store(None), []
    for i in range(4):
        fill(store, path, f"a{i}")
        flush(store, path)
        notes.append(checkpoint_file(path).read_bytes())
    for note in (None, notes[0], notes[2]):
        for new_process in (True, False):
            if note is None:
                checkpoint_file(path).unlink()
            else:
                checkpoint_file(path).write_bytes(note)
            if new_process:
                restart()
            assert flush(store, path) == []
            assert signed_text(path) == plain_text(all_lines(path))
    assert_signed(path)


@pytest.mark.parametrize("what", ["a new turn", "a turn of the store again", "another text of a turn of the store"])
@pytest.mark.parametrize("when", ["with the next line", "when the log is opened"])
def test_a_line_that_was_forged_with_the_key_of_the_chain_is_not_signed(
    what: str, when: str, path: str, caplog: pytest.LogCaptureFixture, restart: Callable[[], None]
) -> None:
    store = open_store(None)
    fill(store, path, "a", "b")
    flush(store, path)
    before = signed_text(path)
    if what == "a turn of the store again":
        forge(path, "b", json.loads(all_lines(path)[1])["text"])
    else:
        forge(path, "b" if what.startswith("another") else "x")
    if when == "when the log is opened":
        restart()
        flush(store, path)
    for turn in "cd":  # the anchor contains the forged line from the first of these on
        fill(store, path, turn)
        assert flush(store, path) == [turn]
    assert signed_text(path) == before
    assert "are not signed" in caplog.text
    assert len(caplog.records) == 1
    assert verdict(store, path)[1] == 0  # the chain does not show it
    found = verify_signed(path, [SIGNER.public]).verdict
    assert found.faults[0][1:] == (3, "was changed, or is not signed")


def test_lines_that_were_changed_with_the_key_of_the_chain_before_they_were_signed_are_not_signed(
    path: str, without_key: Callable[[Store, str], list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(None)
    fill(store, path, "a", "b", "c")
    without_key(store, path)
    forge(path, "c", at=2)
    fill(store, path, "d")
    flush(store, path)
    assert not checkpoint_file(path).exists()
    assert "missing or not as" in caplog.text or "not in the store" in caplog.text


@pytest.mark.parametrize("order", ["acbd", "abd", "abbcd", "bcd"])
def test_unsigned_lines_have_to_be_as_they_were_written(
    order: str, path: str, without_key: Callable[[Store, str], list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(None)
    fill(store, path, *"abcd")
    without_key(store, path)
    lines = dict(zip("abcd", all_lines(path), strict=True))
    Path(path).write_bytes(b"".join(lines[turn] for turn in order))
    assert flush(store, path) == []
    assert not checkpoint_file(path).exists()
    assert "missing or not as it was written; 'safi verify' shows it" in caplog.text


def test_a_line_that_was_forged_after_its_writer_was_killed_is_not_signed(
    path: str, monkeypatch: pytest.MonkeyPatch, restart: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    """The store has not recorded that the line was written, so a forged one takes its place."""
    store = open_store(None)
    fill(store, path, "a", "b")
    flush(store, path)
    before = signed_text(path)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    fill(store, path, "c")
    with monkeypatch.context() as patched:
        patched.setattr("safi_agent.log.writer.mark_logged", killed)
        with pytest.raises(KeyboardInterrupt):
            flush(store, path)
    forge(path, "c", at=2)
    restart()
    flush(store, path)
    fill(store, path, "d")
    flush(store, path)
    assert ids(path) == ["a", "b", "c", "d"]
    assert "unsigned lines are not in the store, such as turn 'c'" in caplog.text
    assert signed_text(path) == before


def test_nothing_is_signed_after_log_and_store_were_set_back(path: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = Path(path).parent
    url = f"sqlite:///{folder}/safi.db"
    store = open_store(url)
    fill(store, path, "a", "b")
    flush(store, path)
    store.database.engine.dispose()
    backup = (folder / "safi.db").read_bytes(), Path(path).read_bytes()
    store = open_store(url)
    fill(store, path, "c", "d")
    flush(store, path)
    store.database.engine.dispose()
    (folder / "safi.db").write_bytes(backup[0])
    Path(path).write_bytes(backup[1])
    signed = signed_text(path)
    store = open_store(url)
    fill(store, path, "e")
    assert flush(store, path) == ["e"]
    assert "its checkpoint is of 4 lines, but it has 3" in caplog.text
    assert signed_text(path) == signed
    store.database.engine.dispose()


@pytest.mark.parametrize("listed", [True, False])
def test_a_new_key_continues_the_tree_and_its_origin(
    listed: bool, path: str, monkeypatch: pytest.MonkeyPatch, restart: Callable[[], None]
) -> None:
    store = open_store(None)
    for i in range(3):
        fill(store, path, f"a{i}")
        flush(store, path)
    new = f"{OTHER_KEY.encode()}\n{SIGNER.public}" if listed else OTHER_KEY.encode()
    monkeypatch.setenv("SAFI_SIGNING_KEY", new)
    restart()
    fill(store, path, "b")
    flush(store, path)
    assert_signed(path, OTHER_KEY)
    assert not verify_signed(path, [SIGNER.public, OTHER_KEY.public]).verdict.faulty


def test_a_key_that_is_not_listed_does_not_continue_what_another_has_signed_otherwise(
    path: str, monkeypatch: pytest.MonkeyPatch, restart: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(None)
    fill(store, path, "a", "b")
    flush(store, path)
    note = checkpoint_file(path).read_bytes()
    stranger = generate_key("example.com/safi")
    text = signed_text(path).replace("\n2\n", "\n1\n")
    checkpoint_file(path).write_bytes(f"{text}\n".encode() + note.partition(b"\n\n")[2])
    restart()
    fill(store, path, "c")
    flush(store, path)
    assert "does not fit the text" in caplog.text  # of the present key, and not by it
    from safi_agent.log.signed_note import format_note

    checkpoint_file(path).write_text(format_note(text, stranger.sign(text)))
    restart()
    fill(store, path, "d")
    flush(store, path)
    assert "its lines are not as another key has signed them" in caplog.text
    assert ids(path) == ["a", "b", "c", "d"]


def test_a_copy_goes_on_with_its_own_checkpoint(path: str, tmp_path: Path) -> None:
    store = open_store(None)
    fill(store, path, "a", "b")
    flush(store, path)
    copy = str(tmp_path / "copy.json")
    for end in ("", ".key", ".tree", ".index", ".checkpoint"):
        Path(copy + end).write_bytes(Path(path + end).read_bytes())
        Path(copy + end).chmod(0o600)
    fill(store, copy, "c")
    assert flush(store, copy) == ["c"]
    assert_signed(copy)


def test_a_disk_that_is_full_leaves_the_line_unsigned_until_it_is_not(
    path: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(None)
    fill(store, path, "a")
    flush(store, path)

    def full(*_: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr("safi_agent.log.signing.write_note", full)
        for turn in "bc":
            fill(store, path, turn)
            assert flush(store, path) == [turn]
    assert [record.message for record in caplog.records] == [
        f"New lines of the log {path} are not signed: no space left."
    ]
    assert flush(store, path) == []
    assert_signed(path)


def test_a_key_that_can_no_longer_be_read_does_not_hold_up_the_log(
    path: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(None)
    monkeypatch.setenv("SAFI_SIGNING_KEY", "nonsense")
    fill(store, path, "a")
    assert flush(store, path) == ["a"]
    assert "are not signed: SAFI_SIGNING_KEY: expected a first line" in caplog.text


def test_a_checkpoint_that_cannot_be_read_does_not_hold_up_the_log(
    path: str, caplog: pytest.LogCaptureFixture, restart: Callable[[], None]
) -> None:
    store = open_store(None)
    checkpoint_file(path).mkdir()
    for turn in "ab":
        fill(store, path, turn)
        assert flush(store, path) == [turn]
    assert flush(store, path) == []
    assert len(caplog.records) == 1
    checkpoint_file(path).rmdir()
    for content in (b"", b"nonsense", b"a\n9\nb\n\n"):
        checkpoint_file(path).write_bytes(content)
        restart()
        assert flush(store, path) == []
    assert len(caplog.records) == 4
    checkpoint_file(path).unlink()
    assert flush(store, path) == []
    assert_signed(path)


@pytest.mark.parametrize("new_process", [True, False])
def test_the_checkpoint_of_another_log_of_the_same_key_is_not_continued(
    new_process: bool, path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, restart: Callable[[], None]
) -> None:
    store, other = open_store(None), str(tmp_path / "other.json")
    for log in (path, other):
        fill(store, log, f"a-{log}", f"b-{log}")
        flush(store, log)
    for file in (checkpoint_file, tree_file, index_file):
        file(path).write_bytes(file(other).read_bytes())
    if new_process:
        restart()
    signed = signed_text(path)
    fill(store, path, "c")
    assert flush(store, path) == ["c"]
    assert "its checkpoint is of another log, example.com/safi/" in caplog.text
    assert signed_text(path) == signed == signed_text(other)
