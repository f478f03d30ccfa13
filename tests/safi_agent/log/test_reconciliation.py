"""What can be done to a store and its log by someone who has both and not the key, and that it is found."""

import gc
import json
import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

from safi_agent import create_safi_chain
from safi_agent.cli import app
from safi_agent.log import flush
from safi_agent.log.anchors import make_anchor, sealed_turns
from safi_agent.log.hash_chain import Tip, read_seal
from safi_agent.store import open_store
from tests.safi_agent.fakes import THREE, VIOLATION, Fake, approve, in_turn, ledger
from tests.safi_agent.log.attacks import resealed
from tests.safi_agent.log.filled_store import fill

KEY = "k" * 64
TURNS = 8


class Place(NamedTuple):
    folder: Path

    @property
    def log(self) -> Path:
        return self.folder / "log.json"

    @property
    def url(self) -> str:
        return f"sqlite:///{self.folder}/safi.db"

    def sql(self, statement: str, *values: object) -> list[Any]:
        with closing(sqlite3.connect(self.folder / "safi.db")) as c, c:
            return c.execute(statement, values).fetchall()

    def cut(self, lines: int) -> bytes:
        """Cut the log to so many lines; the last of them."""
        kept = self.log.read_bytes().splitlines(True)[:lines]
        self.log.write_bytes(b"".join(kept))
        return kept[-1]

    def verify(self, *arguments: str, log: Path | None = None) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["verify", str(log or self.log), "--store", self.url, *arguments])
        return done.exit_code, done.output


def write(folder: Path) -> Place:
    """Turns of two memory keys, among them a refusal, in a log whose key is elsewhere."""
    place = Place(folder)
    model = Fake(
        will=in_turn(approve(), VIOLATION, approve()),
        conscience=in_turn(ledger(score=1), ledger(score=-1), ledger(score=0.5)),
    )
    with create_safi_chain(model, THREE, store=place.url, log=place.log) as safi:
        for i in range(TURNS):
            safi.invoke(f"Question {i}?", {"configurable": {"safi_key": "ab"[i % 2]}})
            safi.drain()
    del safi
    gc.collect()
    place.sql("PRAGMA wal_checkpoint(TRUNCATE)")
    return place


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a folder that was written, which says where that was."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAFI_LOG_KEY", KEY)
        place = write(tmp_path_factory.mktemp("written"))
    shutil.copytree(place.folder, kept := tmp_path_factory.mktemp("kept"), dirs_exist_ok=True)
    (kept / "where").write_text(str(place.folder))
    return kept


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A folder of a test's own, for those that go on writing."""
    monkeypatch.setenv("SAFI_LOG_KEY", KEY)
    return write(tmp_path)


@pytest.fixture
def place(original: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """The folder as it was written, at its own path."""
    monkeypatch.setenv("SAFI_LOG_KEY", KEY)
    place = Place(Path((original / "where").read_text()))
    shutil.rmtree(place.folder)
    shutil.copytree(original, place.folder)
    return place


def test_an_unchanged_log_and_store_are_verified(place: Place) -> None:
    assert place.verify() == (0, f"{place.log}: {TURNS} lines, as they were written.\n")


ATTACKS: dict[str, tuple[Callable[[Place], object], str]] = {}


def attack(words: str) -> Callable[[Callable[[Place], object]], Callable[[Place], object]]:
    def keep(work: Callable[[Place], object]) -> Callable[[Place], object]:
        ATTACKS[work.__name__] = (work, words)
        return work

    return keep


def set_anchor(place: Place, lines: int) -> None:
    """The log ends at an earlier line, and the anchor says so."""
    mac = json.loads(place.cut(lines))["mac"]
    place.sql("UPDATE safi_anchors SET size = ?, lines = ?, mac = ?", place.log.stat().st_size, lines, mac)


def forget(place: Place, lines: int) -> None:
    """The store has no rows of later turns, and counts none."""
    place.sql("DELETE FROM safi_turns WHERE place > ?", lines)
    place.sql("UPDATE safi_memory SET turns = (SELECT count(*) FROM safi_turns t WHERE t.key = safi_memory.key)")
    for key, record in place.sql("SELECT key, record FROM safi_turns ORDER BY place"):
        said = json.loads(record)
        mu = json.dumps(said["mu"])
        place.sql("UPDATE safi_memory SET mu = ?, mu_turn = ? WHERE key = ?", mu, said["muTurn"], key)


@attack("anchor of it was not made with the log's key")
def the_log_is_cut_and_the_anchor_set_to_its_last_line(place: Place) -> None:
    set_anchor(place, 5)


@attack("anchor of it was not made with the log's key")
def and_the_rows_are_deleted(place: Place) -> None:
    set_anchor(place, 5)
    forget(place, 5)


@attack("anchor of it was not made with the log's key")
def and_the_count_in_the_anchor_is_changed(place: Place) -> None:
    and_the_rows_are_deleted(place)
    place.sql("UPDATE safi_anchors SET key = replace(key, ?, '.5.')", f".{TURNS}.")


@attack("anchor of it was not made with the log's key")
def and_the_seal_is_taken_away(place: Place) -> None:
    and_the_rows_are_deleted(place)
    place.sql("UPDATE safi_anchors SET key = substr(key, 1, 16)")


@attack("anchor of it was not made with the log's key")
def the_size_alone_is_changed(place: Place) -> None:
    place.sql("UPDATE safi_anchors SET size = size - 1")


@attack("anchor of it was not made with the log's key")
def the_anchor_of_another_log_is_put_in_its_place(place: Place) -> None:
    other = str(place.folder / "other.json")
    store = open_store(place.url)
    fill(store, other, *"xyz")
    flush(store, other)
    shutil.copy(other, place.log)
    set_ = ", ".join(
        f"{name} = (SELECT {name} FROM safi_anchors WHERE log = ?)" for name in ("size", "lines", "mac", "key")
    )
    place.sql(f"UPDATE safi_anchors SET {set_} WHERE log = ?", *[other] * 4, str(place.log))


@attack("no anchor of it: the anchor was deleted")
def the_anchor_is_deleted(place: Place) -> None:
    place.sql("DELETE FROM safi_anchors")


@attack("no anchor of it: the anchor was deleted")
def the_log_is_cut_and_the_anchor_deleted(place: Place) -> None:
    place.cut(4)
    place.sql("DELETE FROM safi_anchors")
    forget(place, 4)


@attack("no anchor of it: the anchor was deleted")
def log_and_anchor_are_deleted(place: Place) -> None:
    place.log.unlink()
    place.sql("DELETE FROM safi_anchors")


@attack("the store has 5 turns in it, but the sealed anchor counts 8")
def the_newest_rows_are_deleted(place: Place) -> None:
    forget(place, 5)


@attack("the store has 7 turns in it, but the sealed anchor counts 8")
def one_row_in_the_middle_is_deleted(place: Place) -> None:
    place.sql("DELETE FROM safi_turns WHERE place = 3")


@attack("1 turns are missing from the order of commits, which goes up to 8")
def the_same_row(place: Place) -> None:
    one_row_in_the_middle_is_deleted(place)


@attack("the number of turns of 1 memory keys ('a') differs from their counter")
def the_same_row_again(place: Place) -> None:
    one_row_in_the_middle_is_deleted(place)


@attack("the store has 0 turns in it, but the sealed anchor counts 8")
def all_rows_are_deleted(place: Place) -> None:
    place.sql("DELETE FROM safi_turns")
    place.sql("DELETE FROM safi_memory")


@attack("the sealed anchor counts 8: rows were deleted")
def a_row_is_put_in_as_if_it_were_in_the_log(place: Place) -> None:
    columns = [name for _, name, *_ in place.sql("PRAGMA table_info(safi_turns)")]
    changed = {"id": "'x'", "turn": "turn + 1", "place": f"{TURNS + 1}"}
    taken = ", ".join(changed.get(name, name) for name in columns)
    place.sql(f"INSERT INTO safi_turns SELECT {taken} FROM safi_turns WHERE place = {TURNS}")


@attack("has a different record than the log")
def a_record_is_edited(place: Place) -> None:
    place.sql("UPDATE safi_turns SET record = replace(record, 'An answer.', 'Another one.') WHERE place = 4")


@attack("has another draft, final than the log")
def the_answer_that_a_repeated_turn_id_gets_is_edited(place: Place) -> None:
    place.sql("UPDATE safi_turns SET body = replace(body, 'An answer.', 'Another one.') WHERE place = 4")


@attack("has another decision than the log")
def a_refusal_becomes_an_approval(place: Place) -> None:
    place.sql("UPDATE safi_turns SET body = replace(body, '\"violation\"', '\"approve\"')")


@attack("has another ledger than the log")
def a_ledger_is_edited(place: Place) -> None:
    place.sql("UPDATE safi_turns SET ledger = replace(ledger, '0.5', '1.0') WHERE place = 5")


@attack("has another number than the log")
def two_turns_change_their_numbers(place: Place) -> None:
    for new, old in ((100, 1), (1, 2), (2, 100)):
        place.sql("UPDATE safi_turns SET turn = ? WHERE key = 'b' AND turn = ?", new, old)


@attack("is not committed, but the log contains it")
def a_turn_that_was_audited_is_to_be_audited_anew(place: Place) -> None:
    place.sql("UPDATE safi_turns SET status = 'pending', place = NULL, logged = 0 WHERE place = 8")


@attack("μ of 1 memory keys ('a') differs from μ in the last record of the key")
def mu_is_edited(place: Place) -> None:
    place.sql("UPDATE safi_memory SET mu = replace(mu, '0.', '0.9') WHERE key = 'a'")


@attack("differs from their counter")
def turns_are_counted_anew(place: Place) -> None:
    place.sql("UPDATE safi_memory SET turns = 1")


@attack("rows contain invalid values")
def a_place_is_a_text(place: Place) -> None:
    place.sql("UPDATE safi_turns SET place = 'first' WHERE place = 8")


@attack("the sealed anchor counts 8")
def a_place_is_huge(place: Place) -> None:
    place.sql("UPDATE safi_turns SET place = 1e300 WHERE place = 8")


@attack("cannot be read")
def a_body_is_no_json(place: Place) -> None:
    place.sql("UPDATE safi_turns SET body = '[[' WHERE place = 2")


@pytest.mark.parametrize("name", ATTACKS)
def test_what_is_done_without_the_key_is_found(name: str, place: Place) -> None:
    work, words = ATTACKS[name]
    work(place)
    code, said = place.verify()
    assert code == 1, said
    assert words in said
    assert "not as it was written: " in said


@pytest.mark.parametrize("seed", range(12))
def test_any_cell_of_the_table_of_turns_that_is_logged_or_counted(seed: int, place: Place) -> None:
    """One value of one row becomes that of another row, or another number."""
    rng = random.Random(seed)
    column = rng.choice(["id", "key", "turn", "place", "logged", "record", "status"])
    at = rng.randint(1, TURNS)
    ((now,),) = place.sql(f"SELECT {column} FROM safi_turns WHERE place = ?", at)
    new = {"id": "x", "key": "c", "turn": 77, "place": 77, "logged": 0, "record": f"{now} ", "status": "judged"}[column]
    place.sql(f"UPDATE safi_turns SET {column} = ? WHERE place = ?", new, at)
    assert place.verify()[0] == 1, column


@pytest.mark.slow
def test_log_and_store_set_back_together_are_as_they_were_written_then(fresh: Place) -> None:
    """What is not found: nothing in either says that there was more."""
    shutil.copytree(fresh.folder, earlier := fresh.folder.with_name("earlier"))
    with create_safi_chain(Fake(), THREE, store=fresh.url, log=fresh.log) as safi:
        safi.invoke("One more?", {"configurable": {"safi_key": "a"}})
    del safi
    gc.collect()
    assert fresh.verify() == (0, f"{fresh.log}: {TURNS + 1} lines, as they were written.\n")
    fresh.sql("PRAGMA wal_checkpoint(TRUNCATE)")
    last = fresh.log.read_bytes().splitlines(True)[-1]
    shutil.copytree(earlier, fresh.folder, dirs_exist_ok=True)
    shutil.rmtree(earlier)
    assert fresh.verify()[0] == 0
    with fresh.log.open("ab") as file:
        file.write(last)  # the store alone was set back
    code, said = fresh.verify()
    assert (code, "1 are of turns that this store does not have" in said) == (0, True)


@pytest.mark.parametrize(
    "name", ["and_the_rows_are_deleted", "and_the_seal_is_taken_away", "the_size_alone_is_changed"]
)
def test_nothing_is_written_behind_a_changed_anchor_and_answers_go_on(
    name: str, fresh: Place, caplog: pytest.LogCaptureFixture
) -> None:
    ATTACKS[name][0](fresh)
    before = fresh.log.read_bytes()
    with create_safi_chain(Fake(), THREE, store=fresh.url, log=fresh.log) as safi:
        assert safi.invoke("One more?").content == "An answer."
        assert safi.drain() == 1
    assert fresh.log.read_bytes() == before
    assert "anchor of it was not made with the log's key" in caplog.text
    assert fresh.sql("SELECT count(*) FROM safi_turns WHERE logged = 0") == [(1,)]
    assert fresh.verify()[0] == 1


def test_going_on_after_the_anchor_was_deleted_does_not_hide_it(fresh: Place) -> None:
    the_log_is_cut_and_the_anchor_deleted(fresh)
    with create_safi_chain(Fake(), THREE, store=fresh.url, log=fresh.log) as safi:
        safi.invoke("One more?")
    code, said = fresh.verify()
    assert (code, "the store has 5 turns in it, but the sealed anchor counts 1" in said) == (1, True), said


def test_turns_that_wait_are_told(fresh: Place) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAFI_LOG_KEY", "o" * 64)
        with create_safi_chain(Fake(), THREE, store=fresh.url, log=fresh.log) as safi:
            safi.invoke("One more?")
    assert fresh.verify() == (
        0,
        f"{fresh.log}: {TURNS} lines, as they were written.\n"
        "1 turns are committed but not in the log yet; the logger 'safi_agent' has the reason.\n",
    )


def test_without_the_store_all_of_it_needs_the_chain_alone(place: Place) -> None:
    all_rows_are_deleted(place)
    code, said = place.verify("--without-store")
    assert (code, "The log was not compared with the store" in said) == (0, True)


@pytest.mark.parametrize("at", [0, 3, TURNS - 1])
def test_a_line_that_was_repeated_with_the_key_is_found(at: int, place: Place) -> None:
    lines = place.log.read_bytes().splitlines(True)
    last = read_seal(lines[-1])
    assert last is not None
    again, _ = resealed(lines[at], Tip(last.line, last.mac), KEY.encode())
    place.log.write_bytes(b"".join([*lines, again]))
    assert place.verify("--without-store")[0] == 0
    code, said = place.verify()
    assert (code, "is in the log more than once" in said) == (1, True), said


def test_a_seal_is_for_one_log_one_key_and_what_it_says() -> None:
    """Against HMAC as the page on the log describes it, and against each change."""
    import hashlib
    import hmac

    key = KEY.encode()
    made = make_anchor("/a/log.json", 100, Tip(3, "0" * 64), 2, key)
    told = '["the end of a log", "/a/log.json", 100, 3, "' + "0" * 64 + '", 2]'
    assert made.key.split(".")[1:] == ["2", hmac.new(key, told.encode(), hashlib.sha256).hexdigest()]
    assert sealed_turns("/a/log.json", made, key) == 2
    assert sealed_turns("/b/log.json", made, key) is None
    assert sealed_turns("/a/log.json", made, b"o" * 64) is None
    changes: list[dict[str, Any]] = [
        {"size": 99},
        {"lines": 2},
        {"mac": "1" * 64},
        {"key": made.key.replace(".2.", ".3.")},
        {"key": made.key.replace(".2.", ".02.")},
        {"key": made.key.upper()},
        {"key": made.key.split(".")[0]},
        {"key": ""},
        {"key": None},
        {"size": "100"},
        {"mac": b"0" * 64},
    ]
    assert [sealed_turns("/a/log.json", made._replace(**change), key) for change in changes] == [None] * len(changes)
