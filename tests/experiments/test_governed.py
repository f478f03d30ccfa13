"""The demo's conversation shows what it promises."""

from pathlib import Path

import pytest

from experiments import governed


def test_it_shows_a_ledger_a_drift_a_refusal_and_the_log(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    governed.main()
    shown = capsys.readouterr().out
    assert shown.count("approve: ") == 2
    assert "Consent" in shown
    assert "drift no baseline yet" in shown
    assert "drift 0." in shown
    assert "violation: " in shown
    assert all(question in " ".join(shown.split()) for question in governed.QUESTIONS)
    assert len(Path(shown.strip().rpartition(" ")[2]).read_text().splitlines()) == 3
