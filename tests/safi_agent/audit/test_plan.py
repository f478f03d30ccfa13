"""What a plan does once, so that no answer waits for it."""

from typing import Any

import pytest

from safi_agent import ValueSet


def test_no_answer_waits_for_the_values_to_be_fingerprinted(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    safi = make()
    made: list[str] = []
    monkeypatch.setattr(ValueSet, "fingerprint", property(lambda values: made.append(values.name) or ""))
    safi.batch(["a", "b"])
    assert safi.drain() == 2
    assert not made
