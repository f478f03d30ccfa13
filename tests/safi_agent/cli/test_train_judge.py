"""``safi train-judge``: from labels, a log and a store to a judge, and further."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from safi_agent.calibration.labels import Label, write_labels
from safi_agent.cli import app
from safi_agent.local.card import read_card
from tests.safi_agent.fakes import Fake, ledger
from tests.safi_agent.local.judges import examples
from tests.tiny_encoder import encoder_folder

VALUES = (
    "name: three\nvalues:\n- {name: Truth, weight: 0.5}\n- {name: Care, weight: 0.3}\n- {name: Thrift, weight: 0.2}\n"
)


def train(folder: Path, *arguments: str) -> tuple[int, str]:
    values = folder / "values.yaml"
    values.write_text(VALUES)
    done = CliRunner().invoke(app, ["train-judge", *arguments, "--values", str(values), "--layers", "2"])
    return done.exit_code, " ".join(done.output.split())


def test_labels_win_over_the_audits_of_a_log_and_a_store(make: Any, tmp_path: Path) -> None:
    given = examples(("truth",), count=24)
    write_labels(
        [
            Label(prompt=one.case.prompt, answer=one.case.answer, value="Truth", verdict=verdict)
            for one in given
            for verdict in [("violation" if one.broken else "approve")]
        ],
        tmp_path / "labels.jsonl",
    )
    safi = make(Fake(intellect=lambda _: given[0].case.answer + "\n<reflection>r</reflection>", conscience=ledger()))
    safi.invoke(given[0].case.prompt)
    safi.drain()
    encoder, store = encoder_folder(tmp_path / "encoder"), f"sqlite:///{tmp_path / 'safi.db'}"
    sources = ["--labels", str(tmp_path / "labels.jsonl"), "--log", str(tmp_path / "log.json"), "--store", store]
    code, said = train(tmp_path, str(tmp_path / "judge"), *sources, "--encoder", str(encoder), "--epochs", "3")
    assert code == 0, said
    card, _ = read_card(tmp_path / "judge")
    assert (card.data.human, card.data.audits) == (48, 0 if card.head("care") is None else 2)
    assert "from 48 human labels" in said
    assert "Warning:" in said
    again = train(tmp_path, str(tmp_path / "next"), *sources[:2], "--previous", str(tmp_path / "judge"))
    assert again[0] == 0, again[1]
    assert read_card(tmp_path / "next")[0].previous == read_card(tmp_path / "judge")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected --labels, --log or --store, got none."),
        (("--log", "nowhere.json"), "log: expected an existing file, got 'nowhere.json'."),
        (("--store", "sqlite:///nowhere.db"), "store: expected an existing database"),
    ],
    ids=["nothing", "log", "store"],
)
def test_errors_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, said = train(tmp_path, "judge", "--encoder", "e", *arguments)
    assert code == 2
    assert said.startswith("safi train-judge: ")
    assert message in said
