"""The commands that sign, prove and verify with a public key: what they say and how they end."""

import json
import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from safi_agent.cli import app
from safi_agent.log import flush, writer
from safi_agent.log.signing_keys import read_public_keys
from safi_agent.store import Commit, Store, open_store

LOG = "saf-spirit-log.json"


def safi(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, arguments)
    return done.exit_code, done.output


def add(store: Store, *turns: str) -> None:
    for turn in turns:
        store.add_turn({"id": turn, "key": "k", "valueSet": "s"}, "v", str(Path(LOG).resolve()), audit=False)
    store.commit_ready(["k"], lambda row, before: Commit({"turnId": row.id, "userPrompt": "x" * 60}, None))
    assert flush(store, str(Path(LOG).resolve()))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The working folder has a store, a signed log of three lines, and the checkpoint of the first two."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(writer, "_signatures", writer._Signatures())
    assert safi("keys", "example.com/safi", "--out", "sign.key")[0] == 0
    monkeypatch.setenv("SAFI_SIGNING_KEY_FILE", "sign.key")
    store = open_store("sqlite:///safi.db")
    store.save_values("v", "{}")
    add(store, "t1", "t2")
    shutil.copy(f"{LOG}.checkpoint", "earlier.checkpoint")
    add(store, "t3")
    return store


@pytest.fixture
def stranger(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working folder has copies of the log and of what may be known to everyone."""
    monkeypatch.delenv("SAFI_SIGNING_KEY_FILE")
    Path("stranger").mkdir()
    for file in (LOG, f"{LOG}.checkpoint", "sign.key.pub", "earlier.checkpoint"):
        shutil.copy(file, "stranger")
    monkeypatch.chdir("stranger")


def test_keys_are_written_to_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, said = safi("keys", "example.com/safi")
    assert code == 0
    assert "safi-signing.key, readable by you alone; processes sign with it if SAFI_SIGNING_KEY_FILE names it." in (
        said.replace("\n", "")
    )
    assert read_public_keys(Path("safi-signing.key.pub"))[0].name == "example.com/safi"
    before = Path("safi-signing.key").read_bytes()
    assert safi("keys", "example.com/safi") == (2, "safi keys: expected a new file, but 'safi-signing.key' exists.\n")
    assert safi("keys", "a b", "--out", "other")[0] == 2
    assert Path("safi-signing.key").read_bytes() == before
    assert not Path("other").exists()


@pytest.mark.usefixtures("stranger")
def test_a_log_is_verified_with_a_public_key_alone() -> None:
    (key,) = read_public_keys(Path("sign.key.pub"))
    code, said = safi("verify", "--public-key", "sign.key.pub", "--checkpoint", "earlier.checkpoint")
    origin = Path(f"{LOG}.checkpoint").read_text().partition("\n")[0]
    assert (code, said) == (
        0,
        f"{LOG}: 3 lines, as they were signed by {key.label} for the log {origin}.\n"
        "They extend the checkpoint in earlier.checkpoint.\n",
    )


@pytest.mark.usefixtures("stranger")
def test_a_change_is_a_fault_and_what_cannot_be_checked_is_none() -> None:
    with_key = ("verify", "--public-key", "sign.key.pub")
    content = Path(LOG).read_text()
    Path(LOG).write_text(content.replace("xx", "xy", 1))
    assert safi(*with_key)[0] == 1
    Path(LOG).write_text("".join(content.splitlines(True)[:2]))
    assert f"{LOG}:3: line 3 is missing at the end\n" in safi(*with_key)[1]
    Path(LOG).write_text(content)
    assert safi(*with_key)[0] == 0
    assert safi("keys", "example.com/safi", "--out", "other.key")[0] == 0
    code, said = safi("verify", "--public-key", "other.key.pub")
    assert (code, "expected a signature by example.com/safi+" in said) == (2, True)
    assert safi("verify", "--public-key", "nowhere")[0] == 2
    assert safi("verify", "--public-key", LOG)[0] == 2
    assert safi("verify", "--checkpoint", "earlier.checkpoint") == (
        2,
        f"safi verify: {LOG}: not checked: expected --public-key with --checkpoint.\n",
    )
    Path(f"{LOG}.checkpoint").unlink()
    assert safi(*with_key)[0] == 2


def test_the_checkpoint_is_printed_and_covers_all_lines(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    note = Path(f"{LOG}.checkpoint").read_text()
    assert safi("checkpoint") == (0, note)
    with monkeypatch.context() as patched:
        patched.delenv("SAFI_SIGNING_KEY_FILE")
        assert safi("checkpoint") == (0, note)
        add(store, "t4")
        code, said = safi("checkpoint")
        assert (code, "saf-spirit-log.json: 1 line without a signature, and no key to sign with: set" in said) == (
            2,
            True,
        )
    code, said = safi("checkpoint")
    assert (code, said.split("\n")[1]) == (0, "4")
    assert Path(f"{LOG}.checkpoint").read_text() == said
    assert safi("checkpoint", "nowhere.json")[0] == 2


def test_lines_of_another_store_are_signed_on_request(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    other = open_store(None)
    other.save_values("v", "{}")
    with monkeypatch.context() as patched:
        patched.delenv("SAFI_SIGNING_KEY_FILE")
        add(other, "o1")
        add(store, "t4")
    code, said = safi("checkpoint")
    assert (code, "it has 5 lines, of which 4 are turns of this store; if another" in said) == (2, True)
    code, said = safi("checkpoint", "--without-store")
    assert (code, said.split("\n")[1]) == (0, "5")
    assert safi("verify", "--public-key", "sign.key.pub")[0] == 0
    Path(LOG).write_text(Path(LOG).read_text() + "{}\n")
    assert safi("checkpoint", "--without-store")[0] == 2


@pytest.mark.usefixtures("stranger")
def test_a_turn_is_proven_to_who_has_the_public_key_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, proof = safi("prove", "t2")
    assert code == 0
    (tmp_path / "reader").mkdir()
    shutil.copy("sign.key.pub", tmp_path / "reader")
    line = Path(LOG).read_text().splitlines()[1]
    monkeypatch.chdir(tmp_path / "reader")
    Path("t2.tlog-proof").write_text(proof)
    code, said = safi("verify-proof", "t2.tlog-proof", "--public-key", "sign.key.pub")
    first, second, _ = said.split("\n")
    assert code == 0
    assert first.startswith("t2.tlog-proof: line 2 of 3 of the log example.com/safi/")
    assert second == line
    assert json.loads(second)["turnId"] == "t2"
    Path("t2.tlog-proof").write_text(proof.replace("index 1", "index 0"))
    code, said = safi("verify-proof", "t2.tlog-proof", "--public-key", "sign.key.pub")
    assert (code, said) == (
        1,
        "safi verify-proof: t2.tlog-proof: proves nothing: the line is not in the log of the checkpoint.\n",
    )
    assert safi("keys", "example.com/safi", "--out", "other.key")[0] == 0
    assert safi("verify-proof", "t2.tlog-proof", "--public-key", "other.key.pub")[0] == 2
    assert safi("verify-proof", "nowhere", "--public-key", "sign.key.pub")[0] == 2


@pytest.mark.usefixtures("stranger")
def test_an_extension_is_proven() -> None:
    code, proof = safi("prove", "--since", "earlier.checkpoint")
    assert code == 0
    Path("proof").write_text(proof)
    code, said = safi("verify-proof", "proof", "--public-key", "sign.key.pub", "--checkpoint", "earlier.checkpoint")
    assert (code, said.startswith("proof: the checkpoint of 3 lines of the log example.com/safi/")) == (0, True)
    code, said = safi("verify-proof", "proof", "--public-key", "sign.key.pub")
    assert (code, "expected the earlier checkpoint with --checkpoint" in said) == (2, True)
    code, said = safi("verify-proof", "proof", "--public-key", "sign.key.pub", "--checkpoint", f"{LOG}.checkpoint")
    assert (code, "with 2 lines to compare, got one of" in said) == (1, True)


@pytest.mark.usefixtures("stranger")
@pytest.mark.parametrize("arguments", [(), ("t1", LOG, "--since", "earlier.checkpoint"), ("t9",), ("--since", LOG)])
def test_what_cannot_be_proven_is_told_in_a_line(arguments: tuple[str, ...]) -> None:
    code, said = safi("prove", *arguments)
    assert (code, said.startswith("safi prove: "), said.count("\n")) == (2, True, 1)


@pytest.mark.skipif(os.name != "posix", reason="other systems have other rights")
@pytest.mark.usefixtures("store")
def test_a_private_key_that_others_can_read_is_refused() -> None:
    Path("sign.key").chmod(0o644)
    code, said = safi("checkpoint")
    assert (code, "SAFI_SIGNING_KEY_FILE: expected 'sign.key' to be readable only by its owner" in said) == (2, True)
