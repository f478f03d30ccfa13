"""Values: what is taken, and what is refused in which words."""

import math
import sys
import time
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import regex
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from safi_agent import Value, ValueSet, assess, load_values
from safi_agent.values import MOST_VALUES, label, shipped
from safi_agent.values.linting import lint
from safi_agent.values.model import wrong_names


def rows(*weights: float) -> dict[str, object]:
    return {"name": "t", "values": [{"name": f"v{i}", "weight": w} for i, w in enumerate(weights)]}


def test_unesco_has_the_fifteen_principles_of_articles_3_to_17_in_order_and_their_weights_sum_to_1() -> None:
    values = load_values("unesco").values
    assert [v.description[-10:].partition("(")[2] for v in values] == [f"Art. {i})" for i in range(3, 18)]
    assert math.fsum(v.weight for v in values) == 1
    assert len({v.weight for v in values}) == 1


def test_all_shipped_sets_load_and_differ() -> None:
    assert {"unesco", "civic", "professional"} <= set(shipped())
    sets = [load_values(name) for name in shipped()]
    assert all(s.name == name for s, name in zip(sets, shipped(), strict=True))
    assert len({s.fingerprint for s in sets}) == len(sets)


@pytest.mark.parametrize("weights", [(0.5, 0.4), (0.5, 0.500002), (1.0, 1.0)])
def test_weights_that_do_not_sum_to_1_are_refused_unless_normalisation_is_asked_for(weights: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"sum to 1 \(within 1e-06\), got .*normalize=True"):
        load_values(rows(*weights))
    normal = load_values(rows(*weights), normalize=True)
    assert math.isclose(math.fsum(v.weight for v in normal.values), 1, abs_tol=1e-12)


def test_a_value_that_is_not_a_mapping_is_refused() -> None:
    with pytest.raises(ValueError, match=r"values\.0"):
        load_values({"name": "t", "values": ["x"]})


def test_a_millionth_is_forgiven() -> None:
    assert load_values(rows(0.5, 0.5 + 9e-7)).values[1].weight == 0.5 + 9e-7


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20))
def test_normalised_weights_keep_their_ratios(weights: list[float]) -> None:
    made = [v.weight for v in load_values(rows(*weights), normalize=True).values]
    assert math.isclose(math.fsum(made), 1, rel_tol=1e-12)
    assert all(math.isclose(m / made[0], w / weights[0], rel_tol=1e-9) for m, w in zip(made, weights, strict=True))


@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf, True, "x"])
def test_a_weight_that_is_no_weight_is_refused(weight: object) -> None:
    content = {"name": "t", "values": [{"name": "a", "weight": weight}, {"name": "b", "weight": 0.5}]}
    with pytest.raises(ValidationError):
        load_values(content)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Care", "care "),
        ("Non-Harm", "non\u2011harm"),
        ("A  B", "a b"),
        ("\uff23are", "Care"),
        ("Straße", "STRASSE"),
        *(
            ("Care", f"Ca{chr(c)}re")
            for c in (0x200B, 0x34F, 0x115F, 0x17B4, 0x180B, 0x3164, 0xFE0F, 0xE0101, 0x2800, 0xAD)
        ),
        ("Care", "Ca\x08re"),
        ("Café", "Cafe\u034f\u0301"),
    ],
)
def test_names_that_are_one_after_normalisation_are_refused(one: str, other: str) -> None:
    with pytest.raises(ValueError, match="differ after normalisation"):
        ValueSet(name="t", values=(Value(name=one, weight=0.5), Value(name=other, weight=0.5)))


@pytest.mark.slow
def test_no_character_that_unicode_calls_ignorable_or_a_control_tells_two_names_apart() -> None:
    ignorable = regex.compile(r"\p{Default_Ignorable_Code_Point}")
    letters = [chr(c) for c in range(sys.maxunicode + 1)]
    gone = [x for x in letters if ignorable.match(x) or (unicodedata.category(x) == "Cc" and x not in "\t\n\r")]
    assert len(gone) > 4_000
    assert {label(f"Tr{x}uth") for x in gone} == {"truth"}


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 201, "a\u3164", "a\ufe0f", "\u200b"])
def test_the_name_of_a_set_is_one_of_a_memory_key(name: str) -> None:
    with pytest.raises(ValueError, match="Expected 1 to 200 printable characters, got"):
        load_values({**rows(1.0), "name": name})
    assert "Expected 1 to 200 printable" in lint(yaml.safe_dump({**rows(1.0), "name": name}))[0].what


@pytest.mark.slow
def test_a_thousand_values_are_taken_and_more_are_refused_with_the_bound() -> None:
    start = time.monotonic()
    made = load_values({"name": "t", "values": [{"name": f"v{i}"} for i in range(MOST_VALUES)]})
    found = assess([{"value": v.name, "score": 0.5, "confidence": 1} for v in made.values], made)
    assert (len(made.scored), found.score) == (1000, 8)
    for count in (1001, 10_000):
        content: dict[str, Any] = {"name": "t", "values": [{"name": f"v{i}"} for i in range(count)]}
        words = f"Expected at most 1,000 values, got {count:,}."
        for source in (content, {**content, "values": tuple(content["values"])}):
            with pytest.raises(ValueError, match=words) as refused:
                load_values(source)
            assert len(str(refused.value)) < 1000
    text = yaml.dump({"name": "t", "values": [{"name": f"v{i}"} for i in range(1001)]}, Dumper=yaml.CSafeDumper)
    assert [error.what for error in lint(text)] == ["Expected at most 1,000 values, got 1,001."]
    assert time.monotonic() - start < 60


def test_names_that_come_thousands_of_times_are_counted_in_one_pass() -> None:
    start = time.monotonic()
    (told,) = wrong_names([f"v{i // 2}" for i in range(200_000)])
    assert told.count("'v") == 100_000
    assert time.monotonic() - start < 10


def test_a_copy_with_other_contents_is_checked_and_has_a_fingerprint_of_its_own() -> None:
    values = load_values(rows(0.5, 0.5))
    before = values.fingerprint
    copy = values.model_copy(update={"description": "d"})
    assert copy.fingerprint == load_values({**rows(0.5, 0.5), "description": "d"}).fingerprint != before
    assert values.model_copy() == values
    assert values.model_copy(deep=True).fingerprint == before
    with pytest.raises(ValueError, match="sum to 1"):
        values.model_copy(update={"values": values.values[:1]})
    with pytest.raises(ValueError, match="less than or equal to 1"):
        values.values[0].model_copy(update={"weight": 2})


@given(st.text())
def test_normalising_twice_is_normalising_once(text: str) -> None:
    assert label(label(text)) == label(text)


def test_values_without_a_weight_share_what_is_left() -> None:
    content = {
        "name": "t",
        "values": [{"name": "a", "weight": 0.5}, {"name": "b"}, {"name": "c"}, {"name": "g", "weight": 0}],
    }
    made = load_values(content)
    assert [v.weight for v in made.values] == [0.5, 0.25, 0.25, 0]
    assert [v.name for v in made.gates] == ["g"]


def test_there_must_be_something_to_score() -> None:
    with pytest.raises(ValueError, match="at least one value with a weight above 0"):
        load_values(rows(0.0))


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        ("nowhere", ValueError, r"values: expected one of .*'unesco'.* or a YAML file, got 'nowhere'"),
        (3, TypeError, "values: expected a name, a path, a mapping or a ValueSet, got int"),
        ({"name": "t"}, ValueError, "values"),
        ({"name": "t", "values": "x"}, ValueError, "values"),
        ({**rows(1.0), "colour": 1}, ValueError, "colour"),
        ({**rows(1.0), "forbidden": ["("]}, ValueError, r"Expected regular expressions, got '\('"),
        ({**rows(1.0), "disclaimers": [" "]}, ValueError, "Expected disclaimers with text"),
    ],
)
def test_other_sources_are_refused_by_name(source: object, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        load_values(source)  # type: ignore[arg-type]


def test_a_yaml_file_is_read_and_one_that_is_none_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\nvalues:\n  - {name: Ruhe, weight: 1}\n")
    assert load_values(file) == load_values(str(file))
    for broken in ("a: [", "- 1"):
        file.write_text(broken)
        with pytest.raises(ValueError, match=r"mine\.yaml"):
            load_values(file)


def test_a_set_does_not_change() -> None:
    with pytest.raises(ValidationError):
        load_values("civic").name = "other"  # type: ignore[misc]


def bomb(levels: int) -> str:
    """A few lines that stand for 9 to the power of ``levels`` entries."""
    rows = ["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels + 1))]
    return "\n".join([*rows, "name: bomb", f"description: *a{levels}", "values: [{name: A, weight: 1}]"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: !!python/object/apply:os.system [touch run]", "could not determine a constructor"),
        ("name: !!python/name:os.system", "could not determine a constructor"),
        (bomb(30), "entries after alias expansion"),
        ("name: a\nvalues: &v [*v]", "entries after alias expansion"),
        ("name: " + "[" * 1_000, "nested too deep"),
    ],
    ids=["call", "name", "bomb", "within itself", "deep"],
)
def test_a_strangers_file_runs_nothing_and_takes_no_memory(
    text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=words) as caught:
        load_values("mine.yaml")
    (told,) = lint(text)
    assert words in told.what
    assert len(str(caught.value)) + len(told.what) < 1000
    assert not Path("run").exists()


def test_an_alias_that_stands_for_little_is_filled_in(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: a\nvalues:\n- {name: x, vetoes: &v [q]}\n- {name: y, vetoes: *v}")
    assert [value.vetoes for value in load_values(file).values] == [("q",), ("q",)]


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "values.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"values: '.*values\.yaml' is not YAML: 'utf-8' codec"):
        load_values(tmp_path / "values.yaml")
