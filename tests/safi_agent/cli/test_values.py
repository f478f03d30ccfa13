"""``safi values``: what it says and how it ends."""

from pathlib import Path

from typer.testing import CliRunner

from safi_agent.cli import app
from safi_agent.values import shipped


def check(file: Path | str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["values", "check", str(file)])
    return done.exit_code, done.output


def test_a_sound_set_is_shown_with_the_weights_that_will_be_used(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\nvalues:\n- {name: Ruhe, weight: 0.5}\n- {name: Mut}\n- {name: No Harm, weight: 0}\n")
    code, said = check(file)
    assert code == 0
    assert said.splitlines() == [
        "  0.500  Ruhe",
        "  0.500  Mut",
        "   gate  No Harm",
        f"{file}: 'mine', 2 weighted values and 1 hard gates.",
    ]


def test_a_shipped_set_is_known_by_its_name() -> None:
    code, said = check("unesco")
    assert code == 0
    assert said.splitlines()[-1] == "unesco: 'unesco', 15 weighted values and 0 hard gates."
    code, said = check("unseco")
    assert code == 2
    assert "['civic', 'professional', 'unesco']" in said


def test_every_error_has_its_place(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\nvalues:\n- {name: Ruhe, weigth: 0.5}\n- {weight: 2}\n")
    code, said = check(file)
    assert code == 1
    assert said.splitlines() == [
        f"{file}:3: Value 1 ('Ruhe'), weigth: there is no such setting; did you mean 'weight'?",
        f"{file}:4: Value 2, name: is missing.",
        f"{file}:4: Value 2, weight: expected a number of at most 1, got 2.",
        f"{file}: 3 errors.",
    ]


def test_a_file_that_cannot_be_read_is_another_matter(tmp_path: Path) -> None:
    assert check(tmp_path / "nowhere.yaml")[0] == 2
    (tmp_path / "odd.yaml").write_bytes(b"\xff\xfe\xff")
    assert check(tmp_path / "odd.yaml")[0] == 2


def test_the_shipped_sets_are_listed_in_60_columns() -> None:
    done = CliRunner().invoke(app, ["values", "list"], env={"COLUMNS": "60"})
    assert done.exit_code == 0
    assert [line.partition(":")[0] for line in done.output.splitlines() if ": " in line] == [*shipped()]
    assert "5 weighted values, 1 hard gate" in done.output
    assert max(map(len, done.output.splitlines())) <= 60
