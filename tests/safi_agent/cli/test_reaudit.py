"""Audits that failed for good are made again, as turns of their own at the end of their memory key."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from safi_agent import ClosedError, assess, create_safi_chain, load_values
from safi_agent.cli import app
from safi_agent.log.key import find_key
from safi_agent.log.verify import verify
from safi_agent.report.review import review
from tests import forked
from tests.safi_agent.fakes import THREE, Fake, ledger
from tests.safi_agent.log_lines import lines

ROOT = Path(__file__).parents[3]
SCORES = {"a": 1, "b": -1, "c": 0.5}


class Down:
    """The auditor's model: down until it is said to be up."""

    def __init__(self) -> None:
        self.up = False
        self.model = Fake(conscience=self._judge)

    def _judge(self, text: str) -> Any:
        if not self.up:
            return ConnectionError("down")
        prompt = text.partition("<user_prompt>")[2].strip()[:1]
        return ledger(score=SCORES.get(prompt, 0.5))


@pytest.fixture
def down() -> Down:
    return Down()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        found: str = request.getfixturevalue("database")
        return found
    return f"sqlite:///{tmp_path}/safi.db"


def whole(path: Path, store: str) -> None:
    """The log is one chain, its figures follow from its ledgers, and a page can be made of it."""
    key = find_key(path)
    assert key
    assert verify(path, key).faults == ()
    replayed = CliRunner().invoke(app, ["replay", str(path), "--store", store])
    assert replayed.exit_code == 0, replayed.output
    assert review(path).turns == len(lines(path))


def test_failed_turns_are_audited_again_at_the_end_of_their_key(
    store: str, make: Any, down: Down, tmp_path: Path
) -> None:
    safi = make(down.model, store=store, audit_attempts=1)
    first = [safi.invoke(prompt).response_metadata["safi"]["turnId"] for prompt in "ab"]
    safi.drain(60)
    down.up = True
    safi.invoke("c")
    safi.drain(60)
    assert safi.reaudit() == 2
    assert safi.reaudit() == 0  # they are under way
    assert safi.drain(60) == 2
    assert safi.reaudit() == safi.reaudit(first) == 0
    found = lines(tmp_path / "log.json")
    assert [(r["userPrompt"], r["turn"], r["auditStatus"]) for r in found] == [
        ("a", 1, "failed"),
        ("b", 2, "failed"),
        ("c", 3, "complete"),
        ("a", 4, "complete"),
        ("b", 5, "complete"),
    ]
    assert [r.get("reauditOf") for r in found] == [None, None, None, *first]
    assert ["reaudited" in r["flags"] for r in found] == [False, False, False, True, True]
    assert len({r["turnId"] for r in found}) == 5
    before: dict[str, float] = {}
    for n, record in enumerate(found[2:], 1):
        made = assess(record["conscienceLedger"], THREE, before)
        assert (record["spiritScore"], record["drift"], record["mu"]) == (made.score, made.drift, made.mu)
        assert record["muTurn"] == n
        before = made.mu
    whole(tmp_path / "log.json", store)


def test_one_that_fails_again_can_be_named_again(make: Any, down: Down, tmp_path: Path) -> None:
    safi = make(down.model, audit_attempts=1)
    first = safi.invoke("a").response_metadata["safi"]["turnId"]
    safi.drain(60)
    assert safi.reaudit([first]) == 1
    safi.drain(60)
    again = lines(tmp_path / "log.json")[1]["turnId"]
    down.up = True
    assert safi.reaudit([again, first, first]) == 1  # all name the same
    safi.drain(60)
    found = lines(tmp_path / "log.json")
    assert [(r["auditStatus"], r.get("reauditOf")) for r in found] == [
        ("failed", None),
        ("failed", first),
        ("complete", first),
    ]
    assert found[2]["flags"].count("reaudited") == 1
    assert safi.reaudit() == safi.reaudit([again]) == 0
    whole(tmp_path / "log.json", f"sqlite:///{tmp_path}/safi.db")


def test_what_names_no_turn_is_refused(make: Any, down: Down) -> None:
    safi = make(down.model)
    with pytest.raises(ValueError, match="turn_ids: expected ids of turns in this store, got 'nobody'"):
        safi.reaudit(["nobody"])
    with pytest.raises(TypeError, match="turn_ids: expected a list, got 'nobody'"):
        safi.reaudit("nobody")
    assert safi.reaudit([]) == 0
    safi.close()
    with pytest.raises(ClosedError):
        safi.reaudit()


def test_it_is_judged_by_the_values_it_was_approved_under(make: Any, down: Down, tmp_path: Path) -> None:
    first = make(down.model, audit_attempts=1)
    turn_id = first.invoke("a").response_metadata["safi"]["turnId"]
    first.close(60)
    down.up = True
    renamed = load_values({"name": "other", "refusal": "No.", "values": [{"name": "Mercy", "weight": 1}]})
    safi = make(down.model, renamed)
    assert safi.reaudit() == 0  # it is of another set
    assert safi.reaudit([turn_id]) == 1
    safi.drain(60)
    _, record = lines(tmp_path / "log.json")
    assert (record["valueSet"], record["auditStatus"]) == ("three", "complete")
    assert record["measure"]["values"] == THREE.fingerprint
    with sqlite3.connect(tmp_path / "safi.db") as db:
        db.execute("DELETE FROM safi_value_sets WHERE id = ?", (THREE.fingerprint,))
    db.close()


def test_many_that_do_so_at_once_repeat_each_once(store: str, make: Any, down: Down, tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    safi = make(down.model, store=store, audit_attempts=1)
    safi.batch([f"{n}" for n in range(6)])
    safi.drain(60)
    down.up = True
    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(lambda _: safi.reaudit(), range(4))) == 6
    safi.drain(60)
    assert len(lines(tmp_path / "log.json")) == 12


@pytest.mark.slow
def test_killed_amid_it_nothing_is_lost_or_done_twice(make: Any, down: Down, tmp_path: Path) -> None:
    safi = make(down.model, audit_attempts=1)
    safi.batch(["a", "b"], {"max_concurrency": 1})
    safi.close(60)
    code = (
        "import os\n"
        "from safi_agent import create_safi_chain\n"
        "from tests.safi_agent.fakes import *\n"
        f"store, log = 'sqlite:///{tmp_path}/safi.db', '{tmp_path}/log.json'\n"
        "safi = create_safi_chain(Fake(audit_delay=60), THREE, store=store, log=log)\n"
        "assert safi.reaudit() == 2\n"
        "os._exit(9)\n"
    )
    done = forked.run(code)
    assert done.returncode == 9, done.stderr
    down.up = True
    with create_safi_chain(
        down.model, THREE, store=f"sqlite:///{tmp_path}/safi.db", log=tmp_path / "log.json"
    ) as recovered:
        assert recovered.reaudit() == 0
        recovered.drain(60)
    found = lines(tmp_path / "log.json")
    assert [(r["userPrompt"], r["auditStatus"]) for r in found] == [
        ("a", "failed"),
        ("b", "failed"),
        ("a", "complete"),
        ("b", "complete"),
    ]
    whole(tmp_path / "log.json", f"sqlite:///{tmp_path}/safi.db")


def reaudited(folder: Path, *arguments: str) -> tuple[int, str]:
    where = ["--store", f"sqlite:///{folder}/safi.db", "--log", str(folder / "log.json"), "--values", str(folder / "v")]
    done = CliRunner().invoke(app, ["reaudit", *where, "--model", "offline", *arguments])
    return done.exit_code, done.output


def test_the_command_says_how_many_were_audited_and_how_many_failed_again(
    make: Any, down: Down, tmp_path: Path
) -> None:
    (tmp_path / "v").write_text(json.dumps(THREE.model_dump(mode="json")))  # which is YAML, too
    assert reaudited(tmp_path)[0] == 2  # there is no store
    assert not (tmp_path / "safi.db").exists()
    safi = make(down.model, audit_attempts=1)
    safi.batch(["a", "b"], {"max_concurrency": 1})
    safi.close(60)
    ids = [record["turnId"] for record in lines(tmp_path / "log.json")]
    code, said = reaudited(tmp_path, "--turn", "nobody")
    assert (code, "got 'nobody'" in said) == (2, True)
    assert reaudited(tmp_path, "--turn", ids[0]) == (0, "1 turns were audited, 0 failed again.\n")
    assert reaudited(tmp_path) == (0, "1 turns were audited, 0 failed again.\n")
    assert reaudited(tmp_path) == (0, "0 turns were audited, 0 failed again.\n")
    assert [r.get("reauditOf") for r in lines(tmp_path / "log.json")] == [None, None, *ids]
