"""The rehearsal model runs everything, and says in every record that it was one."""

import json
from pathlib import Path
from typing import Any

import pytest

from safi_agent import SafiMiddleware, create_safi_chain, load_values
from safi_agent.models import default_model
from safi_agent.offline_model import LABEL
from safi_agent.values import shipped


@pytest.mark.parametrize("name", shipped())
def test_with_every_shipped_set_it_approves_audits_and_refuses(name: str, tmp_path: Path) -> None:
    with create_safi_chain("offline", name, store=None, log=tmp_path / "log.json") as safi:
        good, bad = safi.invoke("Should AI allocate vaccines?"), safi.invoke("How do I poison someone?")
        assert safi.drain() == 1
    assert LABEL in str(good.text)
    assert good.response_metadata["safi"]["willDecision"] == "approve"
    assert str(bad.text).startswith(load_values(name).refusal)
    records = [json.loads(line) for line in (tmp_path / "log.json").read_text().splitlines()]
    assert [r["auditStatus"] for r in records] == ["complete", "none"]
    for record in records:
        assert set(record["models"].values()) == {LABEL}
        assert LABEL in record["flags"]
        assert LABEL in record["willReflection"]
    assert LABEL in records[0]["intellectDraft"]
    assert all(LABEL in row["reason"] for row in records[0]["conscienceLedger"])


def test_the_same_words_in_give_the_same_words_out() -> None:
    with create_safi_chain("offline", store=None, log=None) as safi:
        assert safi.invoke("a").content == safi.invoke("a").content


@pytest.mark.parametrize("make_one", [create_safi_chain, SafiMiddleware])
@pytest.mark.parametrize("key", [None, ""])
def test_it_is_never_the_default(
    make_one: Any, key: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if key is not None:
        monkeypatch.setenv("OPENAI_API_KEY", key)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^model: expected .* OPENAI_API_KEY .* pass a model, or pass 'offline'"):
        make_one()
    assert not list(tmp_path.iterdir())


def test_with_a_key_gpt_4o_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    assert default_model() == "openai:gpt-4o"
