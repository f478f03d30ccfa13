"""What is done once, so that no answer waits for it."""

from hashlib import sha256
from typing import Any

import pytest

from safi_agent.values import model


def test_no_answer_and_no_audit_waits_for_the_values_to_be_fingerprinted(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    safi = make()
    safi.invoke("a")
    assert safi.drain() == 1
    made: list[bytes] = []
    monkeypatch.setattr(model, "sha256", lambda data: made.append(data) or sha256(data))
    safi.batch(["b", "c"])
    assert safi.drain() == 2
    assert not made
