"""Short texts in place of the plays and the standard library."""

import pytest

from experiments.language.text import shakespeare


@pytest.fixture(autouse=True)
def short_texts(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    verse = tmp_path_factory.mktemp("verse") / "tinyshakespeare.txt"
    verse.write_bytes(b"Tomorrow, and tomorrow, and tomorrow, creeps in this petty pace from day to day\n" * 60)
    monkeypatch.setattr("experiments.language.text.MODULES", ("heapq",))
    monkeypatch.setattr("experiments.finetune.texts.shakespeare", lambda _: shakespeare(verse))
