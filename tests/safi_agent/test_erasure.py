"""Erasure: afterwards the words are in no file, and everything that was proven before still is."""

import json
import re
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
from typer.testing import CliRunner

from safi_agent import SafiChain, UnknownTurnError
from safi_agent.cli import app
from safi_agent.erasure import Erased, erase
from safi_agent.log import writer
from safi_agent.log.rotation import log_files
from safi_agent.report.page import write_page
from safi_agent.store import Store, open_store, prepare_batch
from safi_agent.store import erasure as store_erasure
from safi_agent.store.erasure import erase_turns, open_erasures
from tests.safi_agent.fakes import THREE, VIOLATION, Fake
from tests.safi_agent.log.signed_logs import SIGNER

SAID = ["system", "earlier", "question", "asked", "draft", "thought", "ruling", "finding", "label"]


LEFT = "Not erased: backups, exported proofs and reports that were written before.\n"


def words(turn: str) -> list[str]:
    """What is said in a turn, one word in each content."""
    return [f"{said}-of-{turn}-by-someone" for said in SAID]


def model(**replies: Any) -> Fake:
    """Replies that name the turn that they belong to, which is the last one in what was asked."""

    def named(text: str) -> dict[str, str]:
        turn = re.findall(r"asked-of-(\w+)-by-someone", text)[-1]
        return dict(zip(SAID, words(turn), strict=True))

    def intellect(text: str) -> str:
        return "{draft}\n<reflection>{thought}</reflection>".format(**named(text))

    def will(text: str) -> str:
        return json.dumps({"decision": "approve", "reason": named(text)["ruling"], "gates": []})

    def conscience(text: str) -> str:
        row = {"score": 0.5, "confidence": 0.8, "reason": named(text)["finding"]}
        return json.dumps({"ledger": [{"value": value.name, **row} for value in THREE.values]})

    return Fake(**{"intellect": intellect, "will": will, "conscience": conscience} | replies)


def ask(safi: SafiChain, turn: str, key: str = "someone") -> str:
    said = dict(zip(SAID, words(turn), strict=True))
    messages = [
        SystemMessage(said["system"]),
        HumanMessage(said["question"]),
        AIMessage(said["earlier"]),
        HumanMessage(said["asked"]),
    ]
    config: Any = {"configurable": {"safi_key": key, "safi_turn_id": f"id-{turn}"}}
    given: Any = {"prompt": messages, "metadata": {"who": said["label"]}}
    return str(safi.invoke(given, config).response_metadata["safi"]["turnId"])


def found(folder: Path, *turns: str) -> list[str]:
    """The words of these turns that are in any file of the folder."""
    contents = b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())
    return [word for turn in turns for word in words(turn) if word.encode() in contents]


def safi_command(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, arguments)
    return done.exit_code, done.output


class Folder:
    """A chain with a signed log in a folder, and the commands on it."""

    def __init__(self, path: Path, make: Callable[..., SafiChain]) -> None:
        self.path, self.make = path, make
        self.log, self.store = path / "log.json", f"sqlite:///{path}/safi.db"
        (path / "key.pub").write_text(f"{SIGNER.public}\n")

    def ask(self, *turns: str, key: str = "someone", **settings: Any) -> list[str]:
        safi = self.make(settings.pop("model", None) or model(), **settings)
        ids = [ask(safi, turn, key) for turn in turns]
        safi.close()
        return ids

    def erase(self, *arguments: str) -> tuple[int, str]:
        return safi_command("erase", "--store", self.store, *arguments)

    def verify(self) -> tuple[str, str]:
        """What is verified with the store, and with the public key."""
        of_store = safi_command("verify", str(self.log), "--store", self.store)
        signed = safi_command("verify", str(self.log), "--public-key", str(self.path / "key.pub"))
        assert (of_store[0], signed[0]) == (0, 0), (of_store, signed)
        return of_store[1], signed[1]

    def replay(self) -> str:
        values = self.path / "three.yaml"
        values.write_text(THREE.model_dump_json())
        code, said = safi_command("replay", str(self.log), "--store", self.store, "--values", str(values))
        assert code == 0, said
        return said


@pytest.fixture
def folder(tmp_path: Path, make: Callable[..., SafiChain], monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.setenv("SAFI_SIGNING_KEY", SIGNER.encode())
    monkeypatch.setattr(writer, "_signatures", writer._Signatures())
    return Folder(tmp_path, make)


def test_after_an_erasure_the_words_are_in_no_file_and_everything_is_verified(folder: Folder) -> None:
    turns = [f"turn{n}" for n in range(7)]
    ids = [folder.ask(turn, log_max_bytes=4096)[0] for turn in turns]
    assert len(log_files(folder.log)) > 1
    assert set(found(folder.path, *turns)) == {word for turn in turns for word in words(turn)}
    before = [json.loads(line) for file in log_files(folder.log) for line in file.read_bytes().splitlines()]
    checkpoint = folder.path / "earlier.checkpoint"
    checkpoint.write_bytes(Path(f"{folder.log}.checkpoint").read_bytes())
    assert folder.erase("--turn", ids[1], "--turn", ids[5]) == (0, f"2 turns erased, in 2 lines of the log.\n{LEFT}")
    write_page(folder.log, folder.path / "report.html")
    assert found(folder.path, turns[1], turns[5]) == []
    others = [turn for n, turn in enumerate(turns) if n not in (1, 5)]
    assert set(found(folder.path, *turns)) == {word for turn in others for word in words(turn)}
    with_store, signed = folder.verify()
    assert with_store.splitlines() == [
        f"{folder.log}: 8 lines, as they were written.",
        "2 lines erased, as lines of the log record: figures without contents.",
    ]
    assert signed.splitlines()[1] == with_store.splitlines()[1]
    public = ("--public-key", str(folder.path / "key.pub"))
    assert safi_command("verify", str(folder.log), *public, "--checkpoint", str(checkpoint))[0] == 0
    assert folder.replay().splitlines() == [
        f"{folder.log}: 8 lines, all figures follow from their ledgers.",
        "2 lines erased; their figures follow like those of the others.",
    ]
    after = [json.loads(line) for file in log_files(folder.log) for line in file.read_bytes().splitlines()]
    assert sorted(after[7]["erasedTurns"]) == sorted([ids[1], ids[5]])
    for n in range(7):
        if n not in (1, 5):
            assert after[n] == before[n]
            continue
        for name in (
            "timestamp",
            "turn",
            "turnId",
            "willDecision",
            "spiritScore",
            "drift",
            "mu",
            "line",
            "prev",
            "mac",
        ):
            assert after[n][name] == before[n][name]
        scores = [(row["value"], row["score"], row["confidence"]) for row in before[n]["conscienceLedger"]]
        assert [(row["value"], row["score"], row["confidence"]) for row in after[n]["conscienceLedger"]] == scores


def test_proofs_of_all_turns_hold_and_show_what_was_erased(folder: Folder) -> None:
    ids = folder.ask("one", "two")
    earlier = folder.path / "earlier.tlog-proof"
    earlier.write_text(safi_command("prove", ids[0], str(folder.log))[1])
    assert folder.erase("--turn", ids[0])[0] == 0
    for proof, turn, erased in ((earlier, "one", False), (None, "one", True), (None, "two", False)):
        file = proof or folder.path / f"{turn}.tlog-proof"
        if proof is None:
            code, text = safi_command("prove", ids[turn == "two"], str(folder.log))
            assert code == 0
            file.write_text(text)
        code, said = safi_command("verify-proof", str(file), "--public-key", str(folder.path / "key.pub"))
        assert (code, "Its contents were erased." in said) == (0, erased)
        assert [word in said for word in words(turn)[3:]] == [not erased] * len(SAID[3:])


def test_an_erased_turn_is_shown_without_contents(folder: Folder) -> None:
    (turn,) = folder.ask("one")
    folder.erase("--turn", turn)
    code, said = safi_command("show", turn, "--store", folder.store)
    assert code == 0
    assert re.findall(r"(?m)^ *(Question|Answer|Reason) +erased *$", said) == ["Question", "Answer", "Reason"]
    assert said.count("erased") == 3 + len(THREE.values)
    assert "score 7 of 10" in said


def test_a_memory_key_is_erased(folder: Folder) -> None:
    ids = folder.ask("one", "two")
    folder.ask("three", key="another")
    code, said = folder.erase("--key", "someone")
    assert (code, said.splitlines()[0]) == (0, "2 turns erased, in 2 lines of the log.")
    assert (found(folder.path, "one", "two"), len(found(folder.path, "three"))) == ([], len(SAID))
    folder.verify()
    folder.replay()
    assert folder.erase("--key", "someone")[1].splitlines()[0] == (
        "0 turns erased, in 0 lines of the log, 2 turns were erased before."
    )
    assert folder.erase("--turn", ids[0])[1].startswith("0 turns erased")
    assert folder.erase("--key", "nobody") == (
        0,
        f"0 turns erased, in 0 lines of the log.\n{LEFT}",
    )
    assert folder.verify()[0].startswith(f"{folder.log}: 4 lines")


def test_the_key_of_an_erased_person_can_be_used_again(folder: Folder) -> None:
    folder.ask("one")
    folder.erase("--key", "someone")
    folder.ask("two")
    assert (found(folder.path, "one"), len(found(folder.path, "two"))) == ([], len(SAID))
    folder.verify()
    folder.replay()


def test_turns_of_some_age_are_erased(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr("safi_agent.store.store.time.time", lambda: now - 86400 * 31)
    folder.ask("one")
    monkeypatch.setattr("safi_agent.store.store.time.time", lambda: now - 86400 * 29)
    folder.ask("two")
    folder.ask("three", key="another")
    monkeypatch.undo()
    assert folder.erase("--older-than", "30d")[1].splitlines()[0] == "1 turn erased, in 1 line of the log."
    assert (found(folder.path, "one"), len(found(folder.path, "two"))) == ([], len(SAID))
    assert folder.erase("--older-than", "4w", "--key", "another")[1].startswith("1 turn erased")
    assert (found(folder.path, "three"), len(found(folder.path, "two"))) == ([], len(SAID))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "expected either turn_ids, or key, older_than or both."),
        (["--turn", "a", "--key", "b"], "expected either turn_ids, or key, older_than or both."),
        (
            ["--older-than", "soon"],
            "--older-than: expected a whole number and one of the units h, d and w, got 'soon'.",
        ),
        (["--turn", "unknown"], "turn_id: expected the id of a turn in this store, got 'unknown'."),
    ],
)
def test_what_is_not_clear_is_refused_before_anything_is_changed(
    arguments: list[str], said: str, folder: Folder
) -> None:
    (turn,) = folder.ask("one")
    code, output = folder.erase(*arguments, *(["--turn", turn] if "unknown" in arguments else []))
    assert code == 2
    assert output.startswith(f"safi erase: {said}")
    assert len(found(folder.path, "one")) == len(SAID)


def test_a_failed_audit_and_its_repetition_are_erased_together(folder: Folder) -> None:
    (turn,) = folder.ask("one", model=model(conscience=ValueError("no")), audit_attempts=1)
    safi = folder.make(model())
    assert safi.reaudit() == 1
    safi.close()
    assert folder.erase("--turn", turn)[1].startswith("2 turns erased, in 2 lines of the log.")
    assert found(folder.path, "one") == []
    folder.verify()
    folder.replay()


def test_a_repetition_that_is_added_while_its_turn_is_erased_is_erased_too(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It copies the contents under an id that was not known when the turns were chosen."""
    (turn,) = folder.ask("one", model=model(conscience=ValueError("no")), audit_attempts=1)

    def erase_later(store: Store, ids: Iterable[str], timestamp: str) -> int:
        ids = list(ids)
        safi = folder.make(model())
        assert safi.reaudit() == 1
        safi.close()
        return erase_turns(store, ids, timestamp)

    monkeypatch.setattr("safi_agent.erasure.erase_turns", erase_later)
    assert folder.erase("--turn", turn)[1].startswith("2 turns erased, in 2 lines of the log.")
    assert found(folder.path, "one") == []
    folder.verify()
    folder.replay()


def test_a_failed_audit_that_was_erased_is_not_repeated(folder: Folder) -> None:
    (turn,) = folder.ask("one", model=model(conscience=ValueError("no")), audit_attempts=1)
    folder.erase("--turn", turn)
    safi = folder.make(model())
    assert (safi.reaudit(), safi.reaudit([turn])) == (0, 0)


def test_refused_turns_and_turns_without_a_draft_are_erased(folder: Folder) -> None:
    (refused,) = folder.ask("one", model=model(will=VIOLATION))
    safi = folder.make(model(intellect=ValueError("no")))
    with pytest.raises(Exception, match="ValueError"):
        ask(safi, "two")
    safi.close()
    assert folder.erase("--key", "someone")[1].startswith("2 turns erased, in 2 lines of the log.")
    assert found(folder.path, "one", "two") == []
    assert safi_command("show", refused, "--store", folder.store)[0] == 0
    folder.verify()
    folder.replay()


def test_a_turn_is_erased_while_it_is_audited_and_while_it_waits(folder: Folder) -> None:
    begun, go_on = threading.Event(), threading.Event()
    sound = model()

    def slow(text: str) -> Any:
        begun.set()
        assert go_on.wait(30)
        return sound.conscience(text)

    safi = folder.make(model(conscience=slow))
    running, also = ask(safi, "one"), ask(safi, "two")
    assert begun.wait(30)
    result = erase(open_store(folder.store), turn_ids=[running, also])
    assert result == Erased(2, 0, 0, ())
    go_on.set()
    safi.close()
    assert found(folder.path, "one", "two") == []
    lines = [json.loads(line) for line in folder.log.read_bytes().splitlines()]
    assert sorted((line.get("auditStatus", ""), line.get("erased", "")) for line in lines if "turn" in line) == [
        ("failed", None),
        ("failed", None),
    ]
    folder.verify()
    folder.replay()
    code, said = safi_command("report", str(folder.log), "--out", str(folder.path / "report.html"))
    assert code == 0
    assert "2 turns" in said


def test_a_commit_that_was_computed_before_the_erasure_is_computed_again(folder: Folder) -> None:
    go_on = threading.Event()
    safi = folder.make(model(conscience=lambda _: go_on.wait(30)))
    turn = ask(safi, "one")
    store = safi._auditor.store
    row = {"value": "Truth", "score": 1.0, "confidence": 1.0, "reason": words("one")[7]}
    store.save_ledger(turn, [row] * 3, None)
    (batch,) = store.load_ready(["someone"], {})
    prepared = prepare_batch(batch, safi._auditor.plan.commit_telemetry().compute)
    assert words("one")[7] in prepared.rows[0]["text"]
    assert erase_turns(store, [turn], "2026-03-01T08:00:00Z") == 1
    assert store.commit([prepared]) == {}
    go_on.set()
    safi.close()
    erase(store, turn_ids=[turn])
    assert found(folder.path, "one") == []
    folder.verify()


def test_a_repeated_request_is_not_answered_from_an_erased_turn(folder: Folder) -> None:
    (turn,) = folder.ask("one")
    assert folder.ask("one") == [turn]
    folder.erase("--turn", turn)
    (again,) = folder.ask("one")
    assert again != turn
    folder.verify()


def test_the_id_of_an_erasure_is_not_the_id_of_a_request(folder: Folder) -> None:
    (turn,) = folder.ask("one")
    folder.erase("--turn", turn)
    own = json.loads(folder.log.read_bytes().splitlines()[-1])["turnId"]
    safi = folder.make(model())
    config: Any = {"configurable": {"safi_turn_id": own}}
    assert safi.invoke(words("two")[3], config).response_metadata["safi"]["turnId"] != own
    safi.close()
    folder.verify()


def test_turns_without_a_log_and_in_memory(make: Callable[..., SafiChain], tmp_path: Path) -> None:
    for store in (f"sqlite:///{tmp_path}/safi.db", None):
        safi = make(model(), store=store, log=None)
        turn = ask(safi, "one")
        safi.drain()
        with pytest.raises(TypeError, match="turn_ids: expected a list"):
            safi.erase(turn)
        assert safi.erase([turn]) == Erased(1, 0, 0, ())
        assert safi.erase(key="someone", older_than=timedelta(0)) == Erased(0, 1, 0, ())
        assert found(tmp_path, "one") == []
        assert safi.audit(turn).record["userPrompt"] == ""


def test_a_copy_of_before_the_erasure_is_verified_and_its_contents_are_reported(folder: Folder, tmp_path: Path) -> None:
    (turn,) = folder.ask("one")
    content = folder.log.read_bytes()
    folder.erase("--turn", turn)
    lines = folder.log.read_bytes().splitlines(True)
    folder.log.write_bytes(content + lines[1])
    with_store, _ = folder.verify()
    assert with_store.splitlines()[1] == (
        "1 line with contents that were erased in the store: repeat 'safi erase', and replace copies of the log by new "
        "ones."
    )


def test_contents_that_somebody_erased_in_the_log_alone_are_a_fault(folder: Folder) -> None:
    first, second = folder.ask("one", "two")
    before = folder.log.read_bytes().splitlines(True)
    folder.erase("--turn", first)
    folder.erase("--turn", second)
    after = folder.log.read_bytes().splitlines(True)
    folder.log.write_bytes(b"".join([before[0], *after[1:]]))
    folder.verify()
    folder.log.write_bytes(b"".join([*after[:2], *after[3:]]))
    for also in (["--store", folder.store], ["--without-store"], ["--public-key", str(folder.path / "key.pub")]):
        code, said = safi_command("verify", str(folder.log), *also)
        assert code == 1
        assert f"{folder.log}:1: has no contents, but no line of the log records that turn '{first}' was erased" in said


def test_a_log_that_was_moved_away_is_reported_and_erased_once_it_is_back(folder: Folder) -> None:
    (turn,) = folder.ask("one")
    moved = folder.log.rename(folder.path / "moved")
    code, said = folder.erase("--turn", turn)
    assert code == 1
    assert f"safi erase: contents are left. The log {folder.log}: it was written by this store, and does not" in said
    assert not folder.log.exists()
    assert open_store(folder.store).leases.take_over("three", set()) == []  # an open erasure is nobody's turn
    moved.rename(folder.log)
    assert folder.verify()[0].splitlines()[1].startswith("1 line with contents that were erased in the store")
    assert folder.erase("--turn", turn)[1].startswith("0 turns erased, in 1 line of the log, 1 turn")
    assert found(folder.path, "one") == []
    folder.verify()
    assert open_erasures(open_store(folder.store)) == []


def test_a_log_that_cannot_be_written_is_reported(folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
    (turn,) = folder.ask("one")
    key = Path(f"{folder.log}.key")
    content = key.read_bytes()
    key.unlink()
    code, said = folder.erase("--turn", turn)
    assert code == 1
    assert "the record of the erasure could not be written; the logger 'safi_agent' has the reason." in said
    assert "the key with which it was begun is missing" in caplog.text
    assert words("one")[3].encode() in folder.log.read_bytes()
    key.write_bytes(content)
    key.chmod(0o600)
    assert folder.erase("--turn", turn)[0] == 0
    assert found(folder.path, "one") == []
    folder.verify()


def erase_each_other(safi: SafiChain, url: str, prompts: Sequence[str]) -> None:
    """Answer all prompts, and erase each other turn as soon as it was answered; then close the chain."""
    store, ids = open_store(url), list[str]()
    with ThreadPoolExecutor(1) as pool:
        answering = pool.submit(lambda: [ids.append(ask(safi, prompt)) for prompt in prompts])
        while not answering.done():
            assert erase(store, turn_ids=ids[::2]).unfinished == ()
            time.sleep(0.02)  # without a pause, turns that wait for the lock of the store are never served
        answering.result()
    safi.close()
    assert erase(store, turn_ids=ids[::2]).unfinished == ()


@pytest.mark.slow
def test_turns_are_erased_while_others_are_answered(folder: Folder) -> None:
    """A chain writes to a log that is rotated, and each other turn is erased as soon as it was answered."""
    turns = [f"t{n}" for n in range(40)]
    erase_each_other(folder.make(model(), log_max_bytes=4096), folder.store, turns)
    assert found(folder.path, *turns[::2]) == []
    assert set(found(folder.path, *turns[1::2])) == {word for turn in turns[1::2] for word in words(turn)}
    folder.verify()
    folder.replay()


def test_two_erasures_at_once_complete_each_other(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second begins after the first has read the log, and ends after it."""
    first, second = folder.ask("one", "two")
    store = open_store(folder.store)
    purge = store.database.purge
    results: list[Erased] = []

    def purge_and_erase_more() -> None:
        purge()
        monkeypatch.setattr(store.database, "purge", purge)
        erase_turns(store, [second], "2026-03-01T08:00:00Z")

    monkeypatch.setattr(store.database, "purge", purge_and_erase_more)
    results.append(erase(store, turn_ids=[first]))
    assert len(open_erasures(store)) == 1
    results.append(erase(store, turn_ids=[second]))
    assert results == [Erased(1, 0, 1, ()), Erased(0, 1, 1, ())]
    assert found(folder.path, "one", "two") == []
    folder.verify()


def test_a_copied_folder_is_verified_as_a_copy_before_and_after(folder: Folder, tmp_path_factory: Any) -> None:
    (turn,) = folder.ask("one")
    for n, erased in enumerate([False, True]):
        if erased:
            folder.erase("--turn", turn)
        copy = Path(shutil.copytree(folder.path, tmp_path_factory.mktemp("copies") / str(n)))
        code, said = safi_command("verify", str(copy / "log.json"), "--store", f"sqlite:///{copy}/safi.db")
        assert (code, "this is a copy, or it was moved" in said) == (0, True)
        assert ("1 line erased" in said) == erased
        assert bool(found(copy, "one")) != erased


def test_a_store_that_is_read_meanwhile_is_reported(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader of an earlier state keeps the write-ahead log, and thus the words, in place."""
    (turn,) = folder.ask("one")
    monkeypatch.setattr("safi_agent.store.timeout_budget.TimeoutBudget.__init__.__defaults__", (0.5,))
    with closing(sqlite3.connect(folder.path / "safi.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM safi_turns").fetchone()
        code, said = folder.erase("--turn", turn)
        assert code == 1
        assert "contents are left. Free space in the files of the store" in said
        assert found(folder.path, "one")
    assert folder.erase("--turn", turn)[0] == 0
    assert found(folder.path, "one") == []


def test_the_ways_to_choose_turns(tmp_path: Path) -> None:
    store: Store = open_store(f"sqlite:///{tmp_path}/safi.db")
    for wrong in ({}, {"turn_ids": [], "key": "k"}, {"turn_ids": ["a"], "older_than": timedelta(1)}):
        with pytest.raises(ValueError, match="expected either turn_ids, or key, older_than or both"):
            erase(store, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="older_than: expected a duration of at least 0"):
        erase(store, older_than=timedelta(-1))
    with pytest.raises(UnknownTurnError):
        erase(store, turn_ids=["a"])
    assert erase(store, key="k", older_than=timedelta(0)) == Erased(0, 0, 0, ())


def test_a_full_file_that_was_moved_away_leaves_the_erasure_open(folder: Folder, tmp_path_factory: Any) -> None:
    first = folder.ask("one", "two", "three", "four", log_max_bytes=4096)[0]
    folder.ask("five", log_max_bytes=4096)
    full, moved = Path(f"{folder.log}.1"), tmp_path_factory.mktemp("archive") / "full"
    full.rename(moved)
    code, said = folder.erase("--turn", first)
    assert code == 1
    assert f"The log {folder.log}: it does not contain the lines of 1 erased turn any more" in said
    moved.rename(full)
    assert folder.erase("--turn", first)[0] == 0
    assert found(folder.path, "one") == []
    folder.verify()


def test_a_full_file_of_before_the_erasure_that_came_back_is_erased(folder: Folder) -> None:
    first = folder.ask("one", "two", "three", "four", log_max_bytes=4096)[0]
    folder.ask("five", log_max_bytes=4096)
    full = Path(f"{folder.log}.1")
    content = full.read_bytes()
    folder.erase("--turn", first)
    full.write_bytes(content)
    assert folder.erase("--turn", first)[:1] == (0,)
    assert found(folder.path, "one") == []
    folder.verify()


def test_a_log_that_was_continued_at_another_path_is_erased_and_verified(folder: Folder) -> None:
    (first,) = folder.ask("one")
    other = folder.path / "b.json"
    shutil.copy(folder.log, other)
    shutil.copy(f"{folder.log}.key", f"{other}.key")
    folder.ask("two", log=other)
    assert folder.erase("--turn", first)[0] == 0
    assert found(folder.path, "one") == []
    for log in (folder.log, other):
        code, said = safi_command("verify", str(log), "--store", folder.store)
        assert code == 0, said


def locked(*_: Any) -> Any:
    """A function of the store that fails."""
    raise OperationalError("SELECT secret", None, sqlite3.OperationalError("database is locked"))


@pytest.mark.parametrize(
    "function",
    [
        "log.erasure.find_erased",
        "log.erasure.flush",
        "log.erasure.open_erasures",
        "erasure.open_erasures",
        "store.Store.mark_settled",
    ],
)
def test_a_store_that_fails_after_something_was_erased_is_reported(
    function: str, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    (turn,) = folder.ask("one")
    with monkeypatch.context() as patch:
        patch.setattr(f"safi_agent.{function}", locked)
        code, said = folder.erase("--turn", turn)
        assert code == 1
        assert said.startswith("1 turn erased")
        assert "contents are left." in said
        assert "(OperationalError)" in said
        assert "secret" not in said
    assert len(open_erasures(open_store(folder.store))) == 1
    assert folder.erase("--turn", turn)[0] == 0
    assert found(folder.path, "one") == []
    folder.verify()


def test_a_store_that_fails_in_the_second_transaction_is_reported(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.ask("one", "two", "three")
    with monkeypatch.context() as patch:
        patch.setattr("safi_agent.store.erasure.AT_ONCE", 1)
        add = store_erasure._add_records
        calls: list[int] = []

        def fail_later(*arguments: Any) -> None:
            calls.append(1)
            locked() if len(calls) == 2 else add(*arguments)

        patch.setattr("safi_agent.store.erasure._add_records", fail_later)
        code, said = folder.erase("--key", "someone")
    assert (code, said.splitlines()[0]) == (1, "1 turn erased, in 1 line of the log.")
    assert "The store: not all turns could be erased (OperationalError)." in said
    assert folder.erase("--key", "someone")[0] == 0
    assert found(folder.path, "one", "two", "three") == []
    folder.verify()


def test_a_store_that_fails_before_anything_is_erased_changes_nothing(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    (turn,) = folder.ask("one")
    monkeypatch.setattr("safi_agent.store.erasure._add_records", locked)
    code, said = folder.erase("--turn", turn)
    assert (code, said[:48]) == (2, "safi erase: The store failed (OperationalError).")
    assert len(found(folder.path, "one")) == len(SAID)


@pytest.mark.slow
def test_on_postgresql_the_words_are_in_no_table_and_no_file_of_a_table(
    database: str, postgres: Any, folder: Folder
) -> None:
    name, data = database.rpartition("/")[2], postgres.folder / "data" / "base"
    open_store(database)
    for column in ("body", "ledger", "record"):  # otherwise long texts are compressed, and no word of them can be found
        postgres.ask(f"ALTER TABLE safi_turns ALTER COLUMN {column} SET STORAGE EXTERNAL", name)
    safi = folder.make(model(), store=database)
    first, second = ask(safi, "one"), ask(safi, "two")
    safi.drain()
    postgres.ask("CHECKPOINT")
    assert set(found(data, "one", "two")) == set(words("one") + words("two"))
    assert erase(safi._auditor.store, turn_ids=[first]) == Erased(1, 0, 1, ())
    third = ask(safi, "three")
    erase(safi._auditor.store, key="someone", older_than=timedelta(0))
    safi.close()
    erase(open_store(database), turn_ids=[second, third])
    postgres.ask("CHECKPOINT")
    assert found(data, "one", "two", "three") == []
    assert found(folder.path, "one", "two", "three") == []
    rows = postgres.ask(
        "SELECT t::text FROM safi_turns AS t UNION ALL SELECT j::text FROM procrastinate_jobs AS j", name
    )
    assert not re.search("by-someone", str(rows))
    folder.store = database
    folder.verify()
    folder.replay()


@pytest.mark.slow
def test_on_postgresql_a_turn_is_erased_while_it_waits_for_a_worker(database: str, folder: Folder) -> None:
    safi = folder.make(model(), store=database, audit_mode="worker")
    first, second = ask(safi, "one"), ask(safi, "two")
    store = open_store(database)
    assert erase(store, turn_ids=[first]) == Erased(1, 0, 0, ())
    folder.make(model(), store=database)
    assert safi.drain(30).left == 0
    records = store.load_records([first, second])
    assert [(records[turn]["auditStatus"], records[turn].get("erased", "")) for turn in (first, second)] == [
        ("failed", None),
        ("complete", ""),
    ]
    folder.store = database
    folder.verify()
    folder.replay()


@pytest.mark.slow
def test_on_postgresql_turns_are_erased_while_others_are_answered(database: str, folder: Folder) -> None:
    turns = [f"t{n}" for n in range(30)]
    erase_each_other(folder.make(model(), store=database), database, turns)
    assert found(folder.path, *turns[::2]) == []
    folder.store = database
    folder.verify()
    folder.replay()


@pytest.mark.slow
def test_on_postgresql_an_open_transaction_that_keeps_the_words_is_reported(
    database: str,
    postgres: Any,
    folder: Folder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("safi_agent.store.postgres.PURGE_TIMEOUT", 0.3)
    name, data = database.rpartition("/")[2], postgres.folder / "data" / "base"
    store = open_store(database)
    for column in ("body", "ledger", "record"):
        postgres.ask(f"ALTER TABLE safi_turns ALTER COLUMN {column} SET STORAGE EXTERNAL", name)
    safi = folder.make(model(), store=database)
    turn = ask(safi, "one")
    safi.close()
    earlier = create_engine(database, isolation_level="REPEATABLE READ")
    with earlier.connect() as reader:
        reader.execute(text("SELECT count(*) FROM safi_version")).all()
        (sentence,) = erase(store, turn_ids=[turn]).unfinished
        assert re.search(r"[1-9]\d* earlier versions of rows of safi_turns are kept, because a transaction", sentence)
        assert "EarlierRowsKeptError" not in sentence
        postgres.ask("CHECKPOINT")
        assert found(data, "one")
    earlier.dispose()
    assert len(open_erasures(store)) == 1
    assert erase(store, turn_ids=[turn]).unfinished == ()
    postgres.ask("CHECKPOINT")
    assert found(data, "one") == []
    assert open_erasures(store) == []


@pytest.mark.slow
def test_on_postgresql_no_words_are_in_the_statistics_of_the_planner(
    database: str, postgres: Any, folder: Folder
) -> None:
    name = database.rpartition("/")[2]
    safi = folder.make(model(), store=database)
    turns = [f"t{n}" for n in range(20)]
    for turn in turns:  # short turns: long texts are left out of the statistics in any case
        safi.invoke(f"asked-of-{turn}-by-someone", {"configurable": {"safi_key": "someone"}})
    safi.close()
    postgres.ask("ANALYZE safi_turns", name)  # as the server does by itself from time to time
    columns = postgres.ask("SELECT attname, s::text FROM pg_stats AS s WHERE tablename = 'safi_turns'", name)
    assert "since" in dict(columns)
    assert not re.search("by-someone", str(columns))
